"""What sources hold, as a hash: the name of their tokens in the cache."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptj_lab.corpora import folders, frames, tfrecords
from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.corpora.reading import HubDataset, Source, is_path


def content_key(sources: Source) -> str | None:
    """A hash of all that the sources hold; None where only reading them would tell."""
    hashed = hashlib.blake2b(digest_size=16)
    return hashed.hexdigest() if _take(sources, hashed, alone=True) else None


def _take(source: Any, hashed: Any, *, alone: bool) -> bool:
    """Hashes one source; False where that would consume it."""
    if isinstance(source, str) and not is_path(source, alone=alone):
        hashed.update(f"text {len(source)} ".encode() + source.encode("utf-8", "replace"))
    elif isinstance(source, str | Path):
        _take_path(Path(source), hashed)
    elif isinstance(source, HubDataset):
        hashed.update(f"hub {source} ".encode())
        return source.is_pinned
    elif isinstance(fingerprint := getattr(source, "_fingerprint", None), str):
        hashed.update(f"datasets {fingerprint} ".encode())
    elif frames.is_frame(source):
        table = frames.split_of(source, ReadingNotes())
        if table is not source:
            return _take(table, hashed, alone=False)
        if not frames.is_lasting(source):
            return False
        for row in frames.frame_rows(source):
            hashed.update(_json(row))
    elif isinstance(source, Mapping):
        hashed.update(b"row " + _json(source))
    elif isinstance(source, Iterator):
        return False
    elif isinstance(source, Sequence) and not isinstance(source, bytes):
        kind = "pair" if isinstance(source, tuple) else "list"
        hashed.update(f"{kind} {len(source)} ".encode())
        return all([_take(item, hashed, alone=False) for item in source])
    else:
        return False
    return True


def _take_path(source: Path, hashed: Any) -> None:
    for unit in folders.units(source, ReadingNotes()):
        if isinstance(unit, folders.Folder):
            hashed.update(f"folder {unit.kind} ".encode())
            paths = unit.files()
        elif unit.suffix.lower() == ".index":
            paths = [unit, *tfrecords.index_files(unit)]
        else:
            paths = [unit]
        for path in paths:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "blake2b").hexdigest()
            inside = path.relative_to(unit.path) if isinstance(unit, folders.Folder) else path.name
            hashed.update(f"file {inside} {digest} ".encode())


def _json(row: Any) -> bytes:
    """A row as bytes, whole: a long array's repr would be cut."""
    return json.dumps(
        row, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v)
    ).encode()
