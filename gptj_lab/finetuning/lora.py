"""LoRA: adapters of low rank beside a model's matrices, added, weighed, merged and taken off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptj_lab.finetuning import replaced
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model import int8
from gptj_lab.model.linear import Adapter, DropoutKey, Linear, LowRank, Norms, Strength
from gptj_lab.model.transformer import Transformer

TARGETS = ("q", "k", "v", "out", "fc_in", "fc_out")  # of each block


_ALL = ", ".join(TARGETS)
# What Hugging Face and PEFT call them.
_THEIRS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out", "attn.c_proj": "out",
    "dense": "out", "c_attn": "q, k, v", "query_key_value": "q, k, v", "qkv_proj": "q, k, v",
    "c_fc": "fc_in", "dense_h_to_4h": "fc_in", "dense_4h_to_h": "fc_out", "mlp.c_proj": "fc_out",
    "c_proj": "out and fc_out", "all-linear": _ALL, "all": _ALL,
}  # fmt: skip
_THEIR_WORDS = list(_THEIRS)  # a list compares what can't be hashed too


def check_name(name: object) -> None:
    """Nothing, if an adapter may be called so.

    Raises:
        TypeError, ValueError: it is no text, no identifier, or a word of the container's own.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}: a text, such as 'default', is needed")
    if not name.isidentifier():
        raise ValueError(f"name is {name!r}: letters, digits and _ are needed")
    # lora.weighed(model, name=0.5) has a parameter called model.
    if name == "model" or hasattr(nnx.Dict(), name):
        raise ValueError(f"name is {name!r}, which has a meaning of its own here: take another")


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
        dora: train beside the adapters how long each row of a matrix is (Liu et al. 2024); the
            matrix itself reads its inputs without dropout.
        name: of the adapter, to weigh it and take it off by.

    Raises:
        TypeError, ValueError: a field is out of range; the message names it.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    rslora: bool = False
    dora: bool = False
    name: str = "default"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}: a whole number of at least 1 is needed")
        for field in ("alpha", "dropout"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"{field} is {value!r}: a number is needed")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha!r}: a positive number is needed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: a share from 0 to below 1 is needed")
        if not isinstance(self.targets, tuple | list):
            theirs = f" ({_THEIRS[self.targets]} here)" if self.targets in _THEIR_WORDS else ""
            raise TypeError(
                f"targets is {self.targets!r}{theirs}: a tuple such as ('q', 'v') is needed"
            )
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            what = f"names {unknown[0]!r}" if unknown else "is empty"
            if unknown and unknown[0] in _THEIR_WORDS:
                what += f", which is {_THEIRS[unknown[0]]} here"
            raise ValueError(f"targets {what}: choose of {', '.join(TARGETS)}")
        check_name(self.name)

    @property
    def strength(self) -> float:
        """What the adapters' products are multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continued(LoRA):
    """The adapter called `name`, which the model has already, is trained further.

    Of its fields only `name` and `dropout` are a choice: the others tell what the adapter has.
    """


class Pair(NamedTuple):
    """What an adapter adds to one matrix, as numbers of its own.

    Attributes:
        a, b, strength, magnitude, bias: as in linear.LowRank; strength is a number.
    """

    a: np.ndarray
    b: np.ndarray
    strength: float
    magnitude: np.ndarray | None = None
    bias: np.ndarray | None = None


def adapted(model: LanguageModel, lora: LoRA, seed: int = 0) -> LanguageModel:
    """The model with new adapters, which change nothing yet; `model` itself stays as it is.

    The weights are shared with `model`, not copied.

    Raises:
        ValueError: it has adapters of that name already.
    """
    copy = _twin_for(model, lora.name)
    keys = jax.random.split(jax.random.key(seed), (len(copy.network.blocks), len(TARGETS)))
    for i, block in enumerate(copy.network.blocks):
        for j, (path, linear) in enumerate(block.matrices().items()):
            if path.rpartition(".")[2] in lora.targets:
                d_out, d_in = linear.weight[...].shape
                linear.adapters[lora.name] = LowRank(
                    d_in, d_out, rank=lora.rank, strength=lora.strength, dropout=lora.dropout,
                    key=keys[i, j], dora=lora.dora,
                )  # fmt: skip
    copy = _settled(_placed(copy), lora.name)
    for _, linear in matrices(copy.network):
        if lora.dora and linear.has_adapter(lora.name):
            adapter = linear.adapters[lora.name]
            adapter.magnitude = Adapter(jnp.copy(adapter.norms[...]))
    return copy


def with_pairs(
    model: LanguageModel, pairs: Mapping[tuple[Any, ...], Pair], name: str
) -> LanguageModel:
    """The model with adapters of these numbers, by the path of their matrix.

    Raises:
        ValueError: it has adapters of that name already.
    """
    copy = _twin_for(model, name)
    for path, linear in matrices(copy.network):
        if path not in pairs:
            continue
        pair = pairs[path]
        adapter = LowRank(
            *linear.weight[...].shape[::-1], rank=len(pair.a), strength=pair.strength, dropout=0.0,
            key=jax.random.key(0), dora=pair.magnitude is not None, bias=pair.bias is not None,
        )  # fmt: skip
        for part in ("a", "b", "magnitude", "bias"):
            values = getattr(pair, part)
            if values is not None:
                setattr(adapter, part, Adapter(jnp.array(values, jnp.float32)))
        linear.adapters[name] = adapter
    return _settled(_placed(copy), name)


def pair_of(adapter: LowRank) -> Pair:
    """The numbers of an adapter, on the host."""

    def numbers(part: Any) -> np.ndarray:
        return np.asarray(distributed.gather(part[...]), np.float32)

    magnitude, bias = adapter.magnitude, adapter.bias
    return Pair(
        numbers(adapter.a), numbers(adapter.b), float(numbers(adapter.strength)),
        None if magnitude is None else numbers(magnitude), None if bias is None else numbers(bias),
    )  # fmt: skip


def continued(model: LanguageModel, name: str, dropout: float = 0.0) -> Continued:
    """The method that trains the model's adapter of that name further.

    Raises:
        ValueError: it has no adapter of that name, or one without matrices of low rank.
    """
    _known(model, [name])
    there = {
        path[-1]: linear.adapters[name]
        for path, linear in matrices(model.network)
        if linear.has_adapter(name)
    }
    if not there:
        raise ValueError(f"the adapter {name} has whole weights only, and nothing to train further")
    first = next(iter(there.values()))
    rank = max(adapter.a[...].shape[0] for adapter in there.values())
    strength = abs(float(distributed.gather(first.strength[...])))
    return Continued(
        rank=rank, alpha=strength * rank or 1.0, dropout=dropout,
        targets=tuple(target for target in TARGETS if target in there),
        dora=first.magnitude is not None, name=name,
    )  # fmt: skip


def to_train(model: LanguageModel, lora: LoRA) -> LanguageModel:
    """The model, the adapters of that name made ready to be trained."""
    copy = model.twin()
    for _, linear in matrices(copy.network):
        if linear.has_adapter(lora.name):
            adapter = linear.adapters[lora.name]
            adapter.dropout, adapter.live = lora.dropout, adapter.magnitude is not None
    return copy


def trained(model: LanguageModel, name: str) -> LanguageModel:
    """The model, of which the adapters of that name are no longer trained."""
    for _, linear in matrices(model.network):
        if linear.has_adapter(name):
            linear.adapters[name].live = False
    return _settled(model, name)


def names(model: LanguageModel) -> list[str]:
    """Of the model's adapters."""
    low = {name for _, linear in matrices(model.network) for name in linear.adapters}
    return sorted(low | model.replaced.keys())


def free_name(model: LanguageModel, name: str) -> str:
    """`name`, or it with a number behind it, that no adapter of the model has."""
    taken, number = names(model), 2
    if name not in taken:
        return name
    while f"{name}{number}" in taken:
        number += 1
    return f"{name}{number}"


def weighed(model: LanguageModel, **weights: float) -> LanguageModel:
    """The model with each named adapter's effect multiplied: 0 switches it off, 1 is as trained.

    Factors multiply what is there, so that 0 can't be undone: keep the model that you began with.
    Of weights that an adapter brings whole (biases, a head) it goes along the line from the base's.
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
            if linear.has_adapter(name):
                adapter = linear.adapters[name]
                if adapter.share is None:
                    adapter.strength = Strength(adapter.strength[...] * factor)
                else:
                    adapter.share = Strength(adapter.share[...] * factor)
    for name, factor in weights.items():
        replaced.weigh(copy, name, factor)
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
    for name in chosen or list(copy.replaced):
        replaced.take_off(copy, name)
    return copy


def merged(model: LanguageModel) -> LanguageModel:
    """The model with its adapters added into its matrices; int8 matrices become float32.

    Raises:
        ValueError: it has no adapters, or one with a bias where its matrix has none.
    """
    if not names(model):
        raise ValueError("the model has no adapters to merge")
    copy = model.twin()
    for path, linear in matrices(copy.network):
        weight = linear.weight[...]
        if isinstance(weight, int8.Int8Weight):
            weight = weight.values.astype(jnp.float32) * weight.scale[:, None]
        plain = weight.astype(jnp.float32)
        total = plain
        for name, adapter in linear.adapters.items():
            low = adapter.strength[...] * (adapter.b[...] @ adapter.a[...])
            if adapter.norms is not None and adapter.share is not None:
                longer = (adapter.magnitude[...] / adapter.norms[...])[:, None]
                low = adapter.share[...] * (longer * (plain + low) - plain)
            total = total + low
            if adapter.bias is not None:
                if linear.bias is None:
                    raise ValueError(
                        f"the adapter {name} has a bias for {path[-1]}, which has none itself: it "
                        "can't be merged, so keep it beside the model"
                    )
                bias = linear.bias[...] + adapter.strength[...] * adapter.bias[...]
                linear.bias = nnx.Param(bias.astype(linear.bias[...].dtype))
        linear.weight = nnx.Param(total.astype(weight.dtype))
        linear.adapters = nnx.Dict()
    copy.replaced = {}
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


def _twin_for(model: LanguageModel, name: str) -> LanguageModel:
    check_name(name)
    if name in names(model):
        raise ValueError(f"the model has adapters named {name!r} already: choose another name")
    return model.twin()


def _placed(model: LanguageModel) -> LanguageModel:
    """The model, its new adapters on its mesh."""
    if model.mesh is not None:
        model.network = sharding.place(model.network, model.config, model.mesh)
    return model


def _settled(model: LanguageModel, name: str) -> LanguageModel:
    """The model, the norms of whose DoRA adapters fit what they are now."""
    for _, linear in matrices(model.network):
        if linear.has_adapter(name) and linear.adapters[name].norms is not None:
            adapter = linear.adapters[name]
            norms = adapter.row_norms(linear.weight[...])
            adapter.norms = Norms(jax.device_put(norms, adapter.norms[...].sharding))
    return model


def trainable(model: LanguageModel) -> int:
    """Numbers in all adapters."""
    return sum(
        int(np.prod(part[...].shape))
        for _, linear in matrices(model.network)
        for adapter in linear.adapters.values()
        for part in (adapter.a, adapter.b, adapter.magnitude, adapter.bias)
        if part is not None
    )
