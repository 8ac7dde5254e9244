"""Texts without what is around them: front matter, subtitles' times, notebooks' outputs."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gptj_lab.corpora import files
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes

_FRONT = 500  # lines that front matter has at most
_INLINE = re.compile(r"!\[([^\]]*)\]\(\s*<?data:[^)]*\)|<img\b[^>]*\bsrc=[\"']data:[^>]*>", re.I)
_DEFINED = re.compile(r"\s*\[[^\]]+\]:\s*<?data:", re.I)  # Google Docs puts pictures below its text
_NAMED = re.compile(r"[\"']?\w[\w .-]*[\"']?\s*[:=](?:\s|$)")  # `title: Light`, in YAML or TOML
_MAY_BE_INSIDE = re.compile(rf"\s|$|[-#\[\]{{}}]|{_NAMED.pattern}")
_TIME = re.compile(r"(?:\d+:)?\d\d:\d\d[.,]\d{3}\s*-->\s*(?:\d+:)?\d\d:\d\d[.,]\d{3}")
_TAG = re.compile(r"</?(?:[bicuv]|font|ruby|rt|lang|c\.[\w.]+|\d\d:)[^>]*>|\{\\[^}]*\}", re.I)


def markdown(lines: Iterable[str], name: str, notes: ReadingNotes) -> Iterator[str]:
    """The text without front matter and pictures that are written out in it.

    Lines come and go with their ends.
    """
    lines = iter(lines)
    first = next(lines, None)
    if first is None:
        return
    pictures = 0
    for line in _after_front_matter(first, lines, name, notes):
        if _DEFINED.match(line):
            pictures += 1
            continue
        line, count = _INLINE.subn(r"\1", line) if "data:" in line else (line, 0)
        pictures += count
        yield line
    if pictures:
        notes.remark(
            "a text without the pictures that are written out in it", f"{name} ({pictures})"
        )


def _after_front_matter(
    first: str, lines: Iterator[str], name: str, notes: ReadingNotes
) -> Iterator[str]:
    """All lines but those between --- (or +++) and its like at the very beginning."""
    mark = first.strip()
    held = [first]
    if mark in ("---", "+++"):
        for line in lines:
            held.append(line)
            if line.strip() == mark or (mark == "---" and line.strip() == "..."):
                inside = held[1:-1]
                if any(map(_NAMED.match, inside)) and all(map(_MAY_BE_INSIDE.match, inside)):
                    notes.remark("a text without its front matter", name)
                    held = []
                break
            if len(held) > _FRONT:
                break
    yield from held
    yield from lines


def subtitles(lines: Iterable[str]) -> Iterator[str]:
    """What is said in .srt or .vtt, a line each; times, numbers, tags and notes are left out."""
    last, inside, end = "", False, ""
    for line in lines:
        if _TIME.match(line.strip().removeprefix("\ufeff")):
            inside = True
        elif not line.strip():
            inside = False
        elif inside:
            words = _TAG.sub("", line).strip()
            if words and words != last:  # YouTube's captions say each line twice
                yield end + words
                last, end = words, "\n"


def notebook(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[str]:
    """The cells of a notebook (nbformat 3 and 4), Markdown and code, a blank line between."""
    whole = "".join(files.text(path, notes, options.encoding))
    try:
        found = json.loads(whole)
        cells = found["cells"] if "cells" in found else found["worksheets"][0]["cells"]
        sources = [
            cell.get("source", cell.get("input", ""))
            for cell in cells
            if cell.get("cell_type") in ("markdown", "code", "heading")
        ]
        texts = [s if isinstance(s, str) else "".join(map(str, s)) for s in sources]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        notes.skip("a notebook that isn't one, left out", f"{path.name} ({error!s:.80})")
        return
    end = ""
    for text in texts:
        if text.strip():
            lines = text.strip().splitlines(keepends=True)
            yield end + "".join(markdown(lines, path.name, ReadingNotes()))
            end = "\n\n"
