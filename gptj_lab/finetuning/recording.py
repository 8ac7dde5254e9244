"""What a run tells, in memory and in its folder: run.json, history.jsonl, evaluations.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax


class Recording:
    """The history and the evaluations of a run; with a folder they are written there too.

    Lines are handed over at each evaluation and save; what a killed process leaves out comes again.
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
        self._files: dict[str, Any] = {}
        self._writes = out is not None and jax.process_index() == 0

    def begin(self, settings: dict[str, Any], step: int) -> None:
        """Writes the settings, and forgets what was told after `step`: it will come again."""
        self.settings = settings
        self.close()
        for name in ("history", "evaluations"):
            kept = [line for line in getattr(self, name) if line["step"] <= step]
            setattr(self, name, kept)
            if self.out is not None and self._writes:
                text = "".join(json.dumps(line) + "\n" for line in kept)
                _replace(self.out / f"{name}.jsonl", text)
        if self.out is not None and self._writes:
            _replace(self.out / "run.json", json.dumps(settings, indent=2) + "\n")

    def step(self, line: dict[str, Any]) -> None:
        """Takes what a step told."""
        self.history.append(line)
        self._append("history", line)

    def evaluation(self, line: dict[str, Any]) -> None:
        """Takes what an evaluation told."""
        self.evaluations.append(line)
        self._append("evaluations", line)
        self.flush()

    def flush(self) -> None:
        """Hands all lines to the system."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.out is None or not self._writes:
            return
        if name not in self._files:
            self._files[name] = (self.out / f"{name}.jsonl").open("a", encoding="utf-8")
        self._files[name].write(json.dumps(line) + "\n")


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
