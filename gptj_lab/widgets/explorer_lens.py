"""The Explorer's logit lens, of a run with interventions too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.lens import inputs
from gptj_lab.lens.logit_lens import LogitLens, logit_lens
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.widgets.explorer_reading import Reading, log_softmax

TOP = 5


def lens(reading: Reading, start: int, stop: int) -> LogitLens:
    """The logit lens for the positions from `start` up to `stop`."""
    trace = Trace(
        reading.model.config, reading.ids, (), reading.residuals, names=(), model=reading.model,
        values={"logits": reading.logits},
    )  # fmt: skip
    return logit_lens(trace, TOP, range(start, stop))


def lens_of(
    reading: Reading, position: int, ids: list[int]
) -> tuple[Float[np.ndarray, "tokens rows"], Int[np.ndarray, "tokens rows"]]:
    """Log-probability (nats) and rank (0: likeliest) of some tokens over the layers.

    All layers are rows of one product, where LogitLens.of would fill up one position to many.
    """
    graph, state = inputs.split_unembedding(reading.model)
    logits = np.array(distributed.gather(_logits(graph, state, reading.residuals[:, position])))
    logits[-1] = reading.logits[position]
    own = logits[:, ids]
    ranks = (logits[:, None, :] > own[:, :, None]).sum(-1)
    return log_softmax(logits)[:, ids].T, ranks.T.astype(np.int32)


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph: Any, state: Any, x: Float[Array, "rows d_model"]) -> Float[Array, "rows vocab"]:
    return nnx.merge(graph, state).unembed(x[None])[0]
