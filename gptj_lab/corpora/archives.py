"""Packed folders, unpacked within limits: how many files, how large, how deep, and no way out."""

import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from gptj_lab.corpora import kinds
from gptj_lab.corpora.passages import ReadingNotes

DEEPEST = 2  # archives in one another
_MEMBERS = 200_000
_LARGEST = 1 << 33  # bytes of all that is unpacked
_RATIO = 200  # times the packed size, of more than _SMALL bytes: text packs to a third or a tenth
_SMALL = 1 << 26
_BLOCK = 1 << 20


_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


class Bomb(ValueError):
    """Why an archive is taken for one that would fill the disk."""


def check(packed: zipfile.ZipFile, largest: int) -> None:
    """Nothing, if a zip file says that it unpacks to at most so many bytes.

    Raises:
        Bomb: it unpacks to more, or holds too many files.
    """
    size = sum(info.file_size for info in packed.infolist())
    if size > largest or len(packed.infolist()) > _MEMBERS:
        raise Bomb(f"{size / 1e6:,.0f} MB in {len(packed.infolist()):,} parts")


def unpack(path: Path, into: Path, notes: ReadingNotes) -> None:
    """Writes the files of an archive that are of a kind that is read; others are noted.

    Links, devices, encrypted files and paths that lead out are left out and noted.

    Raises:
        Bomb: it unpacks to too much.
        OSError: the disk is full.
    """
    packed, taken = path.stat().st_size, 0
    try:
        for name, opened in _members(path, notes):
            target = _place(into, name)
            if target is None:
                notes.skip("a file of an archive whose path leads out of it, left out", name)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened, target.open("wb") as file:
                while block := opened.read(_BLOCK):
                    taken += len(block)
                    if taken > _LARGEST or (taken > _SMALL and taken > _RATIO * packed):
                        raise Bomb(f"more than {taken / 1e6:,.0f} MB from {packed / 1e6:,.2f} MB")
                    file.write(block)
    except _DAMAGE as error:
        notes.skip("a damaged archive, read as far as it goes", f"({error!s:.120})")


def _members(path: Path, notes: ReadingNotes) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, opened) of each file that is read."""
    opened: Any
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as packed:
            for info in _counted(packed.infolist()):
                if info.is_dir() or not _is_wanted(info.filename, notes):
                    continue
                if info.flag_bits & 1:
                    what = "an encrypted file of an archive, left out: pack it without a password"
                    notes.skip(what, info.filename)
                elif (info.external_attr >> 28) == 0xA:
                    notes.skip("a link in an archive, left out", info.filename)
                else:
                    yield info.filename, packed.open(info)
        return
    with tarfile.open(path, "r:*") as packed:
        for member in _counted(packed):
            if member.isdir() or not _is_wanted(member.name, notes):
                continue
            if not member.isfile():
                notes.skip("a link in an archive, left out", member.name)
            elif (opened := packed.extractfile(member)) is not None:
                yield member.name, opened


def _counted(members: Any) -> Iterator[Any]:
    for number, member in enumerate(members, 1):
        if number > _MEMBERS:
            raise Bomb(f"more than {_MEMBERS:,} files")
        yield member


def _is_wanted(name: str, notes: ReadingNotes) -> bool:
    """Whether a file is read; macOS' shadows of files and hidden ones silently aren't."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or any(part.startswith(".") and part not in (".", "..") for part in parts):
        return False
    if "__MACOSX" in parts:
        return False
    if kinds.kind_of(parts[-1]) is None:
        ending = PurePosixPath(parts[-1]).suffix or parts[-1]
        notes.remark(f"a file of a kind that isn't read ({ending}): {kinds.advice(name)}", name)
        return False
    return True


def _place(into: Path, name: str) -> Path | None:
    """Where a member is written, below `into`; None where its path leads out."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0].startswith("/") or re.match(r"\w:", parts[0]):
        return None
    safe = [re.sub(r"[\0-\x1f:]", "_", part)[-200:] for part in parts if part != "."]
    return into.joinpath(*safe)
