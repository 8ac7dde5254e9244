"""Pictures of numbers along steps, factors or ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture


def lines(
    along: Sequence[float] | style.Numbers,
    curves: Mapping[str, Sequence[float] | style.Numbers],
    name: str,
    *,
    along_name: str = "step",
    baseline: float | None = None,
    title: str = "",
    log: bool = False,
) -> Picture:
    """Numbers over steps of training, factors or ranks, one line each.

    Args:
        along: where the points lie, rising: [points].
        curves: such as {"first time": [...]}, each with one number a point; NaN is left out.
        name: what is shown, with its unit.
        along_name: what it is shown along, with its unit.
        baseline: a line to compare with, such as chance.
        log: numbers by their logarithm.

    Raises:
        ValueError: there is no curve, or one has another number of points than `along`.
    """
    if not curves:
        raise ValueError("curves is empty: give at least one name with its numbers")
    places = np.asarray(along, np.float64)
    for key, curve in curves.items():
        style.check_length(f"points of {key!r}", len(curve), len(places), f"places of {along_name}")
    told = "; ".join(
        f"{style.label(key, 40)} {float(curve[0]):.3g} to {float(curve[-1]):.3g}"
        for key, curve in curves.items()
    )
    said = style.told(
        f"{name} from {along_name} {places[0]:g} to {places[-1]:g}: {told}", title,
        "" if baseline is None else f"The line to compare with is at {baseline:.3g}",
    )  # fmt: skip
    figure = style.picture(6.4, 3.2, said)
    axes = figure.subplots()
    for i, (key, curve) in enumerate(curves.items()):
        colour, dashes, mark = style.LINES[i % len(style.LINES)]
        axes.plot(places, np.asarray(curve, np.float64), color=colour, linestyle=dashes,
                  marker=mark, markersize=4, label=style.label(key, 40))  # fmt: skip
    if baseline is not None:
        axes.axhline(baseline, color=style.INK, linestyle="--", linewidth=1)
    if log:
        axes.set_yscale("log")
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    axes.set_xlabel(along_name, parse_math=False)
    axes.set_ylabel(name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, size=10, parse_math=False)
    return figure
