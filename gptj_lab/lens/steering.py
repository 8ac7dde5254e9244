"""Steering: a direction between two kinds of prompts, and a model that leans that way."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens.edits import OUTSIDE
from gptj_lab.lens.inputs import Prompt, token_ids_of
from gptj_lab.lens.interventions import Interventions, run


def direction(
    model: LanguageModel, towards: str | Sequence[Prompt], away: str | Sequence[Prompt],
    layer: int, site: str = "resid_post", position: int | None = -1,
) -> Float[np.ndarray, "width"]:  # fmt: skip
    """The mean value at a site over some prompts, minus that over others; float32 [width].

    With one prompt on each side this is activation addition (Turner et al. 2023), with several the
    difference of means (Marks and Tegmark 2023).

    Args:
        model: any LanguageModel.
        towards, away: one text or several prompts each.
        layer, site: where it is read: "resid_post" of a layer, "mlp_out", ...
        position: token whose value counts; None is the mean over all tokens of a prompt.

    Raises:
        ValueError: no prompt on a side, a layer or position out of range, no such site.
    """
    means = [_mean(model, prompts, layer, site, position) for prompts in (towards, away)]
    return (means[0] - means[1]).astype(np.float32)


def steered(
    model: LanguageModel, vector: Float[np.ndarray, "d_model"], layer: int, scale: float = 1.0
) -> LanguageModel:
    """The model with `scale * vector` added to resid_post of a layer at every position.

    That is a change of one bias: the rest of the weights is shared with `model`, which stays as it
    is, and generating costs what it did. (In one forward pass, or at some positions only:
    `Interventions.steer`.)

    Raises:
        ValueError: a layer out of range, or a vector of another width or with NaN.
    """
    Interventions.none(model, 1).steer("resid_post", layer, vector, scale)  # refuses what is wrong
    other = model.twin()
    other.name = f"{model.name} steered"
    mlp = other.network.blocks[layer].mlp
    old = mlp.fc_out.bias[...]  # type: ignore[union-attr]
    new = (old.astype(jnp.float32) + scale * jnp.asarray(vector)).astype(old.dtype)
    mlp.fc_out.bias = nnx.Param(jax.device_put(new, old.sharding))
    return other


def generate(
    model: LanguageModel, prompts: str | Sequence[str], vector: Float[np.ndarray, "d_model"],
    layer: int, scale: float = 1.0, **settings: Any,
) -> list[Any]:  # fmt: skip
    """`steered(...).generate(prompts, **settings)`: Completions that lean along the vector."""
    return steered(model, vector, layer, scale).generate(prompts, **settings)


def _mean(
    model: LanguageModel, prompts: str | Sequence[Prompt], layer: int, site: str,
    position: int | None,
) -> Float[np.ndarray, "width"]:  # fmt: skip
    """The mean over prompts, float64 so that the order of many doesn't matter."""
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    if not several:
        raise ValueError("a direction needs at least one prompt on each side")
    rows = []
    for prompt in several:
        ids = token_ids_of(model, prompt)
        none = Interventions.none(model, len(ids))
        none.check_layer(layer, site)
        where = slice(None) if position is None else none.indices(position)
        name = site if site in OUTSIDE else f"blocks.{layer}.{site}"
        value = run(model, ids, sites=[name])[1][name]
        rows.append(value.reshape(len(ids), -1)[where].mean(axis=0, dtype=np.float64))
    return np.mean(rows, axis=0)
