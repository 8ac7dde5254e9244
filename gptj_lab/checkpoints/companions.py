"""The small files beside the weights, carried through unread: tokenizer, templates, model card.

What of them we don't understand is not ours to drop. A checkpoint that was loaded and is saved
again has the same files, byte for byte, but for fields of config.json that have to change.
"""

import dataclasses
import filecmp
import fnmatch
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptj_lab import chat_templates, json_files, tokenizer_files
from gptj_lab.chat_templates import ChatTemplate
from gptj_lab.checkpoints.stored import is_lfs_pointer, pointer_sentence
from gptj_lab.checkpoints.weights import inside
from gptj_lab.tokenizer import Tokenizer

CONFIG = "config.json"
CARD = "README.md"
BASE_CARD = "README.base.md"  # the card of the weights that were trained further
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "vocab.bpe", "encoder.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
# Python files are carried, as config.json may name them (auto_map); nothing here imports them.
_SETTINGS = (
    CONFIG, "generation_config.json", "custom_generate/*", "configuration_*.py", "modeling_*.py",
    "tokenization_*.py",
)  # fmt: skip
_PROSE = (
    "README*.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*", "license*",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the first is taken
_ADAPTER = ("adapter_model*.safetensors", "adapter_model*.bin", ADAPTER_CONFIG)
PATTERNS = (*_SETTINGS, *_TOKENIZER, *_PROSE)  # of fnmatch, as the hub's downloads take them
_MOST_BYTES = 64 << 20  # of one file: the largest tokenizer.json known has a third of it


@dataclasses.dataclass(frozen=True)
class Companions:
    """The small files of a checkpoint, none for a model that was made in memory.

    Attributes:
        files: the bytes of each by its name in the folder, such as "generation_config.json".
    """

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path | str) -> "Companions":
        """The companions in a checkpoint's folder; a folder that isn't there has none.

        Raises:
            ValueError: one is a link that leads out of the folder, too large, or a Git LFS pointer;
                texts for people (README.md, LICENSE) are then left where they are.
        """
        directory = Path(directory)
        files: dict[str, bytes] = {}
        for name in named(directory):
            try:
                files[name] = _content(inside(directory, name))
            except ValueError:
                if not _is(name, _PROSE):
                    raise
        return cls(files)

    def json(self, name: str) -> dict[str, Any]:
        """The fields of a JSON file, such as "generation_config.json"; none if it isn't there.

        Raises:
            ValueError: it isn't a JSON object.
        """
        content = self.files.get(name)
        if content is None:
            return {}
        return json_files.parsed(content, name)

    def tokenizer(self) -> "Companions":
        """Those that make the tokenizer, chat templates among them."""
        return Companions({n: content for n, content in self.files.items() if _is(n, _TOKENIZER)})

    def without(self, names: Iterable[str]) -> "Companions":
        """The same but for the files of these names."""
        gone = set(names)
        return Companions({n: content for n, content in self.files.items() if n not in gone})

    def of_other_weights(self) -> "Companions":
        """The same for weights made from these: the model card is the base's, README.base.md."""
        if CARD not in self.files:
            return self
        own = BASE_CARD
        while own in self.files:  # the base has a base
            own = f"README.base.{own.removeprefix('README.')}"
        return Companions({**self.without([CARD]).files, own: self.files[CARD]})

    def write(self, directory: Path | str) -> None:
        """Writes the files into a folder, over what is there.

        Raises:
            OSError: it can't be written, or the disk is full.
        """
        for name, content in self.files.items():
            file = Path(directory) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


NONE = Companions()  # of a model that was made in memory


def chat_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template in a folder, of an adapter too; None if there is none.

    Raises:
        ValueError: its file is a link that leads out of the folder, or too large.
    """
    names = (chat_templates.FILE, "tokenizer_config.json")
    files = {
        name: _content(inside(directory, name)) for name in names if (directory / name).is_file()
    }
    return chat_templates.of_files(files, chat_templates.special_tokens(tokenizer))


def carry(companions: Companions, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes a tokenizer and all companions but config.json into a folder.

    The tokenizer's files are those that it was read from, byte for byte, as long as they still make
    it; else they are left out and new ones written.

    Raises:
        OSError: it can't be written, or the disk is full.
    """
    rest = companions.without([CONFIG])
    theirs = rest.tokenizer()
    if tokenizer is None or _makes(companions, tokenizer):
        rest.write(folder)
        return
    rest.without(theirs.files).write(folder)
    tokenizer.save(folder)


def _makes(companions: Companions, tokenizer: Tokenizer) -> bool:
    """Whether the files among the companions make this tokenizer."""
    with tempfile.TemporaryDirectory(prefix="gptj_lab-tokenizer-") as aside:
        companions.write(aside)
        try:
            made = Tokenizer(*tokenizer_files.read(Path(aside), quiet=True))
        except (FileNotFoundError, ValueError):
            return False
    return made.fingerprint() == tokenizer.fingerprint()


def put_by(directory: Path, aside: Path) -> None:
    """Renames the texts for people in a folder that others, written aside, are to replace.

    So the README.md of another model becomes README.previous.md: nobody can write it again. The
    card of the base, which is written under another name, is removed under its old one.

    Raises:
        OSError: one can't be renamed.
    """
    new = [name for name in named(aside) if _is(name, _PROSE)]
    for name in new:
        old = directory / name
        if old.is_file() and not filecmp.cmp(aside / name, old, shallow=False):
            os.replace(old, _free(old))
    card = directory / CARD
    bases = [aside / name for name in new if name.startswith("README.base")]
    if CARD not in new and card.is_file():
        if any(filecmp.cmp(base, card, shallow=False) for base in bases):
            card.unlink()


def put_adapter_by(directory: Path) -> Path | None:
    """Moves an adapter of PEFT out of a folder that a model is to be in; where it is then.

    transformers would put it onto that model. In a folder of its own PEFT still loads it.

    Raises:
        OSError: it can't be moved.
    """
    files = [file for pattern in _ADAPTER for file in directory.glob(pattern) if file.is_file()]
    if not files:
        return None
    previous = _free(directory / "adapter.previous")
    previous.mkdir()
    for file in files:
        os.replace(file, previous / file.name)
    return previous


def _free(file: Path) -> Path:
    """A name that nothing has yet: README.previous.md, README.previous.previous.md, ..."""
    while file.exists():
        file = file.with_name(f"{file.stem}.previous{file.suffix}")
    return file


def stale(directory: Path, written: Iterable[str]) -> list[Path]:
    """Files of an earlier checkpoint that a program would read beside what was `written` now."""
    kept = set(written)
    return [
        directory / name
        for name in named(directory)
        if name not in kept and _is(name, (*_TOKENIZER, "generation_config.json"))
    ]


def named(directory: Path) -> list[str]:
    """The names of the companions in a folder, sorted."""
    found = [file for pattern in PATTERNS for file in directory.glob(pattern) if file.is_file()]
    return sorted({file.relative_to(directory).as_posix() for file in found})


def _is(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(
            f"{file} has {size:,} bytes: a file beside the weights has at most {_MOST_BYTES:,}"
        )
    content = file.read_bytes()
    if is_lfs_pointer(content):
        raise ValueError(pointer_sentence(file))
    return content
