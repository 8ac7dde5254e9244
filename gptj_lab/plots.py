"""Numbers in, a matplotlib figure out; never takes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; the dashes say it again.
_STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))


def loss_curve(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Bits per byte over tokens seen, one line a curve of (tokens, bits per byte) points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        colour, dashes = _STYLES[i % len(_STYLES)]
        axes.plot(
            [tokens / 1e6 for tokens, _ in points], [bits for _, bits in points],
            color=colour, linestyle=dashes, label=name,
        )  # fmt: skip
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
