"""LoRA: adapters of low rank beside a model's matrices, added, weighed, merged and taken off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import sharding
from gptj_lab.model import int8
from gptj_lab.model.linear import DropoutKey, Linear, LowRank, Strength
from gptj_lab.model.transformer import Transformer

TARGETS = ("q", "k", "v", "out", "fc_in", "fc_out")  # of each block


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices get an adapter, and of what kind (Hu et al. 2021).

    Attributes:
        rank: of the adapters.
        alpha: what they add is multiplied by alpha / rank, or with rslora by alpha / sqrt(rank)
            (Kalajdzievski 2023), so that another rank asks for no other learning rate.
        dropout: share of an adapter's inputs that are dropped while it is trained.
        targets: matrices of each block: of "q", "k", "v", "out", "fc_in", "fc_out".
        rslora: see alpha.
        name: of the adapter, to weigh it and take it off by.

    Raises:
        TypeError, ValueError: a field is out of range; the message names it.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    rslora: bool = False
    name: str = "default"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}: a whole number of at least 1 is needed")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha!r}: a positive number is needed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: a share from 0 to below 1 is needed")
        if isinstance(self.targets, str):
            raise TypeError(f"targets is {self.targets!r}: a tuple such as ('q', 'v') is needed")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            what = f"names {unknown[0]!r}" if unknown else "is empty"
            raise ValueError(f"targets {what}: choose of {', '.join(TARGETS)}")
        if not self.name.isidentifier():
            raise ValueError(f"name is {self.name!r}: letters, digits and _ are needed")

    @property
    def strength(self) -> float:
        """What the adapters' products are multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapted(model: LanguageModel, lora: LoRA, seed: int = 0) -> LanguageModel:
    """The model with new adapters, which change nothing yet; `model` itself stays as it is.

    The weights are shared with `model`, not copied.

    Raises:
        ValueError: it has adapters of that name already.
    """
    if lora.name in names(model):
        raise ValueError(f"the model has adapters named {lora.name!r} already: choose another name")
    copy = model.twin()
    keys = jax.random.split(jax.random.key(seed), (len(copy.network.blocks), len(TARGETS)))
    for i, block in enumerate(copy.network.blocks):
        for j, (path, linear) in enumerate(block.matrices().items()):
            if path.rpartition(".")[2] in lora.targets:
                d_out, d_in = linear.weight[...].shape
                linear.adapters[lora.name] = LowRank(
                    d_in, d_out, rank=lora.rank, strength=lora.strength, dropout=lora.dropout,
                    key=keys[i, j],
                )  # fmt: skip
    return _placed(copy)


def names(model: LanguageModel) -> list[str]:
    """Of the model's adapters."""
    return sorted({name for _, linear in matrices(model.network) for name in linear.adapters})


def weighed(model: LanguageModel, **weights: float) -> LanguageModel:
    """The model with each named adapter's effect multiplied: 0 switches it off, 1 is as trained.

    Factors multiply what is there, so that 0 can't be undone: keep the model that you began with.
    Nothing is compiled anew.

    Raises:
        ValueError: it has no adapter of that name, or a factor is not finite.
    """
    _known(model, weights)
    for name, factor in weights.items():
        if not math.isfinite(factor):
            raise ValueError(f"{name} is {factor!r}: a finite number is needed")
    copy = model.twin()
    for _, linear in matrices(copy.network):
        for name, factor in weights.items():
            if name in linear.adapters:
                adapter = linear.adapters[name]
                adapter.strength = Strength(adapter.strength[...] * factor)
    return copy


def without(model: LanguageModel, *chosen: str) -> LanguageModel:
    """The model without the named adapters, or without any; `model` itself stays as it is.

    Raises:
        ValueError: it has no adapter of that name.
    """
    _known(model, chosen)
    copy = model.twin()
    for _, linear in matrices(copy.network):
        for name in list(linear.adapters):
            if not chosen or name in chosen:
                del linear.adapters[name]
    return copy


def merged(model: LanguageModel) -> LanguageModel:
    """The model with its adapters added into its matrices; int8 matrices become float32.

    Raises:
        ValueError: it has no adapters.
    """
    if not names(model):
        raise ValueError("the model has no adapters to merge")
    copy = model.twin()
    for _, linear in matrices(copy.network):
        weight = linear.weight[...]
        if isinstance(weight, int8.Int8Weight):
            weight = weight.values.astype(jnp.float32) * weight.scale[:, None]
        total = weight.astype(jnp.float32)
        for adapter in linear.adapters.values():
            total = total + adapter.strength[...] * (adapter.b[...] @ adapter.a[...])
        linear.weight = nnx.Param(total.astype(weight.dtype))
        linear.adapters = nnx.Dict()
    copy.companions = model.companions.of_other_weights()
    return copy


def begin_dropout(network: Transformer, key: jax.Array | None) -> None:
    """Gives each adapter that drops its own key, so that it drops; None ends it."""
    for number, (_, linear) in enumerate(matrices(network)):
        for adapter in linear.adapters.values():
            if adapter.dropout:
                own = None if key is None else jax.random.fold_in(key, number)
                adapter.key = DropoutKey(own)  # a new one: the old may belong to an outer trace


def matrices(network: Transformer) -> Iterator[tuple[tuple[Any, ...], Linear]]:
    """The blocks' matrices that may have adapters, with their paths."""
    for i, block in enumerate(network.blocks):
        for path, linear in block.matrices().items():
            yield ("blocks", i, *path.split(".")), linear


def _known(model: LanguageModel, wanted: Any) -> None:
    there = names(model)
    for name in wanted:
        if name not in there:
            has = f"only {', '.join(there)}" if there else "none"
            raise ValueError(f"the model has no adapter named {name!r}, {has}")


def _placed(model: LanguageModel) -> LanguageModel:
    """The model, its new adapters on its mesh."""
    if model.mesh is not None:
        model.network = sharding.place(model.network, model.config, model.mesh)
    return model


def trainable(model: LanguageModel) -> int:
    """Numbers in all adapters."""
    return sum(
        int(np.prod(leaf.shape))
        for _, linear in matrices(model.network)
        for adapter in linear.adapters.values()
        for leaf in (adapter.a[...], adapter.b[...])
    )
