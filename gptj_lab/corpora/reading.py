"""Sources of text: files and folders of several formats, rows, data sets of the hub."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptj_lab.corpora import files, tables, tfrecords
from gptj_lab.corpora.passages import Passage, ReadingNotes, documents
from gptj_lab.corpora.rows import row_passages

_TEXTS = (".txt", ".md", ".py")
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".parquet")
_RECORDS = (".tfrecords", ".tfrecord", ".index")
KINDS = (*_TEXTS, *_LINES, *_TABLES, *_RECORDS)
_PACKED = tuple(
    kind + end for kind in (*_TEXTS, *_LINES, ".csv", ".tsv") for end in (".zst", ".gz")
)
_PASSED_OVER = {"__pycache__", "node_modules"}  # and folders whose names begin with a dot


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set that `datasets.load_dataset` streams: of the hub, or of files through a builder.

    It is read anew for each `prepare`, to see whether it changed, unless `revision` is a commit.

    >>> HubDataset(name="roneneldan/TinyStories", split="train").split
    'train'
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether `revision` is a whole commit, so that it is the same text each time."""
        return bool(re.fullmatch("[0-9a-f]{40}", self.revision or "")) and not self.data_files

    def rows(self) -> Iterator[Any]:
        """Its rows, streamed."""
        datasets = files.needed("datasets", f"the data set {self.name!r}")
        yield from datasets.load_dataset(
            self.name,
            self.config,
            split=self.split,
            revision=self.revision,
            data_files=self.data_files,
            streaming=True,
        )


Source = str | Path | HubDataset | Iterable[Any]


def passages(
    sources: Source, notes: ReadingNotes, *, text_field: str | None = None
) -> Iterator[Passage]:
    """The passages of all sources, one after the other, a file at a time.

    A source is a path (a file, or a folder with all that is below it), a text, a HubDataset, or
    an iterable of such, of rows (dicts) and of texts; `datasets.Dataset` objects are iterables.
    A str is a path if there is such a file, if it has an ending that is read, or has no blanks
    in it (of several: and has a slash); else it is a text.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: a file of a kind that isn't read; with strict notes, whatever is wrong.
    """
    if isinstance(sources, str | Path):
        if isinstance(sources, str) and not is_path(sources):
            yield from documents([sources], "text", notes)
            return
        for path in _files_of(Path(sources), notes):
            yield from _of_file(path, notes, text_field)
    elif isinstance(sources, HubDataset):
        for number, row in enumerate(sources.rows(), 1):
            yield from row_passages(row, f"{sources.name} row {number:,}", notes, text_field)
    elif isinstance(sources, Iterable) and not isinstance(sources, dict | bytes):
        for number, source in enumerate(sources, 1):
            place = f"item {number:,}"
            if isinstance(source, dict):
                yield from row_passages(source, place, notes, text_field)
            elif isinstance(source, str) and not is_path(source, alone=False):
                if not source.strip():
                    notes.skip("a text of blanks only, left out", place)
                yield from documents([source], place, notes)
            elif isinstance(source, str | Path | HubDataset):
                yield from passages(source, notes, text_field=text_field)
            else:
                raise TypeError(f"{place} is a {type(source).__name__}: give texts, paths or dicts")
    else:
        raise TypeError(f"the source is a {type(sources).__name__}: give a path, a text or a list")


def is_path(text: str, *, alone: bool = True) -> bool:
    """Whether a str, alone or one of several, names a file rather than being a text."""
    if len(text) > 1024 or not text.strip() or {"\n", "\0"} & set(text):
        return False
    if text.lower().endswith((*KINDS, *_PACKED)) or os.path.exists(text):
        return True
    if any(character.isspace() for character in text):
        return False
    return alone or "/" in text or "\\" in text


def content_key(sources: Source) -> str | None:
    """A hash of all that the sources hold; None where only reading them would tell."""
    hashed = hashlib.blake2b(digest_size=16)

    def take(source: Any, alone: bool) -> bool:
        if isinstance(source, str) and not is_path(source, alone=alone):
            hashed.update(f"text {len(source)} ".encode() + source.encode("utf-8", "replace"))
        elif isinstance(source, str | Path):
            for path in _files_of(Path(source), ReadingNotes()):
                listed = tfrecords.index_files(path) if path.suffix == ".index" else []
                for file in (path, *listed):
                    with file.open("rb") as opened:
                        digest = hashlib.file_digest(opened, "blake2b").hexdigest()
                    hashed.update(f"file {file.name} {digest} ".encode())
        elif isinstance(source, dict):
            hashed.update(f"row {json.dumps(source, default=repr)} ".encode())
        elif isinstance(source, HubDataset):
            hashed.update(f"hub {source} ".encode())
            return source.is_pinned
        elif isinstance(source, Iterator):
            return False
        elif isinstance(fingerprint := getattr(source, "_fingerprint", None), str):
            hashed.update(f"datasets {fingerprint} ".encode())
        elif isinstance(source, Sequence):
            hashed.update(f"list {len(source)} ".encode())
            return all([take(item, False) for item in source])
        else:
            return False
        return True

    return hashed.hexdigest() if take(sources, True) else None


def _files_of(source: Path, notes: ReadingNotes) -> list[Path]:
    """The files of a path, sorted; those of a folder that aren't read are noted."""
    if source.is_file():
        if not source.name.lower().endswith((*KINDS, *_PACKED)):
            raise ValueError(
                f"{source} is of no kind that is read: {', '.join(KINDS)} "
                "(texts and lines also as .zst or .gz); give it such an ending if it is one"
            )
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} is no file or folder; to train on these words themselves, give [{{'text': "
            f"{str(source)!r}}}]"
        )
    found = []
    for folder, below, names in os.walk(source):
        below[:] = sorted(n for n in below if n not in _PASSED_OVER and not n.startswith("."))
        for name in sorted(names):
            if name.lower().endswith((*KINDS, *_PACKED)):
                found.append(Path(folder) / name)
            else:
                ending = Path(name).suffix or name
                notes.remark(f"a file of a kind that isn't read ({ending})", name)
    records = {
        file for path in found if path.suffix == ".index" for file in tfrecords.index_files(path)
    }
    found = [path for path in found if path not in records]  # read through their index
    if not found:
        raise FileNotFoundError(
            f"{source} holds no file of a kind that is read: {', '.join(KINDS)}"
        )
    return found


def _of_file(path: Path, notes: ReadingNotes, text_field: str | None) -> Iterator[Passage]:
    """The passages of one file; one that gives none is noted."""
    kind = next(kind for kind in KINDS if kind in path.name.lower() and _is_of(path, kind))
    if kind in _TEXTS:
        found = documents(files.text(path, notes), path.name, notes)
    elif kind in _RECORDS:
        listed = tfrecords.index_files(path) if kind == ".index" else [path]
        each = (tfrecords.record_passages(file, notes) for file in listed)
        found = itertools.chain.from_iterable(each)
    else:
        rows = tables.separated if kind != ".parquet" else tables.parquet
        rows = tables.json_lines if kind in _LINES else rows
        found = _of_rows(path, rows, notes, text_field)
    first = next(found, None)
    if first is None:
        notes.skip("a file without text, left out", path.name)
        return
    yield first
    yield from found


def _is_of(path: Path, kind: str) -> bool:
    return path.name.lower().endswith((kind, kind + ".zst", kind + ".gz"))


_Rows = Callable[[Path, ReadingNotes], Iterator[tuple[str, Any]]]


def _of_rows(
    path: Path, rows: _Rows, notes: ReadingNotes, text_field: str | None
) -> Iterator[Passage]:
    for place, row in rows(path, notes):
        for passage in row_passages(row, f"{path.name} {place}", notes, text_field):
            yield dataclasses.replace(passage, origin=path.name)
