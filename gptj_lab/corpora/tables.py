"""Rows of files: lines of JSON, .csv and .tsv, .parquet; each with its place, for notes."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj_lab.corpora import files
from gptj_lab.corpora.passages import ReadingNotes


def json_lines(path: Path, notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of JSON."""
    for number, line in enumerate(files.lines(files.blocks(path, notes)), 1):
        place = f"line {number:,}"
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
            shown = line[:60].decode("utf-8", "replace")
            notes.skip(f"a line left out, {reason}", f"{path.name} {place} {shown!r}")
            continue
        yield place, value


def separated(path: Path, notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    """(place, row) of a .csv or .tsv with names in its first line."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts are longer than its 131,072
    lines = (line + "\n" for line in files.lines(files.text(path, notes)))
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    names = next(table, None)
    while True:
        try:
            if (row := next(table, None)) is None:
                return
        except csv.Error as error:
            shown = f"{path.name} line {table.line_num:,} ({error})"
            notes.skip("a row of a table left out, badly quoted", shown)
            continue
        place = f"line {table.line_num:,}"
        if names is None or not row:
            continue
        if len(row) != len(names):
            shown = f"{path.name} {place} ({len(row)} of {len(names)}) {row[:3]}"
            notes.skip("a row of a table left out, with more or fewer fields than names", shown)
            continue
        yield place, dict(zip(names, row, strict=True))


def parquet(path: Path, notes: ReadingNotes) -> Iterator[tuple[str, Any]]:
    """(place, row) of a .parquet file, some hundred in memory at a time."""
    reader = files.needed("pyarrow.parquet", f"{path.name} (.parquet)")
    arrow = files.needed("pyarrow", f"{path.name} (.parquet)")
    number = 0
    try:
        with reader.ParquetFile(path) as file:
            for some in file.iter_batches(batch_size=256):
                for row in some.to_pylist():
                    number += 1
                    yield f"row {number:,}", row
    except (arrow.ArrowInvalid, OSError) as error:
        notes.skip("a damaged parquet file, read as far as it goes", f"{path.name} ({error})")
