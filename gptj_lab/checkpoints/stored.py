"""A tensor in a file: shape and dtype are known at once, its values are read when asked for."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
}
# A number whose exponent has all bits set is NaN or infinite: for 4, and for 2 bytes.
_EXPONENT = {np.dtype(np.float32): 0x7F800000, BFLOAT16: 0x7F80, np.dtype(np.float16): 0x7C00}
_LFS = b"version https://git-lfs.github.com/spec/"
_BLOCK = 1 << 22  # numbers checked at once


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        shape, dtype: as in the file.
        read: gives the values, mapped from the file where its format allows that; they must not
            be written to, and the file is held open as long as they live.
        where: the file, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    where: str

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the file's dtype."""
        return math.prod(self.shape) * self.dtype.itemsize

    def transposed(self) -> "StoredTensor":
        """The same tensor with its axes in the opposite order; nothing is copied."""
        return StoredTensor(self.shape[::-1], self.dtype, lambda: self.read().T, self.where)

    def reshaped(self, shape: tuple[int, ...]) -> "StoredTensor":
        """The same values in the same order with another shape."""
        return StoredTensor(shape, self.dtype, lambda: self.read().reshape(shape), self.where)

    def stand_in(self) -> np.ndarray:
        """Zeros of the same shape and dtype that take no memory: to try views and shapes on."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)


def check_there(file: Path) -> None:
    """Raises ValueError for a file that is empty, or a pointer that Git LFS left in its place."""
    with open(file, "rb") as opened:
        beginning = opened.read(len(_LFS))
    if not beginning:
        raise ValueError(f"{file} is empty: copy it again")
    if is_lfs_pointer(beginning):
        raise ValueError(pointer_sentence(file))


def is_lfs_pointer(beginning: bytes) -> bool:
    """Whether these are the first bytes of a pointer that Git LFS leaves in place of a file."""
    return beginning.startswith(_LFS)


def pointer_sentence(file: Path) -> str:
    """What to do about a file that is a Git LFS pointer."""
    return (
        f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, "
        "or download it again"
    )


def mapped(file: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> StoredTensor:
    """The row-major tensor at a byte offset of a file, memory-mapped while its values live."""
    return StoredTensor(
        shape, dtype, lambda: map_bytes(file, offset, dtype, shape).reshape(shape), str(file)
    )


def map_bytes(file: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers that a tensor of this shape takes at a byte offset of a file, as one row.

    A mapping of its own for each tensor, so that its pages leave memory with it.
    """
    count = math.prod(shape)
    if not count:
        return np.empty(0, dtype)
    raw = np.memmap(file, np.uint8, "r", offset, (count * dtype.itemsize,))
    return raw.view(np.ndarray).view(dtype)


def converted(view: np.ndarray, dtype: str, name: str, where: str) -> np.ndarray:
    """A contiguous copy of `view` in `dtype`, aligned so that JAX on the CPU need not copy again.

    Raises:
        ValueError: numbers that are not floating point, or NaN or infinite; also those which
            `dtype` can't hold.
    """
    if view.dtype not in (*DTYPES.values(), np.dtype(np.float64)):
        raise ValueError(
            f"{name} in {where} has dtype {view.dtype}: float32, bfloat16 or float16 is needed"
        )
    out = aligned(view.shape, DTYPES[dtype])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
        if view.ndim == 2 and view.strides[0] < view.strides[1]:
            # Lies transposed in the file: 64 of its rows at a time fill whole cache lines here.
            for start in range(0, view.shape[1], 64):
                out[:, start : start + 64] = view[:, start : start + 64]
        else:
            out[...] = view
    if not _finite(out):
        if np.isfinite(view).all():
            raise ValueError(
                f"{name} in {where} holds numbers that are too large for {dtype}: "
                "load it as bfloat16 or float32"
            )
        raise ValueError(
            f"{name} in {where} holds NaN or infinite values: the training that wrote it "
            "diverged (take a checkpoint from before that), or the file is damaged"
        )
    return out


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that begins at a multiple of 64 bytes, as JAX wants it on the CPU."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite; looks at bits, as that takes no float32 copy."""
    word = np.uint32 if values.dtype.itemsize == 4 else np.uint16
    bits = values.reshape(-1).view(word)
    exponent = word(_EXPONENT[values.dtype])
    return not any(
        ((bits[start : start + _BLOCK] & exponent) == exponent).any()
        for start in range(0, bits.size, _BLOCK)
    )
