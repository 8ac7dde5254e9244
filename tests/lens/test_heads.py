"""Scores of heads: those of the traced patterns, on every kind of model; what is refused."""

import numpy as np
import pytest
from small_models import FAMILIES, small_model

from gptj_lab.lens import attention, heads
from gptj_lab.lens.trace import Trace

PROMPT = "the cat sat on the cat, and the dog on the cat"
MODELS = [("gptj",), ("gpt_neo", "int8", 2, 2)]
SLOW = [(family,) for family in FAMILIES[1:]]


@pytest.mark.parametrize(
    "case", [*MODELS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_scores_are_those_of_the_traced_patterns(case):
    trace = small_model(*case).trace(PROMPT)
    found, pattern, ids = heads.scores(trace), trace.stacked("attn.pattern"), trace.token_ids
    expected = {
        "entropy": attention.entropy(pattern),
        "sink_mass": attention.sink_mass(pattern),
        "previous_token": attention.previous_token_score(pattern),
        "duplicate_token": attention.duplicate_token_score(pattern, ids),
        "induction": attention.induction_score(pattern, ids),
    }
    assert tuple(found) == heads.SCORES == tuple(expected)
    for name, value in expected.items():
        assert found[name].shape == (3, 4) and not np.isnan(found[name]).any()
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


def test_other_texts_of_the_bucket_compile_nothing():
    model = small_model("gptj")
    heads.scores(model.trace(PROMPT))
    before = heads._scores._cache_size()
    heads.scores(model.trace(PROMPT[4:]))
    assert heads._scores._cache_size() == before


def test_repeats_are_two_equal_halves_of_different_tokens():
    model = small_model("gptj")
    ids = heads.repeated_tokens(model, 20, seed=3)
    assert ids.shape == (40,) and (ids[:20] == ids[20:]).all() and len(set(ids)) == 20
    assert (ids != heads.repeated_tokens(model, 20, seed=4)).any()
    assert ids.max() < model.tokenizer.vocab_size  # no row of the embedding without a token


def test_scores_on_repeats_are_means_of_texts():
    model = small_model("gptj")
    found = heads.scores_on_repeats(model, 8, samples=2, seed=5)
    each = [heads.scores(model.trace(heads.repeated_tokens(model, 8, seed))) for seed in (5, 6)]
    for name in heads.SCORES:
        np.testing.assert_allclose(found[name], (each[0][name] + each[1][name]) / 2, atol=1e-6)


def test_the_stripe_is_the_induction_score():
    """On repeats of n different tokens, induction is the diagonal n - 1 tokens back."""
    model = small_model("gptj")
    trace = model.trace(heads.repeated_tokens(model, 8))
    stripe = np.diagonal(trace.stacked("attn.pattern"), offset=-7, axis1=-2, axis2=-1)
    # Its first element belongs to the query n - 1, whose token wasn't there before.
    expected = stripe[..., 1:].mean(-1)
    np.testing.assert_allclose(heads.scores(trace)["induction"], expected, atol=1e-6)


def test_the_strongest_heads():
    scores = {"induction": np.array([[0.1, np.nan], [0.7, 0.2]], np.float32)}
    found = heads.strongest(scores, "induction", 5)
    assert [(layer, head) for layer, head, _ in found] == [(1, 0), (1, 1), (0, 0)]
    with pytest.raises(ValueError, match="no score 'sink': one of induction"):
        heads.strongest(scores, "sink")


@pytest.mark.parametrize("length", [1, 33])
def test_repeats_that_do_not_fit(length):
    with pytest.raises(ValueError, match=f"length is {length}: 2 to 32 tokens"):
        heads.repeated_tokens(small_model("gptj"), length)
    with pytest.raises(ValueError, match="samples is 0"):
        heads.scores_on_repeats(small_model("gptj"), samples=0)


def test_a_trace_without_its_model(tmp_path):
    small_model("gptj").trace(PROMPT).save(tmp_path / "it")
    with pytest.raises(ValueError, match="loaded without its model"):
        heads.scores(Trace.load(tmp_path / "it"))
