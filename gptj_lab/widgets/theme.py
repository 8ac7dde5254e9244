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
    Declarations that follow each other become one (`let a = 1, b = 2`; const is for the source).
    """
    pieces: list[tuple[str, bool]] = []  # text, and whether it is code
    for found in _TOKEN.finditer(source):
        if found["kept"]:
            pieces.append((found["kept"], False))
        elif not found["comment"]:  # code on both sides of a comment is one piece
            before = pieces.pop()[0] if pieces and pieces[-1][1] else ""
            pieces.append((before + found["code"], True))
    return _declared_together([(_tight(text) if code else text, code) for text, code in pieces])


def _declared_together(pieces: list[tuple[str, bool]]) -> str:
    """`let a=1;let b=2` as `let a=1,b=2`; statements end in semicolons, as ours all do."""
    out, before = [], "\n"
    open_ = [False]  # for each bracket around, whether it stands in a declaration
    for text, code in pieces:
        if not code:
            out.append(text)
            before = text[-1]
            continue
        at = 0
        for found in re.finditer(r"[([{]|[)\]}]|\n|;(let(?: |(?=[{[])))?|\blet\b", text):
            out.append(text[at : found.start()])
            before, at, mark = (out[-1] or before)[-1], found.end(), found[0]
            if mark in "([{":
                open_.append(False)
            elif mark in ")]}":
                open_.pop()
            elif mark[0] in ";\n":
                again = bool(found[1]) and open_[-1]
                mark, open_[-1] = ("," if again else mark), bool(found[1])
            elif before in ";{}\n":
                open_[-1] = True
            out.append(mark)
            before = mark[-1]
        out.append(text[at:])
        before = (out[-1] or before)[-1]
    return "".join(out)


def _tight(code: str) -> str:
    code = re.sub(r"[ \t]+", " ", code)
    code = re.sub(r"\s*\n\s*", "\n", code)
    code = re.sub(r"\bexport (?!default)", "", code)
    code = re.sub(r"\bconst\b", "let", code)
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
