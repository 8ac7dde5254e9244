"""One step of a run and one measure of it, compiled; no files, no threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int

from gptj_lab.finetuning import methods
from gptj_lab.finetuning.loss import gradients as loss_and_gradients
from gptj_lab.finetuning.loss import next_token_loss
from gptj_lab.finetuning.methods import Method
from gptj_lab.finetuning.optimisers import Optimiser
from gptj_lab.finetuning.packing import Batch
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import sharding
from gptj_lab.mesh.optimizer import optimizer_shardings
from gptj_lab.names import DATA

_SOUND = -1  # in Live.broken: no step has failed


class Live(NamedTuple):
    """What a step changes, as flat lists: a step's call then costs microseconds.

    Attributes:
        trained, moments: the leaves of the trained weights and of the optimiser's state.
        step: steps taken.
        broken: the number of the first step that was not a finite number, or -1.
    """

    trained: list[Array]
    moments: list[Array]
    step: Int[Array, ""]
    broken: Int[Array, ""]


class Measures(NamedTuple):
    """What a step tells.

    Attributes:
        loss: before the step, in nats a token.
        gradient_norm: before it is clipped.
        broken: as in Live, after the step.
    """

    loss: float
    gradient_norm: float
    broken: int


class Trainer:
    """A model, what of it is trained, and the compiled programs that train and measure it.

    A step whose loss or gradient isn't finite changes nothing, nor does any after it, until other
    weights are restored. One thread trains; others may ask for `snapshot` meanwhile.
    """

    def __init__(
        self,
        base: LanguageModel,
        method: Method,
        optimiser: Optimiser,
        *,
        steps: int,
        seed: int = 0,
        dtype: DTypeLike | None = None,
        remat: str | None = None,
        products: str | None = None,
    ):
        """Compiles nothing yet.

        Args:
            base: the model before; it stays as it is.
            steps: of the whole run, for the learning rate.
            seed: of new weights and of dropout.
            dtype: of the activations; by default the base's.
            remat: see loss.next_token_loss.
            products: "float32" or "bfloat16", see loss.next_token_loss. By default bfloat16 on one
                CPU where `dtype` is left open too, else float32. Evaluation is in float32.

        Raises:
            ValueError: the method doesn't suit the model; the message says why.
        """
        self.base, self.method, self.optimiser, self.seed = base, method, optimiser, seed
        self._dtype = jnp.dtype(base.dtype if dtype is None else dtype)
        self._remat = remat
        if products is None:
            fast = dtype is None and base.mesh is None and jax.default_backend() == "cpu"
            products = "bfloat16" if fast else "float32"
        self._products = products
        self._model = methods.prepared(base, method, seed)
        self._graph, trained, frozen = methods.split(self._model.network, method)
        self._rule = optimiser.transformation(steps, trained)
        moments = self._rule.init(trained)
        if base.mesh is not None:
            moments = jax.device_put(moments, optimizer_shardings(moments, trained))
        paths = jax.tree_util.tree_leaves_with_path(trained)
        self._names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        leaves, self._trained_tree = jax.tree.flatten(trained)
        self._frozen, self._frozen_tree = jax.tree.flatten(frozen)
        moment_leaves, self._moments_tree = jax.tree.flatten(moments)
        self._live = Live(leaves, moment_leaves, jnp.int32(0), jnp.int32(_SOUND))
        if base.mesh is not None:
            whole = NamedSharding(base.mesh, PartitionSpec())
            numbers = jax.device_put((self._live.step, self._live.broken), whole)
            self._live = Live(leaves, moment_leaves, *numbers)
        self._lock = threading.RLock()  # the arrays of _live are given away at each step
        self._step: Any = None
        self._measure = jax.jit(self._sums)

    def put(self, batch: Batch) -> Batch:
        """The batch on the model's devices; rows of weight 0 fill it up until `data` divides it."""
        mesh = self.base.mesh
        if mesh is None:
            return jax.device_put(batch)
        more = -len(batch.tokens) % mesh.shape[DATA]
        cut = NamedSharding(mesh, PartitionSpec(DATA))
        return jax.tree.map(
            lambda rows: sharding.put(np.pad(rows, ((0, more), (0, 0))), cut), batch
        )

    def compile(self, batch: Batch) -> None:
        """Compiles the step for batches of this shape; `step` does it where it wasn't done."""
        places = None
        if self.base.mesh is not None:
            whole = NamedSharding(self.base.mesh, PartitionSpec())
            places = (jax.tree.map(lambda leaf: leaf.sharding, self._live), whole)
        step = jax.jit(self._stepped, donate_argnums=0, out_shardings=places)
        self._step = step.lower(self._live, self._frozen, batch).compile()

    def step(self, batch: Batch) -> Array:
        """Begins one step and returns at once what it will tell: see `measures`."""
        if self._step is None:
            self.compile(batch)
        step: Any = self._step
        with self._lock:
            self._live, told = step(self._live, self._frozen, batch)
        return told

    @staticmethod
    def measures(told: Array) -> Measures:
        """What a step told; waits until the step is done."""
        loss, gradient_norm, broken = np.asarray(told).tolist()
        return Measures(loss, gradient_norm, int(broken))

    @property
    def dtype(self) -> str:
        """The dtype of the activations."""
        return str(self._dtype)

    def loss(self, batches: Iterable[Batch]) -> float | None:
        """Mean loss of the batches in nats a token, dropout off; None where nothing counts."""
        nats, tokens = 0.0, 0.0
        before: tuple[Any, Any] = (0.0, 0.0)
        for batch in batches:  # one is read while the next is computed
            sums = self._measure(self._live.trained, self._frozen, self.put(batch))
            nats, tokens = nats + float(before[0]), tokens + float(before[1])
            before = sums
        nats, tokens = nats + float(before[0]), tokens + float(before[1])
        return nats / tokens if tokens else None

    def snapshot(self) -> LanguageModel:
        """The model as it is now, on arrays of its own; from any thread, while steps go on."""
        with self._lock:
            return self._as_model(self._live.trained)

    def arrays(self) -> dict[str, Any]:
        """What has to be saved to go on bit for bit, by name; valid until the next step."""
        moments = {f"{i:05d}": leaf for i, leaf in enumerate(self._live.moments)}
        trained = dict(zip(self._names, self._live.trained, strict=True))
        return {"trained": trained, "moments": moments, "step": self._live.step}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Goes on from what `arrays` gave, which it takes over."""
        with self._lock:
            self._live = Live(
                [arrays["trained"][name] for name in self._names],
                [arrays["moments"][f"{i:05d}"] for i in range(len(self._live.moments))],
                arrays["step"],
                jnp.full_like(self._live.broken, _SOUND),
            )

    def kept(self) -> list[Array]:
        """A copy of the trained weights, for `take`."""
        return [jnp.array(leaf, copy=True) for leaf in self._live.trained]

    def take(self, trained: list[Array] | None) -> None:
        """Puts trained weights that `kept` gave in place of those there are; None: the first."""
        with self._lock:
            self._live = self._live._replace(trained=self._first() if trained is None else trained)

    def model_of(self, arrays: dict[str, Any]) -> LanguageModel:
        """The model of what `arrays` gave at some time."""
        return self.model_of_kept([arrays["trained"][name] for name in self._names])

    def model_of_kept(self, trained: list[Array] | None) -> LanguageModel:
        """The model of what `kept` gave at some time; None: of the first weights."""
        return self._as_model(self._first() if trained is None else trained)

    def _first(self) -> list[Array]:
        """The trained weights before the first step."""
        fresh = methods.prepared(self.base, self.method, self.seed).network
        return jax.tree.leaves(methods.split(fresh, self.method)[1])

    def _as_model(self, trained: list[Array]) -> LanguageModel:
        tree = jax.tree.unflatten(self._trained_tree, trained)
        return methods.trained_model(self.base, self._model, self.method, tree)

    def _sums(self, trained: list[Array], frozen: list[Any], batch: Batch) -> tuple[Array, Array]:
        """Nats of a batch and the tokens that they are of."""
        network = nnx.merge(
            self._graph,
            jax.tree.unflatten(self._trained_tree, trained),
            jax.tree.unflatten(self._frozen_tree, frozen),
        )
        mean = next_token_loss(
            network, batch.tokens, weights=batch.weights, positions=batch.positions,
            segments=batch.segments, dtype=self._dtype,
        )  # fmt: skip
        tokens = jnp.asarray(batch.weights).sum()
        return mean * jnp.maximum(tokens, 1), tokens

    def _stepped(self, live: Live, frozen: list[Any], batch: Batch) -> tuple[Live, Array]:
        trained = jax.tree.unflatten(self._trained_tree, live.trained)
        moments = jax.tree.unflatten(self._moments_tree, live.moments)
        key = jax.random.fold_in(jax.random.key(self.seed), live.step)
        loss, gradients = loss_and_gradients(
            self._graph, trained, jax.tree.unflatten(self._frozen_tree, frozen), batch,
            accumulate=self.optimiser.accumulate, dtype=self._dtype, remat=self._remat,
            products=self._products, key=key,
        )  # fmt: skip
        told = jnp.stack([loss, norm(gradients)])
        updates, moments = self._rule.update(gradients, moments, trained)
        failed = jnp.where(jnp.isfinite(told).all(), _SOUND, live.step + 1)
        broken = jnp.where(live.broken == _SOUND, failed, live.broken)
        new = Live(
            jax.tree.leaves(optax.apply_updates(trained, updates)),
            jax.tree.leaves(moments), live.step + 1, broken,
        )  # fmt: skip
        kept = jax.tree.map(lambda new, old: jnp.where(broken == _SOUND, new, old), new, live)
        return kept._replace(broken=broken), jnp.append(told, broken.astype(jnp.float32))


def norm(tree: Any) -> Float[Array, ""]:
    """Of all leaves of a tree together, as one vector."""
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
