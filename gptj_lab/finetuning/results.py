"""The result of a run that has ended: written first, and somewhere, whatever else fails."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gptj_lab.checkpoints.training_state import TrainingStates

if TYPE_CHECKING:
    from gptj_lab.finetuning.run import Run


def check(folder: Path) -> None:
    """Nothing, if `folder` isn't taken by a file.

    Raises:
        ValueError: it is.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise ValueError(
            f"{folder} is a file, and the result is to become a folder of that name: move it "
            "away, or give another --out"
        )


def save(
    run: Run, folder: Path, *, best: bool = False, say: Callable[[str], object] = print
) -> tuple[Path, int]:
    """Where the result lies, and the step that it is of.

    Where `folder` can't be written, older training states make room on a full disk, and then the
    working folder and the system's folder for temporary files are tried; each failure is told.

    Args:
        best: of the lowest held-out loss; where that can't be had, the last, which is told.

    Raises:
        OSError: no place could be written.
    """
    step, model = run.weights_step, run.model
    if best:
        try:
            step, model = run.best_state()
        except (OSError, ValueError) as error:
            say(f"the best model can't be had, so the last is saved: {error}")
    failed: OSError | None = None
    told: set[str] = set()
    for place in _places(run, folder):
        try:
            run.write(model, place)
        except OSError as error:
            sentence = f"the result can't be written to {place}: {error}"
            if sentence not in told:
                say(sentence)
            told.add(sentence)
            failed = error
            with contextlib.suppress(OSError):
                place.rmdir()  # of a folder that was made in vain
        else:
            return place, step
    raise OSError(
        "the result could not be written anywhere, see above: free some space, or give another "
        "folder; the same command goes on from the last state that was saved"
    ) from failed


def _places(run: Run, folder: Path) -> Iterator[Path]:
    yield folder
    if _room_made(folder.parent / "states"):
        yield folder
    for parent in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            yield Path(tempfile.mkdtemp(prefix=f"{folder.parent.name}-result-", dir=parent))
        except OSError:
            continue


def _room_made(folder: Path) -> bool:
    """Removes all training states but the newest, if there are more; whether it did."""
    if not folder.is_dir():
        return False
    try:
        with TrainingStates(folder, keep=1) as states:
            before = len(states.steps)
            states.keep_newest()
            return len(states.steps) < before
    except OSError:
        return False
