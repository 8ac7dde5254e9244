"""Two prompts and two models: nothing where they are equal, float64's figures where not."""

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import cases, changed, small_model

from gptj_lab.lens import comparing
from gptj_lab.lens.comparing import compare_models, compare_prompts, jensen_shannon_distance

PROMPT, OTHER = "the cat sat on the mat", "the dog sat on the mat"


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def logprobs_of(oracle):
    shifted = oracle.logits - oracle.logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def distance(p, q):
    """The root of the Jensen-Shannon divergence in bits, from entropies."""

    def entropy(x):
        return -(x * np.log2(np.where(x > 0, x, 1))).sum(-1)

    return np.sqrt(np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0))


def check(found, model, other):
    one, two = Float64Network(model), Float64Network(other)
    one.run(found.token_ids), two.run(found.other_token_ids)
    expected = distance(np.stack(one.pattern), np.stack(two.pattern))
    # Equal rows have a distance of 0 and its root all of the rounding.
    np.testing.assert_allclose(found.distances, expected, atol=1e-3)
    np.testing.assert_allclose(found.distances**2, expected**2, atol=1e-5)
    mine, theirs = logprobs_of(one), logprobs_of(two)
    kl = (np.exp(mine) * (mine - theirs)).sum(-1)
    np.testing.assert_allclose(found.kl, kl, atol=2e-5)
    rows = np.arange(len(found.tokens) - 1)
    np.testing.assert_allclose(found.nll, -mine[rows, found.token_ids[1:]], atol=2e-5)
    difference = -theirs[rows, found.other_token_ids[1:]] + mine[rows, found.token_ids[1:]]
    np.testing.assert_allclose(found.nll_difference, difference, atol=4e-5)


@pytest.mark.parametrize("case", cases("gpt_neo", slow=["gptj", "codegen", "gpt_neox", "gpt2"]))
def test_prompts_are_compared_as_float64_does(case):
    model = small_model(*case)
    check(compare_prompts(model, PROMPT, OTHER), model, model)


@pytest.mark.parametrize("second", cases(("gptj", "int8", 2, 2), slow=[("gptj", "int8")]))
def test_models_are_compared_as_float64_does(gptj, second):
    other = small_model(*second)
    found = compare_models(gptj, other, PROMPT)
    check(found, gptj, other)
    assert 0 < found.moved.max() < 0.2


@pytest.mark.parametrize("case", cases("gptj", slow=["gpt_neo", ("gpt2", "float32", 2, 2)]))
def test_equal_runs_differ_in_nothing(case):
    model = small_model(*case)
    same = changed(model, lambda network: None) if model.mesh is None else model
    for found in (compare_prompts(model, PROMPT, PROMPT), compare_models(model, same, PROMPT)):
        assert not found.distances.any() and not found.kl.any()
        assert not found.moved.any() and not found.nll_difference.any()


def test_the_head_that_was_changed_is_the_one_that_moved(gptj):
    def turn(network):
        weight = network.blocks[2].attn.q.weight
        rows = np.array(weight[...])
        rows[16:24] *= -1  # of head 2
        weight[...] = rows

    found = compare_models(gptj, changed(gptj, turn), PROMPT)
    (layer, head, moved), *others = found.heads_moved(8)
    assert (layer, head) == (2, 2) and moved == found.moved[2, 2] > 0.1
    assert all(value == 0 for _, _, value in others)
    assert "L2H2" in repr(found).splitlines()[1]


def test_prompts_that_start_alike_differ_from_the_first_other_token_on(gptj):
    found = compare_prompts(gptj, [5, 6, 7, 8], [5, 6, 9, 8])
    assert not found.kl[:2].any() and found.kl[2:].all()
    assert not found.distances[..., :2].any() and found.distances[..., 2:].all()


def test_many_positions_are_looked_at_some_at_a_time(gptj, monkeypatch):
    whole = compare_prompts(gptj, [5, 6, 7] * 7, [5, 7, 6] * 7)
    monkeypatch.setattr(comparing, "_ROWS", 8)
    parts = compare_prompts(gptj, [5, 6, 7] * 7, [5, 7, 6] * 7)
    for name in ("kl", "nll", "other_nll"):
        assert getattr(parts, name).shape == getattr(whole, name).shape
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-6)


def test_one_token_has_no_next_one(gptj):
    found = compare_prompts(gptj, [3], [4])
    assert len(found.nll) == 0 and found.kl.shape == (1,) and not found.moved.any()
    assert "-log p" not in repr(found)


def test_the_distance_is_between_0_and_1_and_symmetric():
    p, q = np.float32([[1, 0, 0], [0.5, 0.5, 0]]), np.float32([[0, 0, 1], [0.25, 0.75, 0]])
    found = jensen_shannon_distance(p, q)
    assert found[0] == 1 and (found == jensen_shannon_distance(q, p)).all()
    np.testing.assert_allclose(found, distance(p.astype(float), q.astype(float)), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda m: compare_prompts(m, "the cat", "the cat sat"),
            "first prompt has 2 tokens, the second one 3",
        ),
        (lambda m: compare_prompts(m, "a cat", " the dog sat"), "part at position 0"),
        (
            lambda m: compare_models(m, small_model("gptj", num_layers=2), PROMPT),
            "num_layers, 3 and",
        ),
        (
            lambda m: compare_models(m, small_model("gptj", num_heads=8), PROMPT),
            "num_heads, 4 and 8",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(gptj, call, said):
    with pytest.raises(ValueError, match=said):
        call(gptj)
    with pytest.raises(TypeError, match="other is 'pocket': a LanguageModel is needed"):
        compare_models(gptj, "pocket", PROMPT)
