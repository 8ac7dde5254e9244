"""Flax's weight files (flax_model.msgpack), memory-mapped.

`flax.serialization` writes nested maps in msgpack, whose leaves are arrays in an extension type:
a msgpack of its own with shape, dtype name and row-major bytes. An array of more than 2^30 bytes
is a map of chunks. Only the structure is read here; the bytes stay in the file.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gptj_lab.checkpoints.stored import BFLOAT16, StoredTensor, check_there, map_bytes, mapped

_ARRAY = 1  # flax.serialization's code of the extension type for arrays
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32
_DTYPES = {
    "bfloat16": BFLOAT16,
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "int32", "int64")},
    **{name: np.dtype(name) for name in ("int8", "int16", "uint8", "uint32", "bool")},
}
# The last part of a parameter's path in Flax, and what Hugging Face calls it in torch.
_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class _Bytes(NamedTuple):
    offset: int
    length: int


class _Array(NamedTuple):
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


def read_flax(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file that flax.serialization wrote, named and turned as torch has them.

    Kernels, which Flax keeps as [in, out], come as transposed views.

    Raises:
        ValueError: it is truncated, or no msgpack of nested maps with arrays.
    """
    check_there(file)
    with open(file, "rb") as opened:
        reader = _Reader(opened)
        try:
            tree = reader.value()
            if opened.tell() != reader.size or not isinstance(tree, dict):
                raise ValueError("it isn't one map of parameters")
            if isinstance(tree.get("params"), dict):  # a whole state of variables was saved
                tree = tree["params"]
            leaves = dict(_leaves(tree, ""))
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise ValueError(
                f"{file} is truncated or no weight file of Flax ({error}): copy it again"
            ) from None
    found: dict[str, StoredTensor] = {}
    for path, leaf in leaves.items():
        stored = _chunked(file, leaf) if isinstance(leaf, list) else mapped(file, *leaf)
        found[torch_name(path)] = stored.transposed() if path.endswith("/kernel") else stored
    return found


def torch_name(path: str) -> str:
    """torch's name of a parameter that Flax calls `transformer/h/0/ln_1/scale`."""
    *parts, last = path.split("/")
    return ".".join([*parts, _LAST.get(last, last)])


class _Reader:
    """Reads the structure of a msgpack file, going past the bytes of arrays."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)

    def value(self, depth: int = 0) -> Any:
        """The next value: a map, list, str, number, or where bytes or an array lie."""
        if depth > _MAX_DEPTH:
            raise ValueError("its maps are nested too deep")
        (kind,) = self._take(1)
        if kind <= 0x7F or kind >= 0xE0:
            return kind if kind <= 0x7F else kind - 256
        if kind <= 0x8F:
            return self._map(kind & 0x0F, depth)
        if kind <= 0x9F:
            return self._list(kind & 0x0F, depth)
        if kind <= 0xBF:
            return self._take(kind & 0x1F).decode()
        if kind in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        return self._sized(kind, depth)

    def _sized(self, kind: int, depth: int) -> Any:
        numbers = {
            0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
            0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
        }  # fmt: skip
        if kind in numbers:
            return self._number(numbers[kind])
        sized: dict[int, tuple[str, Callable[[int], Any]]] = {}
        for first, read in (
            (0xC4, self._bytes), (0xC7, self._extension),
            (0xD9, lambda length: self._take(length).decode()),
        ):  # fmt: skip
            sized |= {first + i: (width, read) for i, width in enumerate((">B", ">H", ">I"))}
        for first, read in (
            (0xDC, lambda length: self._list(length, depth)),
            (0xDE, lambda length: self._map(length, depth)),
        ):
            sized |= {first + i: (width, read) for i, width in enumerate((">H", ">I"))}
        if 0xD4 <= kind <= 0xD8:
            return self._extension(1 << (kind - 0xD4))
        if kind not in sized:
            raise ValueError(f"the byte {kind:#x} begins no value")
        width, read = sized[kind]
        return read(self._number(width))

    def _take(self, length: int) -> bytes:
        if length > self.size - self.file.tell():
            raise ValueError("it ends too early")
        return self.file.read(length)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _list(self, length: int, depth: int) -> list[Any]:
        if length > _MAX_DEPTH:
            raise ValueError("a shape has too many axes")
        return [self.value(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise ValueError("a key is no text, or occurs twice")
            found[key] = self.value(depth + 1)
        return found

    def _bytes(self, length: int) -> _Bytes:
        here = self.file.tell()
        if length > self.size - here:
            raise ValueError("it ends within an array")
        self.file.seek(here + length)
        return _Bytes(here, length)

    def _extension(self, length: int) -> _Array:
        code = self._number(">b")
        end = self.file.tell() + length
        if code != _ARRAY:
            raise ValueError(f"it holds an extension {code}, which is no array")
        shape, name, data = self.value(_MAX_DEPTH - 2)  # a list with a list in it
        name = self._text(name)
        if name not in _DTYPES or not isinstance(data, _Bytes):
            raise ValueError(f"an array has the dtype {name!r}")
        dtype = _DTYPES[name]
        shape = _whole(shape)
        if data.length != math.prod(shape) * dtype.itemsize or self.file.tell() != end:
            raise ValueError("the bytes of an array don't fit its shape")
        return _Array(data.offset, dtype, shape)

    def _text(self, name: Any) -> str:
        """A dtype's name, which old versions of msgpack wrote as bytes."""
        if not isinstance(name, _Bytes):
            return name
        here = self.file.tell()
        self.file.seek(name.offset)
        text = self._take(min(name.length, 32)).decode()
        self.file.seek(here)
        return text


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a shape is no list of whole numbers")
    return tuple(numbers)


def _leaves(tree: dict[str, Any], prefix: str):
    """Every array of the tree, or list of its chunks with the shape first, with its path."""
    for key, value in tree.items():
        if isinstance(value, _Array):
            yield prefix + key, value
        elif isinstance(value, dict) and _CHUNKED in value:
            parts = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
            shape = _whole([value["shape"][str(i)] for i in range(len(value["shape"]))])
            if not parts or not all(isinstance(part, _Array) for part in parts):
                raise ValueError(f"{prefix}{key} has chunks that are no arrays")
            if len({part.dtype for part in parts}) != 1 or math.prod(shape) != sum(
                math.prod(part.shape) for part in parts
            ):
                raise ValueError(f"the chunks of {prefix}{key} don't fit its shape")
            yield prefix + key, [shape, *parts]
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            raise ValueError(f"{prefix}{key} is a {type(value).__name__} and no array")


def _chunked(file: Path, leaf: list[Any]) -> StoredTensor:
    shape, *parts = leaf

    def read() -> np.ndarray:
        out = np.empty(math.prod(shape), parts[0].dtype)
        start = 0
        for part in parts:
            count = math.prod(part.shape)
            out[start : start + count] = map_bytes(file, part.offset, part.dtype, part.shape)
            start += count
        return out.reshape(shape)

    return StoredTensor(shape, parts[0].dtype, read, str(file))
