"""Shard folders of npz files: which leaf lies where, and the leaves of all shards joined."""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptj_lab.checkpoints.stored import BFLOAT16, DTYPES, StoredTensor, check_there
from gptj_lab.checkpoints.weights import inside

PIECES = 16  # npz files a shard
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, NotImplementedError,
    RuntimeError, SyntaxError, MemoryError, KeyError, OverflowError,
)  # fmt: skip


class Leaf(NamedTuple):
    """A leaf of `params`: its shape when joined, and how the shards' parts are.

    `join` is "columns" (along the last axis), "rows" (along the first), "sum", or "replicated".
    """

    join: str
    shape: tuple[int, ...]
    title: str

    def part(self, shards: int) -> tuple[int, ...]:
        """The shape that one shard of so many holds.

        Raises:
            ValueError: the axis can't be cut so.
        """
        if self.join in ("sum", "replicated"):
            return self.shape
        axis = self.axis
        if self.shape[axis] % shards:
            raise ValueError(f"{shards} shards don't divide {self.title} of shape {self.shape}")
        part = list(self.shape)
        part[axis] //= shards
        return tuple(part)

    @property
    def axis(self) -> int:
        """The axis along which the shards are cut."""
        return len(self.shape) - 1 if self.join == "columns" else 0

    def slice(self, shard: int, shards: int) -> tuple[slice, ...]:
        """Where the part of one shard lies in the whole."""
        width = self.shape[self.axis] // shards
        here = slice(shard * width, (shard + 1) * width)
        return (*(slice(None),) * self.axis, here)


class _Place(NamedTuple):
    file: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype


def cut(count: int) -> list[range]:
    """The leaves of each of the 16 files: runs in order, the longer ones first."""
    short, longer = divmod(count, PIECES)
    ends = [(i + 1) * short + min(i + 1, longer) for i in range(PIECES)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


class StepFolder:
    """A step folder whose parameters are the last leaves but one, in every shard.

    Raises:
        FileNotFoundError: a shard's folder or file is missing.
        ValueError: the leaves are not those of so many parameters, slim or full.
    """

    def __init__(self, directory: Path, shards: int | None, num_parameters: int):
        self.directory = directory
        there = sum(1 for path in directory.glob("shard_*") if path.is_dir())
        self.shards = there if shards is None else shards
        if there > self.shards:
            raise ValueError(
                f"{directory} has {there} shard folders, its configuration json says "
                f"cores_per_replica {self.shards}: use the json that belongs to it"
            )
        self.num_parameters = num_parameters
        self.places = [list(self._leaves(shard)) for shard in range(self.shards)]
        totals = {len(places) for places in self.places}
        if len(totals) > 1:
            raise ValueError(f"the shards of {directory} differ in their leaves: copy it again")

    def joined(self, index: int, leaf: Leaf) -> StoredTensor:
        """Parameter number `index`, its shards' parts joined; sums are in float32.

        Raises:
            ValueError: a part has another shape, or isn't of floating point.
        """
        places = [shard[len(shard) - 1 - self.num_parameters + index] for shard in self.places]
        expected = leaf.part(self.shards)
        for place in places:
            if place.shape != expected:
                raise ValueError(
                    f"{place.file} holds {leaf.title} with shape {place.shape}: {expected} is "
                    f"needed, one of {self.shards} shards of {leaf.shape}"
                )
            if place.dtype != places[0].dtype or place.dtype not in DTYPES.values():
                raise ValueError(
                    f"{place.file} holds {leaf.title} as {place.dtype}: bfloat16, float16 or "
                    "float32 is needed, the same in all shards"
                )
        dtype = np.dtype(np.float32) if leaf.join == "sum" else places[0].dtype

        def read() -> np.ndarray:
            if leaf.join == "replicated":  # copies that may have drifted apart: the first counts
                return _values(places[0])
            out = np.zeros(leaf.shape, dtype)
            for shard, place in enumerate(places):
                if leaf.join == "sum":
                    out += _values(place).astype(np.float32)
                else:
                    out[leaf.slice(shard, self.shards)] = _values(place)
            return out

        return StoredTensor(leaf.shape, dtype, read, str(self.directory))

    def _leaves(self, shard: int) -> Iterator[_Place]:
        """Where every leaf of a shard lies, in order."""
        folder = inside(self.directory, f"shard_{shard}")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there: copy all shard folders")
        files = [inside(self.directory, f"shard_{shard}/{i}.npz") for i in range(PIECES)]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is not there: a shard has {PIECES} files")
        pieces = [_headers(file) for file in files]
        total = sum(len(piece) for piece in pieces)
        slim, full = self.num_parameters + 1, 3 * self.num_parameters + 3
        if total not in (slim, full):
            raise ValueError(
                f"{folder} holds {total} leaves: with {self.num_parameters} parameters a slim "
                f"checkpoint has {slim}, a full one {full}"
            )
        for file, piece, run in zip(files, pieces, cut(total), strict=True):
            if len(piece) != len(run):
                raise ValueError(f"{file} holds {len(piece)} leaves, not {len(run)}: copy it again")
            yield from piece


def _headers(file: Path) -> list[_Place]:
    """What an npz file says of its arrays, none of which is read."""
    check_there(file)
    places = []
    try:
        with zipfile.ZipFile(file) as opened:
            for i in range(len(opened.infolist())):
                info = opened.getinfo(f"arr_{i}.npy")
                if info.file_size > 0 and info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it is compressed, which that code never does")
                with opened.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    if version != (1, 0):
                        raise ValueError(f"arr_{i} has version {version} of numpy's format")
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                    rest = info.file_size - member.tell()
                if dtype == np.dtype("V2"):
                    dtype = BFLOAT16
                if dtype.hasobject:
                    raise ValueError(f"arr_{i} holds Python objects, which are never unpickled")
                if math.prod(shape) * dtype.itemsize != rest:
                    raise ValueError(f"arr_{i} claims the shape {shape}, {rest} bytes are there")
                places.append(_Place(file, f"arr_{i}", shape, dtype))
    except (*_BROKEN, OSError) as error:  # OSError: a place in the file that can't be
        raise ValueError(f"{file} is truncated or no npz file ({error}): copy it again") from None
    return places


def _values(place: _Place) -> np.ndarray:
    """One shard's part of a leaf; bfloat16 comes from numpy as two raw bytes."""
    try:
        with np.load(place.file, allow_pickle=False) as opened:
            values = opened[place.member]
    except (*_BROKEN, OSError) as error:
        raise ValueError(f"{place.file} is damaged ({error}): copy it again") from None
    return values.view(place.dtype)


def write_npz(file: Path, arrays: Sequence[np.ndarray]) -> None:
    """Writes arrays as `arr_0`, `arr_1`, ...; the file has its name only when it is whole.

    Raises:
        OSError: it can't be written, or the disk is full.
    """
    raw = [array.view("V2") if array.dtype == BFLOAT16 else array for array in arrays]
    part = file.with_name(f"{file.name}.part")
    with open(part, "wb") as out:
        np.savez(out, *raw)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, file)
