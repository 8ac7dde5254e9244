"""The doctor's sentences and numbers: what a text becomes, before a run starts."""

import json

import numpy as np
import pytest

from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import Tokenizer, train_bpe

NOUNS = [a + b for a in "bcdfglmnprst" for b in ("ald", "orn", "ip", "usk", "emma", "ivo")]


def words(seed, length=60):
    return " ".join(np.random.default_rng(seed).choice(NOUNS, length))


@pytest.fixture
def prepare(tmp_path):
    tokenizer = train_bpe([words(seed) for seed in range(30)], 400)

    def make(sources, **settings):
        settings = dict(tokenizer=tokenizer, context=64, cache=tmp_path / "cache") | settings
        return corpus.prepare(sources, **settings)

    return make


def test_a_text_shorter_than_a_window_is_announced(prepare):
    text = "word" + " word" * 1011
    found = prepare(text, tokenizer=Tokenizer.gpt2(), context=2048)
    said = found.doctor(steps=100, batch=2).sentences
    assert said[0] == "1,012 tokens: one window of 2,048 to train on, seen 200 times."
    assert "learnt by heart" in said[1]
    assert any(line.startswith("51% of the windows is padding.") for line in said)
    assert found.doctor().sentences[0] == "1,012 tokens: one window of 2,048 to train on."


def test_a_run_that_sees_a_part_of_the_text_is_told_how_much(prepare):
    found = prepare("\n".join(words(seed) for seed in range(100)))
    said = found.doctor(steps=3, batch=2).sentences
    assert said[0].endswith(f"{len(found.train)} windows of 64 to train on, 6 of them seen.")
    # A held-out part in the middle leaves several stretches of one document.
    assert len(found.train.units) > 1
    tokens = found.train.units.size.sum()
    assert f"1 document longer than a window (the longest {tokens:,} tokens) is cut" in str(
        found.doctor()
    )


def test_numbers_are_those_of_the_text(prepare):
    texts = [words(seed, 5 + seed) for seed in range(100)]
    found = prepare(texts, held_out=0.1)
    report, tokenizer = found.doctor(), found.tokenizer
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert report.documents == 100 and report.tokens == sum(lengths)
    assert report.bytes == sum(len(text.encode()) for text in texts)
    assert report.train_windows == len(found.train) and report.context == 64
    assert report.held_out_windows == len(found.held_out)
    low = 0
    for edge, count in zip(report.length_edges, report.length_counts, strict=True):
        assert count == sum(low < length <= edge for length in lengths)
        low = edge
    assert sum(report.length_counts) == 100
    batch = found.train.batch(np.arange(len(found.train)))
    assert report.padding == pytest.approx(1 - batch.weights.mean(), abs=1e-6)
    assert report.windows[0] == np.bincount(batch.segments[0])[1:].tolist()
    assert report.trained == 1


def test_copies_near_copies_and_what_reading_found_are_said(prepare, tmp_path):
    rows = [words(seed, 200) for seed in range(20)]
    near = " ".join([*rows[0].split()[:-2], "other", "end"])
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text}) for text in [*rows, rows[1], rows[2].upper(), near]]
    path.write_text("\n".join([*lines, '{"text": "cut']))
    said = str(prepare(path).doctor())
    assert "2 documents say the words of another once more" in said
    assert "1 document nearly repeats another" in said
    assert '1 x a line left out, not JSON: rows.jsonl line 24 \'{"text": "cut\'.' in said


def test_a_text_that_the_tokenizer_hardly_knows_is_said(prepare):
    said = str(prepare("Жили-были дед да баба. " * 50).doctor())
    assert "bytes of this text, where English has about 4" in said
    assert "hardly knows" not in str(prepare(words(0)).doctor())


def test_long_documents_and_answers_are_counted(prepare):
    rows = [{"prompt": words(seed, 200), "completion": words(seed + 500, 100)} for seed in range(4)]
    report = prepare(rows).doctor()
    assert report.trained == pytest.approx(1 / 3, abs=0.05)
    assert "4 documents longer than a window" in str(report)
    assert "cut into several, none of it lost" in str(report)
