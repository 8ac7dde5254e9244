"""Steering: the direction is a difference of means, and a steered model is one steered pass."""

import numpy as np
import pytest
from small_models import small_model

from gptj_lab.lens import steering
from gptj_lab.lens.interventions import Interventions, run

IDS = [7, 40, 41, 99, 43, 44, 45, 46, 47]


@pytest.fixture(
    scope="module", params=[("gptj", "float32", {}), ("gpt2", "int8", {"data": 2, "model": 4})]
)
def model(request):
    family, weights, mesh = request.param
    return small_model(family, weights, num_layers=2, **mesh)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj", num_layers=2)


def test_a_direction_is_the_difference_of_mean_values(gptj):
    def value(ids, site="blocks.1.resid_post"):
        return run(gptj, ids, sites=[site])[1][site].astype(np.float64)

    towards, away = [IDS, IDS[:4], IDS[::-1]], [IDS[2:]]
    last = steering.direction(gptj, towards, away, 1)
    expected = np.mean([value(ids)[-1] for ids in towards], 0) - value(away[0])[-1]
    np.testing.assert_allclose(last, expected, atol=1e-5)
    whole = steering.direction(gptj, towards, away, 1, position=None)
    expected = np.mean([value(ids).mean(0) for ids in towards], 0) - value(away[0]).mean(0)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    assert (steering.direction(gptj, "the cat", "the cat", 0, "attn.z") == 0).all()
    assert steering.direction(gptj, "the cat", "a dog", 0, "embed").shape == (32,)


def test_a_steered_model_is_one_steered_forward_pass_and_leaves_the_model_alone(model, tolerance):
    vector = np.linspace(-1, 1, 32).astype(np.float32)
    before, _ = run(model, IDS)
    leaning = steering.steered(model, vector, 1, 2.0)
    steer = Interventions.none(model, len(IDS)).steer("resid_post", 1, vector, 2.0)
    once, _ = run(model, IDS, steer)
    np.testing.assert_allclose(
        run(leaning, IDS)[0], once, atol=2 * tolerance["float32"] * abs(once).max()
    )
    assert abs(once - before).max() > 0.1
    assert (run(model, IDS)[0] == before).all()
    shared = leaning.network.embed[...], model.network.embed[...]
    assert shared[0] is shared[1] and leaning.mesh is model.mesh


def test_generating_is_the_steered_models(gptj):
    unembedding = gptj.network.embed if gptj.network.head is None else gptj.network.head.weight
    row = np.asarray(unembedding[...], np.float32)[65]
    gain = np.asarray(gptj.network.final_ln.scale[...])
    done = steering.generate(
        gptj, "the cat", row * np.sign(gain), 1, 1e3, max_new_tokens=3, temperature=0.0
    )[0]
    plain = gptj.generate("the cat", max_new_tokens=3, temperature=0.0)[0]
    steered = steering.steered(gptj, row * np.sign(gain), 1, 1e3)
    last = np.asarray(steered.logits([[5, 6]]))[0, -1]
    assert list(done.token_ids) == [int(last.argmax())] * 3 != list(plain.token_ids)


REFUSED = {
    "layer": (lambda m: steering.steered(m, np.ones(32), 2), "layer 2 is out of range"),
    "width": (lambda m: steering.steered(m, np.ones(31), 1), r"shape \(31,\): \[32\]"),
    "nan": (lambda m: steering.steered(m, np.full(32, np.nan), 1), "holds NaN"),
    "none": (lambda m: steering.direction(m, [], ["a"], 1), "at least one prompt"),
    "site": (lambda m: steering.direction(m, "a", "a", 1, "resid"), "nearest are"),
    "no layer": (lambda m: steering.direction(m, "a", "a", -1), "layer -1 is out of range"),
    "position": (lambda m: steering.direction(m, "the cat", "a", 1, position=7), "position 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(gptj, case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        make(gptj)
