"""What people name: prompts, tokens, positions and heads, checked and made into arrays."""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens.interventions import bucket
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.transformer import Transformer

Prompt = str | Sequence[int] | np.ndarray


def token_ids_of(model: LanguageModel, prompt: Prompt) -> Int[np.ndarray, "seq"]:
    """The token ids of a text, or the given ids; before them a soft prompt's, if there is one.

    Raises:
        ValueError: no token, ids outside the vocabulary, or more tokens than the context.
    """
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not hasattr(ids, "__len__"):
        raise TypeError(f"the prompt is {prompt!r}: a text or token ids are needed")
    if not len(ids):
        raise ValueError(f"the prompt {prompt!r} has no tokens: at least one is needed")
    return model._checked([ids])[0]


def token_id_of(model: LanguageModel, token: str | int, what: str = "token") -> int:
    """The id of one token, given as its text (" cat") or as the id itself.

    Raises:
        TypeError: neither a text nor a whole number.
        ValueError: a text of several tokens or none, or an id outside the vocabulary.
    """
    if isinstance(token, str):
        (ids,) = model.tokenizer.encode_all([token], goes_on=[True])
        if len(ids) != 1:
            pieces = " ".join(map(model.tokenizer.display, ids)) or "nothing"
            raise ValueError(
                f"{what} is {token!r}, which is {len(ids)} tokens ({pieces}): give one token, "
                "with its leading space if it has one, or its id"
            )
        return ids[0]
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise TypeError(f"{what} is {token!r}: the text of one token or its id is needed")
    if not 0 <= token < model.config.vocab_size:
        raise ValueError(
            f"{what} is {token}: ids from 0 to {model.config.vocab_size - 1} are in the vocabulary"
        )
    return int(token)


def several_ids(
    model: LanguageModel, tokens: str | int | Sequence[str | int]
) -> Int[np.ndarray, "tokens"]:
    """The ids of tokens, each given as its text or its id; a single one is a list of one.

    Raises:
        TypeError, ValueError: as `token_id_of`; no tokens.
    """
    alone = isinstance(tokens, str | int | np.integer)
    ids = [token_id_of(model, token) for token in ([tokens] if alone else tokens)]
    if not ids:
        raise ValueError("tokens is empty: give at least one token")
    return np.array(ids, np.int32)


def position_of(position: int, length: int) -> int:
    """A position counted from 0; negative ones count from the end of `length` tokens.

    Raises:
        ValueError: there is no such token.
    """
    if not -length <= position < length:
        raise ValueError(
            f"position is {position}: the prompt has {length} tokens, so {-length} to {length - 1} "
            "are there"
        )
    return position % length


def check_layer(config: ModelConfig, layer: int) -> None:
    """Nothing, if the network has that block; else a ValueError that says which it has."""
    if not 0 <= layer < config.num_layers:
        raise ValueError(f"layer is {layer}: layers 0 to {config.num_layers - 1} are there")


def check_head(config: ModelConfig, layer: int, head: int) -> None:
    """Nothing, if the network has that head; else a ValueError that says which it has."""
    check_layer(config, layer)
    if not 0 <= head < config.num_heads:
        raise ValueError(f"head is {head}: heads 0 to {config.num_heads - 1} are there")


def display(model: LanguageModel, token_ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """The tokens as a person should see them (␣ for a space; ‹soft 1› for a soft prompt's)."""
    first = model.config.vocab_size
    return tuple(
        model.tokenizer.display(int(token)) if token < first else f"‹soft {token - first + 1}›"
        for token in token_ids
    )


def padded(
    model: LanguageModel, token_ids: Int[np.ndarray, "seq"]
) -> Int[Array | np.ndarray, "batch padded"]:
    """One row, filled up on the right to its bucket, where causality hides it; on the mesh."""
    room = bucket(len(token_ids), model.config.context) - len(token_ids)
    rows = np.pad(token_ids, (0, room))[None]
    return rows if model.mesh is None else sharding.put_batch(rows, model.mesh)


def without_blocks(model: LanguageModel) -> Transformer:
    """The network without its blocks: to `unembed` many times, at a small cost."""
    bare = copy.copy(model.network)
    bare.blocks = nnx.List()
    return bare


def host(tree: Any) -> Any:
    """The arrays of a tree as NumPy arrays in this process's memory."""
    return jax.tree.map(distributed.gather, tree)
