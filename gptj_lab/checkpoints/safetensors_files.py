"""safetensors files, tensor by tensor: the library checks a header, the bytes are mapped here.

Its own functions map a whole file, or want a whole file's tensors in memory to write it.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gptj_lab.checkpoints.stored import BFLOAT16, StoredTensor, check_there, mapped

_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": BFLOAT16, "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32), "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_), "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(NamedTuple):
    """A tensor to write; `make` gives its values when their turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order in which they lie there.

    Raises:
        ValueError: it is truncated, or no safetensors file.
    """
    check_there(file)
    try:
        with safe_open(file, framework="np"):  # checks the header, and the size against it
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or not a safetensors file ({error}): copy it again"
        ) from None
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    found: dict[str, StoredTensor] = {}
    for name, fields in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if fields["dtype"] not in _DTYPES:
            raise ValueError(
                f"{name} in {file} has dtype {fields['dtype']}: float32, bfloat16 or float16 "
                "is needed"
            )
        offset = 8 + size + fields["data_offsets"][0]
        found[name] = mapped(file, offset, _DTYPES[fields["dtype"]], tuple(fields["shape"]))
    return found


def write_safetensors(file: Path, entries: Iterable[Entry]) -> None:
    """Writes a file tensor by tensor; it is on the disk when this returns.

    Raises:
        OSError: it can't be written, or the disk is full.
    """
    entries = list(entries)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * ((56 - len(text)) % 64)  # behind 8 bytes of length: tensors lie aligned
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for entry in entries:
            values = np.ascontiguousarray(entry.make(), entry.dtype)
            if values.shape != entry.shape:
                raise ValueError(f"{entry.name} has shape {values.shape}, not {entry.shape}")
            out.write(values.reshape(-1).view(np.uint8).data)
        out.flush()
        os.fsync(out.fileno())
