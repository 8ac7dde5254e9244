"""Cross-entropy after the last block, in a memory that doesn't grow with text or vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gptj_lab.model import narrow
from gptj_lab.model.transformer import Transformer, from_normal

PIECE = 256  # tokens of a sequence whose logits exist at a time


def cross_entropy(
    network: Transformer,
    x: Float[Array, "batch seq d_model"],
    targets: Int[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
    piece: int = PIECE,
) -> Float[Array, ""]:
    """The weighted sum of -log p(target) after the last block, in nats.

    Logits exist for `piece` tokens of each sequence at a time, in the backward pass too: of
    50,400 for 2,048 tokens they would take 0.4 GB, and as much again backwards.
    """
    if narrow.wanted():
        return _narrow(network, x, targets, weights)
    batch, seq, d_model = x.shape
    count = -(-seq // piece)
    room = ((0, 0), (0, count * piece - seq))

    def pieces(values: Array) -> Array:
        padded = jnp.pad(values, (*room, *((0, 0),) * (values.ndim - 2)))
        return padded.reshape(batch, count, piece, *values.shape[2:]).swapaxes(0, 1)

    ends = network.final_ln, network.embed, network.head, network.head_bias

    @jax.checkpoint
    def one(ends: Any, x: Array, targets: Array, weights: Array) -> Array:
        norm, *unembedding = ends
        logits = from_normal(norm(x), *unembedding).astype(jnp.float32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (nats * weights).sum()

    if count == 1:
        return one(ends, x, targets, weights)

    def step(total: Array, each: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + one(ends, *each), None

    each = (pieces(x), pieces(targets), pieces(weights.astype(jnp.float32)))
    return jax.lax.scan(step, jnp.zeros(()), each)[0]


def _narrow(network: Transformer, x: Array, targets: Array, weights: Array) -> Array:
    head = network.head
    matrix = network.embed[...] if head is None else head.weight[...]
    own = network.head_bias if head is None else head.bias
    bias = jnp.zeros(len(matrix)) if own is None else own[...]
    rows = network.final_ln(x).reshape(-1, x.shape[-1])
    return narrow.nats(rows, matrix, bias, targets.reshape(-1), weights.reshape(-1))
