"""What all views share: their frame, and how they follow the notebook's theme."""

from pathlib import Path

_HERE = Path(__file__).parent


def script(view: str) -> str:
    """The view's ES module with theme.js before it: two files, one module, no bundler."""
    return _joined(view, "js")


def style(view: str) -> str:
    """The view's style sheet with theme.css before it."""
    return _joined(view, "css")


def _joined(view: str, kind: str) -> str:
    return "\n".join((_HERE / f"{name}.{kind}").read_text("utf-8") for name in ("theme", view))
