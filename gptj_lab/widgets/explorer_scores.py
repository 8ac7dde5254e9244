"""One number a head: what kind of reader it is on this text."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gptj_lab.lens import attention


class Score(NamedTuple):
    """How a score is called, and what it means."""

    name: str
    label: str
    unit: str
    note: str


SCORES = (
    Score("entropy", "entropy", "nats", "how widely the head reads, mean over the queries"),
    Score("sink", "first token", "share", "share of attention that the first token gets"),
    Score("previous", "previous token", "share", "share that the token just before gets"),
    Score("duplicate", "duplicate", "share", "share that earlier copies of the token get"),
    Score("induction", "induction", "share", "share that tokens after earlier copies get"),
)
ABLATION = Score("ablation", "ablation effect", "logits", "the answer's change without the head")
MOVED = Score("moved", "moved", "distance", "Jensen-Shannon distance of A's pattern and B's")


def scores(
    pattern: Float[Array, "heads seq kv_seq"],
    ids: Int[Array, "seq"],
    queries: Bool[Array, "seq"],
) -> Float[Array, "scores heads"]:
    """SCORES of a layer's heads; NaN where the text has no token to say it of.

    Means over the queries after the first, which has nothing to choose; of duplicate and
    induction, over the queries whose token came before.

    Args:
        queries: which tokens are there; the others are padding.
    """
    return jnp.stack(
        [
            attention.entropy(pattern, queries),
            attention.sink_mass(pattern, queries),
            attention.previous_token_score(pattern, queries),
            attention.duplicate_token_score(pattern, ids, queries),
            attention.induction_score(pattern, ids, queries),
        ]
    )
