"""More blocks for a trained model, that change nothing until they are trained."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer


def deeper(model: LanguageModel, num_layers: int, *, seed: int = 0) -> LanguageModel:
    """The model with new blocks between its own, evenly; its logits stay as they are.

    A new block has fresh weights, but its two output matrices and their biases are zero, so that
    it writes nothing at first (Chen et al. 2016, Net2Net: growth that keeps the function).

    Raises:
        ValueError: `num_layers` isn't more than the model has.
    """
    config = model.config
    if num_layers <= config.num_layers:
        raise ValueError(
            f"num_layers is {num_layers}, the model has {config.num_layers}: a larger number"
        )
    grown = dataclasses.replace(config, num_layers=num_layers)
    network = Transformer(grown, key=jax.random.key(seed))
    places = _places(config.num_layers, num_layers)
    for number, block in enumerate(network.blocks):
        if number in places:
            nnx.update(block, nnx.state(model.network.blocks[places.index(number)]))
            continue
        for linear in (block.attn.out, block.mlp.fc_out):
            nnx.update(linear, jax.tree.map(jnp.zeros_like, nnx.state(linear)))
    for name in ("embed", "position_embed", "final_ln", "head"):
        own = getattr(model.network, name)
        if own is not None:
            setattr(network, name, own)
    return LanguageModel(grown, network, model.tokenizer)


def _places(old: int, new: int) -> list[int]:
    """Where the old blocks lie among the new ones, the first first."""
    return [number * new // old for number in range(old)]
