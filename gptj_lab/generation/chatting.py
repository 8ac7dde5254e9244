"""A chat: messages to a prompt by the model's template, and the answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptj_lab import chat_templates
from gptj_lab.chat_templates import ROLES, ChatTemplate, Form
from gptj_lab.corpora import templates
from gptj_lab.generation.decoding import Decoding, pieces
from gptj_lab.jinja_sandbox import TemplateError

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

LONGEST = 256  # tokens of an answer, where it isn't said


def chat(
    model: LanguageModel,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    template: str | Path | ChatTemplate | None = None,
    keep_end: bool = False,
    **settings: Any,
) -> Iterator[str]:
    """The answer in pieces, without blanks around it; closing the iterator stops the work.

    Raises:
        TypeError, ValueError: see LanguageModel.chat.
    """
    if settings.get("samples", 1) != 1:
        raise ValueError(f"samples is {settings['samples']}: a chat has one answer, use generate")
    found = template_of(model, template)
    listed = checked(messages, found)
    settings.setdefault("max_new_tokens", LONGEST)
    stop = settings.pop("stop", None) or ()
    stop = [stop] if isinstance(stop, str) else list(stop)
    prompt = fitting(model, listed, found, settings["max_new_tokens"]) if keep_end else None
    if prompt is None:
        prompt = _prompt(listed, found)
    decoding = Decoding(
        model, prompt, stop=[*stop, *found.stops], add_special_tokens=False, keep_end=keep_end,
        **settings,
    )  # fmt: skip
    return _stripped(pieces(decoding))


def template_of(
    model: LanguageModel, template: str | Path | ChatTemplate | None = None
) -> ChatTemplate:
    """The template that a chat with the model is made by.

    Raises:
        ValueError: it has none and none is given, or what is given is none.
    """
    if template is None and model.chat_template is None:
        raise ValueError(
            f"{model.name or 'the model'} has no chat template, as it was trained on plain text: "
            "give template= (--template), such as 'plain', 'chat' or 'chatml', or use generate"
        )
    found = model.chat_template
    if template is not None:
        given = templates.given(template, model.tokenizer, model.chat_template)
        special = chat_templates.special_tokens(model.tokenizer)
        is_form = isinstance(given, Form)
        found = chat_templates.of_form(given, special, templates.SYSTEMS) if is_form else given
    assert found is not None
    return found


def checked(messages: Any, template: ChatTemplate) -> list[dict[str, Any]]:
    """The messages as a template takes them.

    Raises:
        TypeError, ValueError: they aren't messages, or the last needs no answer.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError(
            f"messages is {messages!r:.80}: give a text, or a list of "
            "{'role': 'user', 'content': '...'}"
        )
    found = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {number} is a {type(message).__name__}: give dicts")
        if message.get("role") not in ROLES:
            raise ValueError(
                f"message {number} has the role {message.get('role')!r}: {', '.join(ROLES)} are "
                "known"
            )
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise TypeError(f"message {number} has a {kind} as content: a text is needed")
        found.append({str(name): value for name, value in message.items() if _is_plain(value)})
    if found[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's: a user's has to follow it")
    context = found[-1].get("context")
    if context and "context" not in template.fields:
        found[-1]["content"] += f"\n\n{found[-1].pop('context')}"
    return found


def fitting(
    model: LanguageModel, messages: list[dict[str, Any]], template: ChatTemplate, new: int
) -> str:
    """The prompt without the oldest turns, as many of them as leave no room for an answer.

    Half the context is left to the prompt at least; a system's words stay.
    """
    context = model.config.context - len(model.virtual_tokens)
    room = context - min(new, context // 2)
    while True:
        prompt = _prompt(messages, template)
        turns = [i for i, message in enumerate(messages) if message["role"] != "system"]
        starts = [i for i in turns[1:] if messages[i]["role"] == "user"]
        if not starts or len(model.tokenizer.encode(prompt, add_special_tokens=False)) <= room:
            return prompt
        del messages[turns[0] : starts[0]]


def _prompt(messages: list[dict[str, Any]], template: ChatTemplate) -> str:
    try:
        return template(messages, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from None


def _stripped(text: Iterator[str]) -> Iterator[str]:
    """The pieces without blanks at the beginning and the end."""
    begun, waiting = False, ""
    try:
        for piece in text:
            whole = waiting + (piece if begun else piece.lstrip())
            said = whole.rstrip()
            waiting = whole[len(said) :]
            begun = begun or bool(said)
            if said:
                yield said
    finally:
        text.close()  # pyright: ignore[reportAttributeAccessIssue]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
