"""What the Explorer sends: attention as bytes, lower triangles only, pooled where it is long.

A causal pattern is nothing above its diagonal, so row q is sent as its q + 1 first entries. A
weight p becomes the byte round(255 sqrt(p)): below 1 % the median relative error is 5 %, where a
linear byte would lose the weight altogether.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

THUMBNAIL, POOL = 32, 512  # largest sides of a thumbnail, and of a pooled matrix
LAYER_LIMIT, HEAD_LIMIT = 512, 1024  # tokens up to which a layer, or a head, is sent whole
MOST_BYTES = 1_000_000  # a message, with its JSON
_ROOM_FOR_JSON = 60_000


def mode(tokens: int) -> str:
    """How a matrix of so many tokens is sent: "layer", "head" or "pooled"."""
    if tokens <= LAYER_LIMIT:
        return "layer"
    return "head" if tokens <= HEAD_LIMIT else "pooled"


def compand(pattern: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Weights from 0 to 1 as bytes: round(255 sqrt(p))."""
    return np.rint(255 * np.sqrt(np.clip(pattern, 0, 1))).astype(np.uint8)


def expand(values: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The weights that bytes of `compand` stand for."""
    return np.square(values.astype(np.float32) / 255)


def sign(difference: Float[np.ndarray, "*shape"]) -> tuple[UInt8[np.ndarray, "*shape"], float]:
    """Differences as bytes around 128, and the largest magnitude: (byte - 128) / 127 * largest."""
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0:
        return np.full(difference.shape, 128, np.uint8), 0.0
    return (128 + np.rint(difference * (127 / largest))).astype(np.uint8), largest


def triangle(square: np.ndarray) -> np.ndarray:
    """[..., T, T] to its lower triangle [..., T (T + 1) / 2], row after row."""
    side = square.shape[-1]
    rows, columns = np.tril_indices(side)
    return square.reshape(*square.shape[:-2], side * side)[..., rows * side + columns]


def untriangle(flat: np.ndarray) -> np.ndarray:
    """The square [..., T, T] of a lower triangle, zeros above the diagonal."""
    side = int((np.sqrt(8 * flat.shape[-1] + 1) - 1) / 2)
    square = np.zeros((*flat.shape[:-1], side, side), flat.dtype)
    square[..., *np.tril_indices(side)] = flat
    return square


def bounds(tokens: int, size: int) -> list[int]:
    """Where the tiles of a pooled matrix begin: tile i at floor(i T / S)."""
    side = min(tokens, size)
    return [i * tokens // side for i in range(side)]


def pool(square: np.ndarray, size: int) -> np.ndarray:
    """[..., T, T] to [..., S, S]: the value of largest magnitude in each tile; S <= size."""
    side = square.shape[-1]
    if side <= size:
        return square
    starts = bounds(side, size)

    def largest(values: np.ndarray) -> np.ndarray:  # whole rows first: they lie side by side
        return np.maximum.reduceat(np.maximum.reduceat(values, starts, -2), starts, -1)

    above = largest(square)
    if np.issubdtype(square.dtype, np.unsignedinteger) or square.min() >= 0:
        return above
    below = largest(-square)
    return np.where(below > above, -below, above)


def parts(heads: int, size: int) -> Sequence[tuple[int, int]]:
    """Which heads go together in a message: (first, number), each below a megabyte."""
    each = size * (size + 1) // 2
    most = max(1, (MOST_BYTES - _ROOM_FOR_JSON) // each)
    return [(first, min(most, heads - first)) for first in range(0, heads, most)]


def packed(values: np.ndarray, kind: str) -> bytes:
    """Little-endian bytes in C order of "u1", "i4" or "f4"."""
    return np.ascontiguousarray(values, np.dtype(f"<{kind}")).tobytes()
