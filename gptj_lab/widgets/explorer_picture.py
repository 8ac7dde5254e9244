"""The still picture that an Explorer leaves: all heads, and the chosen one with its tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gptj_lab import plots
from gptj_lab.widgets import explorer_encoding
from gptj_lab.widgets.explorer_session import DIFFERENCES, Session

MOST_BYTES = 56_000  # so that with its text it adds less than 80 KB to the notebook as base64
_NAMED = 48  # tokens of the last ones that the single head is drawn for


def picture(session: Session, selection: dict[str, Any]) -> tuple[bytes, str]:
    """A PNG of at most MOST_BYTES, and its alt text."""
    layer, head, of = (selection[name] for name in ("layer", "head", "of"))
    shown = of if of not in DIFFERENCES else DIFFERENCES[of][0]
    run = session.reading(shown)
    name = session.model.tokenizer.display
    chosen = [(layer, head)]
    chosen += [(e["layer"], e["head"]) for e in session.edits if e["kind"] == "head"]
    grid = plots.heads_grid(session.thumbnails(shown), _title(session, shown), chosen)
    start = max(0, len(run) - _NAMED)
    one = plots.attention_head(
        run.pattern(layer)[head][start:, start:], [name(int(i)) for i in run.ids[start:]],
        f"layer {layer} head {head}" + (f", last {_NAMED} tokens" if start else ""),
    )  # fmt: skip
    return _beside([grid, one]), alt(session, selection)


def alt(session: Session, selection: dict[str, Any]) -> str:
    """What the picture shows, in sentences: the heads, what the chosen one reads, what follows."""
    layer, head = selection["layer"], selection["head"]
    of = selection["of"]
    run = session.reading(of if of not in DIFFERENCES else DIFFERENCES[of][0])
    name = session.model.tokenizer.display
    row = run.pattern(layer)[head, -1]
    key = int(row.argmax())
    likeliest = int(run.logits[-1].argmax())
    chance = float(np.exp(run.logprobs(len(run) - 1)[likeliest]))
    config = session.model.config
    said = (
        f"Explorer of {session.model.name or 'a model'}: attention of {config.num_layers} layers "
        f"with {config.num_heads} heads on {len(run)} tokens. In head {head} of layer {layer} the "
        f"last token, '{name(int(run.ids[-1]))}', reads {100 * row[key]:.0f} % from "
        f"'{name(int(run.ids[key]))}'. The likeliest next token is '{name(likeliest)}' "
        f"({100 * chance:.0f} %)."
    )
    if session.edits:
        said += f" {len(session.edits)} interventions are made."
    text = session.prompt if len(session.prompt) <= 200 else f"…{session.prompt[-200:]}"
    return f"{said} The text: {text}"


def _title(session: Session, of: str) -> str:
    if of == "b":
        return session.other.name if session.two_models else "the second prompt"
    title = session.model.name or "the model"
    return f"{title}, {len(session.edits)} interventions" if of == "after" else title


def _beside(figures: list[Any]) -> bytes:
    """The figures in a row, as one PNG with few colours; smaller until it is small enough."""
    from PIL import Image

    for dpi in (100, 80, 64, 48, 32):
        images = []
        for figure in figures:
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=dpi)
            images.append(Image.open(out).convert("RGB"))
        size = sum(image.width for image in images), max(image.height for image in images)
        whole = Image.new("RGB", size, "white")
        left = 0
        for image in images:
            whole.paste(image, (left, 0))
            left += image.width
        out = io.BytesIO()
        whole.quantize(96).save(out, format="png", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    return out.getvalue()
