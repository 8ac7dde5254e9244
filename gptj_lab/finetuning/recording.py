"""What a run tells, in memory and in its folder: run.json, history.jsonl, evaluations.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import jax


class Recording:
    """The history and the evaluations of a run; with a folder they are written there too.

    Lines are written at each evaluation and before each state, so that a process that is killed
    leaves at least those that its newest state goes on from.
    Of several processes on one folder the first one writes.

    Attributes:
        history: a dict a step: step, loss, rate, gradient_norm, tokens_per_second, seconds,
            memory_bytes.
        evaluations: dicts of step, held_out_loss, loss, samples, best.
        settings: those that the folder was begun with; None in a new one.
    """

    def __init__(self, out: Path | None):
        """Reads what is there.

        Raises:
            ValueError: run.json can't be read.
        """
        self.out = out
        self.settings = None if out is None else _read_settings(out / "run.json")
        self.history = [] if out is None else _read_lines(out / "history.jsonl")
        self.evaluations = [] if out is None else _read_lines(out / "evaluations.jsonl")
        self._written = {"history": len(self.history), "evaluations": len(self.evaluations)}
        self._writes = out is not None and jax.process_index() == 0

    def begin(self, settings: dict[str, Any], step: int) -> None:
        """Writes the settings, and forgets what was told after `step`: it will come again."""
        self.settings = settings
        for name in ("history", "evaluations"):
            kept = [line for line in getattr(self, name) if line["step"] <= step]
            setattr(self, name, kept)
            self._written[name] = len(kept)
            if self.out is not None and self._writes:
                text = "".join(json.dumps(line) + "\n" for line in kept)
                _replace(self.out / f"{name}.jsonl", text)
        if self.out is not None and self._writes:
            _replace(self.out / "run.json", json.dumps(settings, indent=2) + "\n")

    def step(self, line: dict[str, Any]) -> None:
        """Takes what a step told."""
        self.history.append(line)

    def evaluation(self, line: dict[str, Any]) -> None:
        """Takes what an evaluation told, and writes all that there is to write."""
        self.evaluations.append(line)
        with contextlib.suppress(OSError):  # told by the next save
            self.flush()

    def flush(self) -> None:
        """Appends to the files what they don't have yet.

        Raises:
            OSError: that fails, say on a full disk; the next call tries again.
        """
        if self.out is None or not self._writes:
            return
        for name in ("history", "evaluations"):
            lines = getattr(self, name)
            text = "".join(json.dumps(line) + "\n" for line in lines[self._written[name] :])
            _append(self.out / f"{name}.jsonl", text.encode())
            self._written[name] = len(lines)

    def close(self) -> None:
        """Writes what can be written."""
        with contextlib.suppress(OSError):
            self.flush()


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no json ({error}): begin anew in another folder") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object: begin anew in another folder")
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; one that a kill cut in the middle is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict) and isinstance(read.get("step"), int):
            found.append(read)
    return found


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, "utf-8")
    os.replace(aside, path)


def _append(path: Path, text: bytes) -> None:
    """Appends all of it, or nothing."""
    if not text:
        return
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        left = memoryview(text)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            file.truncate(end)
            raise OSError(
                f"{path} could not be written ({error.strerror}): make room; the run's states are "
                "not saved meanwhile"
            ) from error
