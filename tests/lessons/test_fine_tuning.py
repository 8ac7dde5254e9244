"""Notebook 15's checks and measure: right answers pass, the usual wrong ones are told."""

import re

import numpy as np
import pytest

from gptj_lab import presets
from gptj_lab.lessons import fine_tuning


def check(verdict, said):
    assert re.search(said, repr(verdict)), verdict
    assert verdict.passed == said.startswith("^Right")


def test_nats_are_those_of_each_token_in_its_window(tiny_model):
    text = "the cat sat on the mat, and the dog sat on the log; cats do. " * 2
    ids = [tiny_model.tokenizer.end_of_text_id, *tiny_model.tokenizer.encode(text)]
    nats = []
    for place in range(1, len(ids)):
        first = (place - 1) // 8 * 8
        row = (ids[first:place] + 8 * [1])[:8]  # what follows doesn't matter
        logits = np.asarray(tiny_model.logits([row])[0, place - 1 - first], np.float64)
        nats.append(np.log(np.exp(logits).sum()) - logits[ids[place]])
    assert len(ids) > 17  # several windows, the last one short
    found = fine_tuning.nats_a_token(tiny_model, text, context=8)
    assert found == pytest.approx(np.mean(nats), abs=1e-5)
    with pytest.raises(ValueError, match="nothing to measure"):
        fine_tuning.nats_a_token(tiny_model, "")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, w, a, b, alpha: x @ w.T + alpha / len(a) * x @ a.T @ b.T, "^Right"),
        (lambda x, w, a, b, alpha: x @ (w + alpha / len(a) * b @ a).T, "^Right"),
        (lambda x, w, a, b, alpha: None, "returns nothing"),
        (lambda x, w, a, b, alpha: x @ w.T, "adapter's part is missing"),
        (lambda x, w, a, b, alpha: alpha / len(a) * x @ a.T @ b.T, "own part is missing"),
        (lambda x, w, a, b, alpha: x @ w.T + x @ a.T @ b.T, "has to be multiplied"),
        (lambda x, w, a, b, alpha: x @ w.T + alpha * x @ a.T @ b.T, "not by alpha"),
        (lambda x, w, a, b, alpha: x @ w.T + alpha * len(a) * x @ a.T @ b.T, "number of a's rows"),
        (lambda x, w, a, b, alpha: x @ a.T, r"shape \(5, 2\)"),
        (lambda x, w, a, b, alpha: 2 * x @ w.T, "off at most"),
    ],
)
def test_low_rank(function, said):
    check(fine_tuning.low_rank(function), said)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (28 * 2 * 2 * 16 * 4096, "^Right: 7,340,032 numbers, 0.12% of 6,050,882,784"),
        (None, "Replace None"),
        ("many", "number of numbers"),
        (28 * 2 * 16 * 4096, "that is half of it"),
        (2 * 2 * 16 * 4096, "that is one block"),
        (28 * 2 * 4096 * 4096, "matrices themselves"),
        (100, "times it"),
    ],
)
def test_trained_numbers(answer, said):
    check(fine_tuning.trained_numbers(answer, presets.named("gpt-j-6b")), said)


def test_trained_numbers_are_what_lora_has(tiny_model):
    from gptj_lab.finetuning import lora

    counted = lora.trainable(lora.adapted(tiny_model, lora.LoRA(rank=3)))
    check(fine_tuning.trained_numbers(counted, tiny_model.config, rank=3), "^Right")
    for wrong in (float("inf"), float("nan"), 0, "many"):
        check(fine_tuning.trained_numbers(wrong, tiny_model.config), "a number of numbers")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (2.5, "^Right: 2,560 of 1,024 tokens, 2.5 times"),
        (2.55, "^Right"),
        (None, "Replace None"),
        ("twice", "a number is needed"),
        (2.5 / 128, "row of a step"),
        (2.5 / 4, "batch"),
        (1 / 2.5, "other way round"),
        (7, "2.8 times it"),
    ],
)
def test_times_seen(answer, said):
    check(fine_tuning.times_seen(answer, 5, 4, 128, 1024), said)
