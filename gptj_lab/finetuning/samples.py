"""The small texts that ship with the project, to fine-tune on (data/samples/README.md)."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# Where they lie: in a wheel inside the package, in a clone beside it.
FOLDERS = (_PACKAGE / "samples", _PACKAGE.parent / "data" / "samples")


def names() -> list[str]:
    """Of the files, such as "king_james.txt"."""
    found = [path.name for folder in FOLDERS if folder.is_dir() for path in folder.iterdir()]
    return sorted(name for name in found if name != "README.md")


def path(name: str) -> Path:
    """Where a sample lies.

    Raises:
        FileNotFoundError: there is none of that name; the message lists those that are there.
    """
    if name not in names():
        there = ", ".join(names()) or "none: this copy of gptj_lab has no data/samples"
        raise FileNotFoundError(f"no sample is named {name!r}; there are {there}")
    return next(folder / name for folder in FOLDERS if (folder / name).is_file())
