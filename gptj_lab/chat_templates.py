"""Chat templates: what makes one text of messages, and where in it the assistant speaks.

Every one is a Jinja template over `messages`, the named ones too: so what a row was trained on is,
letter by letter, what transformers' apply_chat_template makes of the saved chat_template.jinja.
"""

import dataclasses
import functools
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptj_lab.jinja_sandbox import Compiled, TemplateError, compiled
from gptj_lab.tokenizer import Tokenizer

FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant", "tool")
Message = Mapping[str, Any]
Span = tuple[int, int]

# A line break and a cue, both the assistant's: a bare prompt is continued by them and an answer.
_PLAIN = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ '\\nAnswer: ' ~ message['content'] | trim ~ eos_token }}{%- endgeneration -%}
{%- else -%}
{{- '' if loop.first else '\\n\\n' -}}
{{- ('Tool: ' if message['role'] == 'tool' else '') ~ message['content'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\nAnswer:' }}{%- endif -%}"""
_CHAT = """\
{%- for message in messages -%}
{{- '' if loop.first else '\\n\\n' -}}
{%- if message['role'] == 'assistant' -%}
{{- 'Assistant:' -}}
{%- generation -%}{{ ' ' ~ message['content'] | trim ~ eos_token }}{%- endgeneration -%}
{%- elif message['role'] == 'system' -%}
{{- message['content'] | trim -}}
{%- else -%}
{{- message['role'] | capitalize ~ ': ' ~ message['content'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}"""
_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ message['content'] ~ '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}
{%- else -%}
{{- message['content'] ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
# Stanford Alpaca's train.py (Taori et al. 2023); its data set's `text` has a line end before the
# answer. A system message takes the place of the preamble, a `context` that of the input.
_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '\\n\\n### Response:' -}}
{%- generation -%}{{ '\\n' ~ message['content'] | trim ~ eos_token }}{%- endgeneration -%}
{%- elif message['role'] == 'system' -%}
{{- '' if loop.first else '\\n\\n' -}}{{- message['content'] | trim -}}
{%- else -%}
{%- if loop.first -%}
{{- 'Below is an instruction that describes a task' -}}
{{- ', paired with an input that provides further context' if message['context'] -}}
{{- '. Write a response that appropriately completes the request.' -}}
{%- endif -%}
{{- '\\n\\n### Instruction:\\n' ~ message['content'] | trim -}}
{{- '\\n\\n### Input:\\n' ~ message['context'] | trim if message['context'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\n### Response:' }}{%- endif -%}"""
NAMED = {"plain": _PLAIN, "chat": _CHAT, "chatml": _CHATML, "alpaca": _ALPACA}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template over `messages`, as chat_template.jinja has it.

    Attributes:
        source: the template.
        special: what it knows the tokenizer's special tokens by, such as eos_token.
        name: one of NAMED, "own" of a person's, "tokenizer" of a checkpoint's.
        fields: of the user's words, those that a message may have beside `content`.
    """

    source: str
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = "own"
    fields: tuple[str, ...] = ()

    @property
    def marks(self) -> bool:
        """Whether it marks the assistant's words ({% generation %})."""
        return self._compiled.marks

    @property
    def _compiled(self) -> Compiled:
        return compiled(self.source)

    def __call__(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Any = None
    ) -> str:
        """The text of the messages; with the beginning of an answer, if that is wanted.

        Raises:
            TemplateError: the template refuses them, or is at fault.
        """
        return self._rendered(messages, add_generation_prompt, tools)[0]

    def spoken(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[Span]]:
        """(the text, for each message of the assistant the characters that it is to learn).

        They are what {% generation %} marks. Without such marks they are what comes after the text
        of the messages before, with the beginning of an answer: TRL's prompt and completion.

        Raises:
            TemplateError: the template refuses them, or gives the same turn another text later.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        text, spans = self._rendered(messages, False, tools)
        if self.marks:
            if len(spans) != len(turns):
                raise TemplateError(
                    f"it marks {len(spans)} answers ({{% generation %}}) of {len(turns)}"
                )
            return text, spans
        for i in turns:
            before = self._rendered(messages[:i], True, tools)[0]
            after = text if i + 1 == len(messages) else (
                self._rendered(messages[: i + 1], False, tools)[0]
            )  # fmt: skip
            if not after.startswith(before) or not text.startswith(after):
                raise TemplateError(
                    "it gives a turn another text when others follow, and marks no answers "
                    "({% generation %}): train on all of the text, loss_on='all'"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def check(self) -> None:
        """Nothing, if it can be compiled.

        Raises:
            TemplateError: it can't.
        """
        assert self._compiled

    @functools.cached_property
    def marks_of_its_own(self) -> list[str]:
        """Marks such as <|im_end|> that it writes itself."""
        marks = re.findall(r"<\|?\w+\|?>", self.source)
        return list(dict.fromkeys([*marks, *filter(None, [self.special.get("eos_token")])]))

    @functools.cached_property
    def stops(self) -> list[str]:
        """The texts that end an answer: what stands after one, and where the next turn begins.

        An end token among them isn't, as generation ends with it anyway.
        """
        end = self.special.get("eos_token", "")
        asked, said = "\ue000", "\ue001"  # of private use: in no template
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        found = []
        for further in ([], [{"role": "user", "content": asked}]):
            try:
                text = self([*turns, *further])
            except TemplateError:
                continue
            after = text.partition(said)[2].partition(asked)[0]
            after = after.partition(end)[0] if end else after
            found.append(after.rstrip() if further else after.strip())
        return list(dict.fromkeys(stop for stop in found if stop.strip()))

    def _rendered(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Any
    ) -> tuple[str, list[Span]]:
        values = {
            **self.special, "messages": [dict(message) for message in messages], "tools": tools,
            "documents": None, "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        return self._compiled.render(values)


@dataclasses.dataclass(frozen=True)
class Form:
    """A person's own template: a format string of a row's fields, the answer the last of them.

    Attributes:
        text: such as "### {question}\\n{answer}".
        asked: the field that a person's words stand for in a chat.
        answer: the field of the answer.
        fields: all, in their order.
    """

    text: str
    asked: str
    answer: str
    fields: tuple[str, ...]

    @classmethod
    def of(cls, text: str, asked: Sequence[str] = (), system: Sequence[str] = ()) -> "Form":
        """The form of a format string.

        Args:
            asked: names of fields that are a person's words, the first that is there counts.
            system: names of fields that are not, of a system's words.

        Raises:
            ValueError: it isn't one, or has no field for the words of either side.
        """
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"template is {text!r}, which isn't a format string ({error}): write a field as "
                "{question}, and a brace that is no field as {{ or }}"
            ) from None
        fields = [name for _, name, _, _ in parts if name is not None]
        for _, name, spec, conversion in parts:
            if name is not None and (spec or conversion or not re.fullmatch(r"[^\W\d]\w*", name)):
                raise ValueError(
                    f"template has the field {{{name}{spec and ':' + spec}}}: only names of "
                    "fields are filled in, such as {question}"
                )
        names = tuple(dict.fromkeys(fields))
        if len(names) < 2 or fields.count(fields[-1]) > 1:
            raise ValueError(
                f"template is {text!r}: it needs a field for what is asked and, as the last, one "
                "for the answer, such as '### {question}\\n{answer}'"
            )
        others = [name for name in names[:-1] if name.lower() not in system] or list(names)
        first = next((name for name in others if name.lower() in asked), others[0])
        return cls(text, first, names[-1], names)

    def jinja(self, system: Sequence[str] = ()) -> str:
        """The same as a Jinja template; fields that aren't asked are keys of the message."""
        before, after, is_before = [], [], True
        for literal, name, _, _ in string.Formatter().parse(self.text):
            if literal:
                (before if is_before else after).append(_literal(literal))
            if name == self.answer:
                is_before = False
            elif name is not None:
                before.append(_value(name, self.asked, system))
        lead = re.search(r"[ \t]*$", _last_literal(self.text, self.answer))
        cut = len(lead[0]) if lead else 0  # blanks before the answer are the answer's: one token
        beginning = [*before[:-1], _cut(before[-1], cut)] if cut else before
        said = [*([_literal(lead[0])] if lead and cut else []), "message['content']", *after]
        return _FORM.format(
            before=" ~ ".join(beginning) or "''", said=" ~ ".join([*said, "eos_token"]),
            system=_SET if any(f.lower() in system for f in self.fields) else _PUT,
        )  # fmt: skip


_PUT = "{{- message['content'] ~ '\\n\\n' -}}"
_SET = "{%- set words.system = message['content'] -%}"
_FORM = """\
{{%- set words = namespace(system='') -%}}
{{%- for message in messages -%}}
{{%- if message['role'] == 'assistant' -%}}
{{%- generation -%}}{{{{ {said} }}}}{{%- endgeneration -%}}
{{%- elif message['role'] == 'system' -%}}
{system}
{{%- else -%}}
{{{{- '' if loop.first or loop.previtem['role'] == 'system' else '\\n\\n' -}}}}
{{{{- {before} -}}}}
{{%- endif -%}}
{{%- endfor -%}}"""


def _literal(text: str) -> str:
    return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace("'", "\\'") + "'"


def _cut(literal: str, blanks: int) -> str:
    """A literal without the blanks at its end."""
    plain = json.loads('"' + literal[1:-1].replace("\\'", "'") + '"')
    return _literal(plain[: len(plain) - blanks])


def _last_literal(text: str, answer: str) -> str:
    """What stands right before the answer."""
    for literal, name, _, _ in string.Formatter().parse(text):
        if name == answer:
            return literal
    return ""


def _value(name: str, asked: str, system: Sequence[str]) -> str:
    if name == asked:
        return "message['content']"
    return "words.system" if name.lower() in system else f"message[{_literal(name)}]"


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template knows by name, as transformers gives them."""
    if tokenizer.roles:
        return {role: text for role, text in tokenizer.roles.items() if text}
    if tokenizer.end_of_text_id is None:
        return {}
    return dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokenizer.end_of_text)


def named(name: str, special: Mapping[str, str]) -> ChatTemplate:
    """The template of that name, of NAMED."""
    return ChatTemplate(NAMED[name], special, name, ("context",) if name == "alpaca" else ())


def of_form(form: Form, special: Mapping[str, str], system: Sequence[str] = ()) -> ChatTemplate:
    """The template of a person's own form."""
    return ChatTemplate(form.jinja(system), special, "own", form.fields)


def of_files(files: Mapping[str, bytes], special: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template among a checkpoint's or an adapter's files, as transformers takes it.

    It is chat_template.jinja, else `chat_template` of tokenizer_config.json: a text, or a list of
    which the one named "default" counts. Nothing of it is run before it is used.
    """
    content = files.get(FILE)
    source: Any = content.decode("utf-8", "replace") if content is not None else None
    if source is None:
        try:
            source = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
        except (ValueError, AttributeError, RecursionError):
            return None  # the tokenizer's reader says what is wrong with it
    if isinstance(source, list):
        several = {each.get("name"): each.get("template") for each in source
                   if isinstance(each, dict)}  # fmt: skip
        source = several.get("default")
    if not isinstance(source, str) or not source.strip():
        return None
    name = next((name for name, known in NAMED.items() if known == source), "tokenizer")
    fields = ("context",) if name == "alpaca" else ()
    return ChatTemplate(source, special, name, fields)


def write(template: ChatTemplate | None, folder: Path) -> None:
    """Writes the template into a checkpoint's or an adapter's folder, if it isn't there already.

    transformers takes chat_template.jinja before tokenizer_config.json's.

    Raises:
        OSError: it can't be written, or the disk is full.
    """
    if template is None:
        return
    files = {
        name: (folder / name).read_bytes()
        for name in (FILE, "tokenizer_config.json")
        if (folder / name).is_file()
    }
    there = of_files(files, {})
    if there is None or there.source != template.source:
        (folder / FILE).write_text(template.source, "utf-8", newline="")
