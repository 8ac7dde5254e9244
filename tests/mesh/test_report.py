"""The compiled program is read: one all-reduce a parallel block; who holds which slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gptj_lab
from gptj_lab import language_model
from gptj_lab.config import ModelConfig
from gptj_lab.mesh import report, sharding
from gptj_lab.model.cache import empty_cache


def whole_program(model, batch, seq, wanted=()):
    ids = sharding.put_batch(np.zeros((batch, seq), np.int32), model.mesh)
    lowered = language_model._forward.lower(model.network, ids, "float32", wanted)
    return report.collectives(lowered.compile().as_text(), model.mesh)


@pytest.mark.parametrize("shape", [(1, 2), (2, 4)])
def test_a_parallel_block_has_exactly_one_all_reduce(shape, on_mesh):
    model = on_mesh(*shape)
    found = model.placement(batch=4, seq=16).block
    d_model = model.config.d_model
    assert found == [report.Collective("all-reduce", ("model",), 4 * 4 * 16 * d_model // shape[0])]


def test_sequential_blocks_have_two(on_mesh):
    if "parallel" not in ModelConfig.__dataclass_fields__:
        pytest.skip("this version has parallel blocks only")
    model = on_mesh(2, 4, parallel=False, shared_layer_norm=False)
    found = model.placement(batch=4, seq=16).block
    moved = sum(one.bytes for one in found)  # the compiler may send both sums as one
    assert {(one.kind, one.axes) for one in found} == {("all-reduce", ("model",))}
    assert len(found) == 2 and moved == 2 * 4 * 4 * 16 * model.config.d_model // 2


def test_the_whole_forward_has_one_a_block_and_one_for_the_embedding(on_mesh):
    model = on_mesh(2, 4)
    found = whole_program(model, 4, 16)
    assert len(found) == model.config.num_layers + 1
    assert {(one.kind, one.axes) for one in found} == {("all-reduce", ("model",))}
    watched = whole_program(model, 4, 16, ("blocks.0.attn_out",))
    extra = sum(one.bytes for one in watched) - sum(one.bytes for one in found)
    assert extra == found[0].bytes, "a site that is read costs one more reduction"


def test_cached_decoding_exchanges_no_cache(on_mesh):
    model = on_mesh(2, 4)
    graph, params = nnx.split(model.network)
    ids = sharding.put_batch(np.zeros((4, 3), np.int32), model.mesh)

    def forward(params, ids):
        cache = empty_cache(model.config, 4, 64, jnp.float32)
        cache = sharding.constrain(cache, model.mesh, "data", "model")
        return sharding.constrain(
            nnx.merge(graph, params).hidden(ids, cache=cache), model.mesh, "data"
        )[0]

    found = report.collectives(jax.jit(forward).lower(params, ids).compile().as_text(), model.mesh)
    assert [(one.kind, one.axes) for one in found] == [("all-reduce", ("model",))] * 3


def test_data_alone_exchanges_nothing(on_mesh):
    assert whole_program(on_mesh(8, 1), 8, 16) == []


def test_slices_tile_every_weight(on_mesh):
    model = on_mesh(2, 4)
    told = model.placement()
    assert told.axes == {"data": 2, "model": 4}
    assert sorted(device for row in told.devices for device in row) == list(range(8))
    arrays = {
        ".".join(map(str, path)): leaf[...]
        for path, leaf in nnx.to_flat_state(nnx.state(model.network))
    }
    held = dict.fromkeys(range(8), 0)
    assert [weight.name for weight in told.weights] == list(arrays)
    for weight in told.weights:
        array = arrays[weight.name]
        covered = np.zeros(array.shape, int)
        for shard in array.addressable_shards:
            index = tuple(slice(*bounds) for bounds in weight.slices[shard.device.id])
            assert (np.asarray(shard.data) == np.asarray(array)[index]).all()
            assert shard.data.nbytes == weight.bytes_per_device
            held[shard.device.id] += shard.data.nbytes
            covered[index] += 1
        copies = 2 if "model" in weight.axes else 8
        assert (covered == copies).all(), weight.name
    assert told.bytes_per_device == held


def test_a_model_on_one_device_has_no_report(on_mesh):
    with pytest.raises(ValueError, match="tiny doesn't lie on a mesh: load it with mesh="):
        on_mesh().placement()


@pytest.mark.parametrize("axes", [("model",), ("data",), ("data", "model")])
def test_the_axes_of_a_compiled_sum_are_found(axes):
    mesh = gptj_lab.mesh(data=2, model=4)
    spec = P(None, axes)
    x = jax.ShapeDtypeStruct((3, 8), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    def total(x):
        return jax.shard_map(
            lambda part: jax.lax.psum(part, axes), mesh=mesh, in_specs=spec, out_specs=P()
        )(x)

    (found,) = report.collectives(jax.jit(total).lower(x).compile().as_text(), mesh)
    count = {("model",): 4, ("data",): 2}.get(axes, 8)
    itemsize = found.bytes // (3 * 8 // count)
    assert (found.kind, found.axes) == ("all-reduce", axes)
    assert itemsize in (2, 4), "the CPU widens bfloat16 sums"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("model",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups={}", ("data", "model")),
        ("replica_groups=[2,4]<=[8]", ("model",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[1,8]<=[8]", ("data", "model")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("model",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("model",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("source_target_pairs={{0,4},{4,0}}", ("data",)),
    ],
)
def test_every_way_in_which_xla_names_devices(groups, axes):
    mesh = gptj_lab.mesh(data=2, model=4)
    line = f"  %x = f32[2,3]{{1,0}} all-reduce(%y), channel_id=1, {groups}, to_apply=%add"
    line += ', metadata={op_name="jit(f)/sum"}'
    expected = report.Collective("all-reduce", axes, 24)
    (found,) = report.collectives(line, mesh)
    assert found == expected and found.where == "jit(f)/sum"


def test_combined_and_asynchronous_collectives_are_counted_once():
    mesh = gptj_lab.mesh(data=2, model=4)
    program = """
  %a = (f32[4]{0}, bf16[8]{0}) all-reduce(%p, %q), replica_groups=[2,4]<=[8], to_apply=%add
  %b = (s32[2]{0}, s32[8]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %c = s32[8]{0} all-gather-done(%b)
  %d = f32[4]{0} get-tuple-element(%a), index=0
"""
    assert report.collectives(program, mesh) == [
        report.Collective("all-reduce", ("model",), 32),
        report.Collective("all-gather", ("model",), 32),
    ]


def test_an_unknown_way_is_an_error():
    mesh = gptj_lab.mesh(data=2, model=4)
    line = "  %x = f32[2]{0} all-reduce(%y), replica_groups=?, to_apply=%add"
    with pytest.raises(ValueError, match="unknown form"):
        report.collectives(line, mesh)
