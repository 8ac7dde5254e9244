"""From any checkpoint to a Hugging Face directory or an original release, file by file."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gptj_lab.checkpoints import families, huggingface, mesh_transformer, npz_shards, weights
from gptj_lab.checkpoints.companions import Companions, carry
from gptj_lab.checkpoints.filling import SCALE, checked, parameter_shapes, quantised, scale_shape
from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.safetensors_files import Entry
from gptj_lab.checkpoints.stored import DTYPES, StoredTensor, converted
from gptj_lab.config import ModelConfig
from gptj_lab.model import int8
from gptj_lab.tokenizer import Tokenizer

FORMS = ("huggingface", "mesh-transformer")
_PLAN = "converting.json"


def convert(
    source: Path | str,
    target: Path | str,
    to: str,
    *,
    dtype: str | None = None,
    shards: int = 8,
    max_shard_bytes: int = huggingface.MAX_SHARD_BYTES,
    variant: str | None = None,
    weights_in: Path | None = None,
) -> None:
    """Writes the checkpoint in `source` anew as `target`, one tensor in memory at a time.

    `target` appears when it is whole; until then the files lie in a hidden folder beside it. After
    a stop or a full disk, the same call goes on with the files that are whole. The small files
    beside the weights (tokenizer, chat template, model card) come along as they are.

    Args:
        source: a Hugging Face directory (safetensors, .bin, msgpack), or an original release.
        target: a folder that is not there yet, or empty.
        to: "huggingface" (safetensors), or "mesh-transformer" (the slim form).
        dtype: "float32", "bfloat16" or "float16"; by default that of most of the weights. Or
            "int8", for "huggingface" alone: the blocks' matrices, the rest stays as it is (see
            `LanguageModel.save` for what reads it).
        shards: shard folders of "mesh-transformer".
        max_shard_bytes: of one file of "huggingface".
        variant: of the weights in `source`; see `load`.
        weights_in: the folder of the weights, where they don't lie in `source`.

    Raises:
        ValueError, TypeError: what is asked for, or what `source` holds, can't be.
        FileNotFoundError: a file of `source` is missing.
        OSError: `target` is in use, can't be written, or the disk is full.
    """
    source, named = Path(source), huggingface.folder(target)
    target = named.absolute()
    if to not in FORMS:
        raise ValueError(
            f"to is {to!r}: one of {', '.join(FORMS)} is needed (.bin and msgpack are only read)"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: name a folder that is not, or empty it")
    weights_in = weights_in or source
    config, tensors = _opened(source, weights_in, variant)
    companions = Companions.read(source)
    tensors = checked(config, tensors, str(source))
    plain = _prevailing(tensors)
    if dtype is None:
        is_int8 = any(tensor.dtype == np.int8 for tensor in tensors.values())
        dtype = "int8" if is_int8 and to == "huggingface" else plain
    allowed = (*DTYPES, "int8") if to == "huggingface" else tuple(DTYPES)
    if dtype not in allowed:
        raise ValueError(f"weights is {dtype!r}: one of {', '.join(allowed)} is needed for {to}")
    forms = families.tensors(config, parameter_shapes(config))
    if dtype != "int8":
        tensors, plain = _dequantised(tensors, forms), dtype
    entries = _entries(tensors, forms, plain, dtype == "int8")
    fields = mesh_transformer.to_fields(config, shards) if to == "mesh-transformer" else None
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}: at least 1 is needed")

    work = target.with_name(f".{target.name}.converting")
    files = _fingerprint(weights_in, variant)
    plan = [str(source.resolve()), files, to, dtype, shards, max_shard_bytes]
    try:
        _begin(work, plan)
    except OSError as error:
        raise huggingface.cannot_write(named, error) from error
    try:
        done = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
        huggingface.check_space(work, sum(entry.nbytes for entry in entries) - done)
        if fields is None:
            huggingface.write_entries(work, config, entries, plain, max_shard_bytes, companions)
        else:
            _write_release(work, config, tensors, dtype, shards)
            text = json.dumps(fields, indent=2) + "\n"
            (work / mesh_transformer.CONFIG_NAME).write_text(text)
        carry(companions, tokenizer_of(source, config), work)
        (work / _PLAN).unlink()
        if target.exists():
            target.rmdir()
        work.rename(target)
    except ValueError:  # something in the source: nothing of this can be used again
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise OSError(
            f"{named} is not finished ({error.strerror or error}): {huggingface.fix_of(error)}. "
            f"The files that are whole are kept in {work}: the same command goes on with them"
        ) from error


def tokenizer_of(directory: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer in a checkpoint's folder; for an original release else GPT-2's, if it fits.

    Raises:
        ValueError: its files are damaged.
    """
    try:
        return Tokenizer.from_directory(directory)
    except FileNotFoundError:
        spare = {50257: 0, 50400: 143}.get(config.vocab_size)
        if spare is None or not mesh_transformer.is_release(directory):
            return None
        return Tokenizer.gpt2(spare)


def _opened(
    source: Path, weights_in: Path, variant: str | None
) -> tuple[ModelConfig, Mapping[str, StoredTensor]]:
    if mesh_transformer.is_release(source):
        mesh_transformer.refuse_variant(source, variant)
        return mesh_transformer.tensors(source)
    return huggingface.read_config(source), weights.tensors(weights_in, variant)


def _prevailing(tensors: Mapping[str, StoredTensor]) -> str:
    """The dtype that most of the bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[str(tensor.dtype)] += tensor.nbytes
    return max(
        (name for name in sizes if name in DTYPES), key=lambda n: sizes[n], default="float32"
    )


def _dequantised(
    tensors: Mapping[str, StoredTensor], forms: Mapping[str, families.Tensor]
) -> dict[str, StoredTensor]:
    """The same tensors, int8 ones as the float32 that they stand for."""

    def whole(form: families.Tensor, tensor: StoredTensor, scales: StoredTensor) -> StoredTensor:
        def read() -> np.ndarray:
            scale = converted(scales.read(), "float32", form.name + SCALE, scales.where)
            values = tensor.read()
            if form.conv1d:
                return int8.dequantize(values.T, scale).T
            return int8.dequantize(values, scale)

        return StoredTensor(tensor.shape, DTYPES["float32"], read, tensor.where)

    return {
        name: whole(forms[name], tensor, tensors[name + SCALE])
        if tensor.dtype == np.int8
        else tensor
        for name, tensor in tensors.items()
        if name in forms
    }


def _entries(
    tensors: Mapping[str, StoredTensor],
    forms: Mapping[str, families.Tensor],
    plain: str,
    to_int8: bool,
) -> list[Entry]:
    """What is to be written, under Hugging Face's full names: all `plain`, or matrices int8."""

    def entry(name: str, tensor: StoredTensor, dtype: str) -> Entry:
        def make() -> np.ndarray:
            return converted(tensor.read(), dtype, name, tensor.where)

        return Entry(name, tensor.shape, DTYPES[dtype], make)

    found: list[Entry] = []
    for name, form in forms.items():
        tensor = tensors[name]
        if not (to_int8 and quantised(form.paths[0])):
            found.append(entry(name, tensor, plain))
        elif tensor.dtype == np.int8:
            found.append(Entry(name, tensor.shape, tensor.dtype, tensor.read))
            scales = tensors[name + SCALE].reshaped(scale_shape(form))
            found.append(entry(name + SCALE, scales, "float32"))
        else:
            found += _quantised(form, tensor)
    return found


def _quantised(form: families.Tensor, tensor: StoredTensor) -> list[Entry]:
    """A matrix as int8, and its scales, which are kept from when the matrix was made."""
    kept: list[np.ndarray] = []

    def values() -> np.ndarray:
        parts = [
            int8.quantize(converted(part, "float32", form.name, tensor.where))
            for _, part in form.split(tensor.read())
        ]
        kept[:] = [form.join([scale for _, scale in parts])]
        return form.join([value for value, _ in parts])

    def scales() -> np.ndarray:
        if not kept:  # the matrix lies in a file that was whole already
            values()
        return kept[0].reshape(scale_shape(form))

    return [
        Entry(form.name, tensor.shape, np.dtype(np.int8), values),
        Entry(form.name + SCALE, scale_shape(form), DTYPES["float32"], scales),
    ]


def _fingerprint(source: Path, variant: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of the weights."""
    if mesh_transformer.is_release(source):
        files = sorted(source.glob("shard_*/*.npz"))
    else:
        files = weights.weight_files(source, variant)
    stats = [(str(file.relative_to(source)), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _begin(work: Path, plan: list) -> None:
    """Makes the work folder; files of another conversion in it are removed first."""
    text = json.dumps(plan)
    file = work / _PLAN
    if work.exists() and not (file.is_file() and file.read_text() == text):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _write_release(
    work: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor], dtype: str, shards: int
) -> None:
    """Writes the slim form, one npz file in memory at a time."""
    parameters = mesh_transformer.parameters(config)
    total = config.num_parameters * DTYPES[dtype].itemsize
    with progress(total, "Writing") as advance:
        for piece, run in enumerate(npz_shards.cut(len(parameters) + 1)):
            for shard in range(shards):
                (work / f"shard_{shard}").mkdir(exist_ok=True)
                file = work / f"shard_{shard}" / f"{piece}.npz"
                if not file.exists():
                    step = [np.zeros((), np.int32)] if len(parameters) in run else []
                    parts = [
                        _part(parameter, tensors, dtype, shard, shards)
                        for parameter in parameters[run.start : run.stop]
                    ]
                    npz_shards.write_npz(file, parts + step)  # other forms don't keep the step
                advance(file.stat().st_size)


def _part(
    parameter: mesh_transformer.Parameter, tensors: Mapping[str, StoredTensor], dtype: str,
    shard: int, shards: int,
) -> np.ndarray:  # fmt: skip
    """What one shard holds of one parameter."""
    leaf = parameter.part
    if not parameter.name or (leaf.join == "sum" and shard):
        return np.zeros(leaf.part(shards), DTYPES[dtype])  # a sum lies whole in the first shard
    tensor = tensors[parameter.name]
    view = tensor.read()
    view = view.T if parameter.turned else view
    if leaf.join not in ("sum", "replicated"):
        view = view[leaf.slice(shard, shards)]
    return converted(view, dtype, parameter.name, tensor.where)
