"""torch's weight files (pytorch_model.bin), memory-mapped and without torch.

Since torch 1.6 such a file is a zip archive of stored, not compressed, entries: `data.pkl`, a
pickle of the state dict, whose tensors refer to `data/0`, `data/1`, ... by name. The pickle goes
through our own interpreter (pickles.py), which can't run anything.
"""

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptj_lab.checkpoints.pickles import MAX_BYTES, Interpreter, Refused
from gptj_lab.checkpoints.stored import BFLOAT16, StoredTensor, check_there, map_bytes

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch before 1.6
# All that zipfile raises for damage; OSError, as it seeks to wherever the file says.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError,
    ValueError, OverflowError, OSError,
)  # fmt: skip
_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Archive(NamedTuple):
    file: Path
    entries: dict[str, zipfile.ZipInfo]
    root: str
    little: bool
    intact: set[str]  # keys of storages whose checksum was found right

    def storage(self, storage: _Storage) -> np.ndarray:
        """All numbers of a storage, mapped; its checksum is compared the first time."""
        info = self.entries[f"{self.root}/data/{storage.key}"]
        size = storage.count * storage.dtype.itemsize
        if info.file_size != size:
            raise ValueError(
                f"{self.file} holds {info.file_size:,} bytes for a storage of {size:,}: "
                "copy it again"
            )
        raw = map_bytes(self.file, _data_offset(self.file, info), np.dtype(np.uint8), (size,))
        if storage.key not in self.intact:
            if zlib.crc32(raw.data) != info.CRC:
                raise ValueError(
                    f"{self.file} was changed on its way: the checksum of {info.filename} "
                    "doesn't fit. Copy it again"
                )
            self.intact.add(storage.key)
        if self.little:
            return raw.view(storage.dtype)
        width = storage.dtype.itemsize
        return raw.view(f">u{width}").astype(f"<u{width}").view(storage.dtype)


def read_torch(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict that torch.save wrote, by name.

    Raises:
        ValueError: it is truncated, in the format from before torch 1.6, no plain state dict, or
            its pickle asks for anything that a state dict doesn't need; nothing of it is run.
    """
    check_there(file)
    with open(file, "rb") as opened:
        beginning = opened.read(16)
    if beginning.startswith(_LEGACY[:14]):
        raise ValueError(
            f"{file} has the format from before torch 1.6, which can't be mapped: convert it once "
            f"with torch: torch.save(torch.load({file.name!r}, weights_only=True), {file.name!r})"
        )
    try:
        with zipfile.ZipFile(file) as opened:
            archive = _archive(file, opened)
            info = archive.entries[f"{archive.root}/data.pkl"]
            if info.file_size > MAX_BYTES:
                raise zipfile.BadZipFile(f"its data.pkl claims {info.file_size:,} bytes")
            pickle = opened.read(info)
    except _BROKEN as error:
        raise ValueError(
            f"{file} is truncated or no torch weight file ({error}): copy it again"
        ) from None
    try:
        state = Interpreter(_names(), _persistent).run(pickle)
    except Refused as error:
        raise ValueError(
            f"{file} is refused, nothing of it was run: {error}. "
            "Get the weights as safetensors, from someone whom you trust"
        ) from None
    except ValueError as error:
        raise ValueError(f"the pickle in {file} is damaged ({error}): copy it again") from None
    return _tensors(archive, state)


def _archive(file: Path, opened: zipfile.ZipFile) -> _Archive:
    entries = {info.filename: info for info in opened.infolist()}
    if len(entries) != len(opened.infolist()):
        raise zipfile.BadZipFile("an entry occurs twice")
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise zipfile.BadZipFile("it has no data.pkl, or several")
    order = f"{roots[0]}/byteorder"
    little = order not in entries or opened.read(order).strip() == b"little"
    return _Archive(file, entries, roots[0], little, set())


def _names() -> dict[str, Any]:
    """All that a state dict's pickle may ask for, as functions that make inert values."""
    storages = {f"torch {name}": _StorageType(dtype) for name, dtype in _STORAGES.items()}
    return {
        "collections OrderedDict": lambda *items: _ordered(*items),
        "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils _rebuild_parameter": lambda data, requires_grad, hooks: data,
        **storages,
    }


def _ordered(*items: Any) -> dict:
    if items:
        raise Refused("it makes an OrderedDict of values of its own")
    return {}


def _rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> _Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise TypeError("a tensor without a storage, or whose strides don't fit its shape")
    if not all(type(number) is int and 0 <= number < 2**60 for number in numbers):
        raise TypeError("a tensor whose shape, strides or offset are no whole numbers")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _persistent(identity: Any) -> _Storage:
    kind, storage, key, _, count = identity
    if kind != "storage" or not isinstance(storage, _StorageType):
        raise TypeError("a reference to something else than a storage")
    if type(key) is not str or type(count) is not int or count < 0:
        raise TypeError("a storage without a name or a length")
    return _Storage(key, storage.dtype, count)


def _tensors(archive: _Archive, state: Any) -> dict[str, StoredTensor]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{archive.file} is no state dict: a dict from names to tensors is needed")
    found: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(
                f"{archive.file} holds {name!r}, which is a {type(tensor).__name__} and no tensor: "
                "only plain state dicts are read, so save the model's state_dict() alone"
            )
        found[name] = _stored(archive, name, tensor)
    return found


def _stored(archive: _Archive, name: str, tensor: _Tensor) -> StoredTensor:
    storage = tensor.storage
    info = archive.entries.get(f"{archive.root}/data/{storage.key}")
    reach = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True)
    )
    if info is None or (math.prod(tensor.size) and reach >= storage.count):
        raise ValueError(
            f"{name} in {archive.file} lies in a part of the file that isn't there: copy it again"
        )
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            f"{name} in {archive.file} is compressed or encrypted, which torch never does: "
            "save it again with torch"
        )

    def read() -> np.ndarray:
        values = archive.storage(storage)[tensor.offset :]
        strides = [stride * storage.dtype.itemsize for stride in tensor.stride]
        if not math.prod(tensor.size):
            return np.empty(tensor.size, storage.dtype)
        return np.lib.stride_tricks.as_strided(values, tensor.size, strides, writeable=False)

    return StoredTensor(tensor.size, storage.dtype, read, str(archive.file))


def _data_offset(file: Path, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its own header, which the directory doesn't tell."""
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(min(max(info.header_offset, 0), size))
        header = opened.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{file} has no entry where {info.filename} should be: copy it again")
        name, extra = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + 30 + name + extra
        if offset + info.file_size > size:
            raise ValueError(f"{file} ends within {info.filename}: copy it again")
    return offset
