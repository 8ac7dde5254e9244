"""Notebook 12's checks: right answers pass, the usual wrong ones are told what they are."""

import numpy as np
import pytest

from gptj_lab.lens import heads
from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.lessons import induction

STEPS = np.arange(0, 100, 10)
FALL = np.array([3.9, 3.6, 3.6, 3.5, 3.4, 2.0, 0.4, 0.3, 0.3, 0.3])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "Replace None"),
        (50, "within 20 of 90 steps the loss on the repeat goes from 3.40 to 0.40"),
        (45.5, "^Right"),
        (10, "at step 10 .* 3.60 nats, still on the plateau"),
        (90, "it has fallen by then"),
        (300, "from 0 to 90 is needed"),
        ("early", "from 0 to 90 is needed"),
    ],
)
def test_phase_change(answer, said, match_verdict):
    match_verdict(induction.phase_change(answer, STEPS, FALL), said)


@pytest.fixture
def match_verdict():
    import re

    def check(verdict, said):
        assert re.search(said, repr(verdict)), verdict
        right = repr(verdict).startswith("Right: ")
        assert verdict.passed == right and (right or re.match("Not yet: |Replace", repr(verdict)))

    return check


def test_loss_on_repeats_is_that_of_the_second_time(tiny_model):
    ids = heads.repeated_tokens(tiny_model, 6, seed=0)
    logits = np.asarray(tiny_model.logits(ids[None])[0], np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), np.roll(ids, -1)]
    found = induction.loss_on_repeats(tiny_model, length=6, samples=1)
    assert found == pytest.approx(nats[6:11].mean(), abs=1e-5)
    edits = Interventions.none(tiny_model, 12).ablate_head(1, 2)
    changed = np.asarray(run(tiny_model, ids.tolist(), edits)[0], np.float64)
    nats = np.log(np.exp(changed).sum(-1)) - changed[np.arange(12), np.roll(ids, -1)]
    found = induction.loss_on_repeats(tiny_model, [(1, 2)], length=6, samples=1)
    assert found == pytest.approx(nats[6:11].mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "above", "said"),
    [
        (None, 1.5, "Replace None"),
        ([(0, 0), (1, 1)], 0.0, "^Right: without them the loss on the repeat is"),
        ([(0, 0)], 99.0, "which head finds the place"),
        ([(0, 0), (0, 1), (1, 1)], 0.0, "at most 2 are allowed"),
        ([(5, 0)], 0.0, "no layer 5 head 0"),
        (["ab"], 0.0, "whole numbers are needed"),
        (7, 0.0, "whole numbers are needed"),
    ],
)
def test_breaking_heads(answer, above, said, tiny_model, match_verdict):
    match_verdict(induction.breaking_heads(answer, tiny_model, above=above), said)


def rule(ids):
    last, answers = {}, []
    for place, token in enumerate(ids):
        answers.append(ids[last[token] + 1] if token in last else -1)
        last[token] = place
    return answers


def earliest(ids):
    found = [np.flatnonzero(ids[:i] == ids[i]) for i in range(len(ids))]
    return [ids[each[0] + 1] if len(each) else -1 for each in found]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (rule, "^Right: and on repeats the network names the same token as your rule in"),
        (lambda ids: None, "returns nothing"),
        (lambda ids: ids[:-1], "shape"),
        (earliest, "is it the latest copy"),
        (lambda ids: np.zeros(len(ids)), "should be -1"),
        (lambda ids: np.where(np.equal(rule(ids), -1), -1, np.append(ids[1:], -1)), "nobody has"),
        (lambda ids: np.where(np.equal(rule(ids), -1), -1, ids), "what came AFTER"),
    ],
)
def test_copying(function, said, tiny_model, match_verdict):
    match_verdict(induction.copying(function, tiny_model), said)
