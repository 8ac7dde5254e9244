"""A run without a view: a progress bar, and one line an evaluation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptj_lab.checkpoints.progress import watched

if TYPE_CHECKING:
    from gptj_lab.finetuning.loop import Loop

_SAMPLE = 160  # characters of a sample that are shown
_OVERFIT = 1.01  # times the lowest held-out loss


def unless_gone(say: Callable[[str], object]) -> Callable[[str], None]:
    """`say`, which does nothing where the terminal has gone: no reason to stop training."""

    def said(text: str) -> None:
        with contextlib.suppress(OSError):
            say(text)

    return said


class Quiet:
    """Tells nothing."""

    def line(self, text: str) -> None:
        """Takes a sentence."""

    def moved(self, run: Loop) -> None:
        """Takes notice of a step."""

    def close(self) -> None:
        """Ends the bar."""


class Aloud(Quiet):
    """Says each sentence, and shows a bar where somebody watches: a terminal, a notebook."""

    def __init__(self, say: Callable[[str], object]):
        self._say = say
        self._bar: Any = None

    def line(self, text: str) -> None:
        if self._bar is None:
            self._say(text)
            return
        with self._bar.external_write_mode():  # the bar goes out of the way
            self._say(text)

    def moved(self, run: Loop) -> None:
        if self._bar is None:
            if not watched():
                return
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=run.steps, initial=run.step - 1, unit="step", mininterval=0.5,
                dynamic_ncols=True,
            )  # fmt: skip
        last = run.history[-1]
        self._bar.set_postfix_str(
            f"loss {last['loss']:.3f}, {last['tokens_per_second']:,.0f} tokens/s", refresh=False
        )
        self._bar.update(run.step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def evaluation_lines(run: Loop) -> list[str]:
    """The newest evaluation in one line, and a line for each of its samples."""
    told = run.evaluations[-1]
    parts = [f"step {told['step']:,} of {run.steps:,}"]
    if told["held_out_loss"] is not None:
        base = "" if run.base_loss is None or not told["step"] else f" (base {run.base_loss:.3f})"
        best = ", the best so far" if told["best"] and told["step"] else ""
        parts.append(f"held-out loss {told['held_out_loss']:.3f}{base}{best}")
    if told["loss"] is not None:
        parts.append(f"training loss {told['loss']:.3f}")
    if run.history and told["step"]:
        last = run.history[-1]
        parts.append(f"rate {last['rate']:.2g}, gradient {last['gradient_norm']:.2g}")
        parts.append(f"{last['tokens_per_second']:,.0f} tokens/s")
        if last["memory_bytes"] is not None:
            parts.append(f"{last['memory_bytes'] / 1e9:.2f} GB")
    if run.seconds_left:
        parts.append(f"{duration(run.seconds_left)} left")
    samples = [
        f"    {_short(each['prompt'])} ... {_short(each['text'])}" for each in told["samples"]
    ]
    return ["  ".join(parts), *samples]


def end_sentence(run: Loop) -> str:
    """What a finished run came to, and whether it has learnt by heart."""
    said = f"finished after step {run.step:,}, {duration(run.pace.seconds)} of work"
    measured = [told for told in run.evaluations if told["held_out_loss"] is not None]
    if not measured or run.base_loss is None:
        return f"{said}."
    last, best = measured[-1], min(measured, key=lambda told: told["held_out_loss"])
    said += f": the held-out loss went from {run.base_loss:.3f} to {last['held_out_loss']:.3f}."
    if last["held_out_loss"] > _OVERFIT * best["held_out_loss"]:
        when = f"at step {best['step']:,}" if best["step"] else "before the first step"
        said += f" It was lowest, {best['held_out_loss']:.3f}, {when}: since then "
        losses = [told["loss"] for told in (best, *run.evaluations) if told["loss"] is not None]
        if losses and losses[-1] < losses[0]:
            said += "the model learns the text by heart. Fewer steps, or patience=, stop it there; "
        else:
            said += "the training loss has not fallen either, so take a lower learning rate; "
        said += "run.best() is the model of then (gptj-lab finetune: --best)."
    return said


def start_sentence(base_loss: float | None, vocab_size: int, *, prompted: bool = False) -> str:
    """Where the loss should start; `prompted`: with a new soft prompt before the text."""
    ignorant = f"a model that knows nothing has ln {vocab_size:,} = {math.log(vocab_size):.2f}"
    if base_loss is None:
        return f"Nothing is held out, so that nothing says where the loss should start; {ignorant}."
    return (
        f"The loss should start near {base_loss:.2f} nats a token, the base's own on the held-out "
        f"text{' after the new soft prompt' if prompted else ''}; {ignorant}."
    )


def duration(seconds: float) -> str:
    """As "41 s", "12 min" or "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SAMPLE else f"{line[:_SAMPLE]} ..."
