"""Pictures of which part of the network, or of the prompt, made a logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture


def attribution_waterfall(
    parts: Sequence[str],
    values: Float[style.Numbers, "parts"],
    *,
    name: str = "logit",
    most: int = 14,
    title: str = "",
) -> Picture:
    """What each part adds to a logit, the largest first, one bar beginning where the last ended.

    The last bar is the sum of all, from 0.

    Args:
        parts: such as "embed", "layer 2 head 4", "layer 5 MLP".
        values: what each adds, in logits.
        name: of the sum, such as "logit of ' cat' minus ' dog'".
        most: how many parts are shown; the others are one bar.

    Raises:
        TypeError, ValueError: no such array; not as many names as values.
    """
    adds = style.numbers("values", values, "parts", dtype=np.float64)
    style.check_length("names of the parts", len(parts), len(adds), "values")
    order = np.argsort(-np.abs(adds), kind="stable")
    first, rest = order[:most], order[most:]
    shown = [(parts[i], float(adds[i])) for i in first]
    if rest.size:
        shown.append((f"{rest.size} others", float(adds[rest].sum())))
    total = float(adds.sum())
    told = ", ".join(f"{style.label(part, 30)} {value:+.2f}" for part, value in shown[:5])
    said = style.told(
        f"{name}: {total:.2f}, the sum of {len(parts)} parts", title, f"Largest: {told}"
    )
    figure = style.picture(6.8, 1.1 + 0.25 * (len(shown) + 1), said)
    axes = figure.subplots()
    reached = 0.0
    for row, (_, value) in enumerate(shown):
        _bar(axes, row, reached, value)
        reached += value
        axes.plot([reached, reached], [row, row + 1], color=style.NEUTRAL, linewidth=0.8)
    axes.barh(len(shown), total, color=style.NEUTRAL, height=0.72)
    text = f" {total:.2f}".replace("-", "−")
    axes.text(max(total, 0), len(shown), text, size=7.5, va="center", weight="bold")
    reach = np.cumsum([0.0, *(value for _, value in shown)])
    room = 0.12 * (float(np.ptp(reach)) or 1.0)
    axes.set_xlim(reach.min() - room / 3, reach.max() + room)
    names = style.labels([*(part for part, _ in shown), "sum"], 30)
    axes.set_yticks(np.arange(len(names)), names, size=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_xlabel(name, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, size=10, parse_math=False)
    return figure


def _bar(axes: Any, row: int, start: float, value: float) -> None:
    """A bar from `start`, its number at its end; hatched where it takes away."""
    axes.barh(
        row, value, left=start, height=0.72, edgecolor="white", linewidth=0,
        color=style.POSITIVE if value >= 0 else style.NEGATIVE, hatch="" if value >= 0 else "///",
    )  # fmt: skip
    text = f"{value:+.2f}".replace("-", "−")
    axes.text(max(start, start + value), row, f" {text}", size=7.5, va="center")


def token_values(
    tokens: Sequence[str],
    values: Float[style.Numbers, "seq"],
    name: str,
    *,
    signed: bool = True,
    title: str = "",
) -> Picture:
    """The prompt's tokens in their order, each on a coloured ground with its number below.

    Args:
        tokens: as people should see them.
        values: one for each; NaN is shown as not there.
        name: what is shown, with its unit.
        signed: draw around 0, blue above and orange below.

    Raises:
        TypeError, ValueError: no such array; not as many tokens as values.
    """
    numbers = style.numbers("values", values, "seq")
    style.check_length("tokens", len(tokens), len(numbers), "values")
    a_row = min(12, len(numbers))
    rows = -(-len(numbers) // a_row)
    filled = np.full(rows * a_row, np.nan, np.float32)
    filled[: len(numbers)] = numbers
    ranked = sorted(np.flatnonzero(np.isfinite(numbers)).tolist(), key=lambda i: -abs(numbers[i]))[
        :4
    ]
    told = ", ".join(f"{style.label(tokens[i])!r} (token {i}) {numbers[i]:.3g}" for i in ranked)
    said = style.told(f"{name} of {len(tokens)} tokens", title, f"Largest: {told or 'none'}")
    figure = style.picture(1.0 + 0.7 * a_row, 0.9 + 0.45 * rows, said)
    axes = figure.subplots()
    colours = (style.diverging() if signed else style.sequential()).with_extremes(bad="white")
    norm = style.around_zero(numbers) if signed else style.up_to_most(numbers)
    shown = axes.imshow(filled.reshape(rows, a_row), cmap=colours, norm=norm, aspect="auto")
    for i, (token, value) in enumerate(zip(tokens, numbers, strict=True)):
        row, column = divmod(i, a_row)
        ink = style.ink_on(shown.to_rgba(value)) if np.isfinite(value) else style.INK  # pyright: ignore[reportArgumentType]
        number = f"{value:.2g}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(column, row - 0.14, style.label(token, 10), size=8, ha="center", va="center",
                  color=ink, parse_math=False)  # fmt: skip
        axes.text(column, row + 0.27, number, size=6.5, ha="center", va="center", color=ink)
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, fraction=0.05).set_label(name, size=7, parse_math=False)
    axes.set_title(title, size=10, parse_math=False)
    return figure
