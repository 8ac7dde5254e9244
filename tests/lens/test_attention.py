"""Scores of patterns: against loops in float64, and patterns whose scores are known."""

import numpy as np
import pytest

from gptj_lab.lens import attention

IDS = np.array([5, 1, 2, 5, 1, 2, 7, 5], np.int32)
SEQ = len(IDS)


def patterns(seed=0, lead=(2, 3)):
    scores = np.random.default_rng(seed).normal(size=(*lead, SEQ, SEQ))
    weights = np.exp(2 * scores) * np.tril(np.ones((SEQ, SEQ)))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def hard(key_of):
    """The pattern [1, seq, seq] of a head that reads one token, key_of(query)."""
    pattern = np.zeros((1, SEQ, SEQ), np.float32)
    for query in range(SEQ):
        pattern[0, query, key_of(query)] = 1
    return pattern


def by_loops(pattern, score):
    """The mean of score(row, query) over the queries for which it isn't None."""
    values = [score(pattern[..., query, :].astype(float), query) for query in range(SEQ)]
    return np.mean([value for value in values if value is not None], axis=0)


def entropy(row, query):
    if query:
        return -sum(row[..., k] * np.log(row[..., k]) for k in range(query + 1))


def copies(row, query, shift):
    keys = [key + shift for key in range(query) if IDS[key] == IDS[query]]
    if keys:
        return sum(row[..., key] for key in keys)


SCORES = {
    "entropy": (attention.entropy, entropy),
    "sink_mass": (attention.sink_mass, lambda row, q: row[..., 0] if q else None),
    "previous": (attention.previous_token_score, lambda row, q: row[..., q - 1] if q else None),
    "duplicate": (
        lambda pattern, **more: attention.duplicate_token_score(pattern, IDS, **more),
        lambda row, q: copies(row, q, 0),
    ),
    "induction": (
        lambda pattern, **more: attention.induction_score(pattern, IDS, **more),
        lambda row, q: copies(row, q, 1),
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_loops_in_float64(name):
    ours, slow = SCORES[name]
    pattern = patterns()
    np.testing.assert_allclose(ours(pattern), by_loops(pattern, slow), atol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_queries_that_do_not_count_do_not_matter(name):
    ours, slow = SCORES[name]
    queries, pattern = np.arange(SEQ) < 6, patterns()
    expected = by_loops(pattern, lambda row, q: slow(row, q) if q < 6 else None)
    pattern[..., 6:, :] = np.nan
    np.testing.assert_allclose(ours(pattern, queries=queries), expected, atol=1e-6)


def test_heads_of_a_kind_score_one_and_others_nothing():
    def copy_of(query, shift):
        keys = [key for key in range(query) if IDS[key] == IDS[query]]
        return keys[-1] + shift if keys else 0

    previous = hard(lambda query: max(query - 1, 0))
    duplicate, induction = hard(lambda q: copy_of(q, 0)), hard(lambda q: copy_of(q, 1))
    assert attention.previous_token_score(previous) == 1
    assert attention.duplicate_token_score(duplicate, IDS) == 1
    assert attention.induction_score(induction, IDS) == 1
    assert attention.induction_score(duplicate, IDS) == 0
    assert attention.duplicate_token_score(induction, IDS) == 0
    assert attention.sink_mass(hard(lambda query: 0)) == 1
    assert attention.entropy(previous) == 0


def test_an_even_reader_has_the_entropy_of_its_length():
    even = np.tril(np.ones((1, SEQ, SEQ), np.float32)) / np.arange(1, SEQ + 1)[:, None]
    found = attention.entropy_of_queries(even.astype(np.float32))
    np.testing.assert_allclose(found[0], np.log(np.arange(1, SEQ + 1)), atol=1e-6)


def test_what_a_text_does_not_have_is_nan():
    different = np.arange(SEQ, dtype=np.int32)
    assert np.isnan(attention.induction_score(patterns(), different)).all()
    assert np.isnan(attention.entropy(patterns()[..., :1, :1])).all()


@pytest.mark.parametrize("sinks", [1, 2])
def test_without_the_sink_the_rest_keeps_its_proportions(sinks):
    pattern = patterns()
    rest = np.asarray(attention.without_sink(pattern, sinks))
    assert not rest[..., :sinks].any() and not rest[..., :sinks, :].any()
    np.testing.assert_allclose(rest[..., sinks:, :].sum(-1), 1, rtol=1e-6)
    part = pattern[..., sinks:, sinks:]
    np.testing.assert_allclose(
        rest[..., sinks:, sinks:], part / part.sum(-1, keepdims=True), atol=1e-6
    )
    assert (attention.without_sink(hard(lambda query: 0)) == 0).all()
    np.testing.assert_allclose(
        attention.sink_mass(pattern, sinks=sinks),
        pattern[..., 1:, :sinks].sum(-1).mean(-1), atol=1e-6,
    )  # fmt: skip


def test_rollout_is_the_product_of_mean_and_own():
    pattern = patterns()
    found = np.asarray(attention.rollout(pattern))
    first, second = (pattern.astype(float).mean(1) + np.eye(SEQ)) / 2
    np.testing.assert_allclose(found[0], first, atol=1e-6)
    np.testing.assert_allclose(found[1], second @ first, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert not np.triu(found, 1).any()
