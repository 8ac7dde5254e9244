"""Hugging Face directories, both ways: config.json and safetensors, single or sharded."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gptj_lab.checkpoints import families
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = ("float32", "bfloat16", "float16")


def read(directory: Path | str, dtype: str = "float32") -> tuple[ModelConfig, Transformer]:
    """The config and the network in a Hugging Face directory, its weights in `dtype`.

    Raises:
        FileNotFoundError: the directory, config.json or the weights are not there.
        ValueError: a file or tensor that isn't as the config says; the message names it.
    """
    directory = Path(directory)
    if dtype not in _DTYPES:
        raise ValueError(f"weights is {dtype!r}: one of {', '.join(_DTYPES)} is needed")
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give the folder of a checkpoint")
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json: a Hugging Face directory has config.json, "
            f"{_SINGLE} and tokenizer.json"
        )
    config = ModelConfig.from_file(directory / "config.json")
    abstract = nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0)))
    graph, shapes = nnx.split(abstract)
    parameters = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(shapes)}
    wanted = families.tensors(config, {path: leaf.shape for path, leaf in parameters.items()})

    found: dict[families.Path, jax.Array] = {}
    called: dict[str, str] = {}  # by its full name, what the file calls a tensor
    for name, tensor in _tensors(directory):
        known = families.full_name(config, name)
        if known is None:
            continue
        if known not in wanted:
            raise ValueError(
                f"{directory} holds a tensor {name} that a {config.family_title} doesn't have"
            )
        # Kernels lie transposed there, but for GPT-2's: torch keeps [out, in].
        if tensor.shape != wanted[known].shape:
            raise ValueError(
                f"{name} in {directory} has shape {tensor.shape}, which doesn't fit config.json: "
                f"it says {wanted[known].shape}"
            )
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise ValueError(f"{name} in {directory} holds NaN or infinite values: copy it again")
        first = called.setdefault(known, name)
        for path, value in wanted[known].split(tensor):
            value = jnp.asarray(value, dtype)
            if first != name and not (found[path] == value).all():
                raise ValueError(
                    f"{directory} holds {first} and {name} with different values, where "
                    "config.json says that they are the same: set tie_word_embeddings to false "
                    "if the head is one of its own, else leave out the wrong one"
                )
            found[path] = value
    missing = [name for name in wanted if name not in called]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{directory} lacks {', '.join(missing[:3])}{more}: its config.json wants "
            f"{len(wanted)} tensors, {len(wanted) - len(missing)} were found"
        )
    flat = [(path, leaf.replace(found[path])) for path, leaf in nnx.to_flat_state(shapes)]
    return config, nnx.merge(graph, nnx.from_flat_state(flat))


def write(
    directory: Path | str,
    config: ModelConfig,
    network: Transformer,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and safetensors that `read` and transformers load.

    Everything is written aside first and moved into place when it is whole, so that a full disk
    or a stop leaves the old files as they were.

    Raises:
        OSError: the directory can't be written, or the disk is full.
        ValueError: a config that Hugging Face's form of its family can't say.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    fields = config.to_hugging_face()
    ours = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}
    shapes = {path: array.shape for path, array in ours.items()}
    for name, tensor in families.tensors(config, shapes).items():
        value = tensor.join([np.asarray(ours[path]) for path in tensor.paths])
        if shards[-1] and size + value.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    count = len(shards)
    names = [_SINGLE] if count == 1 else [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]  # fmt: skip
    with replacing(directory) as aside:
        for name, shard in zip(names, shards, strict=True):
            try:
                save_file(shard, aside / name, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"{name} could not be written into {directory}: {error}") from None
        if count > 1:
            index = {
                "metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())},
                "weight_map": {t: n for n, s in zip(names, shards, strict=True) for t in s},
            }
            (aside / _INDEX).write_text(json.dumps(index, indent=2))
        fields |= {"dtype": str(network.embed.get_value().dtype)}
        (aside / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


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
            file.chmod((directory.stat().st_mode & 0o666) | 0o600)  # safetensors: owner only
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    kept = {file.name for file in written}
    for old in [*directory.glob("model*.safetensors"), directory / _INDEX]:
        if old.name not in kept:
            old.unlink(missing_ok=True)


def _tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a directory, one after another, each read when it is asked for."""
    index = directory / _INDEX
    if index.is_file():
        shards = _indexed(directory, index)
    elif (directory / _SINGLE).is_file():
        shards = {directory / _SINGLE: None}
    else:
        raise FileNotFoundError(
            f"{directory} has neither {_SINGLE} nor {_INDEX}: other forms of weights "
            "(pytorch_model.bin, flax_model.msgpack) are not read by this version"
        )
    for file, names in shards.items():
        try:
            with safe_open(file, framework="np") as tensors:
                here = set(tensors.keys())
                if names is not None and names - here:
                    raise ValueError(
                        f"{file} lacks {sorted(names - here)[0]}, which {_INDEX} places there: "
                        "copy the file again"
                    )
                for name in sorted(here if names is None else names):
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{file} is truncated or not a safetensors file ({error}): copy it again"
            ) from None


def _indexed(directory: Path, index: Path) -> dict[Path, set[str] | None]:
    """The files that an index names, each with its tensors; none of them outside the folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(tensor), str(name)) for tensor, name in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is not an index with a weight_map: copy it again") from None
    shards: dict[Path, set[str] | None] = {}
    for tensor, name in pairs:
        if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(
                f"{index} places {tensor} in {name!r}, outside its folder: "
                "only file names in the same folder are followed"
            )
        file = directory / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, but {_INDEX} names it: copy it too")
        names = shards.setdefault(file, set())
        assert names is not None
        names.add(tensor)
    return shards
