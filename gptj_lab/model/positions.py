"""Rotary positions, interleaved as in GPT-J: the pairs are (x0, x1), (x2, x3), ..."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "batch seq"], d_rotary: int
) -> Float[Array, "batch seq pairs"]:
    """Angles in radians: position / 10000^(2i / d_rotary) for pair i (Su et al. 2021)."""
    frequencies = 10000.0 ** (-jnp.arange(0, d_rotary, 2, dtype=jnp.float32) / d_rotary)
    return positions[..., None].astype(jnp.float32) * frequencies[None, None]


def rotate(
    x: Float[Array, "batch seq heads d_head"], angles: Float[Array, "batch seq pairs"]
) -> Float[Array, "batch seq heads d_head"]:
    """`x` with the leading 2 * pairs dimensions of every head rotated by `angles`."""
    d_rotary = 2 * angles.shape[-1]
    sin = jnp.sin(angles)[:, :, None, :].astype(x.dtype)
    cos = jnp.cos(angles)[:, :, None, :].astype(x.dtype)
    even, odd = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    turned = turned.reshape(*x.shape[:-1], d_rotary)  # back to interleaved pairs
    return jnp.concatenate([turned, x[..., d_rotary:]], axis=-1)
