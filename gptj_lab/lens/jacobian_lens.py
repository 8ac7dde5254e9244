"""The Jacobian lens: a layer's residual as the rest of the network, made linear, hands it on.

The logit lens reads a residual h as if the blocks above did nothing. Here they do what they do to
first order: J h is read, J being the derivative of the last residual by the layer's. Two of them:
`jacobian_lens` at this very pass, by forward-mode derivatives, so that no J is built;
`fit_jacobian_lens` with one J a layer, the mean over many texts (Gurnee et al. 2026).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.lens import fingerprint, inputs
from gptj_lab.lens.affine_lens import AffineLens
from gptj_lab.lens.logit_lens import LogitLens, logit_lens, places_of
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.model.sites import intervene
from gptj_lab.model.transformer import Transformer

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_DIRECTIONS = 8  # products at a time: as many passes' memory


def pushed(
    trace: Trace,
    layer: int,
    position: int,
    directions: Float[np.ndarray, "directions d_model"],
) -> Float[np.ndarray, "directions seq d_model"]:
    """How the last residual moves, at every token, as one token's residual in a layer does.

    The derivative, at this pass, of what the last block leaves by what block `layer` reads at one
    token, times each direction; linear in the direction, and zero before the token.

    Args:
        trace: of any model, on one device or a mesh.
        layer: 0 to num_layers; at the last no block is between, and the direction comes back.
        position: of the token; negative ones count from the end.
        directions: float [directions, d_model].

    Raises:
        ValueError: a layer or position that isn't there, directions of another width, or a trace
            without its model.
    """
    layers, width = trace.config.num_layers, trace.config.d_model
    if not 0 <= layer <= layers:
        raise ValueError(f"layer is {layer}: 0 to {layers} (after the last block) are there")
    if directions.ndim != 2 or not len(directions) or directions.shape[1] != width:
        raise ValueError(
            f"directions has shape {directions.shape}: [directions, {width}] is needed"
        )
    places = np.full(len(directions), inputs.position_of(position, len(trace.token_ids)))
    parts = _products(trace, layer, places, directions, own=False)
    return np.concatenate([part[:, : len(trace.token_ids)] for part in parts])


def jacobian_lens(trace: Trace, top: int = 5, positions: Sequence[int] | None = None) -> LogitLens:
    """The lens of J h: what the blocks above make, to first order, of each layer's residual.

    Each token's residual is pushed through the derivative of the blocks above, as far as the same
    token's last residual, and read by the final LayerNorm and the unembedding. The last row is the
    model's own output, to the last bit. It costs a product, about two passes, for each layer and
    position: choose positions where the model is large.

    Arguments, errors, and what can be asked of it: as `logit_lens`.
    """
    places = places_of(trace, positions)
    streams = [
        np.concatenate(_products(trace, layer, places, trace.residuals[layer][places], own=True))
        for layer in range(trace.config.num_layers)
    ]
    return logit_lens(trace, top, places.tolist(), np.stack(streams))


def fit_jacobian_lens(
    model: LanguageModel,
    texts: Sequence[str],
    seq: int = 128,
    skip: int = 16,
    progress: Callable[[int, int], bool | None] | None = None,
) -> AffineLens:
    """The lens of each layer's mean derivative over texts (Gurnee et al. 2026).

    J of a layer is d(sum of the last residuals at all tokens) / d(residual at a token), mean over
    the tokens and the texts, the first `skip` tokens and the last left out on both sides. Each text
    costs d_model backward passes, for all layers at once; about 100 texts are said to be enough.

    Args:
        model: on one device or a mesh.
        texts: the first `seq` tokens of each are used; shorter ones than `seq` are left out.
        seq: tokens of each.
        skip: first tokens that are left out, as they are read for other reasons (sinks).
        progress: called with the texts done and their number; stops by returning True.

    Raises:
        ValueError: seq or skip out of range, or no text of at least `seq` tokens.
    """
    if not 1 < seq <= model.config.context:
        raise ValueError(f"seq is {seq}: 2 to {model.config.context} tokens fit into the context")
    if not 0 <= skip < seq - 1:
        raise ValueError(f"skip is {skip}: 0 to {seq - 2} leave a token of seq={seq} over")
    rows = [ids[:seq] for ids in map(model.tokenizer.encode, texts) if len(ids) >= seq]
    if not rows:
        raise ValueError(f"no text has as many as seq={seq} tokens: give longer ones")
    layers, width = model.config.num_layers, model.config.d_model
    total = np.zeros((layers, width, width))
    for done, row in enumerate(rows, start=1):
        ids = inputs.padded(model, np.asarray(row, np.int32))
        total += distributed.gather(_mean_derivatives(model.network, ids, model.dtype, skip, seq))
        if progress is not None and progress(done, len(rows)):
            rows = rows[:done]
            break
    return AffineLens(
        "jacobian", (total / len(rows)).astype(np.float32), np.zeros((layers, width), np.float32),
        fingerprint.of_weights(model), np.zeros((0, layers), np.float32),
    )  # fmt: skip


def _products(
    trace: Trace,
    layer: int,
    places: Int[np.ndarray, "directions"],
    directions: Float[np.ndarray, "directions d_model"],
    *,
    own: bool,
) -> list[np.ndarray]:
    """The products, a few at a time: at each direction's own token, or at every token."""
    model = trace.model("the rest of the network")
    ids = inputs.padded(model, trace.token_ids)
    parts = []
    for start in range(0, len(directions), _DIRECTIONS):
        some = directions[start : start + _DIRECTIONS].astype(model.dtype)
        count, room = len(some), _DIRECTIONS - len(some)
        some_places = np.pad(places[start : start + _DIRECTIONS], (0, room))
        some = np.pad(some, ((0, room), (0, 0)))
        found = _derivative(model.network, ids, model.dtype, some_places, some, layer, own)
        parts.append(distributed.gather(found)[:count])
    return parts


@functools.partial(jax.jit, static_argnames=("dtype", "own"))
def _derivative(
    network: Transformer,
    token_ids: Int[Array | np.ndarray, "rows seq"],
    dtype: str,
    places: Int[Array | np.ndarray, "directions"],
    directions: Float[Array | np.ndarray, "directions d_model"],
    layer: int | Array,
    own: bool,
) -> Float[Array, "directions *seq d_model"]:
    """One program for all layers: which one is moved is data."""
    layers, width = len(network.blocks), network.embed.shape[1]

    def last(moved: Float[Array, "rows seq d_model"]) -> Array:
        def at(here: int, x: Array) -> Array:
            return x + jnp.where(layer == here, moved, 0)

        taps = {f"blocks.{i}.resid_pre": functools.partial(at, i) for i in range(layers)}
        return at(layers, network.hidden(token_ids, site=intervene(taps), dtype=dtype)[0])

    still = jnp.zeros((*token_ids.shape, width), dtype)
    _, derivative = jax.linearize(last, still)

    def product(place: Array, direction: Array) -> Array:
        moved = derivative(still.at[:, place].set(direction[None]))[0]
        return moved[place] if own else moved

    return jax.lax.map(lambda each: product(*each), (places, directions))


@functools.partial(jax.jit, static_argnames="dtype")
def _mean_derivatives(
    network: Transformer, token_ids: Array | np.ndarray, dtype: str, skip: Array, seq: Array
) -> Float[Array, "layers d_model d_model"]:
    """The derivative of the summed last residuals by each layer's, mean over the tokens."""
    rows, length = token_ids.shape
    layers, width = len(network.blocks), network.embed.shape[1]
    places = jnp.arange(length)
    valid = ((places >= skip) & (places < seq - 1)).astype(dtype)

    def last(moved: Float[Array, "layers rows length width"]) -> Array:
        replaced = {
            f"blocks.{i}.resid_pre": functools.partial(jnp.add, moved[i]) for i in range(layers)
        }
        return network.hidden(token_ids, site=intervene(replaced), dtype=dtype)[0]

    _, backward = jax.vjp(last, jnp.zeros((layers, rows, length, width), dtype))

    def row(out: Array) -> Array:
        """Row `out` of every layer's J: the gradient of one number of the last residuals."""
        one = jnp.zeros((rows, length, width), dtype).at[0, :, out].set(valid)
        (gradient,) = backward(one)
        return (gradient[:, 0] * valid[None, :, None]).astype(jnp.float32).sum(1)

    found = jax.lax.map(row, jnp.arange(width), batch_size=_DIRECTIONS)
    return found.swapaxes(0, 1) / valid.astype(jnp.float32).sum()
