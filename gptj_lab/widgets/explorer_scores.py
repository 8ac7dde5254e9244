"""One number a head: what kind of reader it is on this text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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
    pattern: Float[np.ndarray, "heads seq kv_seq"], ids: Int[np.ndarray, "seq"]
) -> Float[np.ndarray, "scores heads"]:
    """SCORES of a layer's heads; NaN where the text has no token to say it of.

    Means over the queries after the first, which has nothing to choose; of duplicate and
    induction, over the queries whose token came before.
    """
    seq = len(ids)
    told = np.full((len(SCORES), len(pattern)), np.nan, np.float32)
    if seq < 2:
        return told
    read = pattern[:, 1:]
    told[0] = -(read * np.log(np.where(read > 0, read, 1))).sum(-1).mean(-1)
    told[1] = read[..., 0].mean(-1)
    told[2] = np.diagonal(pattern, offset=-1, axis1=1, axis2=2).mean(-1)
    same = np.tril(ids[:, None] == ids[None, :], -1)
    after = np.tril(np.pad(same, ((0, 0), (1, 0)))[:, :-1])
    for row, where in ((3, same), (4, after)):
        queries = where.any(-1)
        if queries.any():
            told[row] = (pattern * where).sum(-1)[:, queries].mean(-1)
    return told
