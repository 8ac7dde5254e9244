"""What a run measures now and then: the loss on held-out windows, and samples at fixed prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptj_lab.finetuning.corpus import Batch, Corpus
from gptj_lab.finetuning.settings import Settings
from gptj_lab.finetuning.trainer import Trainer

HELD_OUT_TOKENS = 65_536  # that an evaluation reads at most
_SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class Interrupted(Exception):
    """An evaluation was given up, as the run is to pause or stop."""


class Measuring:
    """Evaluations of a run: always the same windows, the same prompts, the same random numbers.

    Attributes:
        windows: numbers of the held-out windows that are measured, evenly spaced.
    """

    def __init__(self, trainer: Trainer, corpus: Corpus, settings: Settings):
        self._trainer, self._corpus, self._settings = trainer, corpus, settings
        there = len(corpus.held_out)
        most = max(settings.batch, HELD_OUT_TOKENS // corpus.held_out.context)
        self.windows = np.linspace(0, there - 1, min(there, most)).astype(int)

    def sentence(self) -> str | None:
        """What is left out, if anything is."""
        there = len(self._corpus.held_out)
        if len(self.windows) == there:
            return None
        return f"Each evaluation reads {len(self.windows):,} of {there:,} held-out windows."

    def loss(self, go_on: Callable[[], bool] = lambda: True) -> float | None:
        """The mean held-out loss in nats a token; None where nothing is held out.

        Raises:
            Interrupted: `go_on` said no.
        """
        return self._trainer.loss(self._batches(self._corpus.held_out, self.windows, go_on))

    def sound(self) -> bool:
        """Whether the weights give a finite loss on held-out text, or where none is, on other."""
        loss = self.loss()
        if loss is None:
            some = np.arange(min(self._settings.batch, len(self._corpus.train)))
            loss = self._trainer.loss(self._batches(self._corpus.train, some, lambda: True))
        return loss is not None and math.isfinite(loss)

    def samples(self, go_on: Callable[[], bool]) -> list[dict[str, str]]:
        """What the model writes after each prompt; raises as `loss`."""
        settings, written = self._settings, []
        if not settings.prompts:
            return []
        model = self._trainer.snapshot()
        sampling = _SAMPLING | dict(model.sampling_defaults)
        for prompt in settings.prompts:
            if not go_on():
                raise Interrupted
            (done,) = model.generate(
                prompt, max_new_tokens=settings.sample_tokens, seed=settings.seed, **sampling
            )
            written.append({"prompt": prompt, "text": done.text})
        return written

    def _batches(self, windows: Any, numbers: np.ndarray, go_on: Any) -> Iterator[Batch]:
        size = self._settings.batch
        for first in range(0, len(numbers), size):
            if not go_on():
                raise Interrupted
            rows = numbers[first : first + size]
            yield windows.batch(np.pad(rows, (0, size - len(rows)), constant_values=-1))
