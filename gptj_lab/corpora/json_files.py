"""Values of .json files: arrays streamed row by row, objects whole; a broken row costs itself."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptj_lab.corpora import columns, files, tables
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes

_WHOLE = 1 << 28  # characters of an object that is held at once
_NEAR = 16  # characters before the end of what is read, where a fault may be the end itself
_ROW_KEYS = ("data", "rows", "train", "examples", "items", "records", "instances", "samples")
_INSIDE = re.compile(rf'"(?:{"|".join(_ROW_KEYS)})"\s*:\s*\[')
_DECODER = json.JSONDecoder()


class _Text:
    """A text that comes in parts, read value by value."""

    def __init__(self, parts: Iterator[str]):
        self._parts, self._ended = parts, False
        self.text, self.at = "", 0
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """The number of the line that is read next."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Reads on, at least as much as is unread, so that long values aren't copied often."""
        self._line, self._counted = self.line, 0
        found, size = [self.text[self.at :]], 0
        wanted = max(1, len(found[0]))
        while size < wanted:
            part = next(self._parts, None)
            if part is None:
                self._ended = True
                break
            found.append(part)
            size += len(part)
        self.text, self.at = "".join(found), 0
        return size > 0

    def peek(self) -> str:
        """The next character that isn't blank, or "" at the end."""
        while True:
            rest = re.compile(r"\s*").match(self.text, self.at)
            self.at = rest.end() if rest else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The next JSON value.

        Raises:
            ValueError: there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                short = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _NEAR
                if short and len(self.text) - self.at < _WHOLE and self.more():
                    continue
                raise
            except RecursionError:
                raise ValueError("nested too deeply") from None
            if end == len(self.text) and self.more():  # a number may go on
                continue
            self.at = end
            return value

    def find(self, pattern: re.Pattern[str]) -> bool:
        """Goes to the end of the pattern's next match, if there is one."""
        while True:
            if match := pattern.search(self.text, self.at + 1):
                self.at = match.end()
                return True
            self.at = max(self.at, len(self.text) - 1024)  # a match may be half there
            if not self.more():
                return False


def values(path: Path, notes: ReadingNotes, options: ReadingOptions) -> tables.Rows:
    """(place, value) of each row of an array, or of several values; ("", object) of one alone."""
    text = _Text(files.text(path, notes, options.encoding))
    first = text.peek()
    if first == "[":
        text.at += 1
        yield from _array(text, path.name, notes)
    elif first == "{":
        yield from _objects(text, path, notes, options)
    elif first:
        shown = f"{path.name} {text.text[text.at : text.at + 60]!r}"
        notes.skip("a .json file that begins with neither [ nor {, not read", shown)


def _objects(
    text: _Text, path: Path, notes: ReadingNotes, options: ReadingOptions
) -> Iterator[tuple[str, Any]]:
    try:
        line, value = text.line, text.value()
    except ValueError as error:
        inside = _Text(files.text(path, ReadingNotes(), options.encoding))
        inside.peek()
        if inside.find(_INSIDE):  # {"data": [...]}, too large or broken: its rows
            yield from _array(inside, path.name, notes, ends_file=False)
            return
        fault = f"a .json file that isn't valid JSON, left out: {error}"
        notes.skip(fault, path.name)
        return
    if not text.peek():
        yield "", value
        return
    yield f"line {line:,}", value  # lines of JSON, or objects one after the other
    next_object = re.compile(r"\n(?=\{)")
    while text.peek():
        line = text.line
        try:
            yield f"line {line:,}", text.value()
        except ValueError as error:
            _broken(f"{path.name} line {line:,}", text, error, notes)
            if not text.find(next_object):
                return


def _array(
    text: _Text, name: str, notes: ReadingNotes, *, ends_file: bool = True
) -> Iterator[tuple[str, Any]]:
    """The elements of an array whose [ was read. After a broken one it goes on at the next."""
    text.peek()
    following = _following(text)
    number = 0
    while character := text.peek():
        if character == ",":
            text.at += 1
            continue
        if character == "]":
            text.at += 1
            if not ends_file or not text.peek() or not text.find(following):
                return
            continue
        number += 1
        place = f"row {number:,} (line {text.line:,})"
        try:
            value = text.value()
        except ValueError as error:
            _broken(f"{name} {place}", text, error, notes)
            if not text.find(following):
                return
            continue
        yield place, value
    notes.skip("a JSON array that breaks off, read as far as it goes", f"{name} after {number:,}")


def _following(text: _Text) -> re.Pattern[str]:
    """What stands right before the next row, wherever a broken one ends.

    Rows that begin lines do so with the same blanks; in one long line they begin with one key.
    """
    before = re.search(r"\n([ \t]*)$", text.text[: text.at])
    opening = re.escape(text.text[text.at : text.at + 1])
    if before:
        return re.compile(rf"\n{before[1]}(?={opening})")
    key = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"').match(text.text, text.at)
    begins = r"\{\s*" + re.escape(key[0].lstrip("{ \t")) if key else opening
    return re.compile(rf",\s*(?={begins})")


def _broken(place: str, text: _Text, error: ValueError, notes: ReadingNotes) -> None:
    message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    shown = text.text[text.at : text.at + 60]
    notes.skip("a row left out, not JSON", f"{place}: {message} {shown!r}")


def rows_of(value: Mapping[str, Any], name: str, notes: ReadingNotes) -> tables.Rows:
    """(place, row) of an object: rows below a key, columns, or one row.

    Read are {"data": [...]} and its like, splits ({"train": [...]}), SQuAD's paragraphs, columns
    ({"prompt": [...], "answer": [...]}), and what pandas' to_json writes.
    """
    chat = any(columns.plain_name(key) in columns.CHATS for key in value)
    listed = {key: rows for key, rows in value.items() if _is_rows(rows)} if not chat else {}
    if _is_split(value):
        heads = [str(head) for head in value["columns"]]
        for number, row in enumerate(value["data"], 1):
            yield f"row {number:,}", dict(zip(heads, row, strict=False))
    elif listed:
        key = next((key for key in _ROW_KEYS if key in listed), next(iter(listed)))
        others = [other for other in listed if other != key]
        if others:
            what = f"a file of several lists, of which {key!r} is read and not {_or(others)}"
            notes.remark(what, name)
        yield from _paragraphs(listed[key])
    elif not chat and (found := tables.columns(value)) is not None:
        yield from found
    elif len(value) > 0 and all(isinstance(each, dict) and each for each in value.values()):
        yield from _nested(value)
    else:
        yield "", value


def _is_split(value: Mapping[str, Any]) -> bool:
    """Whether an object is a table as pandas' to_json(orient="split") writes it."""
    names, rows = value.get("columns"), value.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(row, list) for row in rows)
    )


def _is_rows(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _or(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5])


def _paragraphs(rows: list[dict[str, Any]]) -> tables.Rows:
    """Rows, those of SQuAD's own files made of its paragraphs' questions."""
    number = 0
    for row in rows:
        if not isinstance(row.get("paragraphs"), list):
            number += 1
            yield f"row {number:,}", row
            continue
        for paragraph in filter(_is_object, row["paragraphs"]):
            for asked in filter(_is_object, paragraph.get("qas") or []):
                number += 1
                fields = {name: asked.get(name) for name in ("question", "answers")}
                yield f"question {number:,}", {"context": paragraph.get("context"), **fields}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _nested(value: Mapping[str, Any]) -> tables.Rows:
    """Rows of an object of objects: by column (pandas' own choice), or by row."""
    if {columns.plain_name(key) for key in value} & columns.KNOWN:
        numbers: dict[str, None] = {}
        for column in value.values():
            numbers |= dict.fromkeys(column)
        for number in numbers:
            yield f"row {number}", {name: column.get(number) for name, column in value.items()}
    else:
        for number, row in value.items():
            yield f"row {number}", row
