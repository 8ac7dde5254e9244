"""The Explorer's logit lens: what the model would say if it stopped before each block."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.mesh import distributed
from gptj_lab.widgets.explorer_reading import Reading, log_softmax

TOP = 5
_ROWS = 64  # positions at a time: their distributions over the vocabulary exist together


class Lens(NamedTuple):
    """The prediction after each position, as it stands before each block and at the end.

    The last row is the model's own output; the unembedding's bias is part of every row. Nats.
    """

    ids: Int[np.ndarray, "rows seq top"]
    logprobs: Float[np.ndarray, "rows seq top"]
    entropy: Float[np.ndarray, "rows seq"]
    kl: Float[np.ndarray, "rows seq"]  # from the model's own output to the row's prediction


def lens(reading: Reading, start: int, stop: int) -> Lens:
    """The logit lens for the positions from `start` up to `stop`."""
    graph, state = nnx.split(reading.model.network)
    columns = []
    for first in range(start, stop, _ROWS):
        count = min(_ROWS, stop - first)
        final = _filled(reading.logits[first : first + count])
        rows = []
        for layer, residual in enumerate(reading.residuals):
            x = _filled(residual[first : first + count]).astype(reading.model.dtype)
            own = final if layer == len(reading.residuals) - 1 else None
            told = _told(graph, state, x, final, own)
            rows.append([distributed.gather(each)[:count] for each in told])
        columns.append([np.stack(each) for each in zip(*rows, strict=True)])
    return Lens(*(np.concatenate(each, axis=1) for each in zip(*columns, strict=True)))


def lens_of(
    reading: Reading, position: int, ids: list[int]
) -> tuple[Float[np.ndarray, "tokens rows"], Int[np.ndarray, "tokens rows"]]:
    """Log-probability (nats) and rank (0: likeliest) of some tokens over the layers."""
    graph, state = nnx.split(reading.model.network)
    x = reading.residuals[:, position].astype(reading.model.dtype)
    logits = np.array(distributed.gather(_logits(graph, state, x)))
    logits[-1] = reading.logits[position]
    own = logits[:, ids]
    ranks = (logits[:, None, :] > own[:, :, None]).sum(-1)
    return log_softmax(logits)[:, ids].T, ranks.T.astype(np.int32)


def _filled(rows: np.ndarray) -> np.ndarray:
    return np.pad(rows, ((0, _ROWS - len(rows)), (0, 0)))


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph: Any, state: Any, x: Float[Array, "rows d_model"]) -> Float[Array, "rows vocab"]:
    return nnx.merge(graph, state).unembed(x[None])[0]


@functools.partial(jax.jit, static_argnames="graph")
def _told(
    graph: Any,
    state: Any,
    x: Float[Array, "rows d_model"],
    final: Float[Array, "rows vocab"],
    own: Float[Array, "rows vocab"] | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    logits = nnx.merge(graph, state).unembed(x[None])[0] if own is None else own
    logprobs, last = jax.nn.log_softmax(logits), jax.nn.log_softmax(final)
    top, ids = jax.lax.top_k(logprobs, min(TOP, logits.shape[-1]))
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    kl = jnp.sum(jnp.exp(last) * (last - logprobs), axis=-1)
    return ids, top, entropy, jnp.maximum(kl, 0)
