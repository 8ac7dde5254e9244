"""Weights of the base that an adapter brings whole: biases, LayerNorms, the embedding, the head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.filling import parameter_shapes
from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model import int8
from gptj_lab.model.linear import Linear

_HEAD = ("head", "weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """What one adapter has put in place of the base's own weights.

    Attributes:
        modules: names in its modules_to_save.
        tensors: names in a Hugging Face file.
        before: the base's own values, by the path of the parameter.
        config: of the base.
    """

    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    before: Mapping[families.Path, Any]
    config: ModelConfig


def put(
    model: LanguageModel,
    name: str,
    tensors: Mapping[str, np.ndarray],
    modules: Iterable[str],
    where: str,
    *,
    untie: bool,
) -> None:
    """Sets the weights of `model`, a twin, to those of the adapter `name`.

    Args:
        tensors: by their names in a Hugging Face file.
        modules: of PEFT's modules_to_save.
        where: the adapter's folder, for messages.
        untie: the embedding and the head, which are one in the base, become two.

    Raises:
        ValueError: a tensor that the model doesn't have, of another shape, NaN, or replaced by
            another adapter already; or a matrix that the model holds in int8.
    """
    if not tensors and not tuple(modules):
        return
    config = next((other.config for other in model.replaced.values()), model.config)
    before: dict[families.Path, Any] = {}
    if untie and model.config.tied_embeddings:
        before[_HEAD] = model.network.embed[...]
        _untie(model)
    wanted = families.tensors(model.config, parameter_shapes(model.config))
    taken = {tensor: other for other, it in model.replaced.items() for tensor in it.tensors}
    for tensor, values in tensors.items():
        _check(tensor, values, wanted, taken, where, model)
        for path, part in wanted[tensor].split(values):
            old = _at(model, path)[...]
            if isinstance(old, int8.Int8Weight):
                raise ValueError(
                    f"{where} brings {tensor} whole, which the model holds in int8: load the model "
                    "with weights='bfloat16'"
                )
            before.setdefault(path, old)
            new = jnp.asarray(np.ascontiguousarray(part), old.dtype)
            _set(model, path, jax.device_put(new, old.sharding))
    record = Replaced(
        modules=tuple(modules), tensors=tuple(tensors), before=before, config=config
    )  # fmt: skip
    model.replaced = model.replaced | {name: record}


def take_off(model: LanguageModel, name: str) -> None:
    """Gives `model`, a twin, the base's own values back in place of the adapter's."""
    if name not in model.replaced:
        return
    model.replaced = dict(model.replaced)
    record = model.replaced.pop(name)
    for path, value in record.before.items():
        _set(model, path, value)
    if not model.replaced and record.config.tied_embeddings != model.config.tied_embeddings:
        network = model.network
        assert network.head is not None  # the adapter has brought one
        bias = network.head.bias
        network.head_bias = nnx.data(None if bias is None else nnx.Param(bias[...]))
        network.head = None
        model.config = record.config


def weigh(model: LanguageModel, name: str, factor: float) -> None:
    """Moves the weights of `model`, a twin, along the line from the base's to the adapter's."""
    if name not in model.replaced:
        return
    for path, old in model.replaced[name].before.items():
        start = old.astype(jnp.float32)
        moved = start + factor * (_at(model, path)[...].astype(jnp.float32) - start)
        _set(model, path, moved.astype(old.dtype))


def saved(model: LanguageModel, names: Iterable[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors that these adapters brought, by their names in a file, and modules_to_save."""
    tensors: dict[str, np.ndarray] = {}
    modules: set[str] = set()
    wanted = families.tensors(model.config, parameter_shapes(model.config))
    for name in names:
        record = model.replaced.get(name)
        if record is None:
            continue
        modules |= set(record.modules)
        for tensor in record.tensors:
            parts = [distributed.gather(_at(model, path)[...]) for path in wanted[tensor].paths]
            tensors[tensor] = wanted[tensor].join([np.asarray(part, np.float32) for part in parts])
    return tensors, sorted(modules)


def _check(
    tensor: str, values: np.ndarray, wanted: Mapping[str, families.Tensor],
    taken: Mapping[str, str], where: str, model: LanguageModel,
) -> None:  # fmt: skip
    if tensor not in wanted:
        raise ValueError(
            f"{where} holds {tensor}, which a {model.config.family_title} doesn't have: the "
            "adapter belongs to another model"
        )
    if tensor in taken:
        raise ValueError(
            f"{where} brings {tensor} whole, and so does the adapter {taken[tensor]}: take that "
            "one off first, finetuning.lora.without(model, name)"
        )
    if values.shape != wanted[tensor].shape:
        raise ValueError(
            f"{tensor} in {where} has shape {values.shape}, {wanted[tensor].shape} is needed: the "
            "adapter belongs to another model, or to one with more tokens"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{tensor} in {where} holds NaN or infinite values")


def _untie(model: LanguageModel) -> None:
    """Gives the network a head of its own, which is the embedding still."""
    network = model.network
    model.config = dataclasses.replace(model.config, tied_embeddings=False)
    bias = network.head_bias
    head = Linear(1, 1, bias=bias is not None, std=0.0, key=jax.random.key(0))
    head.weight = nnx.Param(network.embed[...])
    if bias is not None:
        head.bias, network.head_bias = nnx.Param(bias[...]), None
    network.head = nnx.data(head)
    if model.mesh is not None:
        model.network = sharding.place(network, model.config, model.mesh)


def _at(model: LanguageModel, path: families.Path) -> Any:
    """What lies at a path of the network: a variable, or a module."""
    step = lambda node, part: node[part] if isinstance(part, int) else getattr(node, part)  # noqa: E731
    return functools.reduce(step, path, model.network)


def _set(model: LanguageModel, path: families.Path, value: jax.Array) -> None:
    setattr(_at(model, path[:-1]), path[-1], nnx.Param(value))
