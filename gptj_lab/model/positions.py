"""Rotary positions: interleaved pairs as in GPT-J, or halves as in GPT-NeoX."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "batch seq"], d_rotary: int, base: float, scaling: float
) -> Float[Array, "batch seq pairs"]:
    """Angles in radians: position / base^(2i / d_rotary) for pair i (Su et al. 2021).

    Positions are divided by `scaling` first (Chen et al. 2023).
    """
    frequencies = base ** (-jnp.arange(0, d_rotary, 2, dtype=jnp.float32) / d_rotary) / scaling
    return positions[..., None].astype(jnp.float32) * frequencies[None, None]


def rotate(
    x: Float[Array, "batch seq heads d_head"],
    angles: Float[Array, "batch seq pairs"],
    *,
    interleaved: bool,
) -> Float[Array, "batch seq heads d_head"]:
    """`x` with the leading 2 * pairs dimensions of every head rotated by `angles`.

    The pairs are (x0, x1), (x2, x3), ... if interleaved, else (x0, x_pairs), (x1, x_pairs+1), ...
    """
    pairs = angles.shape[-1]
    d_rotary = 2 * pairs
    sin = jnp.sin(angles)[:, :, None, :].astype(x.dtype)
    cos = jnp.cos(angles)[:, :, None, :].astype(x.dtype)
    if not interleaved:
        first, second = x[..., :pairs], x[..., pairs:d_rotary]
        turned = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate([*turned, x[..., d_rotary:]], axis=-1)
    even, odd = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    turned = turned.reshape(*x.shape[:-1], d_rotary)  # back to interleaved pairs
    return jnp.concatenate([turned, x[..., d_rotary:]], axis=-1)
