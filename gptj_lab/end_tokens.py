"""The tokens that end a text: what a checkpoint's files say, and what a caller says instead."""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from gptj_lab.config import ModelConfig
from gptj_lab.tokenizer import Tokenizer

EndTokens = int | str | Sequence[int | str]


def declared(
    config: ModelConfig, generation: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """The ids of the end tokens of a model: all that its files name, or <|endoftext|>, or none.

    They are `eos_token_id` of config.json and of generation_config.json (whose fields
    `generation` is), and `eos_token` of the tokenizer. An id without an embedding is never made
    and left out.

    Raises:
        ValueError: `eos_token_id` of generation_config.json is neither an id nor a list of ids.
    """
    ends = generation.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in listed):
        raise ValueError(
            f"generation_config.json: eos_token_id is {ends!r}: a token id, a list of token ids or "
            "null is needed"
        )
    own = config.eos_token_id
    found = [*(own if isinstance(own, tuple) else [own]), *listed]
    if "eos_token" in tokenizer.roles:
        found.append(tokenizer.end_of_text_id)
    if all(end is None for end in found):
        found = [tokenizer.end_of_text_id]
    known = (end for end in found if end is not None and end < config.vocab_size)
    return tuple(dict.fromkeys(known))


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
