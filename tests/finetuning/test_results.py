"""The result of a run is written somewhere: what fails is told, and costs no work."""

import errno
import json
import os
import random
import re
import shutil

import jax
import numpy as np
import pytest

import gptj_lab
from gptj_lab import cli
from gptj_lab.checkpoints import folder_lock
from gptj_lab.finetuning import export, measuring, model_card, recording, results
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("corpora")

IDS = np.arange(8)[None]
TEXT = [{"text": "the cat sat on the mat, and the dog sat on the log " * 3} for _ in range(12)]


def tune(model, **settings):
    settings = dict(
        method=gptj_lab.LoRA(rank=2), steps=4, batch=2, context=16, held_out=0.2, evaluate_every=2,
        say=lambda line: None,
    ) | settings  # fmt: skip
    return gptj_lab.finetune(model, TEXT, **settings)


class Ended:
    """What `results.save` asks of a run; `write` fails where the test says so."""

    weights_step, model = 4, "last"

    def __init__(self, fails):
        self.fails, self.written = fails, []

    def best_state(self):
        raise ValueError("nothing was held out")

    def write(self, model, place):
        if self.fails(place):
            raise OSError("No space left")
        self.written.append((model, place))


def test_the_last_is_saved_where_the_best_can_not_be_had(tmp_path):
    run, said = Ended(lambda place: False), []
    place, step = results.save(run, tmp_path / "result", best=True, say=said.append)
    assert (place, step) == (tmp_path / "result", 4) and run.written == [("last", place)]
    assert "so the last is saved: nothing was held out" in said[0]


def test_another_folder_is_taken_where_the_first_can_not_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, said = Ended(lambda place: place.name == "result"), []
    place, _ = results.save(run, tmp_path / "out" / "result", say=said.append)
    assert place.parent == tmp_path and place.name.startswith("out-result-")
    assert "can't be written to" in said[0] and "No space left" in said[0]
    with pytest.raises(OSError, match="could not be written anywhere"):
        results.save(Ended(lambda place: True), tmp_path / "out" / "result", say=said.append)


def test_older_states_make_room(model, tmp_path):
    run = tune(model, out=tmp_path / "out", save_every=1)
    states = tmp_path / "out" / "states"
    before = len(list(states.glob("step_*")))
    assert before > 1
    full = Ended(lambda place: len(list(states.glob("step_*"))) > 1)
    place, _ = results.save(full, tmp_path / "out" / "result", say=lambda line: None)
    assert place == tmp_path / "out" / "result"
    assert [path.name for path in states.glob("step_*")] == ["step_4"] and run.step == 4


@pytest.mark.slow
def test_a_disk_too_full_for_a_state_holds_the_adapter(
    quick_compiles, tiny_config, tiny_tokenizer, small_disk, tmp_path, capsys
):
    config = tiny_config(num_layers=2, vocab_size=300, d_model=128, d_ff=512)
    network = Transformer(config, key=jax.random.key(1))
    base = LanguageModel(config, network, tiny_tokenizer, "base")
    base.save(tmp_path / "base")
    draw, text = random.Random(0), tmp_path / "text.jsonl"
    words = "the cat dog sat on a mat log and do".split()
    rows = [{"text": " ".join(draw.choices(words, k=24))} for _ in range(40)]
    text.write_text("\n".join(map(json.dumps, rows)))
    out = small_disk / "out"
    arguments = [
        "finetune", str(text), "--out", str(out), "--model", str(tmp_path / "base"), "--batch",
        "2", "--context", "16", "--steps", "2", "--rank", "64", "--targets", "q,k,v,out",
        "--best", "--held-out", "0.2",
    ]  # fmt: skip
    assert cli.main(arguments) == 1
    said = capsys.readouterr().out
    assert "could not be saved" in said and f"is in {out / 'result'}" in said
    assert not list((out / "states").glob("step_*"))
    loaded = export.load_adapter(base, out / "result")
    assert not np.allclose(loaded.logits(IDS), base.logits(IDS), atol=1e-4)


def test_a_folder_that_goes_away_costs_nothing(model, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def remove(line):
        if line.startswith("step 4"):
            shutil.rmtree(out)

    run = tune(model, out=out, say=remove)
    assert run.step == 4
    place, step = results.save(run, out / "result", best=True, say=lambda line: None)
    assert place == out / "result" and step == 4
    loaded = export.load_adapter(model, place)
    assert np.allclose(loaded.logits(IDS), run.model.logits(IDS), atol=1e-5)


def test_samples_that_fail_and_listeners_that_go_cost_nothing(model, monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory")

    def gone(line):
        raise BrokenPipeError

    monkeypatch.setattr(measuring.Measuring, "samples", fails)
    run = tune(model, prompts="the cat", say=gone)
    assert run.status == "finished" and run.step == 4
    assert "the samples could not be made (RESOURCE_EXHAUSTED" in " ".join(run.notes)


def test_a_card_that_fails_keeps_nothing_from_the_hub(model, monkeypatch):
    def fails(*_):
        raise KeyError("best")

    monkeypatch.setattr(model_card, "_losses", fails)
    pushed = tune(model).push("someone/name", dry_run=True)
    assert "adapter_model.safetensors" in pushed.files
    assert "Of the run nothing could be told (KeyError)" in pushed.card


def test_a_file_where_the_result_should_be_is_refused_before_anything(tmp_path, capsys):
    (tmp_path / "result").write_text("mine")
    assert cli.main(["finetune", "nothing.txt", "--out", str(tmp_path)]) == 2
    assert "move it away" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir() if file.name != "corpora"] == ["result"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EROFS, "out can't be written (Read-only file system): name a folder that you may"),
        (errno.ENOSPC, "out can't be written (No space left on device): free some space, or name"),
    ],
)
@pytest.mark.parametrize("where", ["folder_lock.take", "recording._replace"])
def test_a_folder_that_cannot_be_written_is_told_with_the_fix(
    where, code, said, model, tmp_path, monkeypatch
):
    def fails(path, *_):
        raise OSError(code, os.strerror(code), str(path))

    module, name = where.split(".")
    monkeypatch.setattr({"folder_lock": folder_lock, "recording": recording}[module], name, fails)
    with pytest.raises(OSError, match=re.escape(said)) as told:
        tune(model, out=tmp_path / "out")
    assert told.value.errno == code
