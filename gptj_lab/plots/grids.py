"""Pictures of one number a head, a layer or a position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture


def head_scores(
    scores: Float[style.Numbers, "layers heads"],
    name: str,
    *,
    signed: bool = False,
    title: str = "",
) -> Picture:
    """One number for every head: rows are layers, columns are heads.

    Args:
        scores: NaN is shown as not known.
        name: what is shown, with its unit.
        signed: draw around 0, blue above and orange below.

    Raises:
        TypeError, ValueError: no such array.
    """
    values = style.numbers("scores", scores, "layers", "heads")
    rows, columns = ([f"{i}" for i in range(n)] for n in values.shape)
    said = style.told(f"{name} of each head", title, _extremes(values, "layer {} head {}", signed))
    return _grid(values, rows, columns, (name, "layer", "head"), signed, title, said)


def patching_grid(
    effects: Float[style.Numbers, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    name: str = "share of the answer that is back",
    *,
    row_name: str = "layer",
    column_name: str = "",
    signed: bool = True,
    title: str = "",
) -> Picture:
    """What each intervention of a sweep did: layers down, tokens, heads or kinds across.

    Args:
        effects: 1 as much as possible, 0 nothing, negative the wrong way.
        rows, columns: their labels; tokens as people should see them.
        name: what is shown, with its unit.

    Raises:
        TypeError, ValueError: no such array; not as many labels as rows or columns.
    """
    values = style.numbers("effects", effects, "rows", "columns")
    style.check_length("labels of the rows", len(rows), values.shape[0], "rows")
    style.check_length("labels of the columns", len(columns), values.shape[1], "columns")
    where = f"{row_name} {{}}, {column_name} {{}}".replace(",  {", ", {")
    said = style.told(
        f"{name}, by {row_name}", title, _extremes(values, where, signed, rows, columns)
    )
    return _grid(values, rows, columns, (name, row_name, column_name), signed, title, said)


def score_bars(
    scores: Mapping[str, float], name: str, *, baseline: float | None = None, title: str = ""
) -> Picture:
    """Bars of named numbers, in the order given, each with its number.

    Args:
        scores: such as {"layer 2 head 4": 0.81}.
        name: what is shown, with its unit.
        baseline: a line to compare with: chance, or the untouched model.

    Raises:
        ValueError: there is nothing to show.
    """
    if not scores:
        raise ValueError("scores is empty: give at least one name with its number")
    values = np.array(list(scores.values()), np.float32)
    told = ", ".join(f"{style.label(k, 30)} {v:.3g}" for k, v in scores.items())
    against = "" if baseline is None else f"The line to compare with is at {baseline:.3g}"
    said = style.told(f"{name}: {told}", against, title)
    figure = style.picture(6.4, 0.9 + 0.26 * len(values), said)
    axes = figure.subplots()
    colours = [style.NEGATIVE if value < 0 else style.POSITIVE for value in values]
    bars = axes.barh(np.arange(len(values)), values, color=colours, height=0.72)
    axes.bar_label(bars, fmt="%.3g", size=7, padding=3)
    axes.set_yticks(np.arange(len(values)), style.labels(list(scores), 30), parse_math=False,
                    size=8)  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    if baseline is not None:
        axes.axvline(baseline, color=style.INK, linestyle="--", linewidth=1.2)
    axes.set_xlabel(name, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, size=10, parse_math=False)
    return figure


def _grid(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str, str],
    signed: bool,
    title: str,
    said: str,
) -> Picture:
    width = min(9.5, 1.9 + 0.36 * values.shape[1])
    height = min(9.5, 1.2 + 0.3 * values.shape[0] + (0.4 if max(map(len, columns)) > 3 else 0))
    figure = style.picture(max(4.2, width), max(2.2, height), said)
    axes = figure.subplots()
    norm = style.around_zero(values) if signed else style.up_to_most(values)
    colours = style.diverging() if signed else style.sequential()
    shown = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
    style.name_axis(axes, "x", columns)
    style.name_axis(axes, "y", rows)
    axes.set(xlabel=names[2], ylabel=names[1])
    if values.size <= 200 and values.shape[1] <= 16:
        _print_numbers(axes, shown, values)
    figure.colorbar(shown, ax=axes, aspect=30).set_label(names[0], size=8, parse_math=False)
    axes.set_title(title, size=10, parse_math=False)
    return figure


def _print_numbers(axes: Any, shown: Any, values: np.ndarray) -> None:
    finite = np.abs(values[np.isfinite(values)])
    digits = 1 if finite.size and finite.max() >= 10 else 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, style.number(value, digits), size=6.5, ha="center",
                      va="center", color=style.ink_on(shown.to_rgba(value)))  # fmt: skip


def _extremes(
    values: np.ndarray,
    where: str,
    signed: bool,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> str:
    """The largest, and where there are signs the least, in words."""
    if not np.isfinite(values).any():
        return "Nothing is known."
    found = {"Largest": np.nanargmax(values)}
    if signed and np.nanmin(values) < 0:
        found["least"] = np.nanargmin(values)
    parts = []
    for word, place in found.items():
        row, column = divmod(int(place), values.shape[1])
        at = (rows[row] if rows else row, style.label(columns[column]) if columns else column)
        parts.append(f"{word}: {where.format(*at)} with {values[row, column]:.2f}")
    return "; ".join(parts)
