"""Scores by frequency: they add up to the scores, and only distances count."""

import jax.numpy as jnp
import numpy as np
import pytest
from float64_network import Float64Network
from small_models import cases, small_model

from gptj_lab.lens import rotary
from gptj_lab.lens.rotary import frequencies, rotary_scores, shift_difference

PROMPT = "the cat sat on the mat, and the dog"
MODELS = cases("gptj", "gpt_neox", slow=["codegen", ("gptj", "int8", 1, 4)])


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return small_model(*request.param)


def test_shares_are_those_of_float64_and_add_up_to_the_scores(model):
    found = rotary_scores(model, PROMPT, 1, 2)
    oracle = Float64Network(model).run(model.tokenizer.encode(PROMPT))
    q, k = oracle.q[1][:, 2], oracle.k[1][:, 2]
    np.testing.assert_allclose(found.total, oracle.scores[1][2], atol=2e-5)
    pairs = model.config.d_rotary // 2
    for pair in range(pairs):
        interleaved = model.config.positions == "rotary_interleaved"
        both = [2 * pair, 2 * pair + 1] if interleaved else [pair, pair + pairs]
        expected = q[:, both] @ k[:, both].T / np.sqrt(8)
        np.testing.assert_allclose(found.pairs[pair], expected, atol=2e-5)
    rest = q[:, 2 * pairs :] @ k[:, 2 * pairs :].T / np.sqrt(8)
    np.testing.assert_allclose(found.rest, rest, atol=2e-5)


def test_a_shift_of_all_positions_leaves_scores_alone(model):
    found = rotary_scores(model, PROMPT, 0, 1)
    for shift in (1, 30, 1000):
        assert shift_difference(found, model.config, shift) < 1e-4 * np.abs(found.total).max()
    ids = np.asarray([model.tokenizer.encode(PROMPT)])
    if model.mesh is None:
        here, there = (
            model.network(ids, positions=jnp.arange(ids.shape[1])[None] + shift)[0]
            for shift in (0, 20)
        )
        np.testing.assert_allclose(here, there, atol=1e-4)


def test_only_keys_turned_does_change_scores(model):
    found = rotary_scores(model, PROMPT, 0, 1)
    places = np.arange(len(found.tokens))
    q = rotary.turned(found.queries, places, model.config)
    k = rotary.turned(found.keys, places + 3, model.config)
    assert np.abs(found.factor * (q @ k.T) - found.total).max() > 0.01


def test_a_curve_goes_through_the_scores_and_repeats_after_its_wavelength(model):
    found = rotary_scores(model, PROMPT, 1, 0)
    query, key = 7, 3
    parts = np.concatenate([found.pairs[:, query, key], found.rest[[query], key]])
    np.testing.assert_allclose(found.curve(query, key)[:, query - key], parts, atol=2e-5)
    turn = found.wavelengths[0]
    later = found.curve(query, key, np.array([2.0, 2.0 + turn, 2.0 + 5 * turn]))[0]
    np.testing.assert_allclose(later, later[0], atol=1e-4)
    assert (found.curve(-1, 0)[-1] == found.curve(-1, 0)[-1, 0]).all()  # the rest never turns
    # The same two tokens elsewhere: what the network's own rotation gives at that distance.
    moved = rotary.turned(found.queries[[query]], np.array([11]), model.config)
    score = found.factor * (moved @ found.keys[key])
    np.testing.assert_allclose(found.curve(query, key, np.array([11])).sum(), score[0], atol=2e-5)


def test_by_distance_is_the_mean_along_diagonals(model):
    found = rotary_scores(model, PROMPT, 1, 3)
    seq, parts = len(found.tokens), found.by_distance()
    assert parts.shape == (len(found.frequencies) + 1, seq)
    for distance in (0, 2, seq - 1):
        along = [found.total[i, i - distance] for i in range(distance, seq)]
        np.testing.assert_allclose(parts[:, distance].sum(), np.mean(along), atol=1e-5)
    assert "not rotated" in repr(found)


def test_frequencies_are_those_of_su_and_others():
    config = small_model("gpt_neox").config
    np.testing.assert_allclose(frequencies(config), [1, 10000 ** (-2 / 6), 10000 ** (-4 / 6)], 1e-6)


@pytest.mark.parametrize(
    ("family", "layer", "head", "said"),
    [
        ("gpt2", 0, 0, "GPT-2's positions are learned"),
        ("gpt_neo", 0, 0, "no dimension is rotated"),
        ("gptj", 5, 0, "layer is 5"),
        ("gptj", 0, 4, "head is 4"),
    ],
)
def test_what_is_not_there_is_refused(family, layer, head, said):
    with pytest.raises(ValueError, match=said):
        rotary_scores(small_model(family), PROMPT, layer, head)


def test_a_curve_of_a_token_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="position is 50"):
        rotary_scores(small_model("gptj"), PROMPT, 0, 0).curve(50, 0)
