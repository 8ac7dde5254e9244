"""Language models of every family with some thousand random weights, as tests like them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel
from gptj_lab.model import int8
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import Tokenizer, train_bpe

FAMILIES = ("gptj", "codegen", "gpt_neox", "gpt_neo", "gpt2")
_ROTARY = {"gptj": {"d_rotary": 4}, "codegen": {"d_rotary": 4}, "gpt_neox": {"d_rotary": 6}}
_WINDOWS = {"gpt_neo": {"local_windows": (None, 5)}}


def cases(*quick: tuple | str, slow: Sequence[tuple | str] = ()) -> list:
    """Arguments of `small_model`, or families alone, as pytest's parameters; some marked slow."""

    def case(arguments: tuple | str, *marks):
        arguments = (arguments,) if isinstance(arguments, str) else arguments
        return pytest.param(arguments, id="-".join(map(str, arguments)), marks=marks)

    return [*map(case, quick), *(case(arguments, pytest.mark.slow) for arguments in slow)]


@functools.cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE of at most 300 tokens."""
    text = "the cat sat on the mat, and the dog 🙂 sat on the log; naïve cats do. " * 9
    return train_bpe([text], 300)


@functools.cache
def small_model(
    family: str,
    weights: str = "float32",
    data: int | None = None,
    model: int | None = None,
    seed: int = 1,
    **fields,
) -> LanguageModel:
    """Three blocks, four heads; biases and LayerNorms are random too, so that they count."""
    sizes = dict(
        vocab_size=304, context=64, d_model=32, num_layers=3, num_heads=4, d_ff=64,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    sizes |= _ROTARY.get(family, {}) | _WINDOWS.get(family, {}) | fields
    config = ModelConfig.of_family(family, **sizes)
    network = Transformer(config, key=jax.random.key(seed))
    random = np.random.default_rng(seed)
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        value = leaf[...]
        if value.ndim == 1:
            value = value + 0.2 * random.normal(size=value.shape).astype(np.float32)
        elif weights == "int8" and path[0] == "blocks":
            value = int8.Int8Weight(*map(jnp.asarray, int8.quantize(np.asarray(value))))
        elif weights != "int8":
            value = value.astype(weights)
        parent = functools.reduce(_child, path[:-1], network)
        setattr(parent, path[-1], nnx.Param(value))
    mesh = gptj_lab.mesh(data=data, model=model) if model else None
    return LanguageModel(config, network, tokenizer(), f"small {family}", mesh)


def _child(node, name):
    return node[name] if isinstance(name, int) else getattr(node, name)


def changed(model: LanguageModel, change) -> LanguageModel:
    """The model with `change(network)` applied to a copy of its network."""
    network = nnx.clone(model.network)
    change(network)
    return LanguageModel(model.config, network, model.tokenizer, f"changed {model.name}")
