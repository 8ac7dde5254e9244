"""Tokens as a view shows them: untrusted text, with ink where it has none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptj_lab.tokenizer import Tokenizer

Name = tuple[str, str | None]


def token_name(tokenizer: Tokenizer, token_id: int) -> Name:
    """A token as a person should see it, and its own text if that is whole and has ink.

    A control character, or one that turns the direction of the text, is shown as its mark.
    """
    text = tokenizer.token_bytes(token_id).decode(errors="replace")
    plain = "\ufffd" not in text and all(c.isprintable() or c in "\n\t" for c in text)
    return tokenizer.display(token_id), text if plain else None


def token_names(tokenizer: Tokenizer, token_ids: Iterable[int]) -> dict[str, Name]:
    """The names of some tokens by their id, as JSON has it: each once."""
    return {str(token): token_name(tokenizer, token) for token in sorted(set(map(int, token_ids)))}
