"""Rows of files: lines of JSON, .csv and its like, Arrow's files; each with its place."""

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptj_lab.corpora import files
from gptj_lab.corpora.columns import KNOWN, plain_name
from gptj_lab.corpora.options import FIELDS, ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes

Rows = Iterator[tuple[str, Any]]
_DELIMITERS = ",;\t|"
_SNIFFED = 1 << 16  # characters that the delimiter is found in
_LONG = 40  # characters of a cell that is no name


def json_lines(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Rows:
    """(place, value) of each line of JSON."""
    for number, line in enumerate(files.text_lines(path, notes, options.encoding), 1):
        place = f"line {number:,}"
        if isinstance(line, bytes) and number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8") if isinstance(line, bytes) else line)
        except (ValueError, RecursionError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
            shown = line[:60].decode("utf-8", "replace") if isinstance(line, bytes) else line[:60]
            notes.skip(f"a line left out, {reason}", f"{path.name} {place} {shown!r}")
            continue
        yield place, value


def separated(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Rows:
    """(place, row) of a .csv or its like, whatever separates its fields.

    Its first line has the names; where it plainly hasn't, one column is a text, two are a prompt
    and an answer, which is noted.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than its 131,072
    lines = (line + "\n" for line in files.lines(files.text(path, notes, options.encoding)))
    first, size = [], 0
    for line in lines:
        first.append(line)
        size += len(line)
        if size > _SNIFFED:
            break
    usual = "\t" if ".tsv" in path.name.lower() else "|" if ".psv" in path.name.lower() else ","
    delimiter = delimiter_of("".join(first), usual)
    if delimiter != usual:
        shown = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}[delimiter]
        notes.remark(f"a table separated by {shown}, read so", path.name)
    table = csv.reader(itertools.chain(first, lines), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            if (row := next(table, None)) is None:
                return
        except csv.Error as error:
            shown = f"{path.name} line {table.line_num:,} ({error})"
            notes.skip("a row of a table left out, badly quoted", shown)
            continue
        place = f"line {table.line_num:,}"
        if not row:
            continue
        if names is None:
            names = [name.strip() for name in row]
            if (own := _own_names(names, path, notes, options)) is None:
                continue
            if not own:
                return
            names = own  # and the first line is a row too
        if len(row) != len(names):
            shown = f"{path.name} {place} ({len(row)} of {len(names)}) {row[:3]}"
            notes.skip("a row of a table left out, with more or fewer fields than names", shown)
            continue
        yield place, dict(zip(names, row, strict=True))


def delimiter_of(sample: str, usual: str) -> str:
    """What separates the fields of a table: what cuts most of its rows into the same number.

    >>> delimiter_of("a;b\\n1,5;2\\n3,5;4\\n", ",")
    ';'
    """
    best, found = (0.0, 0), usual
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != usual):
        reader, counts = csv.reader(io.StringIO(sample), delimiter=delimiter), []
        try:
            counts = [len(row) for row in itertools.islice(reader, 100) if row]
        except csv.Error:
            pass
        if not counts or counts[0] < 2:
            continue
        score = (counts.count(counts[0]) / len(counts), counts[0])
        if score > best:
            best, found = score, delimiter
    return found


def _own_names(
    row: list[str], path: Path, notes: ReadingNotes, options: ReadingOptions
) -> list[str] | None:
    """Names for a table whose first line has none, [] if they can't be guessed; None if it has."""
    given = {plain_name(name) for field in FIELDS if (name := getattr(options, field))}
    if {plain_name(name) for name in row} & (KNOWN | given) or _DISCORD <= set(row):
        return None
    if not any(len(cell) > _LONG or len(cell.split()) > 3 for cell in row):
        return None
    names = {1: ["text"], 2: ["prompt", "answer"]}.get(len(row))
    if names is None:
        notes.skip(
            f"a table of {len(row)} columns without a line of names, left out: write a first line "
            "with a name for each, such as prompt,answer",
            f"{path.name} begins {row[0][:40]!r}",
        )
        return []
    notes.remark(f"a table without a line of names, read as {' and '.join(names)}", path.name)
    return names


_DISCORD = {"AuthorID", "Author", "Date", "Content"}


def arrow(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Rows:
    """(place, row) of a .parquet, .arrow or .feather file, some hundred in memory at a time."""
    del options
    arrows = files.needed("pyarrow", f"{path.name} ({path.suffix})")
    number = 0
    try:
        for batch in _batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number:,}", row
    except (arrows.ArrowInvalid, OSError) as error:
        kind = "parquet" if path.name.lower().endswith(".parquet") else "Arrow"
        shown = f"{path.name} ({str(error).splitlines()[0][:200]})"
        notes.skip(f"a damaged {kind} file, read as far as it goes", shown)


def _batches(path: Path) -> Iterator[Any]:
    if path.name.lower().endswith(".parquet"):
        parquet = files.needed("pyarrow.parquet", f"{path.name} (.parquet)")
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=256)
        return
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as opened:
        head = opened.read(6)
    with pyarrow.memory_map(str(path)) as file:
        # The file format (Feather 2 too) begins with ARROW1, what `datasets` saves is a stream.
        reader = ipc.open_file(file) if head == b"ARROW1" else ipc.open_stream(file)
        numbers: Iterable[Any] = reader
        if head == b"ARROW1":
            numbers = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in numbers:
            for start in range(0, batch.num_rows, 256):
                yield batch.slice(start, 256)


def saved_data_set(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets`' save_to_disk wrote, in order.

    Raises:
        FileNotFoundError: one of them isn't there.
        ValueError: its state.json isn't what save_to_disk writes.
    """
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'state.json'} isn't as save_to_disk writes it") from error
    paths = [folder / Path(name).name for name in names]  # beside it, wherever it says
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{folder / 'state.json'} lists {path.name}, which isn't there")
    return paths


def columns(table: Mapping[Any, Any]) -> Rows | None:
    """(place, row) of a dict of columns of the same length; None of another dict."""
    lists = list(table.values())
    if not lists or not all(isinstance(each, list | tuple) for each in lists):
        return None
    if len({len(each) for each in lists}) > 1 or not lists[0]:
        return None
    rows = zip(*lists, strict=True)
    return ((f"row {i:,}", dict(zip(table, row, strict=True))) for i, row in enumerate(rows, 1))
