"""What the owner of a run wishes, and what the run does: between two threads, or in one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

Status = Literal["ready", "compiling", "running", "paused", "stopped", "finished", "failed"]
ACTIVE: tuple[Status, ...] = ("compiling", "running", "paused")  # a run that goes on


class Control:
    """The wishes that a run obeys between two steps.

    Whoever wishes returns at once; signal handlers may wish too.

    Attributes:
        status: what the run does.
    """

    def __init__(self) -> None:
        self.status: Status = "ready"
        self._changed = threading.Condition()  # on a lock that its owner may take again
        self._wish: Literal["go", "pause", "stop"] = "go"
        self._saving = False
        self._listening = False

    def begin(self) -> bool:
        """Whether a run may begin: False where one goes on, which is told to."""
        with self._changed:
            self._wish = "go"
            self._changed.notify_all()
            begins, self._listening = not self._listening, True
            if begins:
                self.status, self._saving = "compiling", False
            return begins

    def end(self, status: Status) -> None:
        """The run has ended."""
        with self._changed:
            self.status, self._listening = status, False

    def wish(self, wish: Literal["go", "pause", "stop"]) -> None:
        """Wishes, if there is a run to obey."""
        with self._changed:
            if self._listening and self._wish != "stop":
                self._wish = wish
                self._changed.notify_all()

    def wish_to_save(self) -> bool:
        """Whether a run will save; False where there is none."""
        with self._changed:
            self._saving = self._listening
            self._changed.notify_all()
            return self._listening

    @property
    def asked(self) -> bool:
        """Whether there is something to obey."""
        return self._wish != "go" or self._saving

    @property
    def undisturbed(self) -> bool:
        """Whether the run is neither to pause nor to stop."""
        return self._wish == "go"

    def obey(self, save: Callable[[], None]) -> bool:
        """Saves and pauses as wished; whether to go on."""
        before = self.status
        while True:
            with self._changed:
                saving, self._saving = self._saving, False
                if not saving and self._wish == "stop":
                    self._listening = False
                    return False
                if not saving and self._wish == "go":
                    self.status = before
                    return True
                if not saving:
                    self.status = "paused"
                    self._changed.wait()
            if saving:
                save()


@contextlib.contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[list[int]]:
    """The signals that came: inside it the first SIGINT or SIGTERM calls `stop` and is listed.

    A second does what it did before. Whoever asks ends as the first one would have ended it.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def once(number: int, frame: Any) -> None:
        signal.signal(number, previous[number])  # type: ignore[arg-type]
        came.append(number)
        stop()

    for number in previous:
        signal.signal(number, once)
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted and has saved what it had; raised so that nothing after it goes on.

    Attributes:
        run: what was interrupted: its `model` has the weights so far, its `train()` goes on.
    """

    def __init__(self, sentence: str, run: Any):
        super().__init__(sentence)
        self.run = run
