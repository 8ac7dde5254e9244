"""Products in bfloat16 with float32 sums: the same training, but for bfloat16's rounding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_models import small_model

from gptj_lab.finetuning.loss import next_token_loss
from gptj_lab.model import narrow, positions, sites

ROUNDING = 2**-7  # of a result, of bfloat16 operands


def apart(found, wanted) -> float:
    """The distance of two trees, as a share of the second's size."""
    off = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - b, found, wanted)
    return float(optax.tree.norm(off) / optax.tree.norm(wanted))


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("d_in", "d_out"), [(48, 16), (16, 48)])
def test_a_product_and_its_gradients(d_in, d_out):
    x, weight, by = drawn(3, 5, d_in), drawn(d_out, d_in, seed=1), drawn(3, 5, d_out, seed=2)
    found, back = jax.vjp(narrow.product, x, weight)
    wanted, plainly_back = jax.vjp(lambda x, w: jnp.einsum("...i,oi->...o", x, w), x, weight)
    assert found.dtype == jnp.float32
    assert 0 < apart(found, wanted) < ROUNDING
    assert 0 < apart(back(by), plainly_back(by)) < ROUNDING


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("d_rotary", [4, 12])
def test_rotation_is_that_of_interleaved_pairs(d_rotary, dtype):
    x, by = (drawn(2, 9, 3, 12, seed=i).astype(dtype) for i in range(2))
    places = jnp.stack([jnp.arange(9), jnp.arange(9) % 4])
    angles = positions.rotary_angles(places, d_rotary, 10_000.0, 1.0)
    found, back = jax.vjp(lambda x: narrow.rotate(x, angles), x)
    wanted, plainly_back = jax.vjp(lambda x: positions.rotate(x, angles, interleaved=True), x)
    room = 1e-6 if dtype == jnp.float32 else ROUNDING
    assert found.dtype == back(by)[0].dtype == dtype
    assert apart(found, wanted) < room
    assert apart(back(by), plainly_back(by)) < room
    assert apart(found, x) > 0.1


@pytest.mark.parametrize("seq", [1, 70, 300])  # in one part, in two, in four of unequal length
def test_attention_reads_only_what_is_seen(seq):
    q, k, v, by = (drawn(2, 3, seq, 8, seed=i) for i in range(4))
    places = jnp.arange(seq)
    document = jnp.stack([places * 0, places // 40])  # the second row: many documents
    seen = (places[:, None] >= places[None])[None] & (document[:, :, None] == document[:, None, :])
    seen = (seen & (places[:, None] < places[None] + 50)[None])[:, None]  # and a local window

    def plainly(q, k, v):
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * 0.3
        pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhqk,bhkd->bhqd", pattern, v)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, *each):
        z, back = jax.vjp(attend, *each)
        return z, back(by)

    found, gradients = both(lambda *each: narrow.attend(*each, seen, 0.3), q, k, v)
    wanted, expected = both(plainly, q, k, v)
    assert 0 < apart(found, wanted) < ROUNDING
    assert apart(gradients[2], expected[2]) < 2 * ROUNDING
    if seq > 1:  # of one token alone nothing depends on q and k
        assert apart(gradients, expected) < 2 * ROUNDING


def test_the_loss_and_its_gradients_in_several_parts(monkeypatch):
    monkeypatch.setattr(narrow, "_LOGITS", 4 * 50)  # 7 rows: a part of 4, and one of 3
    x, weight, bias = drawn(7, 12), drawn(50, 12, seed=1), drawn(50, seed=2)
    targets = jnp.array([3, 3, 49, 0, 7, 8, 8])
    counts = jnp.array([1.0, 0, 1, 1, 0.5, 1, 1])

    def plainly(x, weight, bias):
        each = optax.softmax_cross_entropy_with_integer_labels(x @ weight.T + bias[None], targets)
        return (each * counts).sum()

    def ours(*each):
        return 3 * narrow.nats(*each, targets, counts)

    found, gradients = jax.value_and_grad(ours, argnums=(0, 1, 2))(x, weight, bias)
    wanted, expected = jax.value_and_grad(plainly, argnums=(0, 1, 2))(x, weight, bias)
    np.testing.assert_allclose(found, 3 * wanted, rtol=ROUNDING)
    for one, other in zip(gradients, expected, strict=True):
        assert apart(one, 3 * other) < ROUNDING
    assert not np.any(gradients[0][1])  # a row that doesn't count


def losses(network, precision):
    """The loss of two documents in a window and its gradients, and the program of both."""
    graph, params = nnx.split(network)
    tokens = jax.random.randint(jax.random.key(1), (2, 91), 0, 300)
    segments = jnp.broadcast_to(1 + (jnp.arange(90) >= 40), (2, 90))
    positions = jnp.where(segments == 1, jnp.arange(90), jnp.arange(90) - 40)

    def loss(params):
        with jax.default_matmul_precision(precision):
            network = nnx.merge(graph, params)
            return next_token_loss(network, tokens, segments=segments, positions=positions)

    program = jax.jit(jax.value_and_grad(loss))
    return program(params), program.lower(params).as_text()


@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "gpt2"])
def test_a_network_trains_alike_and_multiplies_in_bfloat16_only(family):
    network = small_model(family, context=96, num_layers=2).network
    (found, gradients), program = losses(network, narrow.PRECISION)
    (wanted, expected), plain = losses(network, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert apart(gradients, expected) < 0.03
    products = re.findall(r"stablehlo\.dot_general .*: \((.*?)\) -> (\S+)", program)
    assert products and all(
        operands.count("xbf16>") == 2 and "xf32>" in result for operands, result in products
    )
    assert "xbf16>" not in plain  # nobody who doesn't ask for it gets it


def test_what_is_read_inside_is_computed_as_ever():
    network = small_model("gptj").network
    tokens = jnp.arange(12)[None]
    collect = sites.Collector(["blocks.0.attn.pattern"])
    with jax.default_matmul_precision(narrow.PRECISION):
        network(tokens, site=collect)
    (pattern,) = collect.values.values()
    np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-5)
