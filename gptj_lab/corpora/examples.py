"""An example: what a row says by role, before a template makes text of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


class Unclear(ValueError):
    """What is wrong with a row."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: system, user, assistant or tool.
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
        extras: fields that a person's own template names beside these.
        tools: that the assistant of a conversation could call, for templates that tell of them.
    """

    text: str | None = None
    prompt: str = ""
    answer: str | None = None
    system: str = ""
    context: str = ""
    turns: tuple[Turn, ...] = ()
    extras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tools: Sequence[Any] = ()
