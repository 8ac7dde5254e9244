"""Hugging Face directories: config.json and weights, read in every form, written as safetensors."""

import codecs
import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gptj_lab import hugging_face_config, json_files, notices, versions
from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.companions import (
    CONFIG,
    NONE,
    Companions,
    put_adapter_by,
    put_by,
    stale,
)  # fmt: skip
from gptj_lab.checkpoints.filling import SCALE, Place, check_dtype, fill, scale_shape
from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.safetensors_files import Entry, write_safetensors
from gptj_lab.checkpoints.weights import SAFETENSORS, inside, left_behind, tensors
from gptj_lab.config import ModelConfig
from gptj_lab.hugging_face_config import int8_in_file
from gptj_lab.model.int8 import Int8Weight
from gptj_lab.model.transformer import Transformer

MAX_SHARD_BYTES = 5_000_000_000
_ASIDE = ".saving-"  # begins the name of the folder in which a checkpoint is written
_FIXES = {
    errno.ENOSPC: "free some space, or name a folder on another disk",
    errno.EDQUOT: "free some space, or name a folder on another disk",
    errno.EFBIG: "name a folder on a disk that takes such large files",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOTDIR: "a part of this path is a file, so name another folder",
    errno.EEXIST: "that is a file, so name a folder",
}


def read(
    directory: Path | str,
    dtype: str = "float32",
    *,
    place: Place | None = None,
    variant: str | None = None,
) -> tuple[ModelConfig, Transformer]:
    """The config and the network in a Hugging Face directory, its weights in `dtype`.

    The weights may be safetensors, torch's .bin or Flax's msgpack, each in one file or several;
    see `filling.fill` for how they are streamed, and for `place`, `weights.choose` for `variant`.

    Raises:
        FileNotFoundError: the directory, config.json or the weights are not there.
        ValueError: a file or tensor that isn't as the config says; the message names it.
    """
    directory = Path(directory)
    check_dtype(dtype)
    config = read_config(directory)
    return config, fill(config, tensors(directory, variant), str(directory), dtype, place)


def read_config(directory: Path) -> ModelConfig:
    """The config of a Hugging Face directory; what nobody reads in it is told in one line.

    Raises:
        FileNotFoundError: the directory or its config.json is not there.
        ValueError: config.json is not one of a network that we have.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give the folder of a checkpoint")
    if not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"{directory} has an adapter or soft prompt, no model: load its base, then "
                f"gptj_lab.finetuning.soft_prompts.load_trained(model, {str(directory)!r}); or "
                "gptj-lab generate --adapter"
            )
        raise FileNotFoundError(
            f"{directory} has no config.json: a Hugging Face directory has config.json, "
            f"{SAFETENSORS.single} and tokenizer.json"
        )
    path = inside(directory, "config.json")
    fields = json_files.read_file(path)
    config = ModelConfig.from_hugging_face(fields, str(path))
    if idle := hugging_face_config.passed_over(fields):
        shown = ", ".join(name[:40] for name in idle[:12]) + ", ..." * (len(idle) > 12)
        notices.tell(
            f"{path} says {shown}, which transformers' {config.family_title} doesn't read: "
            "passed over here too"
        )
    return config


def write(
    directory: Path | str,
    config: ModelConfig,
    network: Transformer,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    companions: Companions = NONE,
) -> None:
    """Writes config.json and safetensors that `read` and transformers load, tensor by tensor.

    Everything is written aside first and moved into place when it is whole, so that a full disk
    or a stop leaves the old files as they were.

    Args:
        companions: of the checkpoint that the network comes from; of its config.json only the
            fields that mean something else now are changed. The others are not written here.

    Raises:
        OSError: the directory can't be written, or the disk is full.
    """
    ours = {path: versions.value(leaf) for path, leaf in nnx.to_flat_state(nnx.state(network))}
    shapes = {path: value.shape for path, value in ours.items()}
    entries = [
        entry
        for tensor in families.tensors(config, shapes).values()
        for entry in _entries(tensor, [ours[path] for path in tensor.paths])
    ]
    with replacing(directory, alone=True) as aside:
        check_space(aside, sum(entry.nbytes for entry in entries))
        dtype = str(network.embed[...].dtype)
        write_entries(aside, config, entries, dtype, max_shard_bytes, companions)


def _entries(tensor: families.Tensor, values: Sequence[Any]) -> list[Entry]:
    """What is written of one tensor: itself, and beside int8 its scales."""
    if not isinstance(values[0], Int8Weight):
        return [_entry(tensor.name, tensor.shape, tensor, values)]
    scales = [value.scale for value in values]
    return [
        _entry(tensor.name, tensor.shape, tensor, [value.values for value in values]),
        _entry(tensor.name + SCALE, scale_shape(tensor), tensor, scales),
    ]


def _entry(
    name: str, shape: tuple[int, ...], tensor: families.Tensor, values: Sequence[jax.Array]
) -> Entry:
    def make() -> np.ndarray:
        # Of copies, as an array on an accelerator keeps what it once gave to the host.
        return tensor.join([np.asarray(value.copy()) for value in values]).reshape(shape)

    return Entry(name, shape, np.dtype(values[0].dtype), make)


def write_entries(
    folder: Path, config: ModelConfig, entries: Iterable[Entry], dtype: str, max_shard_bytes: int,
    companions: Companions = NONE,
) -> None:  # fmt: skip
    """Writes tensors, their index and config.json into a folder; files already there are kept.

    A file has its name only when it is whole, so what is there needn't be written again. The
    arguments are those of `write`, and `dtype`, which config.json names.

    Raises:
        OSError: the folder can't be written, or the disk is full.
    """
    entries = list(entries)
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        size = sum(other.nbytes for other in shards[-1])
        if shards[-1] and size + entry.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    count = len(shards)
    names = [SAFETENSORS.single] if count == 1 else [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]  # fmt: skip
    total = sum(entry.nbytes for shard in shards for entry in shard)
    with progress(total, "Writing") as advance:
        for name, shard in zip(names, shards, strict=True):
            if not (folder / name).exists():
                write_safetensors(folder / f"{name}.part", shard)
                os.replace(folder / f"{name}.part", folder / name)
            advance(sum(entry.nbytes for entry in shard))
    if count > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {e.name: n for n, s in zip(names, shards, strict=True) for e in s},
        }
        (folder / SAFETENSORS.index).write_text(json.dumps(index, indent=2))
    quantised = any(entry.dtype == np.int8 for entry in entries)
    (folder / CONFIG).write_bytes(_config(config, dtype, quantised, companions))


def _config(config: ModelConfig, dtype: str, quantised: bool, companions: Companions) -> bytes:
    """The config.json, of the companions' own as much as is still true."""
    before = companions.json(CONFIG)
    fields = config.to_hugging_face(before)
    fields.pop("quantization_config", None)
    if quantised:
        fields["quantization_config"] = int8_in_file(config.family)
    # transformers 4 wrote torch_dtype; both read it, 4 reads nothing else.
    names = [name for name in ("dtype", "torch_dtype") if name in fields] or ["dtype"]
    fields |= dict.fromkeys(names, dtype)
    old = companions.files.get(CONFIG, b"")
    if fields == before and not old.startswith(codecs.BOM_UTF8):  # which transformers refuses
        return old
    return json.dumps(fields, indent=2).encode() + b"\n"


@contextlib.contextmanager
def replacing(directory: Path | str, *, whole: bool = True, alone: bool = False) -> Iterator[Path]:
    """A folder to write a checkpoint into, which comes into place in `directory` when it is whole.

    If the block fails (a full disk, a stop), the files in `directory` stay as they were. Of an
    earlier checkpoint's files those that would be taken for this one's are removed (weights in
    every form, tokenizer, generation_config.json); an adapter is moved to adapter.previous; other
    files stay, a README.md as README.previous.md where it has another text.

    Args:
        whole: what is written is a model; else no file is removed.
        alone: it is a model without its companions: of those none is removed.

    Raises:
        OSError: `directory` can't be written; the message names it and the fix.
    """
    directory = folder(directory)
    made = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    aside = None
    try:
        if whole and (directory / "shard_0").is_dir():
            raise FileExistsError(
                f"{directory} holds an original release (shard_0), which would be read in place "
                "of this model: name another folder"
            )
        directory.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=directory))
        yield aside
        written = _put_in_place(aside, directory, whole)
    except OSError as error:
        raise cannot_write(directory, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        for path in made:  # the deepest first; what holds files now stays
            with contextlib.suppress(OSError):
                path.rmdir()
    if not whole:
        return
    weights = [file for file in left_behind(directory) if file.name not in written]
    for file in weights if alone else [*weights, *stale(directory, written)]:
        file.unlink(missing_ok=True)
    others = [file.name for file in weights if not SAFETENSORS.has(file.name)]
    if others:
        notices.tell(
            f"{directory} held weights of an earlier model in another form: removed "
            f"{', '.join(others[:12])}" + ", ..." * (len(others) > 12)
        )


def _put_in_place(aside: Path, directory: Path, whole: bool) -> list[str]:
    """Moves what was written into the directory; the names of its files."""
    files = [file for file in aside.rglob("*") if file.is_file()]
    written = sorted(file.relative_to(aside).as_posix() for file in files)
    for name in written:
        if (directory / name).is_dir():
            raise IsADirectoryError(f"{directory / name} is a folder: name another directory")
    put_by(directory, aside)
    if whole and (previous := put_adapter_by(directory)) is not None:
        notices.tell(
            f"{directory} held an adapter, which would be put onto the new model when it is "
            f"loaded: moved to {previous}"
        )
    for name in written:
        (directory / name).parent.mkdir(exist_ok=True)
        os.replace(aside / name, directory / name)
    return written


def folder(directory: Path | str) -> Path:
    """The path of a folder to write into.

    Raises:
        TypeError, ValueError: that isn't a path, or it is empty.
    """
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(f"directory is {directory!r:.80}: the path of a folder is needed")
    text = os.fspath(directory)
    if not text or "\0" in text:
        raise ValueError(
            f"directory is {text!r:.80}: the path of a folder is needed ('.' is this one)"
        )
    return Path(directory)


def check_space(directory: Path, needed: int) -> None:
    """Raises OSError if the disk of a directory has fewer free bytes than are needed."""
    usage = shutil.disk_usage(directory)
    if usage.total and needed > usage.free:  # some mounts tell no sizes
        raise OSError(
            errno.ENOSPC, f"it needs {needed:,} more bytes, {usage.free:,} are free there"
        )


def fix_of(error: OSError) -> str:
    """What to do about an error of the system that kept a file from being written."""
    return _FIXES.get(error.errno or 0, "name a folder that you may write to")


def cannot_write(directory: Path, error: OSError) -> OSError:
    """The error to raise in place of one of the system's: it names the user's folder and a fix."""
    if error.strerror is None:  # one of our own sentences
        return error
    while directory.name.startswith(_ASIDE):
        directory = directory.parent
    fix = fix_of(error)
    told = type(error)(
        f"{directory} can't be written ({error.strerror}): {fix}; what was there is as it was"
    )
    told.errno = error.errno
    return told
