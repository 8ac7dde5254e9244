"""Saving and resuming a run: arrays (Orbax) and a record, whole or absent, in a locked folder."""

import contextlib
import json
import math
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import jax
from jax.experimental import multihost_utils

from gptj_lab.checkpoints import folder_lock, seals, state_arrays

_FULL = ("No space left", "Disk quota", "File too large", "RESOURCE_EXHAUSTED")


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run goes on from.

    Attributes:
        step: the step after which it was saved.
        arrays: the tree that was asked for, with its shardings.
        record: the dict that was saved beside it, as JSON gives it back.
        measure: how good it is, the lower the better; None where it wasn't measured.
        notes: a sentence for each newer (or better) state that is damaged.
    """

    step: int
    arrays: Any
    record: dict[str, Any]
    measure: float | None
    notes: list[str]


class TrainingStates:
    """The saved states of one run in a folder: the newest few, and the best.

    A state is written aside in the background, sealed (sizes and hashes of its files) and renamed
    into place: a process that is killed at any moment leaves whole states only. The folder belongs
    to one process at a time; the lock ends with the process. All processes of a distributed run
    open it and call every method together. One thread calls at a time.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2):
        """Makes the folder if need be, takes its lock, and removes what is half-written.

        Args:
            keep: how many of the newest states stay; the best one stays beside them.

        Raises:
            ValueError: `keep` is below 1.
            BlockingIOError: another process (or another run of this one) has the folder open.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least 1 state has to be kept to resume from")
        self.folder, self.keep = Path(folder).resolve(), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self._first = jax.process_index() == 0
        self._lock = folder_lock.take(self.folder) if self._first else None
        self._orbax: Any = None  # takes a moment to import
        self._writing: threading.Thread | None = None
        self._failure: tuple[int, Exception] | None = None
        self._sweep("saving", "removing")

    @property
    def steps(self) -> list[int]:
        """The steps that have a state, in order; one that is being written doesn't count.

        Whether a state is whole is found out when it is restored.
        """
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def save(
        self, step: int, arrays: Any, record: dict[str, Any], *, measure: float | None = None
    ) -> None:
        """Begins to save the state after `step`, and returns when the arrays may be donated.

        A save that is still being written is waited for. A step that is there is not saved again.

        Args:
            arrays: a pytree of jax.Arrays, typed random keys among them.
            record: a dict for JSON, for what is no array, such as the place in the data.
            measure: how good it is, the lower the better (a held-out loss); NaN counts as None.

        Raises:
            ValueError: a leaf is no array, two have one name, or the record is no JSON.
            OSError: this save or the one before failed, say on a full disk; earlier states are
                whole.
        """
        self.wait()
        if step in self.steps:
            return
        leaves = state_arrays.named(arrays)
        measured = None if measure is None or not math.isfinite(measure) else float(measure)
        whole = {"step": int(step), "measure": measured, "arrays": state_arrays.forms(leaves)}
        try:
            text = json.dumps(whole | {"record": record})
        except (TypeError, ValueError) as error:
            raise ValueError(f"the record of step {step} is no JSON: {error}") from None
        aside = self.folder / f".saving-{step}"
        try:
            aside.mkdir(exist_ok=True)
            self._checkpointer().save(
                aside / "arrays", args=state_arrays.saving(leaves), force=True
            )
        except Exception as error:
            self._sweep("saving")
            self._refuse(step, error)
        self._writing = threading.Thread(target=self._finish, args=(step, aside, text), name="save")
        self._writing.start()

    def restore(self, like: Any) -> State | None:
        """The newest whole state, bit for bit; None where none was ever saved.

        A damaged newer one is put aside, and removed when the next state has been saved.

        Args:
            like: the tree that was saved, of jax.ShapeDtypeStruct (or arrays). Each leaf is placed
                by its own sharding; the mesh may be another than the one it was saved on.

        Raises:
            ValueError: the state has other arrays than `like`, or none of the states is whole.
            OSError: the save before failed.
        """
        self.wait()
        return self._first_whole(self.steps[::-1], like)

    def restore_best(self, like: Any) -> State | None:
        """The whole state with the lowest measure, as `restore`; None where none was measured."""
        self.wait()
        return self._first_whole(self._by_measure(), like)

    def keep_newest(self) -> None:
        """Removes every state but the newest, the best too: to make room on a disk.

        Raises:
            OSError: as `wait`.
        """
        self.wait()
        self._remove(set(self.steps[:-1]))

    def wait(self) -> None:
        """Returns when the save that was begun is on the disk.

        Raises:
            OSError: it failed; the sentence says why, and which states are whole.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
            self._meet("a state has been written")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._refuse(*failure)

    def close(self) -> None:
        """Waits, and gives the folder free; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._let_orbax_go()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _meet(self, where: str) -> None:
        """All processes see the same states from here on."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(where)

    def _checkpointer(self) -> Any:
        if self._orbax is None:
            self._orbax = state_arrays.checkpointer()
        return self._orbax

    def _let_orbax_go(self) -> None:
        orbax, self._orbax = self._orbax, None
        with contextlib.suppress(Exception):  # told already; it raises what it raised once more
            if orbax is not None:
                orbax.close()

    def _finish(self, step: int, aside: Path, text: str) -> None:
        """Waits for Orbax, seals, renames, removes old states; in a thread of its own."""
        try:
            self._checkpointer().wait_until_finished()
            if self._first:
                (aside / "record.json").write_text(text, "utf-8")
                seals.seal(aside)
                os.rename(aside, self._home(step))
                self._prune()
        except Exception as error:  # told by the next call
            self._failure = (step, error)
            self._sweep("saving")

    def _prune(self) -> None:
        steps = self.steps
        self._remove(set(steps) - set(steps[-self.keep :]) - set(self._by_measure()[:1]))

    def _remove(self, steps: set[int]) -> None:
        for step in steps if self._first else ():
            # Renamed first: half removed, it would look like a damaged one.
            os.rename(self._home(step), self.folder / f".removing-{step}")
        self._sweep("removing", "damaged")

    def _sweep(self, *kinds: str) -> None:
        for kind in kinds if self._first else ():
            for left in self.folder.glob(f".{kind}-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _home(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _by_measure(self) -> list[int]:
        """The measured steps, the best first; of equals the newest."""
        pairs = [(self._measure(step), -step) for step in self.steps]
        return [-step for measure, step in sorted(p for p in pairs if p[0] is not None)]

    def _measure(self, step: int) -> float | None:
        try:
            return json.loads((self._home(step) / "record.json").read_text("utf-8"))["measure"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged

    def _first_whole(self, steps: list[int], like: Any) -> State | None:
        wrong: list[str] = []
        for step in steps:
            damage = seals.damage(self._home(step))
            if damage is None:
                notes = [f"{sentence}: went on from step {step} instead" for sentence in wrong]
                state = self._read(step, like, notes)
                self._meet("a state has been read")
                for damaged in steps[: len(wrong)] if self._first else ():
                    os.rename(self._home(damaged), self.folder / f".damaged-{damaged}")
                self._meet("damaged states are put aside")
                return state
            wrong.append(f"the state of step {step} in {self.folder} {damage}")
        if wrong:
            raise ValueError(
                f"no saved state is whole: {'; '.join(wrong)}. Begin anew in another folder, or "
                "remove these"
            )
        return None

    def _read(self, step: int, like: Any, notes: list[str]) -> State:
        saved = json.loads((self._home(step) / "record.json").read_text("utf-8"))
        leaves = state_arrays.named(like)
        state_arrays.compare(saved["arrays"], leaves, f"step {step} in {self.folder}")
        found = state_arrays.read(self._checkpointer(), self._home(step) / "arrays", leaves)
        arrays = jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in leaves])
        return State(
            step=step, arrays=arrays, record=saved["record"], measure=saved["measure"], notes=notes
        )

    def _refuse(self, step: int, error: Exception) -> NoReturn:
        self._let_orbax_go()
        why = f"{type(error).__name__}: {error}"
        if any(words in str(error) for words in _FULL):
            free = shutil.disk_usage(self.folder).free / 1e6
            why = f"as the disk is full ({free:,.1f} MB free): make room, or save less often"
        there = ", ".join(map(str, self.steps))
        before = f"the states of step {there} are whole" if there else "none is there yet"
        raise OSError(
            f"the state of step {step} could not be saved in {self.folder}, {why}; {before}"
        ) from error
