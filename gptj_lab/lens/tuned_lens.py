"""The tuned lens: an affine map a layer, trained so that its residual says what the model will.

Belrose et al. 2023: the logit lens misreads layers whose residual lies in another basis or has a
bias; a translator h + A h + b learns both. It starts as the logit lens (A and b are 0).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.lens import fingerprint, inputs, trace_files
from gptj_lab.lens.logit_lens import LogitLens, logit_lens, places_of
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.sites import Collector
from gptj_lab.names import DATA

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

TUNED_LENS = "gptj_lab.tuned_lens"  # what its file says that it is


@dataclasses.dataclass(frozen=True)
class TunedLens:
    """A trained translator of each layer's residual, for one model.

    Attributes:
        matrix: float32 [layers, d_model, d_model], added to the identity; [out, in].
        bias: float32 [layers, d_model].
        fingerprint: of the weights that it was trained on.
        history: float32 [steps, layers], the loss of each step: KL from the layer's distribution
            to the model's, in nats a token.
    """

    matrix: Float[np.ndarray, "layers d_model d_model"]
    bias: Float[np.ndarray, "layers d_model"]
    fingerprint: str
    history: Float[np.ndarray, "steps layers"]

    def __repr__(self) -> str:
        return f"TunedLens({len(self.bias)} layers, {len(self.history)} steps)"

    def translate(
        self, layer: int, residuals: Float[np.ndarray, "*positions d_model"]
    ) -> Float[np.ndarray, "*positions d_model"]:
        """A layer's residuals as the unembedding should read them, float32.

        Raises:
            ValueError: there is no such layer.
        """
        if not 0 <= layer < len(self.bias):
            raise ValueError(f"layer is {layer}: layers 0 to {len(self.bias) - 1} are there")
        h = residuals.astype(np.float32)
        return h + h @ self.matrix[layer].T + self.bias[layer]

    def read(
        self, trace: Trace, top: int = 5, positions: Sequence[int] | None = None
    ) -> LogitLens:
        """The lens of a traced prompt; arguments and errors as `logit_lens`.

        Raises:
            ValueError: also a trace of another model than it was trained on.
        """
        if fingerprint.of_weights(trace.model("the unembedding")) != self.fingerprint:
            raise ValueError(
                f"the tuned lens was trained on other weights than those of {trace.model_name!r}: "
                "train one for this model"
            )
        places = places_of(trace, positions)
        streams = [
            self.translate(layer, trace.residuals[layer][places])
            for layer in range(trace.config.num_layers)
        ]
        return logit_lens(trace, top, places.tolist(), np.stack(streams))

    def save(self, file: Path | str, model: LanguageModel) -> None:
        """Writes it as one safetensors file.

        Raises:
            ValueError: the model isn't the one that it was trained on.
            OSError: it can't be written; a file that was there stays whole.
        """
        if fingerprint.of_weights(model) != self.fingerprint:
            raise ValueError(f"the tuned lens was trained on other weights than {model.name!r} has")
        arrays = {"matrix": self.matrix, "bias": self.bias, "history": self.history}
        trace_files.write_tensors(Path(file), TUNED_LENS, model, {}, arrays)

    @classmethod
    def load(cls, file: Path | str, model: LanguageModel) -> TunedLens:
        """The tuned lens of a file, for the model that it was trained on.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, something else, or belongs to another model.
        """
        config, about, arrays = trace_files.read_tensors(Path(file), TUNED_LENS, model)
        layers, width = config.num_layers, config.d_model
        history = arrays.get("history", np.zeros(0))
        shapes = {
            "matrix": (layers, width, width), "bias": (layers, width),
            "history": (len(history), layers),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = arrays.get(name, np.zeros(0))
            if found.shape != shape or found.dtype != np.float32:
                raise ValueError(
                    f"{file} is damaged: {name} is {found.dtype}{list(found.shape)}, "
                    f"float32{list(shape)} is needed; train it again"
                )
        return cls(arrays["matrix"], arrays["bias"], about["fingerprint"], history)


def train_tuned_lens(
    model: LanguageModel,
    texts: Sequence[str],
    steps: int = 200,
    batch: int = 8,
    seq: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, float], bool | None] | None = None,
) -> TunedLens:
    """A tuned lens for a model, trained on texts.

    Each layer by itself minimises the KL from its distribution to the model's (Belrose et al.
    2023), by Adam with a rate that falls to 0. Takes two matrices of moments for each layer:
    12 bytes x layers x d_model^2, which is 5.6 GB for GPT-J-6B.

    Args:
        model: on one device or a mesh; not changed.
        texts: joined and cut into windows; repeated where they are short.
        steps: at least 1.
        batch: windows a step; on a mesh filled up until `data` divides them.
        seq: tokens a window; at most the context.
        learning_rate: at first.
        seed: of the choice of windows.
        progress: called with the step (from 1) and its loss, the mean over layers in nats; stops
            the training by returning True.

    Raises:
        ValueError: a setting out of range, or texts without enough tokens for one window.
    """
    tokens = _tokens(model, texts, seq)
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}: at least 1 is needed")
    if model.mesh is not None:
        batch += -batch % model.mesh.shape[DATA]
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(learning_rate, 0.0, steps)),
    )
    lens = _start(model.config)
    state, random = optimiser.init(lens), np.random.default_rng(seed)
    graph, weights = inputs.split(model)
    history = []
    for step in range(steps):
        starts = random.integers(0, len(tokens) - seq + 1, batch)
        rows = np.stack([tokens[start : start + seq] for start in starts])
        rows = rows if model.mesh is None else sharding.put_batch(rows, model.mesh)
        lens, state, losses = _step(graph, weights, lens, state, rows, model.dtype, optimiser)
        history.append(distributed.gather(losses))
        if progress is not None and progress(step + 1, float(history[-1].mean())):
            break
    matrix, bias = (distributed.gather(each) for each in lens)
    return TunedLens(matrix, bias, fingerprint.of_weights(model), np.stack(history))


def _tokens(model: LanguageModel, texts: Sequence[str], seq: int) -> Int[np.ndarray, "tokens"]:
    if not 1 <= seq <= model.config.context:
        raise ValueError(f"seq is {seq}: 1 to {model.config.context} tokens fit into the context")
    ids = np.concatenate([np.zeros(0, np.int64), *map(model.tokenizer.encode, texts)])
    if len(ids) < seq:
        raise ValueError(f"the texts have {len(ids)} tokens: a window of seq={seq} is needed")
    return ids.astype(np.int32)


def _start(config: ModelConfig) -> tuple[Array, Array]:
    layers, width = config.num_layers, config.d_model
    return jnp.zeros((layers, width, width)), jnp.zeros((layers, width))


@functools.partial(jax.jit, static_argnames=("graph", "dtype", "optimiser"), donate_argnums=(2, 3))
def _step(
    graph: Any,
    weights: Any,
    lens: tuple[Array, Array],
    state: Any,
    token_ids: Int[Array | np.ndarray, "batch seq"],
    dtype: str,
    optimiser: optax.GradientTransformation,
) -> tuple[tuple[Array, Array], Any, Float[Array, "layers"]]:
    """The lens after one step, the optimiser's state, and each layer's loss before the step."""
    network = nnx.merge(graph, weights)
    names = [f"blocks.{layer}.resid_pre" for layer in range(len(network.blocks))]
    collect = Collector(names)
    last, _ = network.hidden(token_ids, site=collect, dtype=dtype)
    final = jax.nn.log_softmax(network.unembed(last))
    residuals = jnp.stack([collect.values[name] for name in names])

    def loss(translator: tuple[Array, Array], residual: Array) -> Array:
        matrix, bias = translator
        h = residual.astype(jnp.float32)
        h = h + jnp.einsum("bsi,oi->bso", h, matrix) + bias[None, None]
        own = jax.nn.log_softmax(network.unembed(h.astype(residual.dtype)))
        return (jnp.exp(final) * (final - own)).sum(-1).mean()

    # Layer by layer: one layer's distributions over the vocabulary exist at a time.
    losses, gradients = jax.lax.map(lambda each: jax.value_and_grad(loss)(*each), (lens, residuals))
    updates, state = optimiser.update(gradients, state, lens)
    return optax.apply_updates(lens, updates), state, losses
