"""The ways to fine-tune a model, what each needs before it starts, and the rate that suits it.

The public face: Full, LastBlocks, LoRA, SoftPrompt; prepared, split, estimate, tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from gptj_lab import versions
from gptj_lab.finetuning.lora import Continued, LoRA
from gptj_lab.finetuning.loss import check_remat
from gptj_lab.finetuning.optimisers import Optimiser
from gptj_lab.finetuning.selection import (
    Full,
    LastBlocks,
    Method,
    extended,
    prepared,
    split,
    trained_model,
)
from gptj_lab.finetuning.soft_prompts import SoftPrompt
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import hardware, optimizer, planner_memory
from gptj_lab.mesh.planner import gigabytes
from gptj_lab.names import DATA, MODEL
from gptj_lab.scaling import operations

__all__ = [
    "Continued", "Estimate", "Full", "LastBlocks", "LoRA", "Method", "SoftPrompt", "estimate",
    "prepared", "split", "trained_model", "tuned",
]  # fmt: skip

# AdamW's rate for a network of GPT-J's width; a narrower one takes more, with the square root.
_RATES = {Full: 5e-5, LastBlocks: 5e-5, LoRA: 2e-4, Continued: 2e-4, SoftPrompt: 3e-2}
_WIDTH = 4096
_LION = 5  # times smaller (Chen et al. 2023: three to ten)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a method needs on one device, before it starts.

    Attributes:
        method: its name.
        trainable, total: numbers that are trained, and all of the model's with them.
        bytes: by kind: weights, gradients, optimiser, activations, workspace (planner_memory's).
        device: bytes that one device has for a program; None where the system doesn't tell.
        flops_per_token: operations of a training step for each token of the text.
    """

    method: str
    trainable: int
    total: int
    bytes: Mapping[str, int]
    device: int | None
    flops_per_token: int

    @property
    def needed(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether a device has them, as far as paper can tell (about 10 %)."""
        return self.device is None or self.needed <= self.device

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {gigabytes(size)}" for kind, size in self.bytes.items() if size)
        verdict = "it fits" if self.fits else "it does not fit"
        room = "." if self.device is None else f" of {gigabytes(self.device)}: {verdict}."
        return (
            f"{self.method} trains {self.trainable:,} of {self.total:,} numbers "
            f"({self.trainable / self.total:.2%}). It needs about {gigabytes(self.needed)} "
            f"({kinds}){room} A token takes {self.flops_per_token / 1e9:,.3g} GFLOP."
        )


def estimate(
    model: LanguageModel,
    method: Method,
    *,
    batch: int,
    context: int,
    optimiser: Optimiser | None = None,
    remat: str | None = None,
    dtype: str | None = None,
) -> Estimate:
    """Parameters, memory and operations of a run, without starting it.

    Weights, gradients and moments are counted from the arrays' own shapes and places, activations
    as the planner does.

    Args:
        batch: rows of a step on all devices together, context: tokens of a row.
        optimiser: by default AdamW.
        remat: a name of loss.REMAT.
        dtype: of the activations, by default the model's.

    Raises:
        ValueError: the method doesn't suit the model, or an argument is out of range.
    """
    optimiser = tuned(optimiser or Optimiser(), model, method)
    check_remat(remat)
    ready = extended(model, method)
    _, trained, frozen = split(ready.network, method)
    masters = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=leaf.sharding), trained
    )
    read = context + len(ready.virtual_tokens)
    setting = _setting(model, batch // optimiser.accumulate, read, remat, dtype)
    layers = method.count if isinstance(method, LastBlocks) else model.config.num_layers
    own = _bytes(masters)
    return Estimate(
        method=type(method).__name__,
        trainable=_numbers(trained),
        total=_numbers(nnx.state(ready.network, nnx.Param)),
        bytes={
            "weights": own + _bytes(frozen),
            "gradients": own * (1 if optimiser.accumulate == 1 else 2),
            "optimiser": _bytes(_moments(optimiser, masters)),
            "activations": planner_memory.kept(setting, layers),
            "workspace": planner_memory.training_workspace(setting),
        },
        device=_device_memory(),
        flops_per_token=round(
            _flops(model, method, trained, read, layers, remat is not None) * read / context
        ),
    )


def tuned(optimiser: Optimiser, model: LanguageModel, method: Method) -> Optimiser:
    """The optimiser, with a learning rate that suits the method where it has none."""
    if optimiser.learning_rate is not None:
        return optimiser
    rate = _RATES[type(method)]
    if not isinstance(method, SoftPrompt):
        rate *= (_WIDTH / model.config.d_model) ** 0.5
    if optimiser.name == "lion":
        rate /= _LION
    return dataclasses.replace(optimiser, learning_rate=float(f"{rate:.1e}"))


def _setting(
    model: LanguageModel, rows: int, context: int, remat: str | None, dtype: str | None
) -> planner_memory.Setting:
    """What the planner asks for, of the rows that are computed at once."""
    data = 1 if model.mesh is None else model.mesh.shape[DATA]
    return planner_memory.Setting(
        config=model.config, job="finetune", weights=model.weights, context=context,
        batch=-(-max(rows, 1) // data) * data, data=data,
        model=1 if model.mesh is None else model.mesh.shape[MODEL],
        rank=1, remat=remat, activations=dtype or model.dtype,
    )  # fmt: skip


def _moments(optimiser: Optimiser, masters: Any) -> Any:
    """The shapes of the optimiser's state, on the mesh as the trainer lays it."""
    moments = jax.eval_shape(optimiser.transformation(1, masters).init, masters)
    if not all(isinstance(leaf.sharding, NamedSharding) for leaf in jax.tree.leaves(masters)):
        return moments
    places = optimizer.optimizer_shardings(moments, masters)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        moments, places,
    )  # fmt: skip


def _bytes(tree: Any) -> int:
    """On one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        place = getattr(leaf, "sharding", None)
        shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
        total += math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
    return total


def _numbers(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _device_memory() -> int | None:
    try:
        return hardware.find("laptop").memory
    except ValueError:
        return None


def _flops(
    model: LanguageModel, method: Method, trained: Any, context: int, layers: int, again: bool
) -> float:
    """Forward, the gradients of activations as far down as the method goes, those of weights.

    A trained matrix takes 2 operations a number and token for its own gradient; adapters, which
    `scaling.operations` doesn't know, as many again there and back.
    """
    one = operations(model.config, context)
    share = layers / model.config.num_layers
    back = one.head + share * (one.blocks + 2 * one.attention)
    looked_up = {"soft_prompt", "position_embed"}  # a look-up costs nothing
    if model.network.head is not None:
        looked_up.add("embed")
    matrices = sum(
        math.prod(versions.value(leaf).shape)
        for path, leaf in nnx.to_flat_state(trained)
        if len(versions.value(leaf).shape) > 1 and path[0] not in looked_up
    )
    gradients = 2 * matrices * (3 if isinstance(method, LoRA) else 1)
    recomputed = share * (one.blocks + one.attention) if again else 0
    return one.forward + back + gradients + recomputed
