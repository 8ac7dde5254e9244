"""The still picture that an Explorer leaves: all heads, and the chosen one with its tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gptj_lab import plots
from gptj_lab.widgets.explorer_session import DIFFERENCES, Session

MOST_BYTES = 56_000  # so that with its text it adds less than 80 KB to the notebook as base64
_THRIFT = ((96, 1.0), (48, 1.0), (32, 0.8), (24, 0.65), (16, 0.5), (16, 0.25))  # colours, size
_NAMED, _BARS = 32, 6  # tokens at the end that one head is drawn for; next tokens


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
    follow = session.next_tokens(len(session.a) - 1)
    told = follow["logprobs"].get(shown, follow["logprobs"]["a"])
    order = np.argsort(-told, kind="stable")[:_BARS]
    bars = plots.score_bars(
        {f"{rank + 1}. {name(int(follow['ids'][i]))}": 100 * float(np.exp(told[i]))
         for rank, i in enumerate(order)},
        "probability of the next token, %",
    )  # fmt: skip
    return _beside(grid, [one, bars]), alt(session, selection)


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


def _beside(large: Any, small: list[Any]) -> bytes:
    """One figure and a column of others as one PNG, with fewer colours or pixels if need be."""
    from PIL import Image

    images = [Image.open(io.BytesIO(plots.png(each))).convert("RGB") for each in (large, *small)]
    left, *column = images
    width = left.width + max(image.width for image in column)
    height = max(left.height, sum(image.height for image in column))
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(left, (0, 0))
    top = 0
    for image in column:
        whole.paste(image, (left.width, top))
        top += image.height
    out = io.BytesIO()
    for colours, scale in _THRIFT:
        size = (round(width * scale), round(height * scale))
        drawn = whole if scale == 1 else whole.resize(size, Image.Resampling.LANCZOS)
        out = io.BytesIO()
        drawn.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    return out.getvalue()
