"""Which file of a Hugging Face directory holds the weights, and every tensor in it.

A directory may hold several forms; safetensors are taken first, then torch's .bin, then Flax's
msgpack. Each comes as one file, or as several with an index; where both are, the one file is read.
Their names may have a variant in them, as transformers' save_pretrained(variant="fp16") writes it:
model.fp16.safetensors.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from gptj_lab import json_files, notices
from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.flax_files import read_flax, torch_name
from gptj_lab.checkpoints.safetensors_files import read_safetensors
from gptj_lab.checkpoints.stored import StoredTensor
from gptj_lab.checkpoints.torch_files import read_torch


@dataclasses.dataclass(frozen=True)
class Form:
    """One form in which weights lie in a directory.

    Attributes:
        single, index, shards: the file that holds all; or the index, and a pattern of its files.
        read: the tensors of one file by name.
        spelling: turns a name in the index into the name that `read` gives.
        variant: what the names of its files have in them; None for the plain ones.
    """

    single: str
    index: str
    shards: str
    read: Callable[[Path], dict[str, StoredTensor]]
    spelling: Callable[[str], str] = str
    variant: str | None = None

    def of(self, variant: str) -> "Form":
        """The same form in files of a variant: model.fp16.safetensors, its index and its shards."""
        names = {
            field: ".".join([*name.split(".")[:-1], variant, name.split(".")[-1]])
            for field, name in (("single", self.single), ("index", self.index))
        }
        shards = self.shards.replace("-*", f".{variant}-*")
        return dataclasses.replace(self, **names, shards=shards, variant=variant)

    @property
    def is_safetensors(self) -> bool:
        """Whether it is safetensors, of whichever variant."""
        return self.read is read_safetensors

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether files of these names hold weights of this form."""
        return not {self.single, self.index}.isdisjoint(names)

    def has(self, name: str) -> bool:
        """Whether a file of this name, also a variant such as model.fp16.safetensors, is of it."""
        stem, suffix = self.single.split(".")
        patterns = (f"{stem}*.{suffix}", f"{stem}*.{suffix}.index*.json")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


SAFETENSORS = Form(
    "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", read_safetensors
)
TORCH = Form("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", read_torch)
FLAX = Form(
    "flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*.msgpack", read_flax,
    torch_name,
)  # fmt: skip
FORMS = (SAFETENSORS, TORCH, FLAX)
_TENSORFLOW = Form("tf_model.h5", "tf_model.h5.index.json", "tf_model-*.h5", lambda file: {})


def choose(names: Iterable[str], where: str, variant: str | None = None) -> Form | None:
    """The form to read of those whose files are there; None if there are none.

    Args:
        names: of all files there.
        where: the folder or repository, for messages.
        variant: such as "fp16"; by default the plain files, or the only variant.

    Raises:
        FileNotFoundError: the variant isn't there.
        ValueError: there are several variants and no plain files.
    """
    names = set(names)
    plain = [form for form in FORMS if form.is_among(names)]
    variants = _variants(names)
    if variant is None and plain:
        return plain[0]
    if variant in variants:
        return variants[variant]
    there = [repr(name) for name in variants]
    if variant is not None:
        raise FileNotFoundError(
            f"{where} has no weights of the variant {variant!r}: it has "
            + (f"the variants {', '.join(there)}" if there else "none of any variant")
            + (", and weights without one" if plain else "")
        )
    if len(variants) > 1:
        raise ValueError(
            f"{where} has its weights in the variants {', '.join(there)} only: choose one, as in "
            f"variant={there[0]}"
        )
    return next(iter(variants.values()), None)


def _variants(names: Iterable[str]) -> dict[str, Form]:
    """The variants among files of these names, each in the best form that it has."""
    found: dict[str, Form] = {}
    for form in FORMS:
        stems = [whole.rpartition(".") for whole in (form.single, form.index)]
        patterns = [rf"{re.escape(stem)}\.([\w.-]+)\.{end}" for stem, _, end in stems]
        for name in sorted(names):
            match = next(filter(None, (re.fullmatch(pattern, name) for pattern in patterns)), None)
            if match and not re.search(r"-\d+-of-\d+$", match[1]):  # a shard
                found.setdefault(match[1], form.of(match[1]))
    return found


def weight_files(directory: Path, variant: str | None = None) -> list[Path]:
    """The files that `tensors` reads, with their index.

    Raises:
        FileNotFoundError: none is there.
        ValueError: there are several variants and no plain files.
    """
    form = _chosen(directory, variant)
    single = directory / form.single
    return [single] if single.is_file() else [directory / form.index, *_indexed(directory, form)]


def tensors(directory: Path, variant: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor in a directory by the name that torch has for it; nothing is read yet.

    A variant that is taken because there is nothing else is told in one line.

    Args:
        variant: see `choose`.

    Raises:
        FileNotFoundError: no weights are there, or not that variant, or a file that the index names
            isn't.
        ValueError: a file is damaged, or lies outside the directory; or there are several variants
            and no plain files.
    """
    form = _chosen(directory, variant)
    if form.variant != variant:
        notices.tell(
            f"{directory} has its weights only in the variant {form.variant!r}: taken, as with "
            f"variant={form.variant!r}"
        )
    if (directory / form.single).is_file():  # before an index, as transformers takes them
        if (directory / form.index).is_file():
            notices.tell(
                f"{directory} has {form.single} and {form.index}: the one file is read, not the "
                "parts; remove what isn't the model's"
            )
        return form.read(inside(directory, form.single))
    found: dict[str, StoredTensor] = {}
    for file, names in _indexed(directory, form).items():
        here = form.read(file)
        lacking = sorted(name for name in names - here.keys() if not families.is_buffer(name))
        if lacking:
            raise ValueError(
                f"{file} lacks {lacking[0]}, which {form.index} places there: take "
                "file and index from the same model"
            )
        found |= {name: tensor for name, tensor in here.items() if name in names}
    return found


def left_behind(directory: Path) -> list[Path]:
    """The files of weights in a directory, of every form that transformers has read, sorted."""
    return sorted(
        file
        for file in directory.iterdir()
        if any(form.has(file.name) for form in (*FORMS, _TENSORFLOW)) and not file.is_dir()
    )


def inside(directory: Path, name: str) -> Path:
    """The file of that name in a checkpoint's folder, which it must not lead out of.

    The hub's cache keeps the files of all revisions in one place and links to them: such links
    are followed, others that lead out of the folder are not.

    Raises:
        ValueError: it is a link that leads somewhere else.
    """
    file = directory / name
    target, home = file.resolve(), directory.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise ValueError(
            f"{file} is a link to {target}, outside its folder: put the file itself there"
        )
    return file


def _chosen(directory: Path, variant: str | None) -> Form:
    names = [file.name for file in directory.iterdir() if file.is_file()]
    form = choose(names, str(directory), variant)
    if form is None:
        raise FileNotFoundError(
            f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin nor "
            "flax_model.msgpack, nor the index of such files in parts" + _strays(names)
        )
    return form


def _strays(names: Iterable[str]) -> str:
    """What to do with files that look like weights, but have another name; "" without any."""
    parts = [form for form in FORMS if fnmatch.filter(names, form.shards)]
    if parts:
        return f". Files in parts are there: copy their index, {parts[0].index}, too"
    for form, endings in ((SAFETENSORS, (".safetensors",)), (TORCH, (".pt", ".pth", ".bin"))):
        for name in sorted(names):
            if name.endswith(endings) and not name.startswith(("adapter_", "training_args")):
                return (
                    f". If {name} is the state dict of the whole model, rename it to {form.single}"
                )
    return ""


def _indexed(directory: Path, form: Form) -> dict[Path, set[str]]:
    """The files that an index names, each with its tensors; none of them outside the folder."""
    index = inside(directory, form.index)
    weight_map = json_files.read_file(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(
            f"{index} has no weight_map, an object that says in which file each tensor lies: take "
            f"the model's own index, or where one file holds all name it {form.single}"
        )
    pairs = [(form.spelling(str(tensor)), str(name)) for tensor, name in weight_map.items()]
    shards: dict[Path, set[str]] = {}
    for tensor, name in pairs:
        if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(
                f"{index} places {tensor} in {name!r}, outside its folder: "
                "only file names in the same folder are followed"
            )
        if not fnmatch.fnmatch(name, f"*{Path(form.single).suffix}"):
            raise ValueError(f"{index} places {tensor} in {name!r}: that is no {form.single}")
        file = inside(directory, name)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there, but {form.index} names it: copy it too")
        shards.setdefault(file, set()).add(tensor)
    return shards
