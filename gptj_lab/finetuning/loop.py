"""The course of a run: steps, evaluations and saves in their order, until its end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gptj_lab.checkpoints.training_state import State, TrainingStates
from gptj_lab.finetuning import telling
from gptj_lab.finetuning.control import Control, Status
from gptj_lab.finetuning.corpus import Batches, Corpus
from gptj_lab.finetuning.measuring import Interrupted, Measuring
from gptj_lab.finetuning.pace import Pace, memory_bytes
from gptj_lab.finetuning.recording import Recording
from gptj_lab.finetuning.settings import Settings
from gptj_lab.finetuning.soft_prompts import SoftPrompt
from gptj_lab.finetuning.telling import Quiet
from gptj_lab.finetuning.trainer import Trainer
from gptj_lab.generation.finite import NotFiniteError, remedy

_FEW = 5  # steps whose mean loss tells that it grows
_GROWTH = 1.5  # times the first loss, and a nat more


class Loop:
    """Trains until the last step, an early stop, a failure or a wish to stop.

    The device computes a step while the one before it is read and the next batch is laid out.

    Attributes:
        taken, step: steps that were begun, and those that are known to be done.
        notes: sentences about what happened.
        error: why the run failed.
        best: step and trained weights of the best evaluation, of a run without a folder.
    """

    def __init__(
        self, trainer: Trainer, corpus: Corpus, settings: Settings, recording: Recording,
        control: Control,
    ):  # fmt: skip
        self.trainer, self.corpus, self.settings = trainer, corpus, settings
        self.recording, self.control = recording, control
        self.measuring = Measuring(trainer, corpus, settings)
        self.batches: Batches = corpus.batches(settings.batch, seed=settings.seed)
        self.pace = Pace()
        self.steps = settings.steps
        self.taken = self.step = 0
        self._back_at: int | None = None  # of weights that were put back, their step
        self.notes: list[str] = []
        self.error: str | None = None
        self._ahead: tuple[Any, int, Any] | None = None  # a step not read yet, its tokens and place
        self._saved: int | None = None
        self._sound: tuple[int, list[jax.Array]] | None = None  # weights of an evaluation, its step
        self.best: tuple[int, list[jax.Array]] | None = None
        self._broken: str | None = None
        self._compiled = self._grown = False
        self._place = self.batches.state()  # in the data, after `step`

    def go_on_from(self, state: State) -> None:
        """Takes over a saved state: weights, moments, place in the data, time, notes."""
        self.trainer.restore(state.arrays)
        self._place = state.record["batches"]
        self.batches.restore(self._place)
        self.pace.seconds = state.record["seconds"]
        self.notes += state.record["notes"] + state.notes
        self.taken = self.step = self._saved = state.step

    def run(self, teller: Quiet, states: TrainingStates | None) -> Status:
        """Trains to the end; what it came to."""
        self._teller, self._states = teller, states
        self.error = self._back_at = None
        self.pace.rest()
        status = self._steps()
        self._drain()
        if self._broken is not None:
            return self._fail(self._broken)
        if self.taken and not self._save():
            return "failed"
        if status == "finished":
            teller.line(telling.end_sentence(self))
        return status

    @property
    def history(self) -> list[dict[str, Any]]:
        """What each step told."""
        return self.recording.history

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """What each evaluation told."""
        return self.recording.evaluations

    @property
    def base_loss(self) -> float | None:
        """The held-out loss before the first step, in nats a token."""
        first = self.evaluations[0] if self.evaluations else None
        return first["held_out_loss"] if first and first["step"] == 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step; None before the first."""
        every = self.settings.evaluate_every
        evaluations = math.ceil(self.steps / every) - self.step // every
        return self.pace.left(max(self.steps - self.step, 0), evaluations)

    def _steps(self) -> Status:
        while True:
            if self.control.asked:
                self._drain()
                if not self.control.obey(self._save_now):
                    return "stopped"
                self.pace.rest()
            if self._broken is not None:
                return "failed"
            if self._to_evaluate():
                self._drain()
                if self._broken is None:
                    self._evaluate()
                continue
            if self.taken and self.taken % self.settings.save_every == 0:
                self._drain()
                if self._broken is None:
                    self._save()
            if self.taken >= self.steps or self._stops_early():
                return "finished"
            self._step()

    def _step(self) -> None:
        batch = next(self.batches)
        tokens = int(np.count_nonzero(batch.segments))
        placed = self.trainer.put(batch)
        if not self._compiled:
            self.trainer.compile(placed)
            self._compiled = True
            self.pace.rest()
        told = self.trainer.step(placed)
        self.control.status = "running"
        self.taken += 1
        before, self._ahead = self._ahead, (told, tokens, self.batches.state())
        self._read(before)

    def _drain(self) -> None:
        """Waits for the step that is under way."""
        before, self._ahead = self._ahead, None
        self._read(before)

    def _read(self, step: tuple[Any, int, Any] | None) -> None:
        """Records a step."""
        if step is None or self._broken is not None:
            return
        told = self.trainer.measures(step[0])
        if told.broken >= 0:
            what = "loss" if not math.isfinite(told.loss) else "gradient"
            value = told.loss if what == "loss" else told.gradient_norm
            self._broken = f"step {self.step + 1:,}: the {what} became {_odd(value)}"
            self.taken = self.step
            return
        self.pace.step(step[1])
        rate = self.trainer.optimiser.rate(self.step, self.steps)
        self.step, self._place = self.step + 1, step[2]
        self.recording.step({
            "step": self.step, "loss": told.loss, "rate": rate,
            "gradient_norm": told.gradient_norm,
            "tokens_per_second": self.pace.tokens_per_second,
            "seconds": self.pace.seconds, "memory_bytes": memory_bytes(),
        })  # fmt: skip
        self._notice_growth()
        self._teller.moved(self)

    def _to_evaluate(self) -> bool:
        done = self.evaluations
        due = self.taken % self.settings.evaluate_every == 0 or self.taken >= self.steps
        return due and (not done or done[-1]["step"] < self.taken)

    def _evaluate(self) -> None:
        go_on: Callable[[], bool] = lambda: self.control.undisturbed  # noqa: E731
        try:
            with self.pace.evaluating():
                loss = self.measuring.loss(go_on)
                if loss is not None and not math.isfinite(loss):
                    self._broken = f"step {self.taken:,}: the held-out loss became {_odd(loss)}"
                    return
                samples = self._samples(go_on)
        except NotFiniteError as error:
            self._broken = f"step {self.taken:,}: {error}"
            return
        except Interrupted:  # done again when the run goes on
            return
        before = self.evaluations
        since = before[-1]["step"] if before else 0
        news = (told for told in reversed(self.history))
        losses = [told["loss"] for told in itertools.takewhile(lambda x: x["step"] > since, news)]
        known = [told["held_out_loss"] for told in before if told["held_out_loss"] is not None]
        self.recording.evaluation({
            "step": self.taken, "held_out_loss": loss,
            "loss": sum(losses) / len(losses) if losses else None,
            "samples": samples, "best": loss is not None and loss < min(known, default=math.inf),
        })  # fmt: skip
        if self._states is None:
            self._sound = (self.taken, self.trainer.kept())
            if self.evaluations[-1]["best"]:  # the same arrays: memory grows when the loss turns
                self.best = self._sound
        for line in telling.evaluation_lines(self):
            self._teller.line(line)
        if not self.taken:
            prompted = isinstance(self.settings.method, SoftPrompt)
            vocab_size = self.trainer.base.config.vocab_size
            self._teller.line(telling.start_sentence(loss, vocab_size, prompted=prompted))

    def _samples(self, go_on: Callable[[], bool]) -> list[Any]:
        """The samples; none, and a note, where they fail: what is trained is worth more."""
        try:
            return self.measuring.samples(go_on)
        except (Interrupted, NotFiniteError):
            raise
        except Exception as error:
            self._note(f"step {self.taken:,}: the samples could not be made ({error})")
            return []

    def _stops_early(self) -> bool:
        patience, measured = self.settings.patience, self.evaluations
        if patience is None or not measured:
            return False
        best = max((i for i, told in enumerate(measured) if told["best"]), default=0)
        if len(measured) - 1 - best < patience:
            return False
        told = (
            f"stopped early at step {self.taken:,}: {patience} evaluations brought no lower "
            f"held-out loss than the {measured[best]['held_out_loss']:.3f} of step "
            f"{measured[best]['step']:,}"
        )
        if told not in self.notes:
            self._note(told)
        return True

    def _notice_growth(self) -> None:
        """Says once where the loss grows far beyond where it began."""
        last = [told["loss"] for told in self.history[-_FEW:]]
        first = self.history[0]["loss"]
        mean = sum(last) / len(last)
        if self._grown or len(last) < _FEW or mean < max(_GROWTH * first, first + 1):
            return
        self._grown = True
        self._note(
            f"step {self.step:,}: the loss is {mean:.2f}, where it began at {first:.2f}: it grows, "
            f"so the learning rate of {self.trainer.optimiser.learning_rate:.2g} is too high"
        )

    def _save_now(self) -> None:
        if self.taken:
            self._save()

    def _save(self) -> bool:
        """Saves the state, if there is a folder; whether that went well."""
        states = self._states
        if states is None or self._saved == self.taken:
            return True
        measured = [e["held_out_loss"] for e in self.evaluations if e["step"] == self.taken]
        record = {
            "batches": self._place, "seconds": self.pace.seconds, "notes": self.notes,
        }  # fmt: skip
        try:
            self.recording.flush()
            states.save(
                self.taken, self.trainer.arrays(), record, measure=measured[0] if measured else None
            )
        except OSError as error:
            self.error = f"{error}. What was trained is in run.model: run.checkpoint() tries again"
            self._note(str(error))
            return False
        self._saved = self.taken
        return True

    @property
    def weights_step(self) -> int:
        """After which step the weights are: `step`, or before it where they were put back."""
        return self.step if self._back_at is None else self._back_at

    def save_to(self, states: TrainingStates) -> None:
        """Saves the state of a run that has ended; raises OSError where that fails."""
        self._states, self._teller = states, Quiet()
        if not self._save():
            raise OSError(self.error)
        states.wait()

    def _fail(self, began: str) -> Status:
        """Says what happened; saves the last good weights, or puts them back."""
        if self.measuring.sound():
            at = self.step
            self._save()
        else:
            at = self._back_at = self._go_back()
        if at is None:
            self.error = (
                f"{began}, and so it was before anything was trained: the logits are not finite in "
                f"{self.trainer.dtype}: {remedy(self.trainer.dtype)}"
            )
        else:
            rate = self.trainer.optimiser.rate(self.step, self.steps)
            self.error = (
                f"{began}; the run stopped, its weights are those after step {at:,}. Lower the "
                f"learning rate ({rate:.2g} there), or look at the text, and begin in another "
                "folder"
            )
        self._note(self.error)
        return "failed"

    def _go_back(self) -> int | None:
        """Puts back the newest weights that give a finite loss: their step, None where none do."""
        for state in self._saved_states():
            self.trainer.restore(state.arrays)
            if self.measuring.sound():
                return state.step
        self.trainer.take(self._sound[1] if self._sound else None)
        if self.measuring.sound():
            return self._sound[0] if self._sound else 0
        return None

    def _saved_states(self) -> Iterator[State]:
        if self._states is None:
            return
        for restore in (self._states.restore, self._states.restore_best):
            try:
                state = restore(like(self.trainer))
            except (ValueError, OSError):  # none is whole
                continue
            if state is not None:
                yield state

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self._teller.line(sentence)


def like(trainer: Trainer) -> Any:
    """The arrays of a state as shapes and places, to restore one."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        trainer.arrays(),
    )


def _odd(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
