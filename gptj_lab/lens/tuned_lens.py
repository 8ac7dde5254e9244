"""The tuned lens: an affine map a layer, trained so that its residual says what the model will.

Belrose et al. 2023: the logit lens misreads layers whose residual lies in another basis or has a
bias; a translator h + A h + b learns both. It starts as the logit lens (A and b are 0).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.lens import fingerprint
from gptj_lab.lens.affine_lens import AffineLens, windows
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.sites import Collector
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


def train_tuned_lens(
    model: LanguageModel,
    texts: Sequence[str],
    steps: int = 200,
    batch: int = 8,
    seq: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, float], bool | None] | None = None,
) -> AffineLens:
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
        ValueError: a setting out of range, texts without enough tokens for one window, or a loss
            that is not finite.
    """
    tokens = windows(model, texts, seq)
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
    history = []
    for step in range(steps):
        starts = random.integers(0, len(tokens) - seq + 1, batch)
        rows = np.stack([tokens[start : start + seq] for start in starts])
        rows = rows if model.mesh is None else sharding.put_batch(rows, model.mesh)
        lens, state, losses = _step(model.network, lens, state, rows, model.dtype, optimiser)
        history.append(distributed.gather(losses))
        if not np.isfinite(history[-1]).all():
            raise ValueError(
                f"the loss is not finite at step {step + 1}: lower learning_rate={learning_rate}, "
                "or see trace.first_nan() of this model"
            )
        if progress is not None and progress(step + 1, float(history[-1].mean())):
            break
    matrix, bias = (distributed.gather(each) for each in lens)
    matrix = matrix + np.eye(matrix.shape[-1], dtype=np.float32)
    return AffineLens("tuned", matrix, bias, fingerprint.of_weights(model), np.stack(history))


def _start(config: ModelConfig) -> tuple[Array, Array]:
    layers, width = config.num_layers, config.d_model
    return jnp.zeros((layers, width, width)), jnp.zeros((layers, width))


@functools.partial(jax.jit, static_argnames=("dtype", "optimiser"), donate_argnums=(1, 2))
def _step(
    network: Transformer,
    lens: tuple[Array, Array],
    state: Any,
    token_ids: Int[Array | np.ndarray, "batch seq"],
    dtype: str,
    optimiser: optax.GradientTransformation,
) -> tuple[tuple[Array, Array], Any, Float[Array, "layers"]]:
    """The lens after one step, the optimiser's state, and each layer's loss before the step."""
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
    return jax.tree.map(jnp.add, lens, updates), state, losses
