"""A picture of a weight, cut over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture

# Those of the MeshView's light theme, with a hatch each.
_SLICES = (
    ("#f3c969", ""), ("#9fd3f2", "//"), ("#7fcbb2", "\\\\"), ("#f5ee9e", "--"),
    ("#7fb3d6", "||"), ("#eaa680", ".."), ("#e3b6d0", "xx"), ("#c9ccd1", "++"),
)  # fmt: skip


def mesh_placement(
    devices: Int[np.ndarray, "data model"],
    held: Sequence[str],
    numbers: Int[np.ndarray, "data model"],
    parts: Int[np.ndarray, "parts dimensions 2"],
    shape: tuple[int, ...],
    title: str,
) -> Picture:
    """A mesh's devices beside one weight, cut into slices: same colour and number, same slice.

    Args:
        devices: their ids.
        held: what to write under each, row by row: the bytes of all weights, for example.
        numbers: the slice that each device holds, from 0.
        parts: start and stop of each slice in each dimension of the weight.
        shape: of the weight; a vector is drawn as one row.
    """
    alt = f"{devices.size} devices beside a weight of shape {shape} in {len(parts)} slices. {title}"
    figure = style.picture(8.6, 3.3, alt)
    mesh, matrix = figure.subplots(1, 2, width_ratios=(1.2, 1))
    count = len(parts)
    for place, device in np.ndenumerate(devices):
        number = int(numbers[place])
        what = "all of it" if count == 1 else f"slice {number + 1}"
        text = f"device {device}\n{held[place[0] * devices.shape[1] + place[1]]}\n{what}"
        _slice(mesh, (place[1] + 0.04, place[0] + 0.04, 0.92, 0.92), number, text)
    for number, bounds in enumerate(parts.tolist()):
        (top, bottom), (left, right) = bounds if len(shape) > 1 else ((0, 1), bounds[0])
        owners = devices[numbers == number]
        who = f"device{'s' * (len(owners) > 1)} {', '.join(map(str, owners))}"
        text = "all of it\non every device" if count == 1 else f"slice {number + 1}\n{who}"
        _slice(matrix, (left, top, right - left, bottom - top), number, text)
    _frame_mesh(mesh, devices.shape)
    _frame_matrix(matrix, shape)
    figure.suptitle(title, size=9, parse_math=False)
    return figure


def _frame_mesh(axes: Any, shape: tuple[int, ...]) -> None:
    rows, columns = shape
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(columns) + 0.5, [f"model {i}" for i in range(columns)])
    axes.set_yticks(np.arange(rows) + 0.5, [f"data {i}" for i in range(rows)])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _frame_matrix(axes: Any, shape: tuple[int, ...]) -> None:
    axes.set(xlim=(0, shape[-1]), ylim=(shape[-2] if len(shape) > 1 else 1, 0))
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=8)
    if len(shape) == 1:
        axes.set_yticks([])
        axes.set_box_aspect(0.2)


def _slice(axes: Any, box: tuple[float | int, ...], number: int, text: str) -> None:
    """A rectangle (left, top, width, height) in the slice's colour and hatch, with its label."""
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    colour, hatch = _SLICES[number % len(_SLICES)]
    axes.add_patch(
        Rectangle(
            (left, top), width, height, facecolor=colour, hatch=hatch, edgecolor="#00000055",
            linewidth=0.8,
        )
    )  # fmt: skip
    axes.text(
        left + width / 2, top + height / 2, text, size=7, ha="center", va="center",
        color="#1b1b1b", parse_math=False,
        bbox=dict(facecolor="white", edgecolor="none", pad=1.5),
    )  # fmt: skip
