"""An example: what a row says by role, before it is text; and the plain text that it becomes."""

import dataclasses
from collections.abc import Iterator

from gptj_lab.corpora.passages import Passage, ReadingNotes, documents
from gptj_lab.tokenizer import END_OF_TEXT

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


class Unclear(ValueError):
    """What is wrong with a row."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: one of ROLES.
        trained: whether a loss is taken on it, where it is the assistant's.
    """

    role: str
    words: str
    trained: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A row by its roles: a text, or a prompt and its answer, or the turns of a conversation.

    Attributes:
        text: of a plain text; then nothing else is there.
        prompt, answer: of a pair; `answer` is None where there are turns.
        system: what the model is told before the prompt.
        context: what the prompt is about: a passage, Alpaca's input.
        turns: of a conversation.
    """

    text: str | None = None
    prompt: str = ""
    answer: str | None = None
    system: str = ""
    context: str = ""
    turns: tuple[Turn, ...] = ()


def example_passages(
    example: Example, origin: str, notes: ReadingNotes, place: str | None = None
) -> Iterator[Passage]:
    """The passages of an example as plain text; the loss is on answers, or on all of a text.

    `place` is where it stands, for notes; `origin` what its document is known by.

    Raises:
        Unclear: nothing in it would be learnt.
    """
    if example.text is not None:
        yield from documents([example.text], origin, notes)
    elif example.turns:
        yield from _conversation(example.turns, origin)
    else:
        yield from _pair(example, origin, notes, place or origin)


def _pair(example: Example, origin: str, notes: ReadingNotes, place: str) -> Iterator[Passage]:
    """System words, blank line, prompt, blank line, context and a line end; then the answer."""
    answer = example.answer or ""
    if not answer.strip():
        raise Unclear("its answer is empty, so nothing would be learnt")
    asked = f"{example.system}\n\n{example.prompt}" if example.system else example.prompt
    if example.context:
        asked = f"{asked}\n\n{example.context}\n"
    if asked and not asked[-1].isspace() and not answer[0].isspace():
        notes.remark("a prompt and its answer, with a line break put between them", place)
        asked += "\n"
    yield Passage(asked, trained=False, origin=origin)
    yield Passage(answer, begins=False, origin=origin)


def _conversation(turns: tuple[Turn, ...], origin: str) -> Iterator[Passage]:
    """ "User: ...", "Assistant: ..." with a blank line between; each answer ends with the mark.

    A base model has no words of its own for turns; these are plain text, and <|endoftext|> is the
    end of an answer that generation stops at.
    """
    learnt = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    if not learnt:
        raise Unclear("no turn is the assistant's, so nothing would be learnt")
    waiting, begins = "", True
    for number, turn in enumerate(turns[: learnt[-1] + 1]):
        if turn.role != "assistant":
            speaker = "" if turn.role == "system" else f"{_SPEAKERS[turn.role]}: "
            waiting += f"{speaker}{turn.words.strip()}\n\n"
            continue
        waiting += f"{_SPEAKERS[turn.role]}:"
        answer = f" {turn.words.strip()}" + (END_OF_TEXT if number < learnt[-1] else "")
        if not turn.trained:
            waiting += answer + "\n\n"
            continue
        yield Passage(waiting, trained=False, begins=begins, origin=origin)
        yield Passage(answer, begins=False, origin=origin)
        waiting, begins = "\n\n", False
