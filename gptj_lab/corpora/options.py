"""What a caller says about sources: which field is what, who is `me`, which encoding."""

import dataclasses
from typing import Any

from gptj_lab.corpora.templates import Templates, default

FIELDS = ("text_field", "prompt_field", "answer_field", "system_field", "context_field")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How sources are read, where it isn't left to be found out.

    Attributes:
        text_field: the field of a row that holds its text.
        prompt_field, answer_field: the fields of a question and its answer.
        system_field, context_field: fields that go into the prompt.
        me: whose words are the assistant's in an exported chat.
        encoding: of text files, by Python's name for it.
        templates: what makes text of prompts and answers.

    Raises:
        TypeError, ValueError: one is no text, or doesn't go with another.

    >>> ReadingOptions(encoding="cp1251").named
    False
    """

    text_field: str | None = None
    prompt_field: str | None = None
    answer_field: str | None = None
    system_field: str | None = None
    context_field: str | None = None
    me: str | None = None
    encoding: str | None = None
    templates: Templates = dataclasses.field(default_factory=default)

    def __post_init__(self) -> None:
        for name, value in self._said():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}: a name is needed")
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty: give a name, or leave it out")
        others = [name for name in FIELDS[1:] if getattr(self, name) is not None]
        if self.text_field is not None and others:
            raise ValueError(
                f"text_field and {others[0]} are both given: a row is trained on as one text, or "
                "as a prompt and an answer; leave one of them out"
            )
        if self.encoding is not None:
            try:
                "".encode(self.encoding)  # codecs.lookup would take "hex" too
            except (LookupError, UnicodeError):
                raise ValueError(
                    f"encoding is {self.encoding!r}, which Python doesn't know: utf-8, cp1252, "
                    "cp1251, koi8-r, shift_jis, gb18030, big5 or latin-1 are names that it does"
                ) from None

    @property
    def named(self) -> bool:
        """Whether a field is named."""
        return any(getattr(self, name) is not None for name in FIELDS)

    def key(self) -> dict[str, Any]:
        """What a cache of the tokens depends on."""
        return {**{name: value for name, value in self._said() if value}, **self.templates.key()}

    def _said(self) -> list[tuple[str, Any]]:
        names = (field.name for field in dataclasses.fields(self) if field.name != "templates")
        return [(name, getattr(self, name)) for name in names]
