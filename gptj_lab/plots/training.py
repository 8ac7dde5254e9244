"""Pictures of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture


def loss_curve(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    """Bits per byte over tokens seen, one line a curve of (tokens, bits per byte) points."""
    told = "; ".join(
        f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}"
        for name, points in curves.items()
        if points
    )
    figure = style.picture(6.4, 3.6, f"Bits per byte over tokens seen: {told}.")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        colour, dashes, _ = style.LINES[i % len(style.LINES)]
        axes.plot(
            [tokens / 1e6 for tokens, _ in points], [bits for _, bits in points],
            color=colour, linestyle=dashes, label=name,
        )  # fmt: skip
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
