"""Stand-in until branch methods is merged."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gptj_lab.finetuning.lora import LoRA, adapted
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.linear import Adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full:
    """Every weight is trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastBlocks:
    """The last blocks and the final LayerNorm are trained."""

    count: int = 2
    head: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """Vectors before the text are trained."""

    length: int = 16
    text: str | None = None


Method = Full | LastBlocks | LoRA | SoftPrompt


def prepared(model: LanguageModel, method: Method, seed: int = 0) -> LanguageModel:
    if isinstance(method, LoRA):
        return adapted(model, method, seed)
    copy = model.twin()
    graph, state = nnx.split(copy.network)
    state = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), state)
    copy.network = nnx.merge(graph, state)
    return copy


def split(network: Any, method: Method) -> tuple[Any, Any, Any]:
    if isinstance(method, LoRA):
        return nnx.split(network, Adapter, ...)
    return nnx.split(network, nnx.Param, ...)


def tuned(optimiser: Any, model: LanguageModel, method: Method) -> Any:
    if optimiser.learning_rate is not None:
        return optimiser
    return dataclasses.replace(optimiser, learning_rate=1e-3)
