"""Pictures of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

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


def training_curves(
    steps: Float[np.ndarray, "points"],
    loss: Float[np.ndarray, "points"],
    evaluations: Float[np.ndarray, "2 evaluations"],
    *,
    title: str = "",
    base_loss: float | None = None,
    below: Mapping[str, np.ndarray] | None = None,
) -> Picture:
    """Training and held-out loss of a run over its steps, and small curves below.

    Args:
        steps, loss: of training, nats a token; NaN where it isn't known.
        evaluations: steps and held-out loss of each evaluation.
        base_loss: held-out loss of the model before, as a line.
        below: what else is drawn over `steps`, by its name with its unit: learning rate, ...

    Raises:
        ValueError: there is no step, or a curve has another number of points than `steps`.
    """
    if not len(steps):
        raise ValueError("the run has made no step yet: there is no curve to draw")
    small = dict(below or {})
    for name, values in small.items():
        style.check_length(f"points of {name}", len(values), len(steps), "steps")
    held = evaluations[:, np.isfinite(evaluations[1])]
    figure = style.picture(6.4, 3.4 + 1.1 * bool(small), _told(steps, loss, held, title, base_loss))
    layout: Any = [["loss"] * max(1, len(small)), *([list(small)] if small else [])]
    axes = figure.subplot_mosaic(layout, height_ratios=[3, 1] if small else [1])
    _losses(axes["loss"], steps, loss, held, base_loss)
    axes["loss"].set_title(style.label(title, 90), size=9, parse_math=False)
    for i, (name, values) in enumerate(small.items()):
        colour, dashes, _ = style.LINES[(i + 2) % len(style.LINES)]
        axes[name].plot(steps, values, color=colour, linestyle=dashes, linewidth=1)
        axes[name].set_title(style.label(name, 40), size=7, parse_math=False)
        axes[name].tick_params(labelsize=6)
    return figure


def training_plan(
    kinds: Sequence[tuple[str, float, str]],
    lengths: tuple[Sequence[int], Sequence[int]] | None,
    *,
    title: str,
    memory: str,
    said: Sequence[str],
) -> Picture:
    """What a run will need in memory, a bar a kind, beside the lengths of the text's documents.

    Args:
        kinds: (name, bytes, those in words).
        lengths: upper bounds of bins in tokens, and the documents in each; None: there is no text.
        title: of the picture.
        memory: all kinds together, in a few words.
        said: sentences on both, for the alt text; the last stands below the title.
    """
    figure = style.picture(6.4, 3.1, style.told(title, *(style.label(each, 240) for each in said)))
    needed, documents = figure.subplots(1, 2)
    names, sizes, words = zip(*kinds, strict=True)
    needed.barh(names, sizes, color=style.LINES[0][0])
    needed.bar_label(needed.containers[0], words, padding=3, fontsize=7)  # pyright: ignore
    needed.set_xlim(0, 1.35 * max(*sizes, 1))
    needed.invert_yaxis()
    needed.set_xticks([])
    needed.set_title(style.label(memory, 60), size=8, parse_math=False)
    if lengths is None:
        documents.set_axis_off()
        documents.text(0.5, 0.5, "no text yet", ha="center", va="center", fontsize=8)
    else:
        edges, counts = lengths
        documents.bar([f"{edge:,}" for edge in edges], counts, color=style.LINES[1][0], hatch="//")
        documents.set_xlabel("tokens, at most", size=8)
        documents.set_title("documents by their length", size=8)
        documents.tick_params("x", rotation=60)
    for axes in (needed, documents):
        axes.tick_params(labelsize=7)
    below = [style.label(each, 110) for each in said[-1:]]
    figure.suptitle("\n".join([style.label(title, 90), *below]), size=8, parse_math=False)
    return figure


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means of neighbours, as many on both sides, so that nothing lags; NaN is passed over.

    >>> smoothed(np.array([2.0, np.nan, 4.0, 5.0, 9.0])).tolist()
    [2.0, 3.0, 5.0, 6.0, 9.0]
    """
    reach, made = max(2, len(values) // 40), np.full(len(values), np.nan)
    for i in range(len(values)):
        side = min(reach, i, len(values) - 1 - i)
        near = values[i - side : i + side + 1]
        if np.isfinite(near).any():
            made[i] = near[np.isfinite(near)].mean()
    return made


def _losses(axes: Any, steps: Any, loss: Any, held: Any, base_loss: float | None) -> None:
    (blue, _, _), (orange, dashes, mark) = style.LINES[:2]
    axes.plot(steps, loss, color=blue, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smoothed(loss), color=blue, linewidth=1.8, label="training")
    if held.size:
        axes.plot(held[0], held[1], color=orange, linestyle=dashes, marker=mark, markersize=4,
                  label="held out")  # fmt: skip
        lowest = int(held[1].argmin())
        axes.plot(held[0, lowest], held[1, lowest], "*", color=style.INK, markersize=11,
                  label=f"best: {held[1, lowest]:.3f}")  # fmt: skip
    if base_loss is not None:
        axes.axhline(base_loss, color=style.INK, linestyle=":", linewidth=1,
                     label=f"base: {base_loss:.3f}")  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _told(steps: Any, loss: Any, held: Any, title: str, base_loss: float | None) -> str:
    known = loss[np.isfinite(loss)]
    parts = [" ".join(title.split()), f"{int(steps[-1]):,} steps"]
    if known.size:
        parts.append(f"The training loss goes from {known[0]:.2f} to {known[-1]:.2f} nats a token")
    if held.size:
        lowest = int(held[1].argmin())
        parts.append(
            f"The held-out loss goes from {held[1, 0]:.2f} to {held[1, -1]:.2f}, lowest at step "
            f"{int(held[0, lowest]):,} with {held[1, lowest]:.2f}"
        )
    if base_loss is not None:
        parts.append(f"The base model's held-out loss is {base_loss:.2f}")
    return style.told(*(style.label(part, 240) for part in parts))
