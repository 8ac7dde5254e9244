"""Which file of a Hugging Face directory holds the weights, and every tensor in it.

A directory may hold several forms; safetensors are taken first, then torch's .bin, then Flax's
msgpack. Each comes as one file, or as several with an index.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Iterable
from pathlib import Path

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
    """

    single: str
    index: str
    shards: str
    read: Callable[[Path], dict[str, StoredTensor]]
    spelling: Callable[[str], str] = str

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether files of these names hold weights of this form."""
        return not {self.single, self.index}.isdisjoint(names)


SAFETENSORS = Form(
    "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", read_safetensors
)
TORCH = Form("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", read_torch)
FLAX = Form(
    "flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*.msgpack", read_flax,
    torch_name,
)  # fmt: skip
FORMS = (SAFETENSORS, TORCH, FLAX)


def choose(names: Iterable[str]) -> Form | None:
    """The form to read of those whose files are there."""
    names = list(names)
    return next((form for form in FORMS if form.is_among(names)), None)


def weight_files(directory: Path) -> list[Path]:
    """The files that `tensors` reads, with their index.

    Raises:
        FileNotFoundError: none is there.
    """
    form = _chosen(directory)
    index = directory / form.index
    if not index.is_file():
        return [directory / form.single]
    return [index, *_indexed(directory, form)]


def tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor in a directory by the name that torch has for it; nothing is read yet.

    Raises:
        FileNotFoundError: no weights are there, or a file that the index names isn't.
        ValueError: a file is damaged, or lies outside the directory.
    """
    form = _chosen(directory)
    if not (directory / form.index).is_file():
        return form.read(inside(directory, form.single))
    found: dict[str, StoredTensor] = {}
    for file, names in _indexed(directory, form).items():
        here = form.read(file)
        lacking = sorted(name for name in names - here.keys() if not families.is_buffer(name))
        if lacking:
            raise ValueError(
                f"{file} lacks {lacking[0]}, which {form.index} places there: copy the file again"
            )
        found |= {name: tensor for name, tensor in here.items() if name in names}
    return found


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


def _chosen(directory: Path) -> Form:
    form = choose(file.name for file in directory.iterdir() if file.is_file())
    if form is None:
        raise FileNotFoundError(
            f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin nor "
            "flax_model.msgpack, nor the index of such files in parts"
        )
    return form


def _indexed(directory: Path, form: Form) -> dict[Path, set[str]]:
    """The files that an index names, each with its tensors; none of them outside the folder."""
    index = inside(directory, form.index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(form.spelling(str(tensor)), str(name)) for tensor, name in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is not an index with a weight_map: copy it again") from None
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
