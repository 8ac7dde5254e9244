"""The Jacobian lens: derivatives against finite differences in float64, and its identities."""

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import FAMILIES, small_model

from gptj_lab.lens import jacobian_lens as module
from gptj_lab.lens.affine_lens import AffineLens
from gptj_lab.lens.jacobian_lens import fit_jacobian_lens, jacobian_lens, pushed
from gptj_lab.lens.logit_lens import logit_lens

PROMPT = "the cat sat on the mat, and the dog"
SLOW = [
    *((family, weights) for family in FAMILIES for weights in ("float32", "int8")),
    ("gpt2", "int8", 1, 2),
    ("gpt_neo", "float32", 2, 2),
]


@pytest.fixture(
    scope="module",
    params=[("gptj",), *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW[1:])],
)
def model(request):
    return small_model(*request.param)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def rest(oracle, layer, x):
    for above in range(layer, oracle.config.num_layers):
        x = oracle._block(above, x, np.arange(len(x)))
    return x


def oracle_of(model, ids):
    return Float64Network(model).run(ids)


def difference(oracle, layer, moved, step=1e-5):
    """The central difference of the last residual, float64."""
    x = oracle.resid_pre[layer]
    ahead, behind = rest(oracle, layer, x + step * moved), rest(oracle, layer, x - step * moved)
    return (ahead - behind) / (2 * step)


def test_pushed_directions_are_finite_differences(model):
    trace = model.trace(PROMPT)
    oracle = oracle_of(model, trace.token_ids)
    directions = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    for layer, position in ((0, 2), (2, -1)):
        found = pushed(trace, layer, position, directions)
        for direction, ours in zip(directions, found, strict=True):
            moved = np.zeros((len(trace.tokens), 32))
            moved[position] = direction
            np.testing.assert_allclose(ours, difference(oracle, layer, moved), atol=2e-4)


def test_rows_are_the_own_tokens_derivative_read_by_the_unembedding(model):
    trace = model.trace(PROMPT)
    oracle, lens = oracle_of(model, trace.token_ids), jacobian_lens(trace, positions=[4, -1])
    bias = oracle.w.get("head.bias", 0)
    for layer in (0, 2):
        for row, position in enumerate((4, 9)):
            moved = np.zeros((len(trace.tokens), 32))
            moved[position] = oracle.resid_pre[layer][position]
            jh = difference(oracle, layer, moved)[position : position + 1]
            expected = oracle.norm("final_ln", jh) @ oracle.unembedding.T + bias
            np.testing.assert_allclose(lens.logits(layer)[row], expected[0], atol=5e-3)
    assert (lens.logits(-1) == trace.logits[[4, 9]]).all()


def test_the_past_does_not_move_and_no_block_is_the_identity(gptj):
    trace, directions = gptj.trace(PROMPT), np.eye(32, dtype=np.float32)[:11]
    found = pushed(trace, 0, 4, directions)
    assert not found[:, :4].any() and found[:, 4:].any()
    last = pushed(trace, 3, 4, directions)
    assert (last[:, 4] == directions).all() and not np.delete(last, 4, axis=1).any()


def test_other_layers_positions_and_texts_compile_nothing(gptj):
    directions = np.eye(32, dtype=np.float32)[:3]
    pushed(gptj.trace(PROMPT), 0, 0, directions)
    before = module._derivative._cache_size()
    for layer in range(4):
        pushed(gptj.trace(PROMPT[layer:]), layer, layer, directions[layer % 2 :])
    assert module._derivative._cache_size() == before


def test_it_is_linear_in_the_direction(gptj):
    trace = gptj.trace(PROMPT)
    one, two = np.random.default_rng(1).normal(size=(2, 1, 32)).astype(np.float32)
    parts = pushed(trace, 0, 3, one) + 2 * pushed(trace, 0, 3, two)
    np.testing.assert_allclose(pushed(trace, 0, 3, one + 2 * two), parts, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "position", "width", "words"),
    [
        (4, 0, 32, "layer is 4: 0 to 3"),
        (-1, 0, 32, "layer is -1"),
        (0, 10, 32, "position is 10"),
        (0, 0, 31, r"directions has shape \(2, 31\)"),
    ],
)
def test_what_does_not_fit(gptj, layer, position, width, words):
    with pytest.raises(ValueError, match=words):
        pushed(gptj.trace(PROMPT), layer, position, np.ones((2, width), np.float32))


# Fitted over texts

TEXT = "the cat sat on the mat, and the dog sat on the log; the cats do."


def test_a_fitted_matrix_is_the_mean_of_summed_derivatives(model):
    texts, seq, skip = [TEXT, TEXT[8:]], 12, 3
    lens = fit_jacobian_lens(model, texts, seq=seq, skip=skip)
    valid, layer = np.arange(skip, seq - 1), 1
    columns = np.random.default_rng(0).choice(32, 3, replace=False)
    for column in columns:
        found = np.zeros(32)
        for text in texts:
            oracle = oracle_of(model, model.tokenizer.encode(text)[:seq])
            moved = np.zeros((seq, 32))
            moved[valid, column] = 1  # by linearity all sources at once
            found += difference(oracle, layer, moved)[valid].sum(0) / len(valid) / len(texts)
        np.testing.assert_allclose(lens.matrix[layer][:, column], found, atol=5e-4)


def test_a_fitted_lens_is_read_saved_and_loaded(gptj, tmp_path):
    lens = fit_jacobian_lens(gptj, [TEXT], seq=12, skip=2)
    trace = gptj.trace(PROMPT)
    read = lens.read(trace, positions=[5])
    expected = lens.matrix[1] @ trace.residuals[1, 5]
    np.testing.assert_allclose(read.streams[1, 0], expected, atol=1e-5)
    assert (read.logits(-1) == logit_lens(trace, positions=[5]).logits(-1)).all()
    lens.save(tmp_path / "it", gptj)
    again = AffineLens.load(tmp_path / "it", gptj)
    assert again.kind == "jacobian" and (again.matrix == lens.matrix).all()


def test_fitting_can_be_stopped(gptj):
    told = []
    lens = fit_jacobian_lens(
        gptj, [TEXT, TEXT[8:], TEXT[4:]], seq=12, skip=2,
        progress=lambda done, total: told.append((done, total)) or done == 1,
    )  # fmt: skip
    first = fit_jacobian_lens(gptj, [TEXT], seq=12, skip=2)
    assert told == [(1, 3)] and (lens.matrix == first.matrix).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seq": 65}, "seq is 65: 2 to 64"),
        ({"seq": 12, "skip": 11}, "skip is 11: 0 to 10"),
        ({"seq": 12, "skip": 2, "texts": ["the cat"]}, "no text has as many as seq=12"),
    ],
)
def test_settings_that_do_not_fit(gptj, settings, words):
    with pytest.raises(ValueError, match=words):
        fit_jacobian_lens(gptj, **{"texts": [TEXT]} | settings)
