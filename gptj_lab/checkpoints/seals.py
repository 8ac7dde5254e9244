"""A folder's seal: a list of its files with sizes and hashes, written last, checked before use."""

import hashlib
import json
from pathlib import Path

SEAL = "seal.json"


def seal(folder: Path) -> None:
    """Writes the size and the SHA-256 of every file below `folder` into it.

    Raises:
        OSError: a file can't be read, or the disk is full.
    """
    files = {name: _measured(folder / name) for name in _names(folder)}
    (folder / SEAL).write_text(json.dumps(files, indent=1) + "\n", "utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, as the end of a sentence; None where it is whole."""
    try:
        files = json.loads((folder / SEAL).read_text("utf-8"))
        wanted = {str(name): (int(size), str(digest)) for name, (size, digest) in files.items()}
    except FileNotFoundError:
        return "has no seal.json"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "has a damaged seal.json"
    for name in sorted(wanted.keys() - set(_names(folder))):
        return f"lacks {name}"
    for name, (size, digest) in wanted.items():
        there = (folder / name).stat().st_size
        if there != size:
            kind = "truncated" if there < size else "too long"
            return f"is {kind}: {name} has {there:,} of {size:,} bytes"
        if _measured(folder / name)[1] != digest:
            return f"is damaged: {name} has other bytes than were written"
    return None


def _names(folder: Path) -> list[str]:
    there = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return sorted(path.relative_to(folder).as_posix() for path in there)


def _measured(file: Path) -> tuple[int, str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return opened.tell(), digest
