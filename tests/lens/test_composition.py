"""Composition, copying and singular values against the whole [d_model, d_model] matrices."""

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import cases, changed, small_model

from gptj_lab.lens import composition
from gptj_lab.lens.composition import (
    composition_scores,
    copying_scores,
    head_singular_values,
    singular_values,
)

MODELS = cases("gptj", slow=["codegen", "gpt_neox", "gpt_neo", ("gpt2", "int8", 1, 4)])


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return small_model(*request.param, num_layers=3)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj", num_layers=3)


class Whole:
    """OV and QK of every head as [d_model, d_model], with the mean projected off."""

    def __init__(self, model):
        self.oracle = Float64Network(model)
        d = model.config.d_model
        self.centre = np.eye(d) - np.ones((d, d)) / d

    def reads(self, layer, head, name):
        gain = np.diag(self.oracle.w[f"blocks.{layer}.ln.scale"])
        matrix = self.oracle.w[f"blocks.{layer}.attn.{name}.weight"]
        return self.oracle.heads_of(matrix)[head] @ gain @ self.centre

    def ov(self, layer, head):
        return self.centre @ self.oracle.out_of(layer)[head] @ self.reads(layer, head, "v")

    def qk(self, layer, head):
        return self.reads(layer, head, "q").T @ self.reads(layer, head, "k")


@pytest.mark.parametrize("mode", composition.MODES)
def test_scores_are_those_of_the_whole_matrices(model, mode):
    scores, whole, norm = composition_scores(model, mode), Whole(model), np.linalg.norm
    heads, layers = range(model.config.num_heads), range(model.config.num_layers)
    for later in layers:
        for earlier in layers:
            if earlier >= later:
                assert not scores[earlier, :, later].any()
                continue
            for a in heads:
                for b in heads:
                    wrote = whole.ov(earlier, a)
                    read = whole.ov(later, b) if mode == "v" else whole.qk(later, b)
                    read = read.T if mode == "q" else read
                    expected = norm(read @ wrote) / norm(read) / norm(wrote)
                    np.testing.assert_allclose(scores[earlier, a, later, b], expected, rtol=1e-4)


def test_a_head_that_reads_what_another_writes_composes_with_it(gptj):
    def rewire(network):
        first, last = network.blocks[0], network.blocks[2]
        read = np.array(last.attn.q.weight[...])
        written = np.asarray(first.attn.out.weight[...])[:, :8]  # of head 0
        read[8:16] = (written / np.asarray(last.ln.scale[...])[:, None]).T  # of head 1
        last.attn.q.weight[...] = read

    scores = composition_scores(changed(gptj, rewire), "q")
    assert np.unravel_index(scores.argmax(), scores.shape) == (0, 0, 2, 1)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_singular_values_of_heads_are_those_of_the_whole_matrix(model, kind):
    found, whole = head_singular_values(model, kind), Whole(model)
    for layer in range(3):
        for head in range(4):
            values = np.linalg.svd(getattr(whole, kind)(layer, head), compute_uv=False)[:8]
            np.testing.assert_allclose(found[layer, head], values, atol=2e-5 * values[0])


def test_copying_scores_are_eigenvalues_of_the_whole_circuit(model):
    found, whole = copying_scores(model), Whole(model)
    embed = whole.oracle.w["embed"] @ whole.centre
    embed = embed / np.sqrt((embed**2).mean(-1, keepdims=True) + model.config.layer_norm_eps)
    unembed = whole.oracle.unembedding * whole.oracle.w["final_ln.scale"]
    for layer, head in ((0, 1), (2, 3)):
        circuit = unembed @ whole.ov(layer, head) @ embed.T  # [vocab, vocab]
        values = np.linalg.eigvals(circuit)
        expected = values.real.sum() / np.abs(values).sum()
        np.testing.assert_allclose(found[layer, head], expected, atol=1e-3)


def test_a_head_that_copies_scores_one():
    model = small_model("gpt2", num_layers=1)  # tied: what is written is read as the same token

    def copy(network):
        block = network.blocks[0]
        scale = np.asarray(block.ln.scale[...]) * np.asarray(network.final_ln.scale[...])
        # W_O = (gain_final gain W_V)^T makes W_V E^T U W_O a Gram matrix, but for the gains.
        block.ln.scale[...] = np.ones_like(scale)
        network.final_ln.scale[...] = np.ones_like(scale)
        block.attn.out.weight[...] = block.attn.v.weight[...].T
        rows = np.asarray(network.embed[...])
        rows = rows - rows.mean(-1, keepdims=True)
        network.embed[...] = rows / rows.std(-1, keepdims=True)

    np.testing.assert_allclose(copying_scores(changed(model, copy)), 1, atol=1e-5)


def test_singular_values_of_weights_by_name(model):
    weights = Float64Network(model).w
    for name in ("embed", "blocks.2.mlp.fc_in", "blocks.0.attn.out"):
        matrix = weights.get(f"{name}.weight", weights.get(name))
        values = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(singular_values(model, name), values, atol=1e-5 * values[0])


def test_progress_and_refusals(gptj):
    told = []
    composition_scores(gptj, "k", progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]
    for call, said in (
        (lambda: composition_scores(gptj, "o"), "mode is 'o'"),
        (lambda: head_singular_values(gptj, "o"), "kind is 'o'"),
        (lambda: singular_values(gptj, "blocks.0.mlp"), "no matrix is named 'blocks.0.mlp'.*fc_in"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
