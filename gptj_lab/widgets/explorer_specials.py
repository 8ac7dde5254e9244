"""What is special to GPT-J: rotary pairs, and attention and MLP that write side by side."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.lens import rotary, weights
from gptj_lab.lens.circuits import read_at_the_end
from gptj_lab.mesh import distributed
from gptj_lab.widgets.explorer_reading import Reading

DISTANCES = 128
TOP = 3


class RotaryParts(NamedTuple):
    """One query's scores, split over the pairs that turn together; the last part doesn't turn."""

    wavelengths: Float[np.ndarray, "pairs"]  # tokens in which a pair turns once around
    scores: Float[np.ndarray, "parts keys"]
    curve: Float[np.ndarray, "parts distances"]  # query and key as they are, moved apart


class Ledger(NamedTuple):
    """What each block's attention and MLP write at a position, and which tokens that promotes."""

    norms: Float[np.ndarray, "layers four"]  # resid_pre, attn_out, mlp_out; cosine of the last two
    ids: Int[np.ndarray, "layers two top"]
    logits: Float[np.ndarray, "layers two top"]


def rotary_parts(reading: Reading, layer: int, head: int, query: int, key: int) -> RotaryParts:
    """The scores of one query split over frequencies, and what they were at other distances.

    Raises:
        ValueError: positions are learned.
    """
    config = reading.model.config
    rotary.check_rotary(config)
    frequencies = rotary.frequencies(config)
    pairs = len(frequencies)
    if config.positions == "rotary_interleaved":
        first, second = np.arange(pairs) * 2, np.arange(pairs) * 2 + 1
    else:
        first, second = np.arange(pairs), np.arange(pairs) + pairs
    rest = slice(2 * pairs, None)
    factor = 1 / config.score_divisor(layer)
    q = reading.inside(layer, "attn.q")[query, head].astype(np.float64)
    keys = reading.inside(layer, "attn.k")[: query + 1, head].astype(np.float64)
    turning = q[first] * keys[:, first] + q[second] * keys[:, second]
    still = keys[:, rest] @ q[rest]
    scores = factor * np.concatenate([turning, still[:, None]], axis=1).T
    k = keys[min(key, query)]
    # Both are turned by their positions already: further by what the wished distance adds.
    distances = np.arange(min(len(reading), DISTANCES))
    angles = (distances - (query - min(key, query))) * frequencies[:, None].astype(np.float64)
    along = q[first] * k[first] + q[second] * k[second]
    across = q[first] * k[second] - q[second] * k[first]
    moved = along[:, None] * np.cos(angles) + across[:, None] * np.sin(angles)
    curve = factor * np.concatenate([moved, np.full((1, len(distances)), k[rest] @ q[rest])])
    wavelengths = (2 * np.pi / frequencies).astype(np.float32)
    return RotaryParts(wavelengths, scores.astype(np.float32), curve.astype(np.float32))


def ledger(reading: Reading, position: int) -> Ledger:
    """What is added to the residual stream at a position, block after block.

    A write's logits are those of the unembedding, with the final LayerNorm's standard deviation as
    it is at this position; the unembedding's bias is nobody's write.
    """
    norms, writes = [], []
    for layer in range(reading.model.config.num_layers):
        before = reading.residuals[layer, position].astype(np.float32)
        pair = [reading.inside(layer, site)[position] for site in ("attn_out", "mlp_out")]
        sizes = [float(np.linalg.norm(each)) for each in (before, *pair)]
        scale = sizes[1] * sizes[2]
        norms.append([*sizes, float(pair[0] @ pair[1]) / scale if scale else 0.0])
        writes.append(np.stack(pair))
    final = reading.residuals[-1, position].astype(np.float32)
    scale = 1 / np.sqrt(final.var() + reading.model.config.layer_norm_eps)
    flat = np.stack(writes).reshape(-1, final.shape[0])
    ends = weights.Ends(reading.model.network)
    told = jax.tree.map(distributed.gather, _promoted(ends, flat, np.float32(scale)))
    ids, logits = (each.reshape(len(norms), 2, TOP) for each in told)
    return Ledger(np.array(norms, np.float32), ids.astype(np.int32), logits)


@jax.jit
def _promoted(
    ends: weights.Ends, writes: Float[Array, "writes d_model"], scale: Float[Array, ""]
) -> tuple[Array, Array]:
    read = read_at_the_end(ends.final_ln, writes) * scale
    values, ids = jax.lax.top_k(read @ weights.unembedding(ends).T, TOP)
    return ids, jnp.asarray(values, jnp.float32)
