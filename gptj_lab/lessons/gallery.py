"""The prompts that ship with the project (data/prompts/README.md)."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# Where they lie: in a wheel inside the package, in a clone beside it.
FOLDERS = (_PACKAGE / "prompts", _PACKAGE.parent / "data" / "prompts")


def prompts(kind: str = "*") -> dict[str, str]:
    """The prompts by name, such as "code/is_even".

    Args:
        kind: of one folder only: "code", "essay" or "stories".
    """
    files = [path for folder in FOLDERS for path in sorted(folder.glob(f"{kind}/*.txt"))]
    return {f"{path.parent.name}/{path.stem}": path.read_text("utf-8") for path in files}
