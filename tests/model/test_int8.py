"""int8 weights: what they round, that they compute, and that they lie on disk and on a mesh."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj_lab
from gptj_lab.checkpoints import huggingface
from gptj_lab.model import int8
from gptj_lab.model.int8 import Int8Weight


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_each_row_is_rounded_to_the_nearest_of_its_own_steps():
    weight = random(3000, 8)
    weight[7] = 0
    values, scale = int8.quantize(weight)
    assert values.dtype == np.int8 and abs(values).max() == 127 and (values[7] == 0).all()
    error = np.abs(int8.dequantize(values, scale) - weight)
    assert (error <= scale[:, None] / 2 + 1e-7).all()


@pytest.mark.parametrize("d_out", [24, 256, 512, 650])  # below a tile, whole tiles, and a rest
@pytest.mark.parametrize("rows", [(1, 1), (2, 5), (3, 30)])  # digits, digits, tiles
def test_the_product_is_that_of_the_dequantised_matrix(d_out, rows, tolerance):
    values, scale = int8.quantize(random(d_out, 48))
    x = jnp.asarray(random(*rows, 48, seed=1))
    weight = Int8Weight(jnp.asarray(values), jnp.asarray(scale))
    out = jax.jit(int8.product)(x, weight)
    expected = np.asarray(x) @ int8.dequantize(values, scale).T
    assert out.shape == (*rows, d_out)
    np.testing.assert_allclose(out, expected, atol=tolerance["float32"] * abs(expected).max())


def test_rows_of_every_size_keep_float32_precision():
    weight = random(300, 512)
    weight[:, 0] *= 1e-6  # beside an outlier a thousand times as large as the rest of its row
    values, scale = int8.quantize(weight)
    x = random(7, 512, seed=1) * np.float32([1, 1e-30, 1e30, 0, 1, 1, 1e-38])[:, None]
    x[4, 0] = 1e3
    x[5, 3] = np.nan
    out = np.asarray(
        int8.product(jnp.asarray(x), Int8Weight(jnp.asarray(values), jnp.asarray(scale)))
    )
    expected = x.astype(np.float64) @ int8.dequantize(values, scale).T.astype(np.float64)
    assert np.isnan(out[5]).all() and (out[3] == 0).all() and abs(out[6]).max() < 1e-35
    for row in (0, 1, 2, 4):
        bound = 2e-6 if row != 4 else 2e-4  # of the largest, in units of the row's largest value
        assert abs(out[row] - expected[row]).max() <= bound * abs(expected[row]).max()


@pytest.mark.parametrize("rows", [3, 90])
def test_derivatives_are_those_of_the_dequantised_matrix(rows, tolerance):
    values, scale = int8.quantize(random(300, 48))
    x, change = jnp.asarray(random(rows, 48, seed=1)), jnp.asarray(random(rows, 48, seed=2))
    weight = Int8Weight(jnp.asarray(values), jnp.asarray(scale))
    matrix = jnp.asarray(int8.dequantize(values, scale))

    def ours(x):
        return jnp.tanh(int8.product(x, weight)).sum(0)

    def plain(x):
        return jnp.tanh(x @ matrix.T).sum(0)

    for found, expected in (
        (jax.jvp(ours, (x,), (change,))[1], jax.jvp(plain, (x,), (change,))[1]),
        (jax.grad(lambda x: ours(x).sum())(x), jax.grad(lambda x: plain(x).sum())(x)),
    ):
        most = float(abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=10 * tolerance["float32"] * most)


def test_a_gradient_keeps_no_float_copy_of_the_weight():
    weight = Int8Weight(jnp.zeros((4096, 512), jnp.int8), jnp.ones(4096))
    x = jnp.ones((2, 512))
    gradient = jax.jit(jax.grad(lambda x, w: (int8.product(x, w) ** 2).sum()))
    compiled = gradient.lower(x, weight).compile().memory_analysis()
    assert compiled.temp_size_in_bytes < weight.values.nbytes  # as floats it takes four times that
    forward = jax.jit(int8.product).lower(x, weight).as_text()
    assert "optimization_barrier" not in forward  # nothing is computed again on the way forward


@pytest.fixture(scope="module")
def quantised(tiny_directory):
    return gptj_lab.load(tiny_directory, weights="int8")


def test_it_computes_what_the_rounded_weights_do(tiny_directory, quantised, tolerance):
    whole = gptj_lab.load(tiny_directory)
    ids = jnp.asarray([[1, 2, 3, 4]])
    exact = whole.logits(ids)
    assert quantised.weights == "int8" and quantised.dtype == "float32"
    assert (quantised.network.head.weight[...] == whole.network.head.weight[...]).all()
    for ours, theirs in zip(whole.network.blocks, quantised.network.blocks, strict=True):
        for part, name in (("attn", "q"), ("attn", "k"), ("attn", "v"), ("attn", "out"),
                           ("mlp", "fc_in"), ("mlp", "fc_out")):  # fmt: skip
            weight = getattr(getattr(theirs, part), name).weight[...]
            rounded = int8.dequantize(np.asarray(weight.values), np.asarray(weight.scale))
            getattr(getattr(ours, part), name).weight[...] = jnp.asarray(rounded)
    expected, found = whole.logits(ids), quantised.logits(ids)
    most = float(abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=tolerance["float32"] * most)
    assert 0 < float(abs(found - exact).max()) < 0.1 * most
    assert quantised.generate("the cat", max_new_tokens=4)[0].token_ids


def test_saved_and_loaded_are_the_same_bits(quantised, tmp_path):
    quantised.save(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["quantization_config"]["format"] == "int-quantized"
    again = gptj_lab.load(tmp_path)
    assert again.weights == "int8"
    ids = jnp.asarray([[1, 2, 3]])
    assert (again.logits(ids) == quantised.logits(ids)).all()
    wide = gptj_lab.load(tmp_path, weights="float32")
    assert wide.weights == "float32"
    np.testing.assert_allclose(wide.logits(ids), quantised.logits(ids), rtol=1e-3, atol=1e-3)


def test_scales_that_are_missing_or_misshaped_are_named(quantised, tmp_path):
    from safetensors.numpy import load_file, save_file

    quantised.save(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "transformer.h.0.attn.q_proj.weight"
    save_file({n: t for n, t in whole.items() if n != f"{name}_scale"}, file)
    with pytest.raises(ValueError, match=f"{name}.*go together"):
        gptj_lab.load(tmp_path)
    save_file(whole | {f"{name}_scale": whole[f"{name}_scale"][:3]}, file)
    with pytest.raises(ValueError, match=r"_scale in .* has shape \(3, 1\): \(48, 1\)"):
        gptj_lab.load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "codegen"])  # fused tensors
def test_fused_tensors_keep_their_scales(family, torch_model, tmp_path):
    torch_model(family).save_pretrained(tmp_path / "wide")
    config, network = huggingface.read(tmp_path / "wide", "int8")
    huggingface.write(tmp_path / "int8", config, network)
    _, again = huggingface.read(tmp_path / "int8", "int8")
    for one, two in zip(jax.tree.leaves(network), jax.tree.leaves(again), strict=True):
        assert one.dtype == two.dtype and (one == two).all()


def test_a_mesh_of_eight_gives_the_same(tiny_directory, quantised, tolerance):
    spread = gptj_lab.load(tiny_directory, weights="int8", mesh=gptj_lab.mesh(data=2, model=4))
    ids = jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])
    expected = quantised.logits(ids)
    np.testing.assert_allclose(
        spread.logits(ids), expected, atol=tolerance["float32"] * float(abs(expected).max())
    )
    weight = spread.network.blocks[0].mlp.fc_in.weight[...]
    assert weight.values.addressable_shards[0].data.shape[0] == weight.shape[0] // 4
    assert weight.scale.addressable_shards[0].data.shape[0] == weight.shape[0] // 4
