"""The logit lens: what a model would say if it stopped before a block (nostalgebraist 2020)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.lens import inputs
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.model.transformer import Transformer

_ROWS = 64  # positions at a time: only their distributions over the vocabulary exist together


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """The next token's distribution at each position as each layer has it; nats throughout.

    Row i < layers is the residual that block i reads through the final LayerNorm and the
    unembedding, its bias included. The last row is the model's own output, to the last bit.

    Attributes:
        trace: what it was read from.
        streams: [layers, positions, d_model], what the unembedding reads in each row but the last.
        positions: which tokens' next ones; int [positions].
        rows: labels, "0", "1", ..., "output".
        ids: int32 [rows, positions, top], the likeliest tokens, the best first.
        logprobs: float32 [rows, positions, top], theirs.
        entropy: float32 [rows, positions].
        kl: float32 [rows, positions], from the row's distribution to the model's: the sum of
            p log(p / q) with the model's output as p.
    """

    trace: Trace
    streams: Float[np.ndarray, "layers positions d_model"]
    positions: Int[np.ndarray, "positions"]
    rows: tuple[str, ...]
    ids: Int[np.ndarray, "rows positions top"]
    logprobs: Float[np.ndarray, "rows positions top"]
    entropy: Float[np.ndarray, "rows positions"]
    kl: Float[np.ndarray, "rows positions"]

    def __repr__(self) -> str:
        return f"LogitLens({len(self.rows)} rows, {len(self.positions)} positions of {self.trace})"

    def logits(self, row: int) -> Float[np.ndarray, "positions vocab"]:
        """The float32 logits of a row; those of row -1 are `trace.logits` themselves.

        Raises:
            ValueError: there is no such row.
        """
        if not -len(self.rows) <= row < len(self.rows):
            raise ValueError(f"row is {row}: rows 0 to {len(self.rows) - 1} are there")
        row %= len(self.rows)
        parts = _row(self.trace, row, self.positions, self.streams)
        return np.concatenate([distributed.gather(logits)[:count] for logits, count in parts])

    def of(self, tokens: str | int | Sequence[int | str]) -> TokensOverLayers:
        """Log-probability and rank of chosen tokens at each row and position.

        Args:
            tokens: ids, or texts that are one token each (" cat"); one or several.

        Raises:
            ValueError: no tokens, ids outside the vocabulary, or a text of several tokens.
        """
        model = self.trace.model("the unembedding")
        ids = inputs.several_ids(model, tokens)
        logprobs, ranks = [], []
        for row in range(len(self.rows)):
            parts = [
                [distributed.gather(each)[:count] for each in _told_of(logits, ids)]
                for logits, count in _row(self.trace, row, self.positions, self.streams)
            ]
            logprobs.append(np.concatenate([part[0] for part in parts]).T)
            ranks.append(np.concatenate([part[1] for part in parts]).T)
        return TokensOverLayers(ids, np.stack(logprobs, axis=1), np.stack(ranks, axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class TokensOverLayers:
    """What each row of a lens says of some tokens.

    Attributes:
        token_ids: int32 [tokens].
        logprobs: float32 [tokens, rows, positions], nats.
        ranks: int32 [tokens, rows, positions]; 0 is the likeliest.
    """

    token_ids: Int[np.ndarray, "tokens"]
    logprobs: Float[np.ndarray, "tokens rows positions"]
    ranks: Int[np.ndarray, "tokens rows positions"]

    def __repr__(self) -> str:
        tokens, rows, positions = self.ranks.shape
        return f"TokensOverLayers({tokens} tokens, {rows} rows, {positions} positions)"


def logit_lens(
    trace: Trace,
    top: int = 5,
    positions: Sequence[int] | None = None,
    streams: Float[np.ndarray, "layers positions d_model"] | None = None,
) -> LogitLens:
    """The logit lens of a traced prompt.

    Args:
        trace: of any model, on one device or a mesh.
        top: how many of the likeliest tokens to keep.
        positions: of which tokens; by default of all; negative ones count from the end.
        streams: [layers, positions, d_model] to read instead of the residuals themselves.

    Raises:
        ValueError: top outside of 1 to vocab_size, positions that the prompt doesn't have, streams
            of another shape, a trace without its model, or activations that are NaN (the first
            site is named).
    """
    vocab = trace.config.vocab_size
    if not 1 <= top <= vocab:
        raise ValueError(f"top is {top}: 1 to {vocab} tokens can be kept")
    places, layers = places_of(trace, positions), trace.config.num_layers
    if streams is None:
        streams = trace.residuals[:layers, places]
    if streams.shape != (layers, len(places), trace.config.d_model):
        raise ValueError(
            f"streams has shape {streams.shape}: "
            f"{(layers, len(places), trace.config.d_model)} is needed"
        )
    final = trace.logits[places]
    if np.isnan(final).any():
        raise ValueError(
            f"activations are NaN: {trace.first_nan()} is the first site where one appears"
        )
    rows = []
    for row in range(layers + 1):
        parts = []
        for (logits, count), (own, _) in zip(
            _row(trace, row, places, streams), _chunks(final), strict=True
        ):
            parts.append([distributed.gather(each)[:count] for each in _told(logits, own, top)])
        rows.append([np.concatenate(each) for each in zip(*parts, strict=True)])
    return LogitLens(
        trace, streams, places, (*map(str, range(layers)), "output"),
        *(np.stack(each) for each in zip(*rows, strict=True)),
    )  # fmt: skip


def places_of(trace: Trace, positions: Sequence[int] | None) -> Int[np.ndarray, "positions"]:
    """Positions counted from 0; all if none are named.

    Raises:
        ValueError: the prompt doesn't have one of them, or the sequence is empty.
    """
    seq = len(trace.token_ids)
    wanted = range(seq) if positions is None else positions
    if not len(wanted):
        raise ValueError("positions is empty: at least one is needed")
    return np.array([inputs.position_of(place, seq) for place in wanted], np.int64)


def _row(
    trace: Trace,
    row: int,
    positions: Int[np.ndarray, "positions"],
    streams: Float[np.ndarray, "layers positions d_model"],
) -> Iterator[tuple[Any, int]]:
    """The logits of a row, `_ROWS` positions at a time, and how many of them count."""
    if row == len(streams):
        yield from _chunks(trace.logits[positions])
        return
    ends = inputs.without_blocks(trace.model("the unembedding"))
    for x, count in _chunks(streams[row]):
        yield unembed(ends, x, trace.residuals.dtype.name), count


def _chunks(x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Rows, `_ROWS` at a time and the last filled up, with how many of each count."""
    counts = [min(_ROWS, len(x) - start) for start in range(0, len(x), _ROWS)]
    return [
        (np.pad(x[i * _ROWS : i * _ROWS + count], ((0, _ROWS - count), (0, 0))), count)
        for i, count in enumerate(counts)
    ]


@functools.partial(jax.jit, static_argnames="dtype")
def unembed(
    ends: Transformer, x: Float[Array | np.ndarray, "positions d_model"], dtype: str
) -> Float[Array, "positions vocab"]:
    """The logits of residuals, from `inputs.without_blocks`."""
    return ends.unembed(jnp.asarray(x[None], dtype))[0]


@functools.partial(jax.jit, static_argnames="top")
def _told(
    logits: Float[Array | np.ndarray, "positions vocab"],
    final: Float[Array | np.ndarray, "positions vocab"],
    top: int,
) -> tuple[Array, Array, Array, Array]:
    """The likeliest tokens, their log-probabilities, the entropy, the KL to the final."""
    own, last = jax.nn.log_softmax(logits), jax.nn.log_softmax(final)
    best, ids = jax.lax.top_k(own, top)
    entropy = -(jnp.exp(own) * own).sum(-1)
    kl = jnp.maximum((jnp.exp(last) * (last - own)).sum(-1), 0)
    return ids, best, entropy, kl


@jax.jit
def _told_of(
    logits: Float[Array | np.ndarray, "positions vocab"], ids: Int[Array | np.ndarray, "tokens"]
) -> tuple[Float[Array, "positions tokens"], Int[Array, "positions tokens"]]:
    """Log-probability and rank of some tokens; of equal logits the one with the lower id leads."""
    own = logits[:, ids]
    vocab = jnp.arange(logits.shape[-1])

    def rank(token: Array, value: Array) -> Array:
        ahead = logits > value[:, None]
        ties = (logits == value[:, None]) & (vocab < token)[None]
        return (ahead | ties).sum(-1, dtype=jnp.int32)

    ranks = jax.lax.map(lambda each: rank(*each), (ids, own.T))
    return jax.nn.log_softmax(logits)[:, ids], ranks.T
