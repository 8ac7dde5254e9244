"""int8 weights: symmetric, one scale for each output channel, and their product."""

import dataclasses
from types import EllipsisType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

_DIGITS = 3  # int8 numbers for each of x
_MOST_ROWS = 64  # of x on the CPU, for whole numbers: with more, float tiles are faster
_TILE, _TILES = 64, 4  # rows converted at a time on the CPU, and such tiles in a step
_CHUNK = 1024  # rows quantised at a time, so that no second copy of a weight exists


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A matrix as int8, `values * scale[:, None]`.

    Attributes:
        values: int8 [d_out, d_in], from -127 to 127.
        scale: float32 [d_out], of each output channel the largest of its weights divided by 127.
    """

    values: jax.Array
    scale: jax.Array

    def __getitem__(self, index: EllipsisType) -> "Int8Weight":
        """The weight itself: what an `nnx.Variable` that holds it gives for `variable[...]`."""
        if index is not ...:
            raise TypeError(f"{index!r}: only [...] reads an int8 weight; take .values and .scale")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """[d_out, d_in]."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """int8."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scale.nbytes


def quantize(
    weight: Float[np.ndarray, "d_out d_in"],
) -> tuple[Int8[np.ndarray, "d_out d_in"], Float[np.ndarray, "d_out"]]:
    """A matrix rounded to int8, and the scale of each row (absmax; Dettmers et al. 2022)."""
    values = np.empty(weight.shape, np.int8)
    scale = np.empty(weight.shape[0], np.float32)
    for start in range(0, len(weight), _CHUNK):
        rows = weight[start : start + _CHUNK].astype(np.float32)
        most = np.abs(rows).max(axis=1) / np.float32(127)
        scale[start : start + _CHUNK] = np.where(most > 0, most, 1)
        values[start : start + _CHUNK] = np.rint(rows / scale[start : start + _CHUNK, None])
    return values, scale


def dequantize(
    values: Int8[np.ndarray, "d_out d_in"], scale: Float[np.ndarray, "d_out"]
) -> Float[np.ndarray, "d_out d_in"]:
    """The float32 matrix that int8 values and scales stand for."""
    return values.astype(np.float32) * scale[:, None]


def product(x: Float[Array, "*batch d_in"], weight: Int8Weight) -> Float[Array, "*batch d_out"]:
    """`x @ weight.T` in the dtype of `x`.

    On the CPU a few rows of `x` are split into int8 digits, so that the product is one of whole
    numbers, exact, and reads a byte a weight; for many rows the weight is converted in tiles just
    before their dot. XLA would otherwise write the whole float matrix to memory first. Elsewhere
    XLA fuses the conversion into the product.
    """
    flat = x.reshape(-1, x.shape[-1])
    on_cpu = _by_digits if len(flat) <= _MOST_ROWS else _by_tiles
    out = jax.lax.platform_dependent(flat, weight.values, cpu=on_cpu, default=_whole)
    scaled = out * weight.scale[None].astype(out.dtype)
    return scaled.reshape(*x.shape[:-1], scaled.shape[-1]).astype(x.dtype)


@jax.custom_jvp
def _by_digits(x: Float[Array, "rows d_in"], values: Int8[Array, "d_out d_in"]) -> jax.Array:
    """Each row of `x` as `unit * (d0 + d1 / 254 + d2 / 254**2)`, the digits int8.

    Three digits are 23 bits of the row's largest value, as float32 has.
    """
    rest = x.astype(jnp.float32)
    most = jnp.abs(rest).max(-1, keepdims=True)
    unit = jnp.maximum(most, 1e-35) / 127  # still a normal number
    rest = rest / unit
    digits = []
    for _ in range(_DIGITS):
        digits.append(jnp.round(rest))
        rest = (rest - digits[-1]) * 254
    rows = jnp.concatenate(digits).astype(jnp.int8)
    sums = jnp.einsum("oi,ri->or", values, rows, preferred_element_type=jnp.int32)
    parts = sums.reshape(len(values), _DIGITS, len(x)).astype(jnp.float32)
    places = jnp.float32(254) ** -jnp.arange(_DIGITS, dtype=jnp.float32)
    return ((parts * places[None, :, None]).sum(1).T * unit).astype(x.dtype)


@_by_digits.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, values = primals
    # By the tiles' own derivative: JAX 0.7.2 can't turn round a scan that stands here itself.
    _, tangent = jax.jvp(lambda x: _by_tiles(x, values), (x,), (tangents[0],))
    return _by_digits(x, values), tangent


@jax.checkpoint  # a gradient would keep every weight as floats until its way back
def _whole(x: Float[Array, "rows d_in"], values: Int8[Array, "d_out d_in"]) -> jax.Array:
    return jnp.einsum("ri,oi->ro", x, values.astype(x.dtype))


def _by_tiles(x: Float[Array, "rows d_in"], values: Int8[Array, "d_out d_in"]) -> jax.Array:
    """Several tiles a step: XLA:CPU converts each on one thread, and runs them side by side."""
    d_out, d_in = values.shape
    steps = d_out // (_TILES * _TILE)
    whole = steps * _TILES * _TILE

    @jax.checkpoint
    def step(tiles: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.einsum("oi,ri->or", t.astype(x.dtype), x) for t in tiles])

    tiles = values[:whole].reshape(steps, _TILES, _TILE, d_in)
    out = jax.lax.map(step, tiles).reshape(whole, -1).T if steps else None
    if whole == d_out:
        return out  # type: ignore[return-value]
    rest = _whole(x, values[whole:])
    return rest if out is None else jnp.concatenate([out, rest], axis=1)
