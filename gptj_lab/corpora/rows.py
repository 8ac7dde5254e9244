"""Rows of a table or of JSON as passages: text, prompt and answer, or a conversation."""

from collections.abc import Iterator, Mapping
from typing import Any

from gptj_lab.corpora.columns import example_of, formed
from gptj_lab.corpora.examples import Example, Unclear
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import Passage, ReadingNotes, documents
from gptj_lab.corpora.templates import example_passage


def row_passages(
    row: Any, place: str, notes: ReadingNotes, options: ReadingOptions, origin: str | None = None
) -> Iterator[Passage]:
    """The passages of one row; a row that isn't understood is noted and gives none.

    A text is a row too, and so are a list of messages and a pair of texts. What fields are, where
    they aren't named, is in `columns`: a conversation, else a prompt and an answer, else a text.
    The loss is on the assistant's words and on answers only, and on the <|endoftext|> that ends
    them.
    """
    try:
        example, used = _example(row, options)
    except Unclear as unclear:
        notes.skip(f"a row left out: {unclear}", f"{place} {_excerpt(row)}")
        return
    found = whole_passages(example, place, notes, options, origin, row)
    if found and isinstance(row, Mapping):
        _tell(row, used, example, place, notes, options)
    yield from found


def whole_passages(
    example: Example,
    place: str,
    notes: ReadingNotes,
    options: ReadingOptions,
    origin: str | None = None,
    shown: Any = None,
) -> list[Passage]:
    """The passages of an example; one that teaches nothing is noted and gives none."""
    origin = origin or place
    try:
        if example.text is not None:
            found = list(documents([example.text], origin, notes))
        else:
            found = [example_passage(example, options.templates, origin, notes, place)]
        for passage in found:
            (passage.text or "").encode()
    except UnicodeEncodeError:
        notes.skip("a row with half a character (a lone surrogate), left out", place)
    except Unclear as unclear:
        notes.skip(f"a row left out: {unclear}", f"{place} {_excerpt(shown)}")
    else:
        if any((passage.text or "").strip() for passage in found):
            return found
        notes.skip("a row without text, left out", place)
    return []


def _example(row: Any, options: ReadingOptions) -> tuple[Example, set[Any]]:
    if isinstance(row, str):
        return Example(text=row), set()
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(each, str) for each in row):
        return Example(prompt=row[0], answer=row[1]), set()
    if isinstance(row, list) and row and all(isinstance(message, Mapping) for message in row):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise Unclear(f"a {type(row).__name__} where an object with fields is needed")
    example, used = example_of(row, options)
    if options.templates.form is not None and example.answer is not None:
        return formed(example, row, options.templates.form)
    return example, used


def _tell(
    row: Mapping[Any, Any],
    used: set[Any],
    example: Example,
    place: str,
    notes: ReadingNotes,
    options: ReadingOptions,
) -> None:
    """Notes what a row has beside what is trained on."""
    if "rejected" in used or any(str(name).lower() == "rejected" for name in used):
        notes.remark(
            "a preference pair, trained on its chosen answer only (what is rejected isn't used)",
            place,
        )
    for name, value in row.items():
        if name in used or not isinstance(value, str) or len(value.split(None, 3)) < 3:
            continue
        if _is_said(value, example):
            continue
        fault = f"a row whose field {str(name)!r} holds text that isn't used"
        if options.named or options.templates.form is not None:  # then by intention
            notes.remark(fault, place)
        else:
            notes.skip(f"{fault} (naming those that are, prompt_field=..., is an assent)", place)


def _is_said(value: str, example: Example) -> bool:
    """Whether a field repeats what is trained on: UltraChat's prompt, Alpaca's filled-in form."""
    if example.answer and example.answer.strip() in value and example.prompt in value:
        return True
    words = [example.text or "", *(turn.words for turn in example.turns)]
    return any(value.strip() in each for each in words)


def _excerpt(row: Any) -> str:
    text = repr(row)
    return text if len(text) <= 80 else text[:77] + "..."
