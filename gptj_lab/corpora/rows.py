"""Rows of a table or of JSON lines as passages: text, prompt and completion, or a chat."""

from collections.abc import Iterator, Mapping
from typing import Any

from gptj_lab.corpora.passages import Passage, ReadingNotes, documents
from gptj_lab.tokenizer import END_OF_TEXT

_QUESTIONS = ("prompt", "instruction", "question")
_ANSWERS = ("completion", "response", "output", "answer", "chosen")
_CHATS = ("messages", "conversations", "conversation")
_ANSWERING = {"assistant": "Assistant", "gpt": "Assistant", "model": "Assistant"}
_ASKING = {"user": "User", "human": "User", "tool": "Tool", "function": "Tool"}


def row_passages(
    row: Any, origin: str, notes: ReadingNotes, text_field: str | None = None
) -> Iterator[Passage]:
    """The passages of one row; a row that isn't understood is noted and gives none.

    Fields, the first that are there: `text_field`, if one is named; `messages` (role, content) or
    `conversations` (from, value); a prompt (`prompt`, `instruction` with `input`, `question`) and
    a completion (`completion`, `response`, `output`, `answer`); `text`. The loss is on the
    assistant's words and on completions only, and on the <|endoftext|> that ends them.
    """
    try:
        passages = list(_understood(row, origin, notes, text_field))
        for passage in passages:
            (passage.text or "").encode()
    except UnicodeEncodeError:
        notes.skip("a row with half a character (a lone surrogate), left out", origin)
    except _Unclear as unclear:
        notes.skip(f"a row left out: {unclear}", f"{origin} {_excerpt(row)}")
    else:
        if not any((passage.text or "").strip() for passage in passages):
            notes.skip("a row without text, left out", origin)
            return
        yield from passages


class _Unclear(ValueError):
    """What is wrong with a row."""


def _understood(
    row: Any, origin: str, notes: ReadingNotes, text_field: str | None
) -> Iterator[Passage]:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise _Unclear(f"a {type(row).__name__} where an object with fields is needed")
    if text_field is not None:
        yield from documents([_words(row, text_field)], origin, notes)
        return
    if chat := next((name for name in _CHATS if row.get(name)), None):
        yield from _chat(_turns(row[chat], chat), origin)
        return
    question = next((name for name in _QUESTIONS if row.get(name) is not None), None)
    answer = next((name for name in _ANSWERS if row.get(name) is not None), None)
    if question and answer:
        yield from _question_and_answer(row, question, answer, origin)
    elif "text" in row:
        yield from documents([_words(row, "text")], origin, notes)
    else:
        names = ", ".join(map(repr, row)) or "none"
        raise _Unclear(
            f"its fields are {names}; needed is text, or prompt and completion, or messages, "
            "or text_field=..."
        )


def _question_and_answer(
    row: Mapping[str, Any], question: str, answer: str, origin: str
) -> Iterator[Passage]:
    if isinstance(row[question], list):  # TRL's conversational form
        asked = _turns(row[question], question)
        yield from _chat([*asked, *_turns(row[answer], answer)], origin, first_answer=len(asked))
        return
    asked = _words(row, question)
    if question == "instruction" and row.get("input"):  # Stanford Alpaca's form
        asked = f"{asked}\n\n{_words(row, 'input')}\n"
    if not _words(row, answer):
        raise _Unclear(f"its {answer} is empty, so nothing would be learnt")
    yield Passage(asked, trained=False, origin=origin)
    yield Passage(_words(row, answer), begins=False, origin=origin)


def _turns(messages: Any, field: str) -> list[tuple[str, str]]:
    """(role, words) of each message."""
    if not isinstance(messages, list):
        raise _Unclear(f"its {field} is a {type(messages).__name__}, a list is needed")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise _Unclear(f"its {field} holds a {type(message).__name__}, not a message")
        role, words = ("role", "content") if "role" in message else ("from", "value")
        turns.append((_words(message, role).lower(), _words(message, words)))
    return turns


def _chat(turns: list[tuple[str, str]], origin: str, first_answer: int = 0) -> Iterator[Passage]:
    """ "User: ...", "Assistant: ..." with a blank line between; each answer ends with the mark.

    A base model has no words of its own for turns; these are plain text, and <|endoftext|> is the
    end of an answer that generation stops at.
    """
    if not any(role in _ANSWERING for role, _ in turns[first_answer:]):
        raise _Unclear("no turn is the assistant's, so nothing would be learnt")
    waiting, begins = "", True
    last = max(number for number, (role, _) in enumerate(turns) if role in _ANSWERING)
    for number, (role, words) in enumerate(turns[: last + 1]):
        if role in _ANSWERING:
            waiting += f"{_ANSWERING[role]}:"
            answer = f" {words.strip()}" + (END_OF_TEXT if number < last else "")
            if number < first_answer:
                waiting += answer + "\n\n"
                continue
            yield Passage(waiting, trained=False, begins=begins, origin=origin)
            yield Passage(answer, begins=False, origin=origin)
            waiting, begins = "\n\n", False
        elif role in _ASKING or role == "system":
            speaker = "" if role == "system" else f"{_ASKING[role]}: "
            waiting += f"{speaker}{words.strip()}\n\n"
        else:
            raise _Unclear(f"it has a turn of {role!r}: system, user or assistant are known")


def _words(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise _Unclear(f"its {field} is a {type(value).__name__}, a text is needed")
    return value


def _excerpt(row: Any) -> str:
    text = repr(row)
    return text if len(text) <= 80 else text[:77] + "..."
