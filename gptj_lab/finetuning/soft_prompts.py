"""Soft prompts: vectors before the text that are trained while the model stays as it is."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import sharding
from gptj_lab.model.transformer import SoftPromptTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """Virtual tokens whose vectors are trained (Lester et al. 2021).

    Attributes:
        length: how many.
        text: what they begin as, repeated or cut to `length` tokens; None takes random tokens.

    Raises:
        ValueError: `length` is no whole number of at least 1, or the text is empty.
    """

    length: int = 16
    text: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length is {self.length!r}: a whole number of at least 1 is needed")
        if self.text is not None and not (isinstance(self.text, str) and self.text):
            raise ValueError(f"text is {self.text!r}: some text to begin as, or None")


def prompted(model: LanguageModel, prompt: SoftPrompt, seed: int = 0) -> LanguageModel:
    """The model with a new soft prompt; `model` itself stays as it is, its weights are shared.

    Raises:
        ValueError: it has one already, or the prompt fills its context.
    """
    if model.network.soft_prompt is not None:
        raise ValueError("the model has a soft prompt already: take soft_prompts.without(model)")
    if prompt.length >= model.config.context:
        raise ValueError(
            f"length is {prompt.length}, which leaves no room for text in the context of "
            f"{model.config.context}"
        )
    if prompt.text is None:
        count = model.tokenizer.vocab_size
        ids = jax.random.randint(jax.random.key(seed), (prompt.length,), 0, count)
    else:
        begin = model.tokenizer.encode(prompt.text)
        ids = jnp.resize(jnp.asarray(begin), (prompt.length,))
    copy = model.twin()
    copy.network.soft_prompt = SoftPromptTable(copy.network.embed[...][ids].astype(jnp.float32))
    if copy.mesh is not None:
        copy.network = sharding.place(copy.network, copy.config, copy.mesh)
    return copy


def without(model: LanguageModel) -> LanguageModel:
    """The model without its soft prompt, if it has one; `model` itself stays as it is."""
    copy = model.twin()
    copy.network.soft_prompt = None
    return copy
