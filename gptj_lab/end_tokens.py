"""The tokens that end a text: what a checkpoint's files say, and what a caller says instead."""

import json
from collections.abc import Sequence
from operator import index
from typing import Any

from gptj_lab.config import ModelConfig
from gptj_lab.notices import tell
from gptj_lab.tokenizer import Tokenizer

EndTokens = int | str | Sequence[int | str]


def declared(
    config: ModelConfig, generation: bytes | None, tokenizer: Tokenizer, name: str = ""
) -> tuple[int, ...]:
    """The ids of the end tokens of a model: all that its files name, or <|endoftext|>, or none.

    They are `eos_token_id` of config.json and of generation_config.json, and `eos_token` of the
    tokenizer. An id without an embedding is never made and left out. generation_config.json is
    optional: where it is damaged, that is told, and the others' ends are left.

    Args:
        generation: the content of generation_config.json; None if there is none.
        name: what the model was loaded as, to tell it.
    """
    listed = _of_generation(generation, f"{name or 'the model'}: generation_config.json")
    own = config.eos_token_id
    found = [*(own if isinstance(own, tuple) else [own]), *listed]
    if "eos_token" in tokenizer.roles:
        found.append(tokenizer.end_of_text_id)
    if all(end is None for end in found):
        found = [tokenizer.end_of_text_id]
    known = (end for end in found if end is not None and end < config.vocab_size)
    return tuple(dict.fromkeys(known))


def _of_generation(content: bytes | None, place: str) -> list[int]:
    """The ids in generation_config.json; what can't be one is told and left out."""
    instead = "so the end tokens are those of config.json and the tokenizer"
    if content is None:
        return []
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        tell(f"{place} is not JSON ({error}), {instead}")
        return []
    if not isinstance(fields, dict):
        tell(f"{place} holds a {type(fields).__name__} and no JSON object, {instead}")
        return []
    ends = fields.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ids = [i for i in listed if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if len(ids) < len(listed):
        more = f"{instead}, and {ids} of it" if ids else instead
        tell(f"{place}: eos_token_id is {ends!r} where token ids are needed, {more}")
    return ids


def chosen(end_tokens: EndTokens, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """The ids of end tokens given as ids or as the text of one token each; none if it is empty.

    Raises:
        TypeError: something that is neither an id nor a text.
        ValueError: a text that isn't one token, or an id outside the vocabulary.
    """
    several = isinstance(end_tokens, Sequence) and not isinstance(end_tokens, str)
    given: Sequence[Any] = end_tokens if several else [end_tokens]  # pyright: ignore[reportAssignmentType]
    return tuple(dict.fromkeys(_id(token, tokenizer, vocab_size) for token in given))


def _id(token: Any, tokenizer: Tokenizer, vocab_size: int) -> int:
    if isinstance(token, str):
        (ids,) = tokenizer.encode_all([token], goes_on=[True])
        if len(ids) != 1:
            pieces = " ".join(map(tokenizer.display, ids)) or "nothing"
            raise ValueError(
                f"end_tokens holds {token!r}, which is {len(ids)} tokens ({pieces}): give the text "
                "or the id of one token; any other text that ends a completion goes to stop=[...]"
            )
        return ids[0]
    try:
        token_id = index(token)
    except TypeError:
        token_id = None
    if token_id is None or isinstance(token, bool):
        raise TypeError(
            f"end_tokens holds {token!r}, a {type(token).__name__}: the text or the id of a token "
            "is needed, or [] for a text that never ends by itself"
        )
    if not 0 <= token_id < vocab_size:
        raise ValueError(
            f"end_tokens holds {token_id}: ids from 0 to {vocab_size - 1} are in the vocabulary"
        )
    return token_id
