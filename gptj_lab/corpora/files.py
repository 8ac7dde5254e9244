"""Bytes, text and lines of files that may be compressed, larger than memory, or oddly encoded."""

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from gptj_lab.corpora import encodings
from gptj_lab.corpora.passages import ReadingNotes

_BLOCK = 1 << 17  # bytes read at a time


def needed(module: str, what: str, extra: str = "data") -> ModuleType:
    """A module of an extra.

    Raises:
        ModuleNotFoundError: it isn't installed; the sentence says how it is.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {module}, which is not installed: pip install 'gptj_lab[{extra}]'"
        ) from error


def blocks(path: Path, notes: ReadingNotes) -> Iterator[bytes]:
    """The bytes of a file, unpacked where it is .zst or .gz; a damaged end is noted."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".zst":
            yield from _unpacked(file, path, notes)
            return
        source: Any = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
        while True:
            try:
                block = source.read(_BLOCK)
            except (EOFError, OSError, zlib.error) as error:
                if path.suffix.lower() != ".gz":
                    raise
                notes.skip("a damaged gzip file, read as far as it goes", f"{path.name} ({error})")
                return
            if not block:
                return
            yield block


def _unpacked(file: Any, path: Path, notes: ReadingNotes) -> Iterator[bytes]:
    zstandard = needed("zstandard", f"{path.name} (.zst)")
    fault = "a damaged zstandard file, read as far as it goes"
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    while packed := file.read(_BLOCK):
        while packed:  # a file may hold several frames
            begun = True
            try:
                if block := frame.decompress(packed):
                    yield block
            except zstandard.ZstdError as error:
                notes.skip(fault, f"{path.name} ({error})")
                return
            if not frame.eof:
                break
            packed, begun = frame.unused_data, False
            frame = zstandard.ZstdDecompressor().decompressobj()
    if begun:
        notes.skip(fault, f"{path.name} (it ends inside a frame)")


def text(path: Path, notes: ReadingNotes, encoding: str | None = None) -> Iterator[str]:
    """The text of a file in parts, with \\n for every line end; what it was decoded from is noted.

    Decoded by `encoding`, if it is given; else by its byte-order mark, as UTF-8, or as
    `encodings.detected` has it. Damaged stretches (bytes that aren't UTF-8, NULs) cost their
    lines; where these are most of a text, only the damaged characters. A binary file gives
    nothing and is noted.
    """
    found = encodings.found_in(lambda: blocks(path, ReadingNotes()), path.name, notes, encoding)
    if found is None:
        return
    decoder = codecs.getincrementaldecoder(found.codec)(found.errors)
    whole = io.IncrementalNewlineDecoder(decoder, True)
    parts = (part for block in blocks(path, notes) if (part := whole.decode(block)))
    parts = itertools.chain(parts, (part for _ in (0,) if (part := whole.decode(b"", final=True))))
    if found.damage == "none":
        yield from parts
    elif found.damage == "characters":
        yield from (encodings.mended(part) for part in parts)
    else:
        yield from _without_damage(parts, path, notes)


def _without_damage(parts: Iterator[str], path: Path, notes: ReadingNotes) -> Iterator[str]:
    """The parts without the lines that hold damage, which are named."""
    for number, line in enumerate(lines(parts, keep=True), 1):
        if encodings.is_damaged(line):
            what = "a damaged line (NULs, or bytes that are not UTF-8), left out"
            notes.skip(what, f"{path.name} line {number:,}")
        else:
            yield line


def text_lines(
    path: Path, notes: ReadingNotes, encoding: str | None = None
) -> Iterator[bytes] | Iterator[str]:
    """The lines of a file, as bytes where they are UTF-8 as far as its first bytes tell."""
    first = next(blocks(path, ReadingNotes()), b"")
    if encoding is None and encodings.marked(first) in (None, "utf-8-sig"):
        return lines(blocks(path, notes))
    return lines(text(path, notes, encoding))


def lines(parts: Iterable[Any], *, keep: bool = False) -> Iterator[Any]:
    """The lines of text or bytes that comes in parts, without their \\n, or with it."""
    waiting: list[Any] = []  # parts of one line, joined once: a line may be many parts long
    for part in parts:
        end: Any = b"\n" if isinstance(part, bytes) else "\n"
        first, *others = part.split(end)
        waiting.append(first)
        for other in others:
            yield end[:0].join([*waiting, end] if keep else waiting)
            waiting = [other]
    if waiting and (last := waiting[0][:0].join(waiting)):
        yield last


def joined(parts: Iterable[str]) -> Iterator[str]:
    """The same text in parts of a good size."""
    waiting, size = [], 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _BLOCK:
            yield "".join(waiting)
            waiting, size = [], 0
    yield "".join(waiting)
