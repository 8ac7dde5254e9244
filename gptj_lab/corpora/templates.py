"""Rows and conversations as the text of a template, and what of it is to be learnt."""

import collections
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gptj_lab import chat_templates
from gptj_lab.chat_templates import ChatTemplate, Form, Span
from gptj_lab.corpora.examples import Example, Turn, Unclear
from gptj_lab.corpora.passages import Passage, ReadingNotes
from gptj_lab.jinja_sandbox import TemplateError
from gptj_lab.tokenizer import END_OF_TEXT, Tokenizer

# Names in lower case of a row's fields that are a person's, or a system's words.
PROMPTS = (
    "prompt", "instruction", "question", "query", "input", "inputs", "human", "user", "q",
    "problem", "front",
)  # fmt: skip
SYSTEMS = ("system_prompt", "system", "system_message")
LossOn = Literal["answers", "all"]
_SPECIAL = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
AS_IT_IS = "none"


@dataclasses.dataclass
class Templates:
    """What makes text of examples, and a count of what it made.

    Attributes:
        pairs: of prompts and answers; None leaves them as they are.
        turns: of conversations.
        form: a person's own, whose fields a row has to have.
        loss_on: "answers", or "all" of the text.
        end: the text of the token that ends a document.
        is_chosen: somebody named the template: it is used for all rows. Else a row whose prompt and
            answer have blanks between them stays as it is.
        used: how many examples each template made text of.
    """

    pairs: ChatTemplate | None
    turns: ChatTemplate
    form: Form | None = None
    loss_on: LossOn = "answers"
    end: str = END_OF_TEXT
    is_chosen: bool = False
    used: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seam: "Seam" = dataclasses.field(default_factory=lambda: Seam())

    def key(self) -> dict[str, Any]:
        """What a cache of the tokens depends on."""
        pairs = None if self.pairs is None else [self.pairs.source, dict(self.pairs.special)]
        form = self.form.text if self.form else None
        return {
            "pairs": pairs, "turns": self.turns.source, "form": form, "loss_on": self.loss_on,
            "chosen": self.is_chosen,
        }  # fmt: skip

    def begin(self) -> None:
        """Forgets what was counted: other sources are read."""
        self.used, self.seam = collections.Counter(), Seam()

    def facts(self) -> dict[str, Any]:
        """What was used, for JSON: `template_of` makes the template of it again."""
        return {"used": dict(self.used), "seam": self.seam.form()}


class Seam:
    """What prompts that are joined to their answers have in common: the form of their owner."""

    def __init__(self) -> None:
        self._front: str | None = None
        self._back = self._lead = ""

    def see(self, prompt: str, answer: str) -> None:
        """Takes one row."""
        lead = answer[: len(answer) - len(answer.lstrip())]
        if self._front is None:
            self._front, self._back, self._lead = prompt, prompt, lead
        self._front = os.path.commonprefix([self._front, prompt])
        self._back = os.path.commonprefix([self._back[::-1], prompt[::-1]])[::-1]
        self._lead = self._lead if self._lead == lead else ""

    def form(self) -> str:
        """Such as "Question: {prompt}\\nAnswer: {answer}"; cut where words could begin."""
        front, back = self._front or "", self._back
        front = front[: max(front.rfind(": ") + 2 if ": " in front else 0, front.rfind("\n") + 1)]
        starts = [i for i in (back.find("\n"), back.find(" ")) if i >= 0]
        back = back[min(starts) :] if starts else ""

        def escaped(text: str) -> str:
            return text.replace("{", "{{").replace("}", "}}")

        return escaped(front) + "{prompt}" + escaped(back + self._lead) + "{answer}"


def default() -> Templates:
    """`plain` for pairs and `chat` for conversations, with <|endoftext|> after each answer."""
    plain, chat = (chat_templates.named(name, _SPECIAL) for name in ("plain", "chat"))
    return Templates(plain, chat)


def chosen(
    template: str | Path | ChatTemplate | None,
    tokenizer: Tokenizer,
    own: ChatTemplate | None = None,
    loss_on: str = "answers",
) -> Templates:
    """The templates that a person means.

    Args:
        template: as of `given`; "none" for rows as they are; None for the checkpoint's own, else
            `plain` for pairs and `chat` for conversations.
        own: the checkpoint's.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `given`; or loss_on is unknown.
    """
    if loss_on not in ("answers", "all"):
        raise ValueError(f"loss_on is {loss_on!r}: give 'answers' or 'all'")
    special = chat_templates.special_tokens(tokenizer)
    end = tokenizer.end_of_text if tokenizer.end_of_text_id is not None else ""
    plain, chat = (chat_templates.named(name, special) for name in ("plain", "chat"))
    more: dict[str, Any] = {"loss_on": loss_on, "end": end}
    if template is None and own is None:
        return Templates(plain, chat, **more)
    if template == AS_IT_IS:
        return Templates(None, chat, **more, is_chosen=True)
    found = own if template is None else given(template, tokenizer, own)
    if isinstance(found, Form):
        made = chat_templates.of_form(found, special, SYSTEMS)
        return Templates(made, made, found, **more, is_chosen=True)
    assert found is not None
    return Templates(found, found, **more, is_chosen=True)


def given(
    template: str | Path | ChatTemplate, tokenizer: Tokenizer, own: ChatTemplate | None = None
) -> ChatTemplate | Form:
    """The template that a person means.

    Args:
        template: a name of chat_templates.NAMED; "tokenizer", the checkpoint's own; a .jinja file;
            Jinja itself; or a form such as "### {question}\\n{answer}".
        own: the checkpoint's.

    Raises:
        ValueError: it is none of them; the sentence lists the names.
        FileNotFoundError: there is no such file.
    """
    special = chat_templates.special_tokens(tokenizer)
    if isinstance(template, ChatTemplate):
        return template
    if not isinstance(template, str | Path):
        raise TypeError(f"template is a {type(template).__name__}: {_choices()}")
    text = str(template)
    if text in chat_templates.NAMED:
        return chat_templates.named(text, special)
    if text == "tokenizer":
        if own is None:
            raise ValueError(
                "template is 'tokenizer', but the model has no chat template of its own (neither "
                f"{chat_templates.FILE} nor chat_template in tokenizer_config.json): {_choices()}"
            )
        return own
    if isinstance(template, Path) or text.endswith((".jinja", ".jinja2")):
        text = Path(text).expanduser().read_text("utf-8")
    if "{%" in text or re.search(r"\{\{.*?\}\}", text) and "messages" in text:
        found = ChatTemplate(text, special)
        try:
            found.check()
        except TemplateError as error:
            raise ValueError(f"template can't be used: {error}") from None
        return found
    if "{" not in text:
        raise ValueError(f"template is {text!r:.80}, which isn't known: {_choices()}")
    return Form.of(text, PROMPTS, SYSTEMS)


def _choices() -> str:
    return (
        f"give {', '.join(chat_templates.NAMED)}, tokenizer (the model's own), none (rows as they "
        "are), a form such as '### {question}\\n{answer}', or a .jinja file"
    )


def as_text(template: str | Path | ChatTemplate | None) -> str | None:
    """What `given` was given, so that it can be given again from a file of JSON."""
    if isinstance(template, ChatTemplate):
        return template.name if template.name in chat_templates.NAMED else template.source
    return None if template is None else str(template)


def sentences(about: Mapping[str, Any]) -> list[str]:
    """What was made of a corpus's rows, for a reader.

    Args:
        about: what `Templates.facts` gave.
    """
    said = []
    for name, count in (about.get("used") or {}).items():
        rows = f"{count:,} row{'' if count == 1 else 's'}"
        if name == AS_IT_IS:
            said.append(
                f"{rows} of prompts and answers as they are, in the form {about['seam']!r}."
            )
        else:
            said.append(f"{rows} of prompts and answers by the template {_WHAT[name]}.")
    if len(said) > 1:
        said.append("A chat with the model uses the template of most rows: name one for all.")
    return said


_WHAT = {
    "plain": "plain (a line break and 'Answer:' between them)",
    "chat": "chat ('User:' and 'Assistant:')",
    "chatml": "chatml (<|im_start|>user ... <|im_end|>)",
    "alpaca": "alpaca ('### Instruction:' and '### Response:')",
    "tokenizer": "of the model itself",
    "own": "that was given",
}


def template_of(
    facts: Mapping[str, Any] | None, templates: Templates, tokenizer: Tokenizer
) -> ChatTemplate | None:
    """The template that most of a corpus was made with; None where it has no rows of roles.

    Args:
        facts: what `Templates.facts` gave when the corpus was read.
    """
    used = dict((facts or {}).get("used") or {})
    if not used:
        return None
    most = max(used, key=lambda name: used[name])
    if most == AS_IT_IS:
        if templates.is_chosen:
            return None
        special = chat_templates.special_tokens(tokenizer)
        return chat_templates.of_form(Form.of((facts or {})["seam"], PROMPTS, SYSTEMS), special)
    return templates.turns if most == templates.turns.name else templates.pairs


def example_passage(
    example: Example, templates: Templates, origin: str, notes: ReadingNotes, place: str
) -> Passage:
    """The passage of a pair or a conversation.

    Raises:
        Unclear: nothing in it would be learnt, or the template refuses it.
    """
    if example.turns:
        turns = _up_to_the_last_answer(example.turns)
    elif not (example.answer or "").strip():
        raise Unclear("its answer is empty, so nothing would be learnt")
    else:
        turns = ()
    template = templates.turns if turns else templates.pairs
    if template is None or (not turns and not templates.is_chosen and _is_joined(example)):
        return _as_it_is(example, templates, origin, notes, place)
    messages = _messages(example, turns, template)
    try:
        text, spans = template.spoken(messages, example.tools or None)
    except TemplateError as error:
        raise Unclear(f"its template ({template.name}) refuses it: {error}") from None
    templates.used[template.name] += 1
    _tell_of_markers(messages, template, notes, place)
    learnt = [turn.trained and bool(turn.words.strip()) for turn in turns
              if turn.role == "assistant"] or [True]  # fmt: skip
    answers = [span for span, counts in zip(spans, learnt, strict=True) if counts]
    words = _words(text, messages)
    return _passage(text, answers, words, templates, origin, parted=not template.marks)


def _passage(
    text: str, answers: Sequence[Span], words: Sequence[Span], templates: Templates, origin: str,
    *, parted: bool,
) -> Passage:  # fmt: skip
    """The passage, without marks that the corpus puts around each document itself."""
    if templates.loss_on == "all":
        answers = [(0, len(text))]
    end, cut = templates.end, 0
    closes = bool(end) and text.endswith(end) and answers[-1][1] == len(text)
    if closes:
        text = text.removesuffix(end)
    if end and text.startswith(end):
        cut, text = len(end), text.removeprefix(end)

    def moved(spans: Sequence[Span]) -> tuple[Span, ...]:
        each = ((max(0, a - cut), min(len(text), b - cut)) for a, b in spans)
        return tuple((a, b) for a, b in each if a < b)

    return Passage(
        text,
        origin=origin,
        answers=moved(answers),
        words=moved(words),
        parted=parted,
        closes=closes,
    )


def _up_to_the_last_answer(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    learnt = [
        i for i, turn in enumerate(turns)
        if turn.role == "assistant" and turn.trained and turn.words.strip()
    ]  # fmt: skip
    if not learnt:
        raise Unclear("no turn is the assistant's, so nothing would be learnt")
    return turns[: learnt[-1] + 1]


def _is_joined(example: Example) -> bool:
    """Whether a row's owner has put blanks between prompt and answer."""
    answer, prompt = example.answer or "", example.prompt
    apart = example.context or example.system
    return not apart and (answer[0].isspace() or prompt[-1:].isspace())


def _as_it_is(
    example: Example, templates: Templates, origin: str, notes: ReadingNotes, place: str
) -> Passage:
    if not templates.is_chosen:
        notes.remark(
            "a prompt and its answer with blanks between them, trained on as they are (a template "
            "that is named, such as template='plain', puts its own there)",
            place,
        )
        templates.seam.see(example.prompt, example.answer or "")
    templates.used[AS_IT_IS] += 1
    asked = f"{example.system}\n\n{example.prompt}" if example.system else example.prompt
    if example.context:
        asked = f"{asked}\n\n{example.context}\n"
    text = asked + (example.answer or "")
    whole = text + templates.end
    spans = [(len(asked), len(whole))], [(0, len(text))]
    return _passage(whole, *spans, templates, origin, parted=True)


def _messages(
    example: Example, turns: tuple[Turn, ...], template: ChatTemplate
) -> list[dict[str, Any]]:
    """The messages of an example; what a template has no place for goes into the prompt."""
    if turns:
        return [{"role": turn.role, "content": turn.words} for turn in turns]
    asked: dict[str, Any] = {"role": "user", "content": example.prompt, **example.extras}
    if example.context and "context" in template.fields:
        asked["context"] = example.context
    elif example.context:
        asked["content"] = f"{example.prompt}\n\n{example.context}"
    before = [{"role": "system", "content": example.system}] if example.system else []
    first = [asked] if example.prompt or example.context or example.extras else []
    return [*before, *first, {"role": "assistant", "content": example.answer}]


def _words(text: str, messages: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Where in a text the messages' own words stand, in their order."""
    found, place = [], 0
    for message in messages:
        for words in (value.strip() for name, value in message.items() if name != "role"):
            start = text.find(words, place) if words else -1
            if start >= 0:
                place = start + len(words)
                found.append((start, place))
    return found


def _tell_of_markers(
    messages: Sequence[Mapping[str, Any]], template: ChatTemplate, notes: ReadingNotes, place: str
) -> None:
    """Notes words that read like the template's own marks; transformers leaves them so too."""
    for mark in template.marks_of_its_own:
        if any(mark in str(value) for message in messages for value in message.values()):
            notes.remark(
                f"a row whose words hold {mark!r}, which the template itself ends turns with: it "
                "is left there, as transformers leaves it",
                place,
            )
