"""Pictures of how a prediction grows over the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture


def logit_lens_table(
    texts: Sequence[Sequence[str]],
    values: Float[style.Numbers, "rows positions"],
    rows: Sequence[str],
    tokens: Sequence[str],
    name: str = "probability",
    title: str = "",
) -> Picture:
    """The likeliest next token at every position, as the residual before each block says it.

    Args:
        texts: the token of each cell, as people should see it, [rows][positions].
        values: what colours the cell, such as its probability.
        rows: labels: the blocks' numbers, from below, and the output.
        tokens: the prompt's, one a position.

    Raises:
        TypeError, ValueError: no such array; the sizes don't fit together.
    """
    shades = style.numbers("values", values, "rows", "positions")
    style.check_length("labels of the rows", len(rows), shades.shape[0], "rows of values")
    style.check_length("rows of texts", len(texts), shades.shape[0], "rows of values")
    style.check_length("tokens", len(tokens), shades.shape[1], "positions")
    for row in texts:
        style.check_length("texts in a row", len(row), shades.shape[1], "positions")
    last = [style.label(row[-1]) for row in texts]
    changes = [i for i in range(len(last)) if i == 0 or last[i] != last[i - 1]]
    told = ", ".join(f"{last[i]!r} from {rows[i]} on" for i in changes)
    figure = style.picture(
        min(14, 1.6 + 0.72 * len(tokens)), 1.3 + 0.3 * len(rows),
        style.told(
            f"Logit lens over {len(tokens)} tokens", title, f"After the last token it says {told}"
        ),
    )  # fmt: skip
    axes = figure.subplots()
    shown = axes.imshow(
        shades, cmap=style.sequential(), norm=style.up_to_most(shades), aspect="auto",
        origin="lower",
    )  # fmt: skip
    for place, value in np.ndenumerate(shades):
        row, column = map(int, place)
        axes.text(column, row, style.label(texts[row][column], 9), size=7, ha="center",
                  va="center", parse_math=False, clip_on=True,
                  color=style.ink_on(shown.to_rgba(np.asarray(value))))  # fmt: skip
    style.name_axis(axes, "x", tokens)
    style.name_axis(axes, "y", rows)
    axes.set(xlabel="after the token", ylabel="before block")
    figure.colorbar(shown, ax=axes, label=name, aspect=30)
    axes.set_title(title, size=10, parse_math=False)
    return figure


def rank_lines(
    ranks: Mapping[str, Sequence[int] | style.Numbers], rows: Sequence[str], title: str = ""
) -> Picture:
    """The rank of chosen tokens after every layer, the likeliest (rank 1) on top.

    Args:
        ranks: of each token, counted from 0 (0 is the likeliest), one a row.
        rows: labels of the layers.
    """
    from_one = {name: np.asarray(each, np.float32) + 1 for name, each in ranks.items()}
    figure = lines_over_layers(from_one, rows, "rank", title=title, log=True)
    axes = figure.axes[0]
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def lines_over_layers(
    curves: Mapping[str, Sequence[float] | style.Numbers],
    rows: Sequence[str],
    name: str,
    *,
    title: str = "",
    log: bool = False,
) -> Picture:
    """Numbers that change from layer to layer, one line each, named at its end.

    Args:
        curves: such as {"entropy": [...]}, each with one number a row.
        rows: labels of the layers.
        name: what is shown, with its unit.

    Raises:
        ValueError: a curve that has another number of points, or none at all.
    """
    if not curves:
        raise ValueError("curves is empty: give at least one name with its numbers")
    for key, curve in curves.items():
        style.check_length(f"points of {key!r}", len(curve), len(rows), "layers")
    told = "; ".join(
        f"{style.label(key, 24)} {float(c[0]):.3g} to {float(c[-1]):.3g}"
        for key, c in curves.items()
    )
    said = style.told(f"{name} from {rows[0]} to {rows[-1]}: {told}", title)
    figure = style.picture(6.4, 3.2, said)
    axes = figure.subplots()
    named = _ends_apart([float(curve[-1]) for curve in curves.values()], curves, log)
    for i, (key, curve) in enumerate(curves.items()):
        colour, dashes, mark = style.LINES[i % len(style.LINES)]
        points = np.asarray(curve, np.float32)
        (line,) = axes.plot(points, color=colour, linestyle=dashes, marker=mark, markersize=5)
        if not named:
            line.set_label(style.label(key, 24))
            continue
        axes.annotate(
            style.label(key, 24), (len(points) - 1, float(points[-1])), (7, 0),
            textcoords="offset points", va="center", size=8, color=colour, parse_math=False,
            annotation_clip=False,
        )  # fmt: skip
    if not named:
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
    style.name_axis(axes, "x", rows)
    if log:
        axes.set_yscale("log")
    axes.set(xlabel="before block")
    axes.set_ylabel(name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, size=10, parse_math=False)
    return figure


def _ends_apart(
    ends: list[float], curves: Mapping[str, Sequence[float] | style.Numbers], log: bool
) -> bool:
    """Whether names at the lines' ends would not lie upon one another."""
    every = np.concatenate([np.asarray(curve, np.float64).ravel() for curve in curves.values()])
    places, low, high = np.sort(ends), np.nanmin(every), np.nanmax(every)
    if log:
        places, low, high = np.log([places, [low] * len(ends), [high] * len(ends)])
    least = 0.07 * float(np.max(high - low))
    return len(ends) < 2 or bool((np.diff(places) >= least).all())
