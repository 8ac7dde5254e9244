"""Networks that config.json can say and few models are: they work wherever the others do.

A GPT-J whose head is its embedding and has a bias all the same; GPT-2 with scores divided by the
layer; GPT-NeoX with linear rotary scaling.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from float64_network import Float64Network
from small_models import small_model

import gptj_lab
from gptj_lab.finetuning.selection import chooser
from gptj_lab.lens import attribution, rotary, shares
from gptj_lab.model import cross_entropy

IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
VARIANTS = {
    "gptj, tied": ("gptj", {"tied_embeddings": True}),
    "codegen, tied": ("codegen", {"tied_embeddings": True}),
    "gpt2, scores by the layer": ("gpt2", {"layer_scaled_attention": True}),
    "gpt_neox, linear scaling": ("gpt_neox", {"rotary_scaling": 2.5}),
}


def made(name, *arguments):
    family, fields = VARIANTS[name]
    return small_model(family, *arguments, **fields)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_shares_and_files(name, tmp_path, tolerance):
    model = made(name)
    expected = Float64Network(model).run(IDS[0]).logits
    found = np.asarray(model.logits(IDS))[0]
    assert np.abs(found - expected).max() < tolerance["float32"] * np.abs(expected).max()
    share = attribution.attribute(model, IDS[0].tolist(), 7)
    assert abs(share.total - share.logit) < attribution.TOLERANCE
    model.save(tmp_path)
    again = gptj_lab.load(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(np.asarray(again.logits(IDS)), np.asarray(model.logits(IDS)))
    if model.config.positions != "learned":
        scores = rotary.rotary_scores(model, IDS[0].tolist(), 1, 2)
        oracle = Float64Network(model).run(IDS[0]).scores[1][2]
        total = scores.pairs.sum(0) + scores.rest
        np.testing.assert_allclose(np.tril(total), np.tril(oracle), atol=1e-4)


@pytest.fixture(scope="module")
def tied():
    return made("gptj, tied")


def test_a_tied_head_keeps_its_bias_in_every_form(tied, tmp_path):
    assert tied.network.head is None and np.abs(tied.network.head_bias[...]).max() > 0.1
    tied.save(tmp_path)
    whole = np.asarray(tied.logits(IDS))
    small = gptj_lab.load(tmp_path, weights="int8")
    assert small.network.head_bias.shape == (304,)
    assert np.abs(np.asarray(small.logits(IDS)) - whole).max() < 0.05 * np.abs(whole).max()
    small.save(tmp_path / "int8")
    again = np.asarray(gptj_lab.load(tmp_path / "int8").logits(IDS))
    assert np.abs(again - whole).max() < 0.05 * np.abs(whole).max()
    spread = gptj_lab.load(tmp_path, mesh=gptj_lab.mesh(data=1, model=2))
    np.testing.assert_allclose(np.asarray(spread.logits(IDS)), whole, atol=1e-4)
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(tied.network))]
    assert sum(sizes) == tied.config.num_parameters


def test_a_tied_head_s_bias_is_in_the_loss_and_the_lens(tied):
    x, _ = tied.network.hidden(jnp.asarray(IDS))
    logits = np.asarray(tied.logits(IDS), np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, IDS[..., None], axis=-1
    ).squeeze(-1)
    ones = jnp.ones(IDS.shape)
    found = cross_entropy.cross_entropy(tied.network, x, jnp.asarray(IDS), ones)
    np.testing.assert_allclose(found, nats.sum(), rtol=1e-5)
    with jax.default_matmul_precision("BF16_BF16_F32"):  # the products that training takes
        narrow = cross_entropy.cross_entropy(tied.network, x, jnp.asarray(IDS), ones)
    np.testing.assert_allclose(narrow, nats.sum(), rtol=2e-2)
    direction, shift = shares.direction(
        tied.network, jnp.asarray([7, 8]), jnp.asarray(1.0, jnp.float32)
    )
    bias = np.asarray(tied.network.head_bias[...])
    np.testing.assert_allclose(shift, bias[7] - bias[8], rtol=1e-5)
    chosen = chooser(gptj_lab.LastBlocks(count=1, head=True), tied.network)
    assert chosen(("head_bias",), tied.network.head_bias)
    without = chooser(gptj_lab.LastBlocks(count=1, head=False), tied.network)
    assert not without(("head_bias",), tied.network.head_bias)
    assert gptj_lab.plan(tied.config, hardware="colab-v5e-1", job="lora")
