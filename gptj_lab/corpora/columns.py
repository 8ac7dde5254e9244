"""Which field of a row is what: rows of any usual shape as examples."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from gptj_lab.chat_templates import Form
from gptj_lab.corpora import chat_exports
from gptj_lab.corpora.examples import Example, Turn, Unclear
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.templates import PROMPTS, SYSTEMS

# Names in lower case with _ for blanks and hyphens; of several, the first that is there.
ANSWERS = (
    "completion", "response", "output", "outputs", "answer", "answers", "assistant", "gpt", "bot",
    "reply", "a", "solution", "back", "target", "chosen",
)  # fmt: skip
CONTEXTS = ("context", "input", "passage", "background")
CHATS = (
    "messages", "conversations", "conversation", "chat_messages", "dialogue", "dialog", "chat",
    "turns",
)  # fmt: skip
TEXTS = ("text", "content")
_ROLES = {
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "user": "user", "human": "user", "tool": "tool", "function": "tool",
    "system": "system", "developer": "system",
}  # fmt: skip
_SPEAKERS = ("role", "from", "speaker", "author", "sender")
_WORDS = ("content", "value", "text", "message")
_CALLS = ("tool_calls", "function_call")
_HUMAN = re.compile(r"\n\n(Human|Assistant): ?")  # Anthropic's HH-RLHF
KNOWN = {*PROMPTS, *ANSWERS, *CONTEXTS, *SYSTEMS, *CHATS, *TEXTS}


def plain_name(name: Any) -> str:
    """A field's name as the lists here have it.

    >>> plain_name(" System-Prompt ")
    'system_prompt'
    """
    return re.sub(r"[\s-]+", "_", str(name).strip("\ufeff \t").lower())


@functools.lru_cache(maxsize=4096)
def _plain(names: tuple[Any, ...]) -> dict[str, Any]:
    return {plain_name(name): name for name in reversed(names)}


def example_of(row: Mapping[Any, Any], options: ReadingOptions) -> tuple[Example, set[Any]]:
    """(the example that a row is, the fields that were used).

    Raises:
        Unclear: it is of no shape that is known.
    """
    names = _plain(tuple(row))
    there = {plain: name for plain, name in names.items() if not _is_empty(row[name])}
    if options.text_field is not None:
        name = _named(row, options.text_field)
        return Example(text=_words(row, name)), {name}
    chat = next((there[name] for name in CHATS if name in there), None)
    if not (options.prompt_field or options.answer_field) and chat is not None:
        return _chat(row, chat, there, options)
    if {"mapping", "current_node"} <= there.keys():
        try:
            turns = chat_exports.chatgpt_turns(row)
        except (AttributeError, TypeError) as error:
            raise Unclear("it isn't a conversation as ChatGPT's export has it") from error
        return Example(turns=tuple(turns)), set(row)
    found = _pair(row, there, options)
    if found is not None:
        return found
    text = next((there[name] for name in TEXTS if name in there), None)
    if text is None:
        text = names.get("text")
    blank = [name for plain, name in names.items() if plain in KNOWN and plain not in there]
    if text is None and blank:
        raise Unclear(f"its {blank[0]} is empty")
    if text is None:
        raise Unclear(
            f"its fields are {_listed(row)}; needed is text, or prompt and answer, or messages; "
            "else name them: text_field=..., or prompt_field=... and answer_field=..."
        )
    if plain_name(text) == "content" and there.keys() & set(_SPEAKERS):
        raise Unclear("it is one message of a chat: a row with the list of them is needed")
    return Example(text=_words(row, text)), {text}


def formed(example: Example, row: Mapping[Any, Any], form: Form) -> tuple[Example, set[Any]]:
    """(the example that a person's own form makes of a row, the fields that it uses).

    A field that the row doesn't have may be a role's: prompt, answer, system or context.

    Raises:
        Unclear: it is neither.
    """
    names, used = _plain(tuple(row)), set()
    values: dict[str, str] = {}
    for field in form.fields:
        name = field if field in row else names.get(plain_name(field))
        if name is not None:
            used.add(name)
            values[field] = _answer(row, name) if field == form.answer else _scalar(row, name)
        elif field in ("prompt", "answer", "system", "context"):
            values[field] = getattr(example, field) or ""
        else:
            raise Unclear(
                f"the template has the field {field!r}, which it doesn't have: its fields are "
                f"{_listed(row)}"
            )
    system = next((values[f] for f in form.fields if plain_name(f) in SYSTEMS), "")
    extras = {f: v for f, v in values.items() if f not in (form.asked, form.answer)}
    return Example(
        prompt=values[form.asked], answer=values[form.answer], system=system, extras=extras
    ), used


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def _named(row: Mapping[Any, Any], field: str) -> Any:
    """The field of this name, whatever its case."""
    if field in row:
        return field
    name = _plain(tuple(row)).get(plain_name(field))
    if name is None:
        raise Unclear(f"it has no field {field!r}: its fields are {_listed(row)}")
    return name


def _listed(row: Mapping[Any, Any]) -> str:
    names = [repr(str(name)) for name in row]
    return ", ".join(names[:12] + ["..."] * (len(names) > 12)) or "none"


def _role(
    row: Mapping[Any, Any], field: str | None, there: Mapping[str, Any], names: tuple[str, ...]
) -> Any:
    """The row's field of a role: the one that is named, else the first known that is there."""
    if field is not None:
        return _named(row, field)
    return next((there[name] for name in names if name in there), None)


def _pair(
    row: Mapping[Any, Any], there: Mapping[str, Any], options: ReadingOptions
) -> tuple[Example, set[Any]] | None:
    """The example of a row with a prompt and an answer; None of one that hasn't both."""
    prompt = _role(row, options.prompt_field, there, PROMPTS)
    names = _plain(tuple(row))
    answer = _role(row, options.answer_field, names if prompt is not None else there, ANSWERS)
    if answer is not None and _is_empty(row[answer]) and options.answer_field is None:
        # An empty answer is one only where no other field has one.
        answer = next((there[name] for name in ANSWERS if name in there), answer)
    rejected = there.get("rejected") if answer is not None else None
    if prompt is None and rejected is not None and "chosen" in there:
        return _chosen(row, there["chosen"], rejected)
    if prompt is None or answer is None or prompt == answer:
        return None
    used = {prompt, answer} | ({rejected} if rejected is not None else set())
    system = _role(row, options.system_field, there, SYSTEMS)
    others = {name: field for name, field in there.items() if field not in used}
    context = _role(row, options.context_field, others, CONTEXTS)
    used |= {field for field in (system, context) if field is not None}
    before = [] if system is None else [Turn("system", _words(row, system))]
    if isinstance(row[prompt], list):  # TRL's conversational form
        asked = [_untrained(turn) for turn in turns_of(row[prompt], str(prompt), options.me)]
        answered = turns_of(row[answer], str(answer), options.me)
        return Example(turns=tuple([*before, *asked, *answered])), used
    if (
        isinstance(row[answer], list)
        and row[answer]
        and isinstance(row[answer][0], Mapping)
        and _speaker(row[answer][0]) is not None
    ):  # UltraFeedback's: the prompt is a text and `chosen` the whole conversation
        return Example(turns=tuple([*before, *turns_of(row[answer], str(answer))])), used
    return Example(
        prompt=_scalar(row, prompt),
        answer=_answer(row, answer),
        system="" if system is None else _words(row, system),
        context="" if context is None else _scalar(row, context),
    ), used


def _untrained(turn: Turn) -> Turn:
    return Turn(turn.role, turn.words, trained=False)


def _chosen(row: Mapping[Any, Any], chosen: Any, rejected: Any) -> tuple[Example, set[Any]]:
    """A preference pair without a prompt of its own: two conversations."""
    value = row[chosen]
    if isinstance(value, list):
        return Example(turns=tuple(turns_of(value, str(chosen)))), {chosen, rejected}
    parts = _HUMAN.split(_words(row, chosen))
    turns = [
        Turn("user" if speaker == "Human" else "assistant", words)
        for speaker, words in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if not turns:
        return Example(text=value), {chosen, rejected}
    if all(turn.role == "user" for turn in turns):
        raise Unclear("no turn is the assistant's, so nothing would be learnt")
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
    trained = [t if i == last else _untrained(t) for i, t in enumerate(turns)]
    return Example(turns=tuple(trained)), {chosen, rejected}


def _answer(row: Mapping[Any, Any], field: Any) -> str:
    """The words of an answer: a text, a number, SQuAD's {"text": [...]}, or the first of a list."""
    value = row[field]
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if isinstance(value, list | tuple):
        if not value:
            raise Unclear(f"its {field} is empty, so nothing would be learnt")
        value = value[0]
        if isinstance(value, Mapping) and "text" in value:
            value = value["text"]
    if _is_empty(value) or (isinstance(value, str) and not value.strip()):
        raise Unclear(f"its {field} is empty, so nothing would be learnt")
    return _scalar({field: value}, field)


def _scalar(row: Mapping[Any, Any], field: Any) -> str:
    value = row[field]
    return str(value) if isinstance(value, int | float) else _words(row, field)


def _words(row: Mapping[Any, Any], field: Any) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise Unclear(f"its {field} is a {type(value).__name__}, a text is needed")
    return value


def _chat(
    row: Mapping[Any, Any], field: Any, there: Mapping[str, Any], options: ReadingOptions
) -> tuple[Example, set[Any]]:
    turns, used = turns_of(row[field], str(field), options.me), {field}
    system = _role(row, options.system_field, there, SYSTEMS)
    if system is not None and all(turn.role != "system" for turn in turns):
        turns, used = [Turn("system", _words(row, system)), *turns], used | {system}
    tools = there.get("tools") or there.get("functions")
    listed = row[tools] if tools is not None and isinstance(row[tools], list) else []
    return Example(turns=tuple(turns), tools=listed), used


def turns_of(messages: Any, field: str, me: str | None = None) -> list[Turn]:
    """The turns of a list of messages, whatever they name their fields.

    Raises:
        Unclear: one isn't a message, or is of an unknown role.
    """
    if not isinstance(messages, list):
        raise Unclear(f"its {field} is a {type(messages).__name__}, a list is needed")
    if messages and all(isinstance(message, str) for message in messages):
        return [Turn("assistant" if i % 2 else "user", words) for i, words in enumerate(messages)]
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unclear(f"its {field} holds a {type(message).__name__}, not a message")
        speaker = _speaker(message) or "role"
        if calls := next((name for name in _CALLS if message.get(name)), None):
            raise Unclear(f"it calls tools ({calls}), and only words are trained on here")
        words = next((name for name in _WORDS if message.get(name) is not None), "content")
        name = _words(message, speaker)
        role = _ROLES.get(name.lower())
        if me is not None:
            role = "assistant" if name == me else role or "user"
        if role is None:
            raise Unclear(f"it has a turn of {name!r}: system, user or assistant are known")
        weight = message.get("weight")
        turns.append(Turn(role, _content(message, words), trained=weight is None or weight != 0))
    return turns


def is_message(value: Any) -> bool:
    """Whether a value is one message of a chat: a role that is known, and words."""
    if not isinstance(value, Mapping) or (name := _speaker(value)) is None:
        return False
    return value[name].lower() in _ROLES and any(isinstance(value.get(w), str) for w in _WORDS)


def _speaker(message: Mapping[Any, Any]) -> str | None:
    return next((name for name in _SPEAKERS if isinstance(message.get(name), str)), None)


def _content(message: Mapping[Any, Any], field: str) -> str:
    """The words of a message; of a list of parts, those of the texts."""
    value = message.get(field)
    if not isinstance(value, list):
        return _words(message, field)
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            raise Unclear(f"a message holds a part of type {kind!r}: only texts are read")
        parts.append(part["text"])
    return "".join(parts)
