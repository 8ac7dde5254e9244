"""One device, two and eight say the same; the table covers every weight; what doesn't fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import gptj_lab
from gptj_lab import versions
from gptj_lab.config import ModelConfig
from gptj_lab.mesh import sharding
from gptj_lab.model import sites

IDS = np.random.default_rng(0).integers(0, 300, (5, 11), np.int32)
SHAPES = [(2, 4), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 2), (8, 1)))]
PROMPTS = ["the cat sat", "a dog", "on the log and the mat"]


def close(ours, expected, tolerance):
    ours, expected = np.asarray(ours), np.asarray(expected)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("shape", [*SHAPES, (3, 2)])
def test_logits_are_those_of_one_device(shape, on_mesh, tolerance):
    ours = on_mesh(*shape).logits(IDS)  # five rows: `data` doesn't divide them
    assert ours.shape == (5, 11, 304)
    close(ours, on_mesh().logits(IDS), tolerance["float32"])


@pytest.mark.slow
def test_eight_devices_along_the_heads(on_mesh, tolerance):
    fields = dict(num_heads=8)
    close(on_mesh(1, 8, **fields).logits(IDS), on_mesh(**fields).logits(IDS), tolerance["float32"])


@pytest.mark.slow
def test_bfloat16_weights_on_a_mesh(on_mesh, tolerance):
    alone = on_mesh()
    half = nnx.clone(alone.network)
    nnx.update(half, jax.tree.map(lambda w: w.astype(jnp.bfloat16), nnx.state(half)))
    mesh = gptj_lab.mesh(data=2, model=4)
    model = gptj_lab.LanguageModel(alone.config, half, alone.tokenizer, "half", mesh)
    assert model.dtype == "bfloat16"
    close(model.logits(IDS), alone.logits(IDS), tolerance["bfloat16"])


def test_a_vocabulary_that_does_not_divide_costs_no_memory(on_mesh, tolerance):
    vocab_size = 303
    odd = on_mesh(2, 4, vocab_size=vocab_size)
    logits = odd.logits(IDS)
    assert logits.shape == (5, 11, vocab_size)
    close(logits, on_mesh(vocab_size=vocab_size).logits(IDS), tolerance["float32"])
    assert odd.network.embed.sharding.spec == P(None, "model")
    for weight in (odd.network.embed, odd.network.head.weight):
        assert 4 * weight.addressable_shards[0].data.nbytes == weight.nbytes


def gradients(model, ids):
    graph, params = nnx.split(model.network)

    def loss(params):
        logprobs = jax.nn.log_softmax(nnx.merge(graph, params)(ids)[0][:, :-1])
        return -jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1).mean()

    return nnx.to_flat_state(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_one_device(shape, on_mesh, tolerance):
    ids = np.concatenate([IDS, IDS[:3] + 1])  # eight rows: `data` divides them
    model = on_mesh(*shape)
    ours = gradients(model, sharding.put_batch(ids, model.mesh))
    expected = gradients(on_mesh(), jnp.asarray(ids))
    for (path, mine), (other, theirs) in zip(ours, expected, strict=True):
        assert path == other
        close(mine[...], theirs[...], 2 * tolerance["float32"])


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_of_one_device(shape, on_mesh):
    model, alone = on_mesh(*shape), on_mesh()
    for settings in (
        dict(temperature=0.0),
        dict(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.2, seed=7),
    ):
        ours = model.generate(PROMPTS, max_new_tokens=20, **settings)
        theirs = alone.generate(PROMPTS, max_new_tokens=20, **settings)
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
        assert [one.text for one in ours] == [one.text for one in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.slow
def test_samples_of_one_prompt_and_its_own_logprobs(on_mesh):
    from gptj_lab.generation.decoding import Decoding

    settings = dict(max_new_tokens=9, samples=3, seed=1, prompt_logprobs=True)
    runs = [Decoding(model, PROMPTS[:2], **settings) for model in (on_mesh(2, 4), on_mesh())]
    ours, theirs = [run.complete() for run in runs]
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    for mine, other in zip(runs[0].rows, runs[1].rows, strict=True):
        np.testing.assert_allclose(
            [token.logprob for token in mine.prompt_tokens[1:]],
            [token.logprob for token in other.prompt_tokens[1:]],
            atol=1e-4,
        )


def test_the_cache_is_cut_over_rows_and_heads(on_mesh):
    from gptj_lab.generation.decoding import Decoding

    run = Decoding(on_mesh(2, 4), PROMPTS, max_new_tokens=20, temperature=0.0)
    run.advance()
    cache, logits, *counts = run._state.arrays
    for layer in cache:
        for array in layer:
            rows, heads, length, d_head = array.shape
            assert array.sharding.shard_shape(array.shape) == (
                rows // 2,
                heads // 4,
                length,
                d_head,
            )
    for array in (logits, *counts):
        assert array.sharding.shard_shape(array.shape) == (2, 304)


def test_a_trace_on_a_mesh_is_that_of_one_device(on_mesh, tolerance):
    patterns = ["*.attn.pattern", "*.attn_out", "*.mlp_out", "*.resid_post"]
    ours = on_mesh(2, 4).trace("the cat sat on the mat", patterns)
    expected = on_mesh().trace("the cat sat on the mat", patterns)
    assert list(ours) == list(expected) and len(ours) == 8
    for name, value in expected.items():
        close(ours[name], value, tolerance["float32"])


@pytest.mark.parametrize(
    "name", ["attn_out", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp_out", "attn.z"))]
)
def test_an_intervention_on_a_mesh_is_that_of_one_device(name, on_mesh, tolerance):
    change = sites.intervene({f"blocks.0.{name}": lambda value: 2 * value + 1})

    @nnx.jit
    def replaced(network, ids):
        return network(ids, site=change)[0]

    model = on_mesh(2, 4)
    ours = replaced(model.network, sharding.put_batch(IDS[:4], model.mesh))
    expected = replaced(on_mesh().network, jnp.asarray(IDS[:4]))
    close(ours, expected, tolerance["float32"])
    assert np.abs(np.asarray(expected) - np.asarray(on_mesh().logits(IDS[:4]))).max() > 1e-2


def test_loaded_and_saved_on_a_mesh_it_is_the_same_model(on_mesh, tmp_path):
    alone = on_mesh()
    on_mesh(2, 4).save(tmp_path)
    mesh = gptj_lab.mesh(data=1, model=2)
    again, plain = gptj_lab.load(tmp_path, mesh=mesh), gptj_lab.load(tmp_path)
    assert again.mesh == mesh and plain.mesh is None
    for model in (again, plain):
        for (_, mine), (_, theirs) in zip(
            nnx.to_flat_state(nnx.state(model.network)),
            nnx.to_flat_state(nnx.state(alone.network)),
            strict=True,
        ):
            assert (np.asarray(mine[...]) == np.asarray(theirs[...])).all()


def test_the_front_door_is_package_and_function():
    import gptj_lab.mesh as package

    assert gptj_lab.mesh is package
    assert dict(gptj_lab.mesh().shape) == {"data": 1, "model": 8}
    assert dict(gptj_lab.mesh(data=4).shape) == {"data": 4, "model": 2}
    assert dict(gptj_lab.mesh(data=-1, model=2).shape) == {"data": 4, "model": 2}
    mesh = gptj_lab.mesh(data=2, model=2)
    assert mesh.devices.shape == (2, 2)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        (
            4,
            4,
            "data=4 x model=4 takes 16 devices, but there are only 8 cpu devices .*:0.*count=16",
        ),
        (None, 3, "model=3 doesn't divide the 8 cpu devices .*choose one of 1, 2, 4 or 8"),
        (16, -1, "data=16 doesn't divide the 8 cpu devices"),
        (0, 1, "data is 0: a whole number of at least 1, or -1 for the rest"),
        (1, True, "model is True"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make(data, model, words):
    with pytest.raises(ValueError, match=words):
        gptj_lab.mesh(data=data, model=model)


@pytest.mark.parametrize(
    ("fields", "model", "words"),
    [
        ({}, 8, "model=8 doesn't divide num_heads 4: for this network model may be 1, 2 or 4"),
        ({"d_ff": 66}, 4, "model=4 doesn't divide d_ff 66: for this network model may be 1 or 2"),
    ],
)
def test_a_network_that_can_not_be_cut_so(fields, model, words, on_mesh):
    with pytest.raises(ValueError, match=words):
        on_mesh(1, model, **fields)


def test_a_mesh_of_other_axes_is_refused(tiny_config):
    other = Mesh(np.array(jax.devices()), ("x",))
    with pytest.raises(ValueError, match="make one with gptj_lab.mesh"):
        sharding.check(tiny_config(), other)


def test_batches_are_filled_up_until_data_divides_them(on_mesh):
    batch = sharding.put_batch(IDS, on_mesh(3, 2).mesh)
    assert batch.shape == (6, 11) and batch.sharding.shard_shape(batch.shape) == (2, 11)
    assert (np.asarray(batch)[:5] == IDS).all() and not np.asarray(batch)[5].any()


def test_every_weight_of_the_real_gpt_j_has_its_place():
    """The published shape on 8 devices: nothing that counts is held twice along `model`."""
    from gptj_lab.model.transformer import Transformer

    config = ModelConfig.of_family(
        "gptj",
        vocab_size=50400, context=2048, d_model=4096, num_layers=28, num_heads=16, d_rotary=64,
        d_ff=16384, activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    mesh = gptj_lab.mesh(data=1, model=8)
    shapes = nnx.state(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
    held = whole = 0
    for path, leaf in nnx.to_flat_state(shapes):
        shape = versions.value(leaf).shape
        held += np.prod(sharding.parameter_sharding(path, config, mesh).shard_shape(shape))
        whole += np.prod(shape)
    assert whole == config.num_parameters
    assert held / whole == pytest.approx(1 / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("blocks.11.attn.q.bias", P("model")),
        ("blocks.0.attn.out.bias", P()),
        ("blocks.0.mlp.fc_out.bias", P()),
        ("blocks.3.ln2.scale", P()),
        ("position_embed", P()),
        (("blocks", 3, "mlp", "fc_in", "weight"), P("model", None)),
    ],
)
def test_the_table_knows_the_whole_family(name, spec, on_mesh, tiny_config):
    mesh = gptj_lab.mesh(data=2, model=4)
    assert sharding.parameter_spec(name, tiny_config(), mesh) == spec


def test_an_unknown_weight_is_an_error_by_name(on_mesh, tiny_config):
    mesh = gptj_lab.mesh(data=2, model=4)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.gate has no place on a mesh"):
        sharding.parameter_spec("blocks.1.attn.gate", tiny_config(), mesh)


def test_heads_are_never_cut_in_two(tiny_config):
    """Columns of q belong to heads in order, so a device's slice is whole heads."""
    config = dataclasses.replace(tiny_config(), num_heads=2)
    with pytest.raises(ValueError, match="num_heads 2"):
        sharding.check(config, gptj_lab.mesh(data=1, model=4))
