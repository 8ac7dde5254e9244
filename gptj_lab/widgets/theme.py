"""What all views share: their frame, and how they follow the notebook's theme."""

import re
from pathlib import Path

_HERE = Path(__file__).parent
_MADE_OF_PARTS = ("explorer", "tuneboard")  # the views that parts.js is joined to
# What packing must not touch: strings, templates (in their braces another may stand), patterns.
_TEMPLATE = r"`(?:\\.|\$\{(?:[^`{}]|`(?:\\.|[^`\\])*`|\{[^{}]*\})*\}|[^`\\$]|\$(?!\{))*`"
_TOKEN = re.compile(
    rf"""(?P<kept>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|{_TEMPLATE}|/[\^\\](?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/)"""
    r"""|(?P<comment>//[^\n]*)|(?P<code>[^"'`/]+|/)"""
)


def script(view: str) -> str:
    """The view's ES module, its `view_*.js` and what is shared before it, packed: no bundler."""
    return packed(_joined(view, "js"))


def style(view: str) -> str:
    """The view's style sheet with theme.css before it."""
    return _joined(view, "css")


def packed(source: str) -> str:
    """The same module without what means nothing: comments, spaces, names for other modules.

    Names stay as they are, so that a browser's error still names what is in the files.
    """
    pieces: list[tuple[str, bool]] = []  # text, and whether it is code
    for found in _TOKEN.finditer(source):
        if found["kept"]:
            pieces.append((found["kept"], False))
        elif not found["comment"]:  # code on both sides of a comment is one piece
            before = pieces.pop()[0] if pieces and pieces[-1][1] else ""
            pieces.append((before + found["code"], True))
    return "".join(_tight(text) if code else text for text, code in pieces)


def _tight(code: str) -> str:
    code = re.sub(r"[ \t]+", " ", code)
    code = re.sub(r"\s*\n\s*", "\n", code)
    code = re.sub(r"\bexport (?!default)", "", code)
    code = re.sub(r" ?([{}()\[\];,:=<>*?&|!%]) ?", r"\1", code)
    code = re.sub(r"(?<![+\-]) ([+\-]) (?![+\-])", r"\1", code)
    code = re.sub(r"(?<=[{(\[,;:?&|=])\n|\n(?=[.?:)\]}&|])|;(?=\n?})", "", code)
    code = re.sub(r"(?<=[\w)\]]) / ?(?=[\w(])", "/", code)
    return re.sub(r"(?<![\w$)\]])\((\w+)\)=>", r"\1=>", code)


def _joined(view: str, kind: str) -> str:
    shared = ["theme", "parts"] if kind == "js" and view in _MADE_OF_PARTS else ["theme"]
    own = sorted(path.stem for path in _HERE.glob(f"{view}_*.{kind}"))
    return "\n".join(
        (_HERE / f"{name}.{kind}").read_text("utf-8") for name in (*shared, *own, view)
    )
