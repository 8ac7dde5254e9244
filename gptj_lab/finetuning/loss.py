"""The loss of a language model, in a memory that doesn't grow with vocabulary or depth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from gptj_lab.finetuning import lora, soft_prompts
from gptj_lab.finetuning.packing import Batch
from gptj_lab.model import narrow, sites
from gptj_lab.model.cross_entropy import PIECE, cross_entropy
from gptj_lab.model.transformer import Block, Transformer

# What the backward pass finds again, by name; the rest it computes once more.
REMAT = {
    "nothing kept": jax.checkpoint_policies.nothing_saveable,
    "products kept": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
PRODUCTS = ("float32", "bfloat16")


def next_token_loss(
    network: Transformer,
    tokens: Int[Array | np.ndarray, "batch window"],
    *,
    weights: Float[Array | np.ndarray, "batch seq"] | None = None,
    positions: Int[Array | np.ndarray, "batch seq"] | None = None,
    segments: Int[Array | np.ndarray, "batch seq"] | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: str | None = None,
    products: str = "float32",
    piece: int = PIECE,
) -> Float[Array, ""]:
    """Mean cross-entropy of each token after the first, in nats.

    Args:
        tokens: windows of one token more than the network reads.
        weights: of the tokens that are predicted, by default 1; those of 0 don't count.
        positions, segments: of the tokens that are read, as in Transformer.
        dtype: of the activations; the loss is float32.
        remat: None keeps every activation for the backward pass; a name of REMAT computes the
            inside of each block again.
        products: "bfloat16" multiplies in bfloat16 and adds up in float32 on a CPU, several times
            as fast (model/narrow.py); elsewhere the device decides.
        piece: tokens of a sequence whose logits exist at a time.

    Raises:
        ValueError: `remat` is no name of REMAT, or `products` neither of its words.
    """
    check_remat(remat)
    if products not in PRODUCTS:
        raise ValueError(f"products is {products!r}: choose {' or '.join(map(repr, PRODUCTS))}")
    if products == "bfloat16" and jax.default_backend() == "cpu":
        with jax.default_matmul_precision(narrow.PRECISION):
            return _loss(network, tokens, weights, positions, segments, dtype, remat, piece)
    return _loss(network, tokens, weights, positions, segments, dtype, remat, piece)


def _loss(
    network: Transformer,
    tokens: Array | np.ndarray,
    weights: Array | np.ndarray | None,
    positions: Array | np.ndarray | None,
    segments: Array | np.ndarray | None,
    dtype: DTypeLike,
    remat: str | None,
    piece: int,
) -> Array:
    ids, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    if weights is None:
        weights = jnp.ones(ids.shape, jnp.float32)
    positions, weights = jnp.asarray(positions), jnp.asarray(weights)
    segments = None if segments is None else jnp.asarray(segments)
    if network.soft_prompt is not None:
        ids, positions, segments = soft_prompts.before(network, ids, positions, segments)
    x = network.embedded(ids, positions, dtype)

    def through(block: Block, x: Array) -> Array:
        return block(x, positions, None, sites.ignore, segments)[0]

    if remat is not None:
        through = jax.checkpoint(through, policy=REMAT[remat])
    for block in network.blocks:
        x = through(block, x)
    total = cross_entropy(network, x[:, -targets.shape[1] :], targets, weights, piece)
    return total / jnp.maximum(weights.sum(), 1)


def gradients(
    graph: Any,
    trained: Any,
    frozen: Any,
    batch: Batch,
    *,
    accumulate: int = 1,
    dtype: DTypeLike = jnp.float32,
    remat: str | None = None,
    products: str = "float32",
    key: jax.Array | None = None,
) -> tuple[Float[Array, ""], Any]:
    """The loss of a batch and its gradient by the trained weights, to be called inside jit.

    Args:
        graph, trained, frozen: as `methods.split` gives them.
        accumulate: parts that the rows are computed in, one after the other: the same loss and
            gradient, in the memory of one part. It divides the rows.
        dtype, remat, products: as in next_token_loss.
        key: of the adapters' dropout; None drops nothing.

    Raises:
        ValueError: `accumulate` doesn't divide the rows, or `remat` is no name of REMAT.
    """
    rows = batch.tokens.shape[0]
    if rows % accumulate:
        raise ValueError(
            f"accumulate is {accumulate}, which doesn't divide the batch of {rows} rows: choose "
            f"{', '.join(str(n) for n in range(1, rows + 1) if rows % n == 0)}"
        )
    count = jnp.maximum(batch.weights.sum(), 1)

    def loss(trained: Any, batch: Batch, key: jax.Array | None) -> Array:
        network = nnx.merge(graph, trained, frozen)
        lora.begin_dropout(network, key)
        mean = next_token_loss(
            network, batch.tokens, weights=batch.weights, positions=batch.positions,
            segments=batch.segments, dtype=dtype, remat=remat, products=products,
        )  # fmt: skip
        return mean * jnp.maximum(batch.weights.sum(), 1) / count

    if accumulate == 1:
        return jax.value_and_grad(loss)(trained, batch, key)

    def cut(values: Array) -> Array:  # each part has rows of every device along `data`
        return values.reshape(-1, accumulate, *values.shape[1:]).swapaxes(0, 1)

    def part(total: Any, each: tuple[Array, Batch]) -> tuple[Any, None]:
        number, rows = each
        own = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(trained, rows, own)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    parts = (jnp.arange(accumulate), jax.tree.map(cut, batch))
    return jax.lax.scan(part, zero, parts)[0]


def check_remat(remat: str | None) -> None:
    """Nothing, if `remat` is None or a name of REMAT; else a ValueError."""
    if remat is not None and remat not in REMAT:
        raise ValueError(f"remat is {remat!r}: None or one of {', '.join(map(repr, REMAT))}")
