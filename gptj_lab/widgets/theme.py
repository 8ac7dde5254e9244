"""What all views share: their frame, and how they follow the notebook's theme."""

import re
from pathlib import Path

_HERE = Path(__file__).parent
_MADE_OF_PARTS = ("explorer", "tuneboard")  # the views that parts.js is joined to
# What packing must not touch: strings, templates (in their braces another may stand), patterns.
_TEMPLATE = r"`(?:\\.|\$\{(?:[^`{}]|`(?:\\.|[^`\\])*`|\{[^{}]*\})*\}|[^`\\$]|\$(?!\{))*`"
_TOKEN = re.compile(
    rf"""(?P<kept>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|{_TEMPLATE}|/[\^\\](?:\\.|[^/\\\n])+/)"""
    r"""|(?P<comment>//[^\n]*)|(?P<code>[^"'`/]+|/)"""
)


def script(view: str) -> str:
    """The view's ES module, its `view_*.js` and what is shared before it, packed: no bundler."""
    return packed(_joined(view, "js"))


def style(view: str) -> str:
    """The view's style sheet with theme.css before it."""
    return _joined(view, "css")


def packed(source: str) -> str:
    """The same module without comments and without spaces that mean nothing.

    Names stay as they are, and every line that ends a statement stays a line, so that a browser's
    error still names what is in the files.
    """
    return "".join(
        found["kept"] or ("" if found["comment"] else _tight(found["code"]))
        for found in _TOKEN.finditer(source)
    )


def _tight(code: str) -> str:
    code = re.sub(r"[ \t]+", " ", code)
    code = re.sub(r" ?\n\s*", "\n", code)
    code = re.sub(r" ?([{}()\[\];,:=<>*?&|!%]) ?", r"\1", code)
    code = re.sub(r"(?<![+\-]) ([+\-]) (?![+\-])", r"\1", code)
    return re.sub(r"(?<=[{(\[,;:?&|=])\n|\n(?=[.?:)\]}&|])|;(?=\n?})", "", code)


def _joined(view: str, kind: str) -> str:
    shared = ["theme", "parts"] if kind == "js" and view in _MADE_OF_PARTS else ["theme"]
    own = sorted(path.stem for path in _HERE.glob(f"{view}_*.{kind}"))
    return "\n".join(
        (_HERE / f"{name}.{kind}").read_text("utf-8") for name in (*shared, *own, view)
    )
