"""How fast a run is, how long it will take, and how much memory it has."""

from __future__ import annotations

import collections
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

_RECENT = 20  # steps that a speed is the mean of


class Pace:
    """Times of steps and evaluations, pauses left out.

    Attributes:
        seconds: that the run has taken so far.
        tokens_per_second: of the last steps; None before the first.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self.tokens_per_second: float | None = None
        self._mark = time.monotonic()
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=_RECENT)
        self._evaluation: float | None = None

    def rest(self) -> None:
        """Leaves out the time since the last mark: a pause, or compiling."""
        self._mark = time.monotonic()

    def step(self, tokens: int) -> None:
        """A step on so many tokens is done."""
        self._recent.append((self._passed(), tokens))
        taken = sum(seconds for seconds, _ in self._recent)
        self.tokens_per_second = sum(tokens for _, tokens in self._recent) / max(taken, 1e-9)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation."""
        self._passed()
        yield
        taken = self._passed()  # the first compiles
        self._evaluation = taken if self._evaluation is None else min(taken, self._evaluation)

    def left(self, steps: int, evaluations: int) -> float | None:
        """Seconds that so many steps and evaluations will take; None before the first step."""
        if not self._recent:
            return None
        each = sum(seconds for seconds, _ in self._recent) / len(self._recent)
        return steps * each + evaluations * (self._evaluation or 0.0)

    def _passed(self) -> float:
        now = time.monotonic()
        passed, self._mark = now - self._mark, now
        self.seconds += passed
        return passed


def memory_bytes() -> int | None:
    """The most that a device has held, or on a CPU what the process holds now, in bytes."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    if peaks:
        return max(peaks)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return _most_memory()


def _most_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
