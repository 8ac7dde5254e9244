"""TFRecords of token ids, as the original GPT-J trained on, read without TensorFlow."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int, UInt32

from gptj_lab.corpora.passages import Passage, ReadingNotes

_TOGETHER = 256  # records whose checksums are computed side by side
_LARGEST = 1 << 28  # bytes of a record; a longer one is a damaged length


def _castagnoli() -> UInt32[np.ndarray, "256"]:
    """CRC-32C's table (RFC 3720)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_TABLE = _castagnoli()


def masked_checksums(records: list[bytes]) -> UInt32[np.ndarray, "records"]:
    """TFRecord's masked CRC-32C of each record, all computed side by side.

    Zeros in front don't change a checksum that starts from 0; one that starts from all ones is
    that of the record with its first four bytes inverted.
    """
    length = max(4, *(len(record) for record in records))
    columns = np.zeros((length, len(records)), np.uint8)
    short = [len(record) < 4 for record in records]
    for i, record in enumerate(records):
        columns[length - len(record) :, i] = np.frombuffer(record, np.uint8)
        if not short[i]:
            columns[length - len(record) : length - len(record) + 4, i] ^= 0xFF
    state = np.zeros(len(records), np.uint32)
    for column in columns:
        state = _TABLE[(state ^ column) & 0xFF] ^ (state >> np.uint32(8))
    state = ~state
    for i in np.flatnonzero(short):
        state[i] = _plain_checksum(records[i])
    return ((state >> np.uint32(15)) | (state << np.uint32(17))) + np.uint32(0xA282EAD8)


def _plain_checksum(record: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in record:
        state = int(_TABLE[(state ^ byte) & 0xFF]) ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def index_files(path: Path) -> list[Path]:
    """The TFRecord files that an index lists, a line each, all beside it.

    A line such as gs://bucket/folder/name.tfrecords stands for name.tfrecords next to the index.

    Raises:
        FileNotFoundError: a listed file isn't there.
        ValueError: the index lists nothing.
    """
    listed = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not listed:
        raise ValueError(f"{path} lists no file: write a TFRecord file's name on each line")
    files = [path.parent / line.rsplit("/", 1)[-1] for line in listed]
    for file, line in zip(files, listed, strict=True):
        if not file.is_file():
            raise FileNotFoundError(f"{path} lists {line}: copy it to {file}")
    return files


def record_passages(path: Path, notes: ReadingNotes) -> Iterator[Passage]:
    """The token windows of a file, each as it was cut.

    Checksums of lengths and contents are compared: a damaged record is noted and left out, after
    a damaged length the rest of the file can't be found and is left out. The original's file names
    end in the number of records, as name_1024.tfrecords does: another number is noted.
    """
    with path.open("rb") as file:
        number = 0
        while records := _some_records(file, path, number, notes):
            sums = masked_checksums([record for record, _ in records])
            for (record, expected), found in zip(records, sums, strict=True):
                number += 1
                place = f"{path.name} record {number:,}"
                if int(found) != expected:
                    notes.skip("a damaged record (its checksum is wrong), left out", place)
                    continue
                try:
                    tokens = _tokens(record)
                except (ValueError, IndexError) as error:
                    notes.skip(f"a record that holds no token ids, left out: {error}", place)
                    continue
                yield Passage(None, origin=path.name, token_ids=tokens)
    named = re.search(r"_(\d+)\.tfrecords?$", path.name)
    if named and int(named[1]) != number:
        notes.remark("a TFRecord file whose name tells another count", f"{path.name} ({number:,})")


def _some_records(
    file: BinaryIO, path: Path, done: int, notes: ReadingNotes
) -> list[tuple[bytes, int]]:
    """Up to _TOGETHER records, each with the checksum that the file gives it."""
    records = []
    while len(records) < _TOGETHER and (head := file.read(12)):
        fault = "the file ends inside a record"
        if len(head) == 12:
            length, checksum = struct.unpack("<QI", head)
            if int(masked_checksums([head[:8]])[0]) != checksum or length > _LARGEST:
                fault = "a length's checksum is wrong"
            else:
                body = file.read(length + 4)
                if len(body) == length + 4:
                    records.append((body[:-4], struct.unpack("<I", body[-4:])[0]))
                    continue
        place = f"{path.name} after record {done + len(records):,}"
        notes.skip(f"a TFRecord file cut short: {fault}, the rest is left out", place)
        file.seek(0, 2)
    return records


def _tokens(example: bytes) -> Int[np.ndarray, "seq"]:
    """The int64 list `text` of a tf.train.Example."""
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            if _fields(entry, 1)[:1] == [b"text"]:
                lists = [part for value in _fields(entry, 2) for part in _fields(value, 3)]
                return _varints(b"".join(part for ints in lists for part in _packed(ints)))
    raise ValueError("no feature `text`")


def _packed(ints: bytes) -> list[bytes]:
    """The varints of an Int64List, packed or one by one."""
    place, found = 0, []
    while place < len(ints):
        tag, place = _varint(ints, place)
        if tag == 0x0A:
            length, place = _varint(ints, place)
            end = place + length
        elif tag == 0x08:
            _, end = _varint(ints, place)
        else:
            raise ValueError(f"an Int64List with the tag {tag}")
        found.append(ints[place:end])
        place = end
    return found


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The length-delimited fields of this number in a protobuf message."""
    place, found = 0, []
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 != 2:
            raise ValueError(f"a field of wire type {tag & 7} where text or a message is needed")
        length, place = _varint(message, place)
        if place + length > len(message):
            raise ValueError("a field that is longer than its message")
        if tag >> 3 == wanted:
            found.append(message[place : place + length])
        place += length
    return found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than ten bytes")


def _varints(data: bytes) -> Int[np.ndarray, "seq"]:
    """All varints of a run, each below 2^31."""
    values = np.frombuffer(data, np.uint8).astype(np.int64)
    ends = np.flatnonzero(values < 0x80)
    if not len(ends) or ends[-1] != len(values) - 1:
        raise ValueError("no token ids, or a list that breaks off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 4:
        raise ValueError("a token id that is negative or above 2^31")
    return np.add.reduceat((values & 0x7F) << (7 * places), starts)
