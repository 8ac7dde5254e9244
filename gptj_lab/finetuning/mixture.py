"""What each step of the pocket recipe reads: sources of text, and phases that mix their rows."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

CODE = "code"  # the source that is no *.txt of the text folders: the standard library and packages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Documents of some files.

    Attributes:
        files: patterns of the files' names without .txt ("stories_*").
        longest: tokens of a document, if longer ones are left out.
    """

    files: tuple[str, ...]
    longest: int | None = None

    def has(self, file: Path) -> bool:
        return any(fnmatch(file.stem, pattern) for pattern in self.files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps that read alike.

    Attributes:
        until: the step that the next phase begins with, counted from the run's first.
        context: tokens of a row.
        rows: of each source, rows in every step.
    """

    until: int
    context: int
    rows: Mapping[str, int]

    @property
    def tokens(self) -> int:
        """Of one step."""
        return sum(self.rows.values()) * self.context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    sources: Mapping[str, Source]
    phases: Sequence[Phase]

    def __post_init__(self) -> None:
        names = {CODE, *self.sources}
        if CODE in self.sources:
            raise ValueError(
                f"{CODE!r} is always the library's code: give your source another name"
            )
        if not self.phases:
            raise ValueError("the plan has no phases: at least one is needed")
        last = 0
        for phase in self.phases:
            if phase.until <= last:
                raise ValueError(f"a phase is until step {phase.until}, the one before {last}")
            last = phase.until
            for name, rows in phase.rows.items():
                if name not in names:
                    raise ValueError(f"a phase reads {name!r}: the sources are {sorted(names)}")
                if rows < 0:
                    raise ValueError(f"a phase reads {rows} rows of {name!r}: 0 or more")
            if phase.tokens < 1:
                raise ValueError(f"the phase until step {phase.until} reads nothing")

    @property
    def names(self) -> list[str]:
        """The sources that a phase reads, in the order of their first step."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase.rows))

    def shares(self) -> dict[str, float]:
        """Of each source, its mean share of the phases' tokens."""
        return {
            name: sum(
                phase.rows.get(name, 0) * phase.context / phase.tokens for phase in self.phases
            )
            / len(self.phases)
            for name in self.names
        }

    def at(self, step: int) -> tuple[int, Phase, int]:
        """The phase of a step: its number, itself, and how many of its steps came before.

        Raises:
            ValueError: the plan ends before.
        """
        begun = 0
        for number, phase in enumerate(self.phases):
            if step < phase.until:
                return number, phase, step - begun
            begun = phase.until
        raise ValueError(f"the plan ends with step {begun}: there is no phase for step {step}")


def read_plan(path: Path | str) -> Plan:
    """The plan of a JSON file: {"sources": {name: {"files": [...]}}, "phases": [{...}]}.

    Raises:
        ValueError: it isn't JSON of that form; the sentence names the file.
    """
    try:
        told = json.loads(Path(path).read_text("utf-8"))
        sources = {
            name: Source(files=tuple(each["files"]), longest=each.get("longest"))
            for name, each in told["sources"].items()
        }
        return Plan(sources=sources, phases=[Phase(**each) for each in told["phases"]])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no plan of sources and phases: {error!r}") from error


def windows(tokens: np.ndarray, *, seed: int, step: int, batch: int, context: int) -> np.ndarray:
    """int32 [batch, context + 1]: the windows of one step, a pure function of seed and step.

    Each epoch cuts the tokens at another offset and takes every window once.
    """
    count = (len(tokens) - 1) // context - 1
    if count < 1:
        raise ValueError(
            f"the text is {len(tokens)} tokens, too short for windows of {context}: add text"
        )
    rows = []
    for number in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(number, count)
        offset, order = _epoch(seed, epoch, count, context)
        start = offset + int(order[place]) * context
        rows.append(tokens[start : start + context + 1])
    return np.stack(rows).astype(np.int32)


def mixed_windows(plan: Plan, tokens: Mapping[str, Any], *, seed: int, step: int) -> np.ndarray:
    """int32 [rows, context + 1]: one step's windows, source after source.

    Each phase begins epochs of its own, in another order.
    """
    number, phase, place = plan.at(step)
    where = dict(seed=seed + 7919 * number, step=place, context=phase.context)
    return np.concatenate([
        windows(tokens[name], batch=rows, **where) for name, rows in phase.rows.items() if rows
    ])  # fmt: skip


@functools.lru_cache(maxsize=32)
def _epoch(seed: int, epoch: int, count: int, context: int) -> tuple[int, np.ndarray]:
    rng = np.random.default_rng([seed, epoch])
    return int(rng.integers(context)), rng.permutation(count)
