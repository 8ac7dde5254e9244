"""A run's model beside its base, with what was learnt weighed live."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gptj_lab.finetuning import lora
from gptj_lab.finetuning.control import ACTIVE
from gptj_lab.finetuning.run import Run
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer


class Result:
    """The base and the tuned model of a run, for views that compare them.

    `model` stays one object: what `scale`, `best` and `refresh` change is seen by every view that
    has it.

    Attributes:
        run: whose result it is.
        base: the model before.
        model: the tuned model as `scale` has it.
        step: the step that its weights are of.
    """

    def __init__(self, run: Run):
        self.run, self.base = run, run.base
        self._tuned = run.model
        self.step = self._seen = run.weights_step
        self.model = self._tuned.twin()
        self.model.name = ", ".join(filter(None, (self.base.name, "tuned")))
        self._scale, self._best = 1.0, False

    @property
    def best(self) -> bool:
        """Whether the weights are those of the lowest held-out loss, not those of the last step.

        Raises:
            ValueError: setting it while the run goes on, or where nothing was held out.
        """
        return self._best

    @best.setter
    def best(self, best: bool) -> None:
        run = self.run
        self.step, self._tuned = run.best_state() if best else (run.weights_step, run.model)
        self._best, self._seen = bool(best), run.weights_step
        self.scale = self._scale

    @property
    def scale(self) -> float:
        """How much of what was learnt is added: 1 is as trained, 0 the base.

        Of adapters it weighs what they add; of other weights it goes along the line from the
        base's to the tuned ones (Wortsman et al. 2021); of a soft prompt along the line from its
        first vectors to the trained ones, and at 0 there is none.

        Raises:
            ValueError: setting it to no finite number.
        """
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float)
            or not math.isfinite(scale)
        ):
            raise ValueError(f"scale is {scale!r}: a number is needed, 1 is as trained")
        self.model.network = self._weighed(float(scale))
        self._scale = float(scale)

    def refresh(self) -> LanguageModel:
        """`model`, of the weights that the run has now; of the best ones when it has ended."""
        if self.run.weights_step != self._seen and not (self._best and self.run.status in ACTIVE):
            self.best = self._best
        return self.model

    def words(self) -> str:
        """What the views have, in a sentence."""
        what = f"{self._scale:.2f} of what was learnt"
        if self._tuned.network.soft_prompt is not None and self._scale != 1:
            what = f"the soft prompt {self._scale:.2f} of the way from its first vectors"
            what = what if self._scale else "no soft prompt"
        return f"Generate again: the views have {what}, by step {self.step:,}."

    def merged(self) -> LanguageModel:
        """`model` with its adapters added into its matrices; a model without any as it is."""
        return lora.merged(self.model) if lora.names(self.model) else self.model.twin()

    def _weighed(self, scale: float) -> Transformer:
        before = lora.names(self.base)
        new = [name for name in lora.names(self._tuned) if name not in before]
        if new:
            return lora.weighed(self._tuned, **dict.fromkeys(new, scale)).network
        if scale == 0:
            return self.base.twin().network
        if scale == 1:
            return self._tuned.twin().network
        graph, tuned = nnx.split(self._tuned.network)
        base = nnx.split(self.base.network)[1]
        if jax.tree.structure(base) != jax.tree.structure(tuned):  # a soft prompt is new
            base = nnx.split(self.run.first().network)[1]
        return nnx.merge(graph, jax.tree.map(lambda b, t: _between(b, t, scale), base, tuned))


def _between(base: jax.Array, tuned: jax.Array, scale: float) -> jax.Array:
    if base is tuned or not jnp.issubdtype(tuned.dtype, jnp.floating):
        return tuned
    start = base.astype(jnp.float32)
    return (start + scale * (tuned.astype(jnp.float32) - start)).astype(tuned.dtype)
