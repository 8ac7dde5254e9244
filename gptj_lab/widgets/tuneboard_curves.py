"""A run's curves in constant memory, and what they say in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from gptj_lab.finetuning.run import Run

COLUMNS = (
    "step", "loss", "rate", "gradient_norm", "tokens_per_second", "seconds", "memory_bytes",
)  # fmt: skip
_LARGEST = [COLUMNS.index(name) for name in ("step", "gradient_norm", "seconds", "memory_bytes")]
MOST = 256  # points of a curve, at the least when there were more steps
_WORSE = 0.01  # share that a held-out loss has to rise by before it is said to rise
_EARLY = 8  # steps whose mean loss is held against the base's


class Curves:
    """The history of a run as at most 2 * MOST points a curve, however many steps there were.

    A point is the mean of its steps (of gradient norm, memory, step and seconds: the largest);
    when the room is full, neighbours become one. Nothing but new steps is read.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        shape = (2 * MOST, len(COLUMNS))
        self._sums, self._counts = np.zeros(shape), np.zeros(shape)
        self._most = np.full(shape, -np.inf)
        self._steps = 1  # in a point
        self._seen, self._last = 0, None

    def read(self, history: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "columns points"]:
        """All curves, NaN where nothing is known; `history` is what it was, and more."""
        count = len(history)
        if count < self._seen or (self._seen and history[self._seen - 1]["step"] != self._last):
            self._clear()  # the run was resumed from an older state
        for i in range(self._seen, count):
            self._add(i, history[i])
        if count:
            self._seen, self._last = count, history[count - 1]["step"]
        points = -(-count // self._steps)
        with np.errstate(invalid="ignore"):
            values = self._sums[:points] / self._counts[:points]
        values[:, _LARGEST] = np.where(
            np.isfinite(self._most[:points]), self._most[:points], np.nan
        )[:, _LARGEST]
        return values.T.astype(np.float32)

    def _add(self, i: int, entry: Mapping[str, Any]) -> None:
        while i // self._steps >= 2 * MOST:
            for kept in (self._sums, self._counts):
                kept[:MOST], kept[MOST:] = kept[::2] + kept[1::2], 0
            self._most[:MOST] = np.maximum(self._most[::2], self._most[1::2])
            self._most[MOST:] = -np.inf
            self._steps *= 2
        point = i // self._steps
        for column, name in enumerate(COLUMNS):
            value = number(entry.get(name))
            if math.isfinite(value):
                self._sums[point, column] += value
                self._counts[point, column] += 1
                self._most[point, column] = max(self._most[point, column], value)


def number(value: Any) -> float:
    """A float, NaN where there is none."""
    return math.nan if value is None else float(value)


def held_out(evaluations: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "3 points"]:
    """Step, held-out loss and training loss since the one before, of at most MOST evaluations.

    The best is always among them.
    """
    rows = [
        (number(each["step"]), number(each.get("held_out_loss")), number(each.get("loss")))
        for each in evaluations
    ]
    if len(rows) > MOST:
        best = int(np.nanargmin([row[1] for row in rows])) if _known(evaluations) else 0
        kept = np.linspace(0, len(rows) - 1, MOST - 1).round().astype(int)
        rows = [rows[i] for i in np.union1d(kept, [best])]
    return np.array(rows, np.float32).reshape(-1, 3).T


def best(evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The evaluation with the lowest held-out loss."""
    return min(_known(evaluations), key=lambda each: each["held_out_loss"], default=None)


def _known(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in evaluations if math.isfinite(number(each.get("held_out_loss")))]


def flags(run: Run, vocab_size: int) -> list[dict[str, str]]:
    """What a person who watches the run should know: {"kind": "note" or "warning", "text"}."""
    found = [_start(run, vocab_size), _overfit(run.evaluations)]
    said = [{"kind": kind, "text": text} for kind, text in filter(None, found)]
    return said + [{"kind": _kind(note), "text": note} for note in run.notes[-12:]]


def _kind(note: str) -> str:
    alarming = ("nan", "infinit", "truncated", "damaged", "full", "fail", "lost", "too high")
    return "warning" if any(word in note.lower() for word in alarming) else "note"


def _start(run: Run, vocab_size: int) -> tuple[str, str] | None:
    """Where the loss should start, and whether it did."""
    if run.base_loss is None or not math.isfinite(run.base_loss):
        return None
    ignorant = math.log(vocab_size)
    prompted = run.settings.get("method", {}).get("kind") == "SoftPrompt"
    said = (
        f"The loss should start near {run.base_loss:.2f} nats, the base model's on the held-out "
        f"text{' after the new soft prompt' if prompted else ''} (a model that knows nothing has "
        f"ln {vocab_size:,} = {ignorant:.2f})."
    )
    if run.base_loss > 0.95 * ignorant:
        return "warning", f"{said} Here the base knows nothing: are its weights loaded?"
    early = [number(each.get("loss")) for each in run.history[:_EARLY] if each["step"] <= _EARLY]
    if len(early) == _EARLY and np.mean(early) > run.base_loss + 1:
        return "warning", (
            f"{said} The first {_EARLY} steps have {np.mean(early):.2f}: the rate is too high, or "
            "what is trained on isn't like what is held out."
        )
    return "note", said


def _overfit(evaluations: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Whether the held-out loss has turned, by two evaluations and a percent at the least."""
    known, lowest = _known(evaluations), best(evaluations)
    if lowest is None:
        return None
    after = known[known.index(lowest) + 1 :]
    risen = [each for each in after if each["held_out_loss"] > lowest["held_out_loss"]]
    last = known[-1]["held_out_loss"]
    if len(risen) < 2 or last < lowest["held_out_loss"] * (1 + _WORSE):
        return None
    losses = [number(lowest.get("loss")), number(known[-1].get("loss"))]
    heart = " while the training loss fell: the text is being learnt by heart" * (
        losses[1] < losses[0]
    )
    return "warning", (
        f"The held-out loss was lowest at step {lowest['step']:,} ({lowest['held_out_loss']:.3f}) "
        f"and has risen to {last:.3f}{heart}. Stop, or give it more text or a lower rate; "
        "Before and after has the model of then."
    )
