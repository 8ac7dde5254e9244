"""Passages: stretches of a document that are tokenised on their own, and notes on reading them."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gptj_lab.tokenizer import END_OF_TEXT

CHUNK = 1 << 17  # characters of a long document that are held and tokenised together
_KINDS = 100  # of notes that are kept apart
_LONGEST = 1 << 22  # characters without a blank between them that are held
# Between two words: GPT-2's pattern ends a token there, so the pieces' tokens are the whole's.
# Letters on both sides: an added token such as "### End" isn't cut, nor what one may strip.
_CUT = re.compile(r"\w(?=\s\w)")
# UTF-8 that was once read as Windows-1252: Ã©, â€™ and their like.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf]|â€.|Ã[ƒ‚„…†‡]")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A stretch of a document, as text or as token ids; the next ones go on until one begins.

    Attributes:
        trained: whether a loss is taken on it.
        begins: it is the first of its document.
        origin: the file or place that it came from.
        answers: of a text that a template made: the ranges of characters that a loss is taken on,
            in place of `trained`. It is its whole document.
        words: of such a text, the ranges that are the row's own words, not the template's.
        parted: an answer begins with the first token that isn't the same without it, as TRL cuts a
            prompt from its completion; else with the first that holds a character of it.
        closes: whether the end of text after it is predicted.
    """

    text: str | None
    trained: bool = True
    begins: bool = True
    origin: str = "text"
    token_ids: np.ndarray | None = None
    answers: tuple[tuple[int, int], ...] | None = None
    words: tuple[tuple[int, int], ...] = ()
    parted: bool = False
    closes: bool = True


class Refused(ValueError):
    """A fault that strict reading refuses."""


@dataclasses.dataclass
class ReadingNotes:
    """What was odd in the sources: each kind with its count and first places.

    With `strict`, what would lose or change text is an error instead.
    """

    strict: bool = False
    found: dict[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)
    inside: str = ""  # put before each place: the archive that is being read

    def within(self, name: str) -> "ReadingNotes":
        """The same notes, whose next places lie in an archive."""
        return dataclasses.replace(self, inside=f"{self.inside}{name}: ")

    def skip(self, what: str, place: str) -> None:
        """Counts something that is left out or changed.

        Raises:
            Refused: with `strict`.
        """
        if self.strict:
            raise Refused(
                f"{self.inside}{place}: {what}. Mend it, or read with strict=False to go on"
            )
        self.remark(what, place)

    def remark(self, what: str, place: str) -> None:
        """Counts something that a reader should know."""
        if what not in self.found and len(self.found) >= _KINDS:
            what = "further faults of other kinds"
        count, places = self.found.get(what, (0, []))
        new = [] if len(places) == 3 else [self.inside + place]
        self.found[what] = count + 1, [*places, *new]

    @property
    def count(self) -> int:
        """How many there are of all kinds."""
        return sum(count for count, _ in self.found.values())

    def sentences(self) -> list[str]:
        """A sentence for each kind of note, with its count and the first places."""
        return [
            f"{count:,} x {what}: {'; '.join(places)}{'; ...' if count > len(places) else ''}."
            for what, (count, places) in self.found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The notes as JSON takes them."""
        return {what: list(entry) for what, entry in self.found.items()}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "ReadingNotes":
        """The notes that `to_json` gave."""
        return cls(found={what: (int(count), places) for what, (count, places) in found.items()})


def documents(chunks: Iterable[str], origin: str, notes: ReadingNotes) -> Iterator[Passage]:
    """The passages of a text that comes in chunks; <|endoftext|> in it separates documents.

    Only a few hundred kilobytes of it are held at a time. Its tokens are those of the whole.
    """
    begins, waiting = True, ""
    for chunk in _checked(chunks, origin, notes):
        *ended, waiting = (waiting + chunk).split(END_OF_TEXT)
        for text in ended:
            for start, end in _parts(text, whole=True):
                if not begins or text[start:end].strip():
                    yield Passage(text[start:end], begins=begins, origin=origin)
                    begins = False
            begins = True
        held = 0
        for start, held in _parts(waiting, whole=False):
            yield Passage(waiting[start:held], begins=begins, origin=origin)
            begins = False
        waiting = waiting[held:]
    if waiting.strip() or not begins:
        yield Passage(waiting, begins=begins, origin=origin)


def _parts(text: str, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Bounds of the passages of a text, up to its end if it is whole, else as far as is sure."""
    start = 0
    while len(text) - start > CHUNK:
        if match := _CUT.search(text, start + CHUNK):
            end = match.end()
        elif len(text) - start > _LONGEST:
            end = len(text) - len(END_OF_TEXT)  # a marker could be half there
        else:
            break
        yield start, end
        start = end
    if whole:
        yield start, len(text)


def _checked(chunks: Iterable[str], origin: str, notes: ReadingNotes) -> Iterator[str]:
    """The chunks, with remarks on characters that tell of a wrong encoding."""
    broken = mojibake = empty = 0
    for chunk in chunks:
        broken += chunk.count("\ufffd")
        mojibake += len(_MOJIBAKE.findall(chunk))
        empty += chunk.count("\0")
        yield chunk
    if broken:
        notes.remark("text with replacement characters (U+FFFD)", f"{origin} ({broken:,})")
    if mojibake:
        notes.remark(
            "text that looks like UTF-8 once read as Windows-1252 (Ã©, â€™; "
            "ftfy.fix_text mends it)",
            f"{origin} ({mojibake:,} places)",
        )
    if empty:
        notes.remark("text with NUL characters", f"{origin} ({empty:,})")
