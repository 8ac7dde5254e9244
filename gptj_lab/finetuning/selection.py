"""What of a model is trained: every weight, the last blocks, adapters, or a soft prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gptj_lab import versions
from gptj_lab.finetuning import lora, soft_prompts
from gptj_lab.finetuning.lora import Continued, LoRA
from gptj_lab.finetuning.soft_prompts import SoftPrompt
from gptj_lab.language_model import LanguageModel
from gptj_lab.model import int8
from gptj_lab.model.linear import Adapter
from gptj_lab.model.transformer import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full:
    """Every weight is trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastBlocks:
    """The last blocks and the final LayerNorm are trained.

    Attributes:
        count: of the blocks.
        head: whether the head is trained too; where it is tied, that is the embedding.

    Raises:
        ValueError: `count` is no whole number of at least 1.
    """

    count: int = 2
    head: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count is {self.count!r}: a whole number of at least 1 is needed")


Method = Full | LastBlocks | LoRA | SoftPrompt


def prepared(model: LanguageModel, method: Method, seed: int = 0) -> LanguageModel:
    """A model to train by `method`; `model` itself stays as it is.

    What is trained are float32 arrays of its own, so that a step may overwrite them and changes
    too small for bfloat16 are not lost: the network casts weights to the dtype of what it reads.
    What is frozen is shared with `model`, not copied.

    Args:
        seed: of what begins at random (LoRA's `a`, a soft prompt without a text).

    Raises:
        ValueError: the method doesn't suit the model; the message says which would.
    """
    copy = extended(model, method, seed)
    chosen = chooser(method, copy.network)
    graph, state = nnx.split(copy.network)
    own = [
        (path, leaf.replace(_float32(versions.value(leaf))) if chosen(path, leaf) else leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    copy.network = nnx.merge(graph, nnx.from_flat_state(own))
    return copy


def split(network: Transformer, method: Method) -> tuple[Any, Any, Any]:
    """The graph, the weights that are trained, and those that are frozen, for nnx.merge."""
    graph, trained, frozen = nnx.split(network, chooser(method, network), ...)
    return graph, trained, frozen


def trained_model(
    base: LanguageModel, ready: LanguageModel, method: Method, trained: Any
) -> LanguageModel:
    """A model of trained weights, safe to use while training goes on.

    Args:
        base: the model before; weights get its dtypes again (adapters and prompts stay float32).
        ready: what `prepared` made of it.
        trained: the second of what `split` gave, after some steps; it is copied.
    """
    graph, _, frozen = split(ready.network, method)
    dtype = jnp.dtype(base.dtype)
    own = isinstance(method, LoRA | SoftPrompt)
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, None if own else dtype, copy=True), trained)
    result = ready.twin()
    if not own:
        result.companions = base.companions.of_other_weights()
    result.network = nnx.merge(graph, copies, frozen)
    for block in result.network.blocks:
        block.mesh = base.mesh
    return lora.trained(result, method.name) if isinstance(method, LoRA) else result


def extended(model: LanguageModel, method: Method, seed: int = 0) -> LanguageModel:
    """The model with the method's new weights, if it brings any; the others are shared."""
    if isinstance(method, Continued):
        return lora.to_train(model, method)
    if isinstance(method, LoRA):
        for path, linear in lora.matrices(model.network):
            shape = linear.weight[...].shape
            if path[-1] in method.targets and method.rank > min(shape):
                raise ValueError(
                    f"rank is {method.rank}, but {path[-1]} of {shape[0]} x {shape[1]} has "
                    f"{min(shape)} itself: give at most that"
                )
        return lora.to_train(lora.adapted(model, method, seed), method)
    if isinstance(method, SoftPrompt):
        return soft_prompts.prompted(model, method, seed)
    name = type(method).__name__
    if model.weights == "int8":
        raise ValueError(
            f"the weights are int8, which {name} can't train: use LoRA() or SoftPrompt(), or load "
            "the model with weights='bfloat16'"
        )
    if there := lora.names(model):
        raise ValueError(
            f"the model has the adapter {there[0]}, which {name} would leave beside the weights "
            "it was made for: train lora.merged(model) or lora.without(model)"
        )
    if model.network.soft_prompt is not None:
        raise ValueError(
            f"the model has a soft prompt, for which a model that {name} trains has no place when "
            "it is saved: train soft_prompts.without(model), or use LoRA()"
        )
    if isinstance(method, LastBlocks) and method.count > model.config.num_layers:
        raise ValueError(f"count is {method.count}: the model has {model.config.num_layers} blocks")
    return model.twin()


def chooser(method: Method, network: Transformer) -> Callable[[Any, Any], bool]:
    """Whether the weight at a path is trained, as a filter of nnx.split."""
    if isinstance(method, SoftPrompt):
        return lambda path, leaf: path[0] == "soft_prompt"
    if isinstance(method, LoRA):
        return lambda path, leaf: isinstance(leaf, Adapter) and path[-2] == method.name
    if isinstance(method, Full):
        return lambda path, leaf: isinstance(leaf, nnx.Param) and path[0] != "soft_prompt"
    first = len(network.blocks) - method.count
    head = ("embed", "head_bias") if network.head is None else ("head",)

    def last(path: Any, leaf: Any) -> bool:
        inside = path[0] == "blocks" and path[1] >= first
        end = path[0] == "final_ln" or (method.head and path[0] in head)
        return isinstance(leaf, nnx.Param) and (inside or end)

    return last


def _float32(value: Any) -> jax.Array:
    assert not isinstance(value, int8.Int8Weight)
    return jnp.array(value, jnp.float32, copy=True)
