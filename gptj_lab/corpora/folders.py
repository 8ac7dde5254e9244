"""What lies in a folder: files that are read one by one, and folders that are one source."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gptj_lab.corpora import chat_exports, kinds, tfrecords
from gptj_lab.corpora.passages import ReadingNotes

_PASSED_OVER = {"__pycache__", "node_modules"}  # and folders whose names begin with a dot
_SAVED = {"state.json", "dataset_info.json"}  # what datasets' save_to_disk writes


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that is read as a whole: an export of Slack's, or a saved data set."""

    path: Path
    kind: Literal["slack", "saved"]

    @property
    def name(self) -> str:
        """What it is called in notes."""
        return self.path.name

    def files(self) -> list[Path]:
        """All files below it, sorted."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())


def units(source: Path, notes: ReadingNotes) -> list[Path | Folder]:
    """The files of a path, sorted; what of a folder isn't read is noted.

    Raises:
        FileNotFoundError: nothing is there, or nothing that is read.
        ValueError: a file of a kind that isn't read.
    """
    if source.is_file():
        if kinds.kind_of(source.name) is None:
            raise ValueError(
                f"{source} is of no kind that is read: {kinds.advice(source.name)}. Read are "
                f"{kinds.SHOWN}"
            )
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} is no file or folder; to train on these words themselves, give [{{'text': "
            f"{str(source)!r}}}]"
        )
    found = list(_below(source, notes))
    records = {
        file
        for unit in found
        if isinstance(unit, Path) and unit.suffix.lower() == ".index"
        for file in tfrecords.index_files(unit)
    }
    found = [unit for unit in found if unit not in records]  # read through their index
    if not found:
        raise FileNotFoundError(
            f"{source} holds no file of a kind that is read: " + (
                " ".join(notes.sentences()) + " " if notes.found else ""
            ) + f"Read are {kinds.SHOWN}"
        )  # fmt: skip
    return found


def _below(source: Path, notes: ReadingNotes) -> Iterator[Path | Folder]:
    for where, below, names in os.walk(source):
        folder = Path(where)
        below[:] = sorted(n for n in below if n not in _PASSED_OVER and not n.startswith("."))
        if "dataset_dict.json" in names:
            below[:] = []
            yield Folder(_split(folder, notes), "saved")
        elif _SAVED <= set(names):
            below[:] = []
            yield Folder(folder, "saved")
        elif chat_exports.is_slack_folder(names):
            below[:] = []
            yield Folder(folder, "slack")
        else:
            yield from _files(folder, sorted(names), notes)


def _files(folder: Path, names: list[str], notes: ReadingNotes) -> Iterator[Path]:
    for name in names:
        if kinds.kind_of(name) is not None:
            yield folder / name
        elif not name.startswith("."):
            ending = Path(name).suffix or name
            notes.remark(f"a file of a kind that isn't read ({ending}): {kinds.advice(name)}", name)


def _split(folder: Path, notes: ReadingNotes) -> Path:
    """The folder of the split that is read of a saved DatasetDict, which is noted."""
    try:
        names = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        names = [Path(str(name)).name for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'dataset_dict.json'} isn't as save_to_disk writes it"
        ) from error
    chosen = "train" if "train" in names else next(iter(names), "train")
    if len(names) > 1:
        others = ", ".join(repr(name) for name in names if name != chosen)
        what = f"data of several splits, of which {chosen!r} is read and not {others}"
        notes.remark(what, f"{folder.name}, give the split's own folder for another")
    return folder / chosen
