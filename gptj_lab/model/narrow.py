"""Products of bfloat16 operands with float32 sums, and what training builds on them.

A TPU's matrix unit and torch's autocast do nothing else. XLA gives a CPU's such products to a
library that knows its matrix instructions, several times as fast as float32, but only with a
float32 result and where the left operand is summed over its last axis: no gradient by automatic
differentiation is of that form, so these functions bring their own. They know reverse mode only;
`jax.default_matmul_precision(PRECISION)` asks for them.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj_lab import versions

PRECISION = "BF16_BF16_F32"  # as JAX calls it
_LOGITS = 1 << 22  # that exist at a time in `nats`
_MOST_QUERIES = 4  # parts that the queries of `attend` are cut into, each reading its past alone


def wanted() -> bool:
    """Whether this computation asked for such products, and runs where they are faster."""
    asked = jax.config.jax_default_matmul_precision == PRECISION  # type: ignore[attr-defined]
    return asked and jax.default_backend() == "cpu"


@jax.custom_vjp
def product(
    x: Float[Array, "*batch d_in"], weight: Float[Array, "d_out d_in"]
) -> Float[Array, "*batch d_out"]:
    """`x @ weight.T`, in the dtype of `x`."""
    return _product(x, weight)[0]


def _product(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    out = _dot(x, weight, x.ndim - 1, 1).astype(x.dtype)
    return out, (x.astype(jnp.bfloat16), weight)


def _product_back(kept: tuple[Array, Array], by_out: Array) -> tuple[Array, Array]:
    x, weight = kept
    d_out, d_in = weight.shape
    by_x = _dot(by_out, weight, by_out.ndim - 1, 0).astype(by_out.dtype)
    rows, by_rows = x.reshape(-1, d_in), by_out.reshape(-1, d_out)
    if d_out < d_in:
        by_weight = _dot(_turned(by_rows), rows, 1, 0)
    else:  # turning the narrower of the two costs less
        by_weight = _dot(_turned(rows), by_rows, 1, 0).T
    return by_x, by_weight.astype(weight.dtype)


product.defvjp(_product, _product_back)


@jax.custom_vjp
def rotate(
    x: Float[Array, "batch seq heads d_head"], angles: Float[Array, "batch seq pairs"]
) -> Float[Array, "batch seq heads d_head"]:
    """`positions.rotate` of interleaved pairs, without taking them apart."""
    sin, cos = (jnp.repeat(f(angles), 2, axis=-1) for f in (jnp.sin, jnp.cos))
    room = ((0, 0), (0, 0), (0, x.shape[-1] - sin.shape[-1]))
    even = jnp.arange(x.shape[-1]) % 2 == 0
    sin, cos = jnp.pad(sin, room), jnp.pad(cos, room, constant_values=1)
    # Behind a barrier they are computed once, else once more for every head.
    tables = jax.lax.optimization_barrier((cos, jnp.where(even, -sin, 0), jnp.where(even, 0, sin)))
    same, after, before = (table[:, :, None].astype(x.dtype) for table in tables)
    return x * same + jnp.roll(x, -1, -1) * after + jnp.roll(x, 1, -1) * before


def _rotate(x: Array, angles: Array) -> tuple[Array, Array]:
    return rotate(x, angles), angles


def _rotate_back(angles: Array, by_out: Array) -> tuple[Array, None]:
    return rotate(by_out, -angles), None


rotate.defvjp(_rotate, _rotate_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: Float[Array, "batch heads seq d_head"],
    k: Float[Array, "batch heads seq d_head"],
    v: Float[Array, "batch heads seq d_head"],
    seen: Bool[Array, "#batch 1 seq seq"],
    scale: float,
) -> Float[Array, "batch heads seq d_head"]:
    """What each head reads, softmax(scale q k) v, of tokens that don't lie ahead.

    Args:
        seen: which tokens (last axis) a query may read; those after it are never read.
    """
    return _attend(q, k, v, seen, scale)[0]


def _attend(q: Array, k: Array, v: Array, seen: Array, scale: float) -> tuple[Array, tuple]:
    low = jnp.bfloat16
    q_low, k_low, v_low = (q * scale).astype(low), k.astype(low), v.astype(low)
    kept, out = [], []
    for part in _queries(q.shape[2]):
        past = slice(0, part.stop)
        scores = _heads_dot(q_low[:, :, part], k_low[:, :, past], 3, 3)
        scores = jnp.where(seen[:, :, part, past], scores, jnp.finfo(jnp.float32).min)
        unnormalised = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(low)
        total = unnormalised.astype(jnp.float32).sum(-1, keepdims=True)
        out.append(_heads_dot(unnormalised, v_low[:, :, past], 3, 2) / total)
        kept.append((unnormalised, total))
    z = jnp.concatenate(out, axis=2).astype(q.dtype)
    return z, (q_low, k_low, v_low, z, kept)


def _attend_back(scale: float, kept: tuple, by_z: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, z, patterns = kept
    by_q, by_k, by_v = [], [], []
    for part, (unnormalised, total) in zip(_queries(q.shape[2]), patterns, strict=True):
        past = slice(0, part.stop)
        rest = ((0, 0), (0, 0), (0, q.shape[2] - part.stop), (0, 0))
        by_part = by_z[:, :, part].astype(jnp.float32) / total
        mean = (by_part * z[:, :, part].astype(jnp.float32)).sum(-1, keepdims=True)
        by_pattern = _heads_dot(by_part, v[:, :, past], 3, 3) - mean
        by_scores = (unnormalised.astype(jnp.float32) * by_pattern).astype(jnp.bfloat16)
        by_q.append(_heads_dot(by_scores, k[:, :, past], 3, 2) * scale)
        for found, left, right in (
            (by_k, q[:, :, part], by_scores), (by_v, by_part, unnormalised)
        ):  # fmt: skip
            turned = jax.lax.optimization_barrier(_heads_dot(_turned(left), right, 3, 2))
            found.append(jnp.pad(turned.swapaxes(2, 3), rest))
    return (
        jnp.concatenate(by_q, axis=2).astype(by_z.dtype),
        functools.reduce(jnp.add, by_k).astype(by_z.dtype),
        functools.reduce(jnp.add, by_v).astype(by_z.dtype),
        None,
    )


attend.defvjp(_attend, _attend_back)


@jax.custom_vjp
def nats(
    x: Float[Array, "rows d_model"],
    weight: Float[Array, "vocab d_model"],
    bias: Float[Array, "vocab"],
    targets: Int[Array, "rows"],
    counts: Float[Array, "rows"],
) -> Float[Array, ""]:
    """The sum of counts * -log p(target), p being softmax(x @ weight.T + bias).

    Logits exist for some rows at a time and once only: the gradients are made beside the loss.
    """
    return _nats(x, weight, bias, targets, counts)[0]


def _nats(x: Array, weight: Array, bias: Array, targets: Array, counts: Array):
    vocab, d_model = weight.shape
    rows = max(1, min(len(x), _LOGITS // vocab))
    parts = -(-len(x) // rows)
    room = parts * rows - len(x)

    def cut(values: Array) -> Array:
        padded = jnp.pad(values, ((0, room), *((0, 0),) * (values.ndim - 1)))
        return padded.reshape(parts, rows, *values.shape[1:])

    weight_low = weight.astype(jnp.bfloat16)

    def part(sums: tuple, each: tuple) -> tuple[tuple, Array]:
        nats, by_weight, by_bias = sums
        x, targets, counts = each
        logits = _dot(x, weight_low, 1, 1) + bias[None]
        most = logits.max(-1)
        unnormalised = jnp.exp(logits - most[:, None]).astype(jnp.bfloat16)
        total = unnormalised.astype(jnp.float32).sum(-1)
        own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        share = counts / total
        # The logits' gradient but for `share`: p - 1 at the target, p elsewhere.
        own_places = jnp.arange(len(x)), targets
        by_logits = unnormalised.at[own_places].add(-total.astype(jnp.bfloat16))
        by_x = _dot(by_logits, weight_low, 1, 0) * share[:, None]
        scaled = x.astype(jnp.float32) * share[:, None]
        by_weight = by_weight + _dot(_turned(scaled), by_logits, 1, 0)
        by_bias = by_bias + _dot(share[None], by_logits, 1, 0)[0]
        nats = nats + (counts * (jnp.log(total) + most - own)).sum()
        return (nats, by_weight, by_bias), by_x

    nothing = jnp.zeros(()), jnp.zeros((d_model, vocab)), jnp.zeros(vocab)
    each = cut(x), cut(targets), cut(counts.astype(jnp.float32))
    (total, by_weight, by_bias), by_x = jax.lax.scan(part, nothing, each)
    by_x = by_x.reshape(-1, d_model)[: len(x)].astype(x.dtype)
    return total, (by_x, by_weight.T.astype(weight.dtype), by_bias.astype(bias.dtype))


def _nats_back(kept: tuple, by_total: Array) -> tuple:
    return *((by_total * each).astype(each.dtype) for each in kept), None, None


nats.defvjp(_nats, _nats_back)


def _queries(seq: int) -> Iterator[slice]:
    size = max(64, -(-seq // _MOST_QUERIES))
    for start in range(0, seq, size):
        yield slice(start, min(start + size, seq))


def _dot(left: Array, right: Array, over_left: int, over_right: int) -> Float[Array, "..."]:
    return _float32_dot(left, right, (((over_left,), (over_right,)), ((), ())))


def _heads_dot(left: Array, right: Array, over_left: int, over_right: int) -> Float[Array, "..."]:
    return _float32_dot(left, right, (((over_left,), (over_right,)), ((0, 1), (0, 1))))


def _float32_dot(left: Array, right: Array, axes: Any) -> Float[Array, "..."]:
    pair = versions.factors(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16))
    return jax.lax.dot_general(*pair, axes, preferred_element_type=jnp.float32)


def _turned(x: Array) -> Array:
    """The last two axes swapped in memory, so that the compiler leaves the product as it is."""
    return jax.lax.optimization_barrier(x.astype(jnp.bfloat16).swapaxes(-1, -2))
