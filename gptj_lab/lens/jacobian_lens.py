"""The Jacobian lens: a layer's residual as the rest of the network, made linear, hands it on.

The logit lens reads a residual as if the blocks above did nothing. Here they do what they do to
first order around this very pass: J h instead of h, J being the derivative of the last residual by
the layer's. JAX differentiates forward, so J is never built: a product with it costs about as much
as two passes through the blocks above.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.lens import inputs, passes
from gptj_lab.lens.logit_lens import LogitLens, logit_lens, places_of
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.model.sites import ignore

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
    if directions.ndim != 2 or directions.shape[1] != width:
        raise ValueError(
            f"directions has shape {directions.shape}: [directions, {width}] is needed"
        )
    places = np.full(len(directions), inputs.position_of(position, len(trace.token_ids)))
    parts = _products(trace, layer, places, directions, own=False)
    return np.concatenate([part[:, : len(trace.token_ids)] for part in parts])


def jacobian_lens(
    trace: Trace, top: int = 5, positions: Sequence[int] | None = None
) -> LogitLens:
    """The lens of J h: what the blocks above make, to first order, of each layer's residual.

    Each token's residual is pushed through the derivative of the blocks above, as far as the same
    token's last residual, and read by the final LayerNorm and the unembedding. The last row is the
    model's own output, to the last bit. It costs a product for each layer and position: choose
    positions where the model is large. Args, errors and what can be asked: as `logit_lens`.
    """
    places = places_of(trace, positions)
    streams = [
        np.concatenate(
            _products(trace, layer, places, trace.residuals[layer][places], own=True)
        )
        for layer in range(trace.config.num_layers)
    ]
    return logit_lens(trace, top, places.tolist(), np.stack(streams))


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
    graph, state = inputs.split(model)
    x = passes.rows_of(model, trace.residuals[layer])
    parts = []
    for start in range(0, len(directions), _DIRECTIONS):
        some = directions[start : start + _DIRECTIONS].astype(model.dtype)
        room = _DIRECTIONS - len(some)
        some_places = np.pad(places[start : start + _DIRECTIONS], (0, room))
        found = _derivative(
            graph, state, x, some_places, np.pad(some, ((0, room), (0, 0))), layer, own
        )
        parts.append(distributed.gather(found)[: len(some)])
    return parts


@functools.partial(jax.jit, static_argnames=("graph", "layer", "own"))
def _derivative(
    graph: Any,
    state: Any,
    x: Float[Array | np.ndarray, "rows seq d_model"],
    places: Int[Array | np.ndarray, "directions"],
    directions: Float[Array | np.ndarray, "directions d_model"],
    layer: int,
    own: bool,
) -> Float[Array, "directions *seq d_model"]:
    blocks = nnx.merge(graph, state).blocks[layer:]
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])

    def rest(x: Array) -> Array:
        for block in blocks:
            x, _ = block(x, positions, None, ignore)
        return x

    _, derivative = jax.linearize(rest, jnp.asarray(x))

    def product(place: Array, direction: Array) -> Array:
        moved = derivative(jnp.zeros_like(x).at[:, place].set(direction[None]))[0]
        return moved[place] if own else moved

    return jax.lax.map(lambda each: product(*each), (places, directions))
