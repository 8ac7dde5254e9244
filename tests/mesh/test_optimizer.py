"""ZeRO-1: moments cut over `data` too make the same step, and take fewer bytes a device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import gptj_lab
from gptj_lab.mesh import sharding
from gptj_lab.mesh.optimizer import optimizer_shardings, optimizer_spec

IDS = np.random.default_rng(0).integers(0, 300, (8, 11), np.int32)
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (P(None, "model"), (32, 64), P("data", "model")),
        (P("model", None), (64, 32), P("model", "data")),
        (P("model"), (64,), P(("model", "data"))),
        (P(), (32,), P("data")),
        (P(), (3,), P()),
        (P(), (), P()),
        (P(None, "model"), (3, 64), P(None, ("model", "data"))),
        (P(None, "model"), (3, 12), P(None, "model")),  # 12 / 4 isn't even
    ],
)
def test_data_goes_to_the_largest_free_dimension(spec, shape, expected):
    assert optimizer_spec(spec, shape, gptj_lab.mesh(data=2, model=4)) == expected


def test_without_replicas_moments_lie_as_the_parameter_does():
    assert optimizer_spec(P(None, "model"), (32, 64), gptj_lab.mesh(1, 8)) == P(None, "model")


def steps(model, count):
    """The parameters and the optimiser's state after some steps of AdamW."""
    graph, params = nnx.split(model.network)
    state = jax.eval_shape(ADAM.init, params)
    places = None
    ids = jnp.asarray(IDS)
    if model.mesh is not None:
        ids = sharding.put_batch(IDS, model.mesh)
        places = (
            jax.tree.map(lambda leaf: leaf.sharding, params),
            optimizer_shardings(state, params),
        )

    def step(params, state, ids):
        def loss(params):
            logprobs = jax.nn.log_softmax(nnx.merge(graph, params)(ids)[0][:, :-1])
            return -jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1).mean()

        updates, state = ADAM.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(ADAM.init, out_shardings=places and places[1])(params)
    step = jax.jit(step, out_shardings=places)
    for _ in range(count):
        params, state = step(params, state, ids)
    return params, state


def bytes_on(device, tree):
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device.id == device
    )


def test_the_same_steps_with_a_fraction_of_the_bytes(on_mesh):
    alone_params, alone_state = steps(on_mesh(num_layers=1), 3)
    model = on_mesh(2, 4, num_layers=1)
    params, state = steps(model, 3)
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(alone_params), strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=2e-4)
    moved = jax.tree.leaves(nnx.state(model.network))[0] - jax.tree.leaves(params)[0]
    assert np.abs(np.asarray(moved)).max() > 5e-3, "three steps of 0.01 show"
    for device in range(8):
        # Two moments a parameter, all cut over both replicas; only Adam's count is whole.
        assert bytes_on(device, state) == bytes_on(device, params) + 4
    whole = bytes_on(0, alone_state)
    assert bytes_on(0, state) < whole / 7


def test_parameters_that_lie_on_no_mesh(on_mesh):
    params = nnx.state(on_mesh().network)
    with pytest.raises(ValueError, match="doesn't lie on a mesh"):
        optimizer_shardings(jax.eval_shape(ADAM.init, params), params)
