"""Bytes, text and lines of files that may be compressed, larger than memory, or oddly encoded."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from gptj_lab.corpora.passages import ReadingNotes

_BLOCK = 1 << 17  # bytes read at a time
_ODD = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8
_MARKS = {  # byte-order marks; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def needed(module: str, what: str) -> ModuleType:
    """A module of the extra `data`.

    Raises:
        ModuleNotFoundError: it isn't installed; the sentence says how it is.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {module}, which is not installed: pip install 'gptj_lab[data]'"
        ) from error


def blocks(path: Path, notes: ReadingNotes) -> Iterator[bytes]:
    """The bytes of a file, unpacked where it is .zst or .gz; a damaged end is noted."""
    with path.open("rb") as file:
        if path.suffix == ".zst":
            yield from _unpacked(file, path, notes)
            return
        source: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        while True:
            try:
                block = source.read(_BLOCK)
            except (EOFError, OSError, zlib.error) as error:
                if path.suffix != ".gz":
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


def text(path: Path, notes: ReadingNotes) -> Iterator[str]:
    """The text of a file in parts, with \\n for every line end; what it was decoded from is noted.

    UTF-8, or what its byte-order mark says; else Windows-1252, unless most of what is not ASCII
    is good UTF-8. A binary file gives nothing and is noted.
    """
    encoding, errors = _encoding(path, notes)
    if not encoding:
        return
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), True)
    for block in blocks(path, notes):
        if part := decoder.decode(block):
            yield part
    if part := decoder.decode(b"", final=True):
        yield part


def _encoding(path: Path, notes: ReadingNotes) -> tuple[str, str]:
    """(encoding, what to do with errors); no encoding for a binary file."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = size = 0
    first_bad = None
    for number, block in enumerate(blocks(path, ReadingNotes())):
        if not number:
            for mark, encoding in _MARKS.items():
                if block.startswith(mark):
                    if encoding != "utf-8-sig":
                        notes.remark(f"a file in {encoding.upper()}, read as that", path.name)
                    return encoding, "replace"
            if b"\0" in block:
                notes.skip("a file with NUL bytes: binary, not read", path.name)
                return "", ""
        if block.isascii() and not decoder.getstate()[0]:
            size += len(block)
            continue
        decoded = decoder.decode(block)
        odd = [match.start() for match in _ODD.finditer(decoded)]
        if odd and first_bad is None:
            first_bad = size + len(decoded[: odd[0]].encode())
        wide = len(decoded) - len(decoded.encode("ascii", "ignore"))
        good, bad = good + wide - len(odd), bad + len(odd)
        size += len(block)
    bad += len(decoder.decode(b"", final=True))
    if not bad:
        return "utf-8", "strict"
    where = f"{path.name} (byte {first_bad if first_bad is not None else size:,}, {bad:,} bytes)"
    if good > bad:
        notes.skip("a file with bytes that are not UTF-8, read with U+FFFD for them", where)
        return "utf-8", "replace"
    notes.skip("a file that is not UTF-8, read as Windows-1252", where)
    return "cp1252", "replace"


def lines(parts: Iterable[Any]) -> Iterator[Any]:
    """The lines of text or bytes that comes in parts, each without its \\n."""
    waiting: list[Any] = []  # parts of one line, joined once: a line may be many parts long
    for part in parts:
        end: Any = b"\n" if isinstance(part, bytes) else "\n"
        first, *others = part.split(end)
        waiting.append(first)
        for other in others:
            yield end[:0].join(waiting)
            waiting = [other]
    if waiting and (last := waiting[0][:0].join(waiting)):
        yield last
