"""The texts that ship: where they are found, what they hold, and what they become."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gptj_lab
from gptj_lab.finetuning import corpus, samples

ROOT = Path(__file__).parents[2]


def test_every_file_is_found_by_its_name_and_told_of_in_the_readme():
    readme = (ROOT / "data" / "samples" / "README.md").read_text("utf-8")
    assert samples.names() == ["king_james.txt", "sea_captain.jsonl"]
    for name in samples.names():
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {samples.path(name).stat().st_size:,} |" in row


@pytest.mark.parametrize("name", ["psalms.txt", "../pocket/config.json", "README.md", ""])
def test_another_name_is_refused_with_those_that_are_there(name):
    with pytest.raises(FileNotFoundError, match=r"king_james\.txt, sea_captain\.jsonl"):
        samples.path(name)


def test_a_wheel_brings_them_where_they_are_sought():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert ROOT / "gptj_lab" / "samples" in samples.FOLDERS
    assert brought["data/samples"] == "gptj_lab/samples"


def test_the_king_james_text_is_verses_and_nothing_else():
    text = samples.path("king_james.txt").read_text("ascii")
    chapters = text.removesuffix("\n").split("\n\n")
    assert len(chapters) == 50 + 12 + 4 + 4
    verses = [verse for chapter in chapters for verse in chapter.split("\n")]
    assert len(verses) == 1533 + 222 + 85 + 48  # of Genesis, Ecclesiastes, Ruth, Jonah
    assert text.startswith("In the beginning God created the heaven and the earth.\n")
    assert all(verse == verse.strip() and verse[0].isupper() for verse in verses if verse[0] != "(")
    assert not set(text) & set("0123456789[]{}<>*|_\t")


def test_the_captains_rows_are_learnt_by_their_answers(tmp_path):
    rows = [json.loads(line) for line in samples.path("sea_captain.jsonl").open("rb")]
    assert len(rows) == 40 and len({row["prompt"] for row in rows}) == 40
    for row in rows:
        assert row["prompt"].strip() == row["prompt"] and row["prompt"][-1] in "?."
        assert row["completion"].strip() == row["completion"]
    tokenizer = gptj_lab.load().tokenizer
    found = corpus.prepare(
        samples.path("sea_captain.jsonl"), tokenizer, context=128, held_out=0, cache=tmp_path
    )
    weights = found.train.batch(np.arange(len(found.train))).weights.sum()
    answers = (tokenizer.encode(f"\nAnswer: {row['completion']}") for row in rows)
    assert weights == sum(len(answer) + 1 for answer in answers)  # <|endoftext|>
    assert found.template is not None and found.template.name == "plain"
