"""The Explorer's lenses: logit lens and tuned lens, of a run with interventions too; Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from gptj_lab.lens import inputs
from gptj_lab.lens.jacobian_lens import jacobian_lens
from gptj_lab.lens.logit_lens import LogitLens, logit_lens, unembed
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.widgets.explorer_reading import Reading, log_softmax

if TYPE_CHECKING:
    from gptj_lab.lens.affine_lens import AffineLens

TOP = 5
KINDS = ("logit", "tuned", "jacobian")


def kinds(tuned: AffineLens | None) -> list[str]:
    """Those of KINDS that there are, with this tuned lens or without one."""
    return [kind for kind in KINDS if kind != "tuned" or tuned is not None]


def lens(
    reading: Reading,
    positions: Sequence[int],
    kind: str = "logit",
    tuned: AffineLens | None = None,
) -> LogitLens:
    """One of KINDS, for some positions of a run.

    Raises:
        ValueError: another kind, no tuned lens or one of other weights, or the Jacobian lens of a
            run with interventions, which the derivative knows nothing of.
    """
    trace = _trace(reading)
    if kind == "logit":
        return logit_lens(trace, TOP, positions)
    if kind == "tuned":
        return _needed(tuned).read(trace, TOP, positions)
    if kind == "jacobian":
        return logit_lens(trace, TOP, positions, _pushed(reading, positions))
    raise ValueError(f"kind is {kind!r}: one of {', '.join(KINDS)} is needed")


def lens_of(
    reading: Reading,
    position: int,
    ids: list[int],
    kind: str = "logit",
    tuned: AffineLens | None = None,
) -> tuple[Float[np.ndarray, "tokens rows"], Int[np.ndarray, "tokens rows"]]:
    """Log-probability (nats) and rank (0: likeliest) of some tokens over the layers.

    All layers are rows of one product, where LogitLens.of would fill up one position to many.

    Raises:
        ValueError: as `lens`.
    """
    x = reading.residuals[:, position]
    if kind != "logit":
        x = np.array(x)
        x[:-1] = lens(reading, [position], kind, tuned).streams[:, 0]
    ends = inputs.without_blocks(reading.model)
    logits = np.array(distributed.gather(unembed(ends, x, x.dtype.name)))
    logits[-1] = reading.logits[position]
    own = logits[:, ids]
    ranks = (logits[:, None, :] > own[:, :, None]).sum(-1)
    return log_softmax(logits)[:, ids].T, ranks.T.astype(np.int32)


def check_tuned(tuned: Any) -> None:
    """Nothing, if it is a lens that `train_tuned_lens` made.

    Raises:
        TypeError, ValueError: it is something else.
    """
    from gptj_lab.lens.affine_lens import AffineLens

    if not isinstance(tuned, AffineLens | None):
        raise TypeError(
            f"tuned_lens is a {type(tuned).__name__}: the AffineLens of train_tuned_lens is needed"
        )
    if tuned is not None and tuned.kind != "tuned":
        raise ValueError(f"tuned_lens is a {tuned.kind} lens: one of train_tuned_lens is needed")


def _needed(tuned: AffineLens | None) -> AffineLens:
    if tuned is None:
        raise ValueError(
            "there is no tuned lens: train one (gptj_lab.lens.tuned_lens.train_tuned_lens) and "
            "give it, Explorer(tuned_lens=)"
        )
    return tuned


def _trace(reading: Reading) -> Trace:
    return Trace(
        reading.model.config, reading.ids, (), reading.residuals, names=(), model=reading.model,
        model_name=reading.model.name, values={"logits": reading.logits},
    )  # fmt: skip


def _pushed(
    reading: Reading, positions: Sequence[int]
) -> Float[np.ndarray, "layers positions d_model"]:
    """What the blocks above make of the residuals; each position's derivative is taken once."""
    if reading.edited:
        raise ValueError("the Jacobian lens is of a run without interventions: choose A or B")
    missing = [each for each in positions if each not in reading.pushed]
    if missing:
        made = jacobian_lens(_trace(reading), 1, missing).streams
        reading.pushed |= {each: made[:, i] for i, each in enumerate(missing)}
    return np.stack([reading.pushed[each] for each in positions], 1)
