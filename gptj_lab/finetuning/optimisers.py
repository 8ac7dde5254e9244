"""Optimisers and their schedules, as one frozen description that becomes an Optax chain."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

NAMES = ("adamw", "adafactor", "lion")
SCHEDULES = ("cosine", "linear", "constant", "original")
_WARMUP_SHARE, _WARMUP_MOST = 10, 100  # a tenth of the steps, at most 100, where none is given
_B2 = {"adamw": 0.999, "lion": 0.99, "adafactor": 0.999}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How gradients become changes of the weights.

    Attributes:
        name: "adamw" (Loshchilov and Hutter 2017), "adafactor" (Shazeer and Stern 2018; for a
            matrix two vectors instead of a second moment, no first one; the rate is not scaled by
            the weights, so that it means what AdamW's means) or "lion" (Chen et al. 2023; one
            moment; give it a third to a tenth of AdamW's rate).
        learning_rate: the highest of the run; None takes one that suits the method, see
            `methods.tuned`.
        schedule: after the warm-up "cosine" or "linear" down to `final_share` of it at the last
            step, "constant", or "original", as mesh-transformer-jax warms up and anneals (its
            first step has rate 0).
        warmup_steps: steps that rise to it; None takes a tenth of the run, at most 100.
        final_share: of `learning_rate`, at the end.
        weight_decay: the share of a matrix that a step of rate 1 takes off; vectors (biases,
            LayerNorms) and soft prompts don't decay.
        clip: the norm that all gradients together are cut to; None leaves them.
        accumulate: a step's rows are computed in so many parts one after the other, whose
            gradients add up to exactly those of all rows at once, in less memory.
        b1, b2: decay of the moments; b2 None is 0.999, for Lion 0.99. Adafactor has neither.
        eps: added to the root of AdamW's second moment.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    name: Literal["adamw", "adafactor", "lion"] = "adamw"
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant", "original"] = "cosine"
    warmup_steps: int | None = None
    final_share: float = 0.1
    weight_decay: float = 0.01
    clip: float | None = 1.0
    accumulate: int = 1
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for field, known in (("name", NAMES), ("schedule", SCHEDULES)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} is {getattr(self, field)!r}: choose {one_of(known)}")
        for field, optional in (("learning_rate", True), ("clip", True), ("eps", False)):
            value: Any = getattr(self, field)
            if not (value is None and optional) and not (_number(value) and value > 0):
                raise ValueError(f"{field} is {value!r}: a positive number is needed")
        if not (_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay!r}: 0 or more is needed")
        for field, least, optional in (("warmup_steps", 0, True), ("accumulate", 1, False)):
            value: Any = getattr(self, field)
            if not (value is None and optional) and not (_whole(value) and value >= least):
                raise ValueError(f"{field} is {value!r}: a whole number from {least} is needed")
        for field, optional in (("b1", False), ("b2", True)):
            value: Any = getattr(self, field)
            usual = _number(value) and value is not None and 0 <= value < 1
            if not (value is None and optional) and not usual:
                raise ValueError(f"{field} is {value!r}: a number from 0 to below 1 is needed")
        if not (_number(self.final_share) and 0 <= self.final_share <= 1):
            raise ValueError(f"final_share is {self.final_share!r}: a share from 0 to 1 is needed")

    def transformation(self, steps: int, params: Any) -> optax.GradientTransformation:
        """The Optax chain of a run of `steps` steps: clip, moments, weight decay, rate.

        Args:
            steps: of the whole run.
            params: what is trained, or its shapes: tells matrices from vectors.

        Raises:
            ValueError: learning_rate is None, or `steps` is below 1.
        """
        _check_run(self, steps)
        b2 = _B2[self.name] if self.b2 is None else self.b2
        if self.name == "adamw":
            moments = optax.scale_by_adam(self.b1, b2, self.eps)
        elif self.name == "lion":
            moments = optax.scale_by_lion(self.b1, b2)
        else:
            moments = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        parts = [moments]
        if self.clip is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, decaying(params)))
        rate = optax.scale_by_learning_rate(lambda step: self._rate(step, steps, jnp))
        return optax.chain(*parts, rate)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of the step that follows `step` steps of `steps`.

        Raises:
            ValueError: as `transformation`.
        """
        _check_run(self, steps)
        return float(self._rate(step, steps, np))

    def warmup(self, steps: int) -> int:
        """Steps of a run of `steps` before the highest rate."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(steps // _WARMUP_SHARE, _WARMUP_MOST)

    def _rate(self, step: Any, steps: int, xp: Any) -> Any:
        """The schedule in numpy or jax.numpy."""
        peak, final, warmup = self.learning_rate, self.final_share, self.warmup(steps)
        assert peak is not None  # _check_run
        if self.schedule == "original":  # gpt3_schedule of mesh-transformer-jax
            anneal = max(steps - warmup, 1)
            risen = xp.clip(step, 0, warmup) / warmup if warmup else 1.0
            done = xp.clip(step - warmup, 0, anneal) / anneal
            return risen * peak - peak * (1 - final) * (1 - xp.cos(math.pi * done)) / 2
        risen = xp.minimum((step + 1) / (warmup + 1), 1.0)
        done = xp.clip((step - warmup) / max(steps - 1 - warmup, 1), 0.0, 1.0)
        if self.schedule == "cosine":
            share = final + (1 - final) * (1 + xp.cos(math.pi * done)) / 2
        elif self.schedule == "linear":
            share = 1 - (1 - final) * done
        else:
            share = 1.0
        return peak * risen * share


def decaying(params: Any) -> Any:
    """A tree like `params` of whether each is a matrix, and no soft prompt: weight decay's mask."""

    def decays(path: Any, leaf: Array | jax.ShapeDtypeStruct) -> bool:
        return len(leaf.shape) > 1 and "soft_prompt" not in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(decays, params)


def _check_run(optimiser: Optimiser, steps: int) -> None:
    if optimiser.learning_rate is None:
        raise ValueError(
            "learning_rate is None: choose one, or take methods.tuned(optimiser, model, method)"
        )
    if not _whole(steps) or steps < 1:
        raise ValueError(f"steps is {steps!r}: a whole number of at least 1 is needed")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(known: tuple[str, ...]) -> str:
    """The names as a choice: "'a', 'b' or 'c'"."""
    return f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"


# howto_finetune.md of mesh-transformer-jax: rate 5e-5, a fifth of it at the end, warm-up over a
# tenth of the steps, then annealed over the others.
ORIGINAL = Optimiser(
    learning_rate=5e-5, schedule="original", final_share=0.2, weight_decay=0.1, clip=1.0
)
