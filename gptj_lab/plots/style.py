"""What the pictures share: colours, colour maps, labels made of tokens, alt text."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from gptj_lab.plots.picture import Picture

Numbers = Array | np.ndarray

# Okabe and Ito's colours, told apart with any colour vision; dashes and marks say it again.
LINES = (
    ("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
    ("#4D4D4D", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#A67C00", (0, (8, 2)), "P"),
)  # fmt: skip
POSITIVE, NEGATIVE, NEUTRAL = "#0B5FA5", "#C25700", "#8A8F98"
INK, FAINT = "#1b1b1b", "#E4E6EA"
# From much orange over nearly white to much blue; both arms darken evenly.
_DIVERGING = ("#7A3300", "#C25700", "#F0A866", "#F7F7F7", "#86B4DC", "#0B5FA5", "#053061")


def picture(width: float, height: float, alt: str) -> Picture:
    """An empty picture of inches, for a white page."""
    from gptj_lab.plots.picture import Picture

    made = Picture(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    made.alt = alt
    return made


def alt_text(figure: Figure) -> str:
    """What a picture of this package shows, in words.

    Raises:
        ValueError: a figure that was made elsewhere and has none.
    """
    if not getattr(figure, "alt", ""):
        raise ValueError("the figure has no alt text: only pictures of gptj_lab.plots bring one")
    return figure.alt  # pyright: ignore[reportAttributeAccessIssue]


def png(figure: Picture, most_bytes: int | None = None) -> bytes:
    """A picture as a PNG file, of at most so many bytes if asked.

    Raises:
        ValueError: it can't be made as small as that.
    """
    return figure.png(most_bytes)


def sequential() -> Colormap:
    """From little, dark blue, to much, yellow; what is not there is light grey."""
    import matplotlib

    return matplotlib.colormaps["cividis"].with_extremes(bad=FAINT)


@functools.cache
def diverging() -> Colormap:
    """From orange, less than nothing, over nearly white to blue, more."""
    from matplotlib.colors import LinearSegmentedColormap

    made = LinearSegmentedColormap.from_list("orange-blue", _DIVERGING)
    return made.with_extremes(bad="#B9BEC6")


def share() -> Normalize:
    """Shares from 0 to 1 by their square root, so that small ones are seen too."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def around_zero(values: np.ndarray) -> Normalize:
    """From minus the largest magnitude to plus it: nothing is always the middle."""
    from matplotlib.colors import Normalize

    finite = np.abs(values[np.isfinite(values)])
    most = float(finite.max()) if finite.size else 0.0
    return Normalize(-(most or 1.0), most or 1.0)


def up_to_most(values: np.ndarray) -> Normalize:
    """From 0, or the least where that is less, to the most."""
    from matplotlib.colors import Normalize

    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return Normalize(min(0.0, least), most if most > min(0.0, least) else min(0.0, least) + 1)


def ink_on(colour: Any) -> str:
    """Black or white, whichever is read better on a colour (WCAG's relative luminance)."""
    channels = np.asarray(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"


def label(text: Any, most: int = 12) -> str:
    """A token as a label: cut after `most` characters, nothing that moves or has no ink in it.

    >>> label("\\u202eevil\\x07 🙂 and a long tail")
    '▯evil▯ ▯ an…'
    """
    text = str(text)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(letter if _has_ink(letter) else "▯" for letter in cut)


@functools.cache
def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))


def _has_ink(letter: str) -> bool:
    if letter == " ":
        return True
    return unicodedata.category(letter)[0] not in "CZ" and bool(_font().get_char_index(ord(letter)))


def labels(texts: Sequence[Any], most: int = 12) -> list[str]:
    """`label` of each."""
    return [label(text, most) for text in texts]


def told(*parts: str) -> str:
    """An alt text of its parts, each made a sentence; empty ones are left out.

    >>> told("Attention of 2 heads", "", "Layer 1.")
    'Attention of 2 heads. Layer 1.'
    """
    kept = [" ".join(part.split()) for part in parts if part.strip()]
    return " ".join(part if part[-1] in ".!?" else part + "." for part in kept)


def number(value: Any, digits: int = 2) -> str:
    """A number for a small cell: no zero before the point, a true minus sign.

    >>> number(0.25), number(-0.5), number(-0.001), number(1.0)
    ('.25', '−.50', '0', '1.00')
    """
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return "0"
    return ("−" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)


def numbers(what: str, values: Any, *axes: str, dtype: Any = np.float32) -> np.ndarray:
    """The values as an array that has these axes.

    Raises:
        TypeError, ValueError: no numbers, or other axes; the message says which are needed.
    """
    needed = f"an array of numbers [{', '.join(axes)}] is needed"
    try:
        found = np.asarray(values, dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{what} is of type {type(values).__name__}: {needed}") from None
    if found.ndim != len(axes):
        raise ValueError(f"{what} has shape {found.shape}: {needed}")
    return found


def check_length(what: str, found: int, expected: int, of: str) -> None:
    """Raises ValueError with a sentence where one thing was to be told for each of another."""
    if found != expected:
        raise ValueError(f"{what}: there are {found}, but {expected} {of}: give one for each")


def name_axis(axes: Any, which: str, names: Sequence[str], size: float = 7) -> None:
    """Ticks with tokens or numbers as labels; of more than 64, some are left out."""
    step = max(1, -(-len(names) // 64))
    places = np.arange(0, len(names), step)
    shown = [label(names[place]) for place in places.tolist()]
    turn = 90 if which == "x" and max(map(len, shown), default=0) > 3 else 0
    setter = axes.set_xticks if which == "x" else axes.set_yticks
    setter(places, shown, parse_math=False, size=size, rotation=turn)
    axes.tick_params(length=0)
