"""The still picture that an Explorer leaves: all heads, and the chosen one with its tokens.

It is made before the view appears, so it has to be there at once: drawn here into the indices of
a palette, 28 layers of 16 heads take a thirtieth of what three matplotlib figures took.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.plots import style
from gptj_lab.widgets import explorer_encoding as encoding
from gptj_lab.widgets.explorer_session import Session, first_run

if TYPE_CHECKING:
    from gptj_lab.widgets.explorer_reading import Reading

MOST_BYTES = 56_000  # so that with its text it adds less than 80 KB to the notebook as base64
# Levels, side of a thumbnail, and about the bytes of the first, where nothing in it repeats.
_THRIFT = ((128, 1.0, 1.0), (16, 0.75, 0.45), (8, 0.5, 0.27), (4, 0.25, 0.15))
_NAMED, _BARS = 32, 6  # tokens at the end that one head is drawn for; next tokens
_THUMB_PIXELS = 140_000  # of all thumbnails' triangles, before a smaller side is tried
_WIDE, _HIGH, _SMALL, _LARGE = 620, 960, 12, 15  # pixels of all heads, and of letters
# The palette: shares, then what is not a share, then greys from black to white.
_SHARES, _MARK, _BAR, _FAINT, _GREYS, _WHITE = 128, 128, 129, 130, 192, 255


def picture(session: Session, selection: dict[str, Any]) -> tuple[bytes, str]:
    """A PNG of at most MOST_BYTES, and its alt text."""
    made, expected = b"", 0.0
    for levels, part, share in _THRIFT:
        if expected * share > MOST_BYTES:
            continue
        made = _drawn(session, selection, levels, part)
        if len(made) <= MOST_BYTES:
            break
        expected = len(made) / share
    return made, alt(session, selection)


def _drawn(session: Session, selection: dict[str, Any], levels: int, part: float) -> bytes:
    """All heads on the left; on the right the chosen one, and what may come next."""
    layer, head, of = (selection[name] for name in ("layer", "head", "of"))
    shown = first_run(of)
    run = session.reading(shown)
    thumbs = session.thumbnails(shown)
    layers, heads, most, _ = thumbs.shape
    side = min(most, int((2 * _THUMB_PIXELS / (layers * heads)) ** 0.5))
    small = encoding.pool(thumbs, max(2, int(part * side)))
    side = small.shape[-1]
    scale = max(1, min(96 // side, _WIDE // (heads * side), _HIGH // (layers * side)))
    tile = scale * side + 2
    seq = min(len(run), _NAMED)
    cell = max(10, min(34, 400 // seq))
    left = max(46 + tile * heads, 360)
    height = max(92 + tile * layers, 170 + cell * seq + 20 * _BARS)
    page = _Page(left + 126 + max(cell * seq, 300), height, levels)
    page.text(40, 8, _title(session, shown), _LARGE)
    page.text(34, 40, "L\\H", _SMALL, "rm")
    page.shares(small, 40, 50, scale)
    for row in range(layers):
        page.text(34, 50 + row * tile + tile // 2, str(row), _SMALL, "rm")
    for column in range(heads):
        page.text(40 + column * tile + tile // 2, 40, str(column), _SMALL, "mm")
    framed = [(layer, head)]
    framed += [(e["layer"], e["head"]) for e in session.edits if e["kind"] == "head"]
    for row, column in framed:
        page.frame(38 + column * tile, 48 + row * tile, tile + 1)
    page.scale(40, 62 + layers * tile)
    _one_head(page, run, layer, head, left, cell, session)
    _bars(page, session, shown, left + 100, 130 + cell * seq)
    return page.png()


def _one_head(
    page: _Page, run: Reading, layer: int, head: int, left: int, cell: int, session: Session
) -> None:
    start = max(0, len(run) - _NAMED)
    last = f", last {_NAMED} tokens" if start else ""
    page.text(left + 100, 8, f"layer {layer} head {head}{last}", _LARGE)
    page.shares(run.pattern(layer)[None, head : head + 1, start:, start:], left + 100, 110, cell)
    for i, token in enumerate(run.ids[start:].tolist()):
        name = style.label(session.model.tokenizer.display(token))
        middle = i * cell + cell // 2
        page.text(left + 94, 110 + middle, name, _SMALL, "rm")
        page.upright(left + 100 + middle, 104, name)


def _bars(page: _Page, session: Session, shown: str, left: int, top: int) -> None:
    """The likeliest next tokens, in the run that is shown."""
    follow = session.next_tokens(len(session.reading(shown)) - 1)
    told = follow["logprobs"].get(shown, follow["logprobs"]["a"])
    page.text(left, top, "next token", _LARGE, "lm")
    for rank, i in enumerate(np.argsort(-told, kind="stable")[:_BARS].tolist()):
        chance, y = float(np.exp(told[i])), top + 20 * (rank + 1)
        name = style.label(session.model.tokenizer.display(int(follow["ids"][i])))
        page.text(left - 6, y, name, _SMALL, "rm")
        page.box(left, y - 7, 1 + round(240 * chance), 14, _BAR)
        page.text(left + 8 + round(240 * chance), y, f"{100 * chance:.1f} %", _SMALL, "lm")


def alt(session: Session, selection: dict[str, Any]) -> str:
    """What the picture shows, in sentences: the heads, what the chosen one reads, what follows."""
    layer, head = selection["layer"], selection["head"]
    of = selection["of"]
    run = session.reading(first_run(of))
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
        said += f" {_interventions(session)} made."
    text = session.prompt_b if run is session.b and session.prompt_b else session.prompt
    return f"{said} The text: {text if len(text) <= 200 else f'…{text[-200:]}'}"


def _title(session: Session, of: str) -> str:
    if of == "b":
        return session.other.name if session.two_models else "the second prompt"
    title = session.model.name or "the model"
    return f"{title}, {_interventions(session)}" if of == "after" else title


def _interventions(session: Session) -> str:
    """How many there are, with the plural where it belongs."""
    return f"{len(session.edits)} intervention{'s' * (len(session.edits) != 1)}"


class _Page:
    """A page made of palette indices; letters lie on a sheet of greys of their own.

    Args:
        width, height: pixels.
        levels: different colours of shares, at most 128: fewer make a smaller file.
    """

    def __init__(self, width: int, height: int, levels: int):
        from PIL import Image, ImageDraw

        self.cells = np.full((height, width), _WHITE, np.uint8)
        self.levels = levels
        self._ink = Image.new("L", (width, height), 255)
        self._pen = ImageDraw.Draw(self._ink)

    def text(self, x: int, y: int, text: str, size: int, anchor: str = "la") -> None:
        """Letters at a point; anchor as Pillow has it."""
        self._pen.text((x, y), text, 0, _font(size), anchor)

    def upright(self, x: int, y: int, text: str) -> None:
        """Letters that go upwards from a point."""
        from PIL import Image, ImageDraw

        font = _font(_SMALL)
        line = Image.new("L", (int(font.getlength(text)) + 2, 18), 0)
        ImageDraw.Draw(line).text((0, 9), text, 255, font, "lm")
        turned = line.transpose(Image.Transpose.ROTATE_90)
        self._ink.paste(0, (x - 9, max(24, y - turned.height)), turned)

    def shares(self, squares: np.ndarray, x: int, y: int, scale: int) -> None:
        """Patterns [rows, columns, seq, seq] beside and below each other, two pixels apart.

        Each weight is scale x scale pixels; the future is faint.
        """
        level = np.rint(np.sqrt(np.clip(squares, 0, 1)) * (self.levels - 1))
        shown = (level * ((_SHARES - 1) / (self.levels - 1))).astype(np.uint8)
        shown[..., *np.triu_indices(shown.shape[-1], 1)] = _FAINT
        tiles = shown.repeat(scale, -2).repeat(scale, -1)
        tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=_WHITE)
        rows, columns, side, _ = tiles.shape
        whole = tiles.swapaxes(1, 2).reshape(rows * side, columns * side)[:-2, :-2]
        self.cells[y : y + whole.shape[0], x : x + whole.shape[1]] = whole

    def box(self, x: int, y: int, width: int, height: int, colour: int) -> None:
        """A filled rectangle."""
        self.cells[y : y + height, x : x + width] = colour

    def frame(self, x: int, y: int, side: int) -> None:
        """A square's border, two pixels wide."""
        for at in (0, side - 1):
            self.box(x, y + at, side + 1, 2, _MARK)
            self.box(x + at, y, 2, side + 1, _MARK)

    def scale(self, x: int, y: int) -> None:
        """Which colour is which share."""
        steps = (np.arange(200) / 199 * (self.levels - 1)).round() / (self.levels - 1)
        self.cells[y : y + 10, x : x + 200] = (steps * (_SHARES - 1)).astype(np.uint8)
        for share in (0, 0.01, 0.1, 0.3, 1):
            place = x + round(199 * share**0.5)
            self.text(place, y + 18, f"{100 * share:.0f}", 10, "mm")
        self.text(x + 214, y + 5, "% of attention", _SMALL, "lm")

    def png(self) -> bytes:
        """The page as a file, the letters on top."""
        from PIL import Image

        ink = np.asarray(self._ink)
        cells = np.where(ink < 255, _GREYS + ink // 4, self.cells).astype(np.uint8)
        image = Image.fromarray(cells)
        image.putpalette(_palette(), "RGB")
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=7)
        return out.getvalue()


@functools.cache
def _font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings and whose glyphs `style.label` asks for."""
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(FontProperties()), size)


@functools.cache
def _palette() -> bytes:
    colours = np.full((256, 3), 255)
    colours[:_SHARES] = 255 * style.sequential()(np.linspace(0, 1, _SHARES))[:, :3]
    others = {_MARK: "#D6006E", _BAR: style.POSITIVE, _FAINT: style.FAINT}
    for place, colour in others.items():
        colours[place] = list(bytes.fromhex(colour[1:]))
    colours[_GREYS:] = np.linspace(0, 255, 256 - _GREYS).round()[:, None]
    return colours.astype(np.uint8).tobytes()
