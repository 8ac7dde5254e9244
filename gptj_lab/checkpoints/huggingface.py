"""Hugging Face directories: config.json and weights, read in every form, written as safetensors."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from flax import nnx

from gptj_lab.checkpoints.filling import Naming, ParameterPath, Place, check_dtype, fill
from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.safetensors_files import Entry, write_safetensors
from gptj_lab.checkpoints.weights import SAFETENSORS, inside, tensors
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

MAX_SHARD_BYTES = 5_000_000_000
# Buffers that old files hold beside the weights.
_IGNORED = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)$")

_BLOCK = {
    ("ln", "scale"): "ln_1.weight",
    ("ln", "bias"): "ln_1.bias",
    ("attn", "q", "kernel"): "attn.q_proj.weight",
    ("attn", "k", "kernel"): "attn.k_proj.weight",
    ("attn", "v", "kernel"): "attn.v_proj.weight",
    ("attn", "out", "kernel"): "attn.out_proj.weight",
    ("mlp", "fc_in", "kernel"): "mlp.fc_in.weight",
    ("mlp", "fc_in", "bias"): "mlp.fc_in.bias",
    ("mlp", "fc_out", "kernel"): "mlp.fc_out.weight",
    ("mlp", "fc_out", "bias"): "mlp.fc_out.bias",
}
_OUTER = {
    ("embed",): "transformer.wte.weight",
    ("final_ln", "scale"): "transformer.ln_f.weight",
    ("final_ln", "bias"): "transformer.ln_f.bias",
    ("head", "kernel"): "lm_head.weight",
    ("head", "bias"): "lm_head.bias",
}

_OUTER_PATHS = {name: path for path, name in _OUTER.items()}
_BLOCK_PATHS = {name: path for path, name in _BLOCK.items()}


def tensor_name(path: tuple) -> str:
    """Hugging Face's name of the parameter at `path` in a Transformer."""
    if path[0] == "blocks":
        return f"transformer.h.{path[1]}.{_BLOCK[tuple(path[2:])]}"
    return _OUTER[tuple(path)]


def parameters(name: str, values: np.ndarray) -> list[tuple[ParameterPath, np.ndarray]]:
    """Our parameters in a tensor of that name, as paths with views of the values.

    Raises:
        KeyError: a GPT-J has no such tensor.
    """
    name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    if _IGNORED.match(name):
        return []
    if name in _OUTER_PATHS:
        path = _OUTER_PATHS[name]
    else:
        block = re.fullmatch(r"transformer\.h\.(0|[1-9]\d{0,5})\.(.+)", name)
        if block is None:
            raise KeyError(name)
        path = ("blocks", int(block[1]), *_BLOCK_PATHS[block[2]])
    # Kernels lie transposed there: torch keeps [out, in]. The embedding does not.
    return [(path, values.T if path[-1] == "kernel" else values)]


NAMING = Naming(ours=parameters, theirs=tensor_name)


def read(
    directory: Path | str, dtype: str = "float32", *, place: Place | None = None
) -> tuple[ModelConfig, Transformer]:
    """The config and the network in a Hugging Face directory, its weights in `dtype`.

    The weights may be safetensors, torch's .bin or Flax's msgpack, each in one file or several;
    see `filling.fill` for how they are streamed, and for `place`.

    Raises:
        FileNotFoundError: the directory, config.json or the weights are not there.
        ValueError: a file or tensor that isn't as the config says; the message names it.
    """
    directory = Path(directory)
    check_dtype(dtype)
    config = read_config(directory)
    return config, fill(config, tensors(directory), NAMING, str(directory), dtype, place)


def read_config(directory: Path) -> ModelConfig:
    """The config of a Hugging Face directory.

    Raises:
        FileNotFoundError: the directory or its config.json is not there.
        ValueError: config.json is not one of a network that we have.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give the folder of a checkpoint")
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json: a Hugging Face directory has config.json, "
            f"{SAFETENSORS.single} and tokenizer.json"
        )
    return ModelConfig.from_file(inside(directory, "config.json"))


def write(
    directory: Path | str,
    config: ModelConfig,
    network: Transformer,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json and safetensors that `read` and transformers load, tensor by tensor.

    Everything is written aside first and moved into place when it is whole, so that a full disk
    or a stop leaves the old files as they were.

    Raises:
        OSError: the directory can't be written, or the disk is full.
    """
    entries = [
        _entry(path, leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(network))
    ]
    with replacing(directory) as aside:
        write_entries(aside, config, entries, str(network.embed.get_value().dtype), max_shard_bytes)


def _entry(path: ParameterPath, value) -> Entry:
    kernel = path[-1] == "kernel"

    def make() -> np.ndarray:
        # Of a copy, as an array on an accelerator keeps what it once gave to the host.
        host = np.asarray(value.copy())
        return host.T if kernel else host

    shape = value.shape[::-1] if kernel else value.shape
    return Entry(tensor_name(path), shape, np.dtype(value.dtype), make)


def write_entries(
    folder: Path, config: ModelConfig, entries: Iterable[Entry], dtype: str, max_shard_bytes: int
) -> None:
    """Writes tensors, their index and config.json into a folder; files already there are kept.

    A file has its name only when it is whole, so what is there needn't be written again.

    Raises:
        OSError: the folder can't be written, or the disk is full.
    """
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
    fields = config.to_hugging_face() | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


@contextlib.contextmanager
def replacing(directory: Path | str) -> Iterator[Path]:
    """A folder to write a checkpoint into, which comes into place in `directory` when it is whole.

    If the block fails (a full disk, a stop), the files in `directory` stay as they were. Weights
    of an earlier checkpoint that were not written again are removed; other files stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        yield aside
        written = sorted(aside.iterdir())
        for file in written:
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    kept = {file.name for file in written}
    for old in [*directory.glob("model*.safetensors"), directory / SAFETENSORS.index]:
        if old.name not in kept:
            old.unlink(missing_ok=True)
