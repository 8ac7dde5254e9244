"""Pictures of attention: every head small, or one head with its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gptj_lab.plots import style

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture

_PIXELS = 160_000  # of a grid in all, so that its PNG stays small


def heads_grid(
    patterns: Float[style.Numbers, "layers heads seq kv_seq"],
    title: str = "",
    marked: Sequence[tuple[int, int]] = (),
) -> Picture:
    """The attention of every head as a small square: rows are layers, columns are heads.

    In a square, a row is a token that reads, a column a token that is read. Where there are more
    tokens than pixels, a pixel shows the largest share among its tokens.

    Args:
        patterns: shares from 0 to 1, each row summing to 1; the layers may be of any number.
        marked: (layer, head) pairs that get a frame.

    Raises:
        TypeError, ValueError: no such array; a marked head that isn't there.
    """
    shares = style.numbers("patterns", patterns, "layers", "heads", "seq", "kv_seq")
    layers, heads, seq, _ = shares.shape
    for layer, head in marked:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise ValueError(
                f"({layer}, {head}) can't be marked: there are {layers} layers and {heads} heads, "
                "counted from 0"
            )
    side = max(4, min(seq, 48, int(math.sqrt(_PIXELS / (layers * heads)))))
    image = _tiled(_pooled(shares, min(side, seq)))
    tile = image.shape[0] / layers
    said = style.told(
        f"Attention of {layers} layers with {heads} heads each on {seq} tokens", title,
        f"Framed: {', '.join(f'layer {x} head {y}' for x, y in marked)}" if marked else "",
    )  # fmt: skip
    inch = min(1.0, 8.6 / heads, 8.6 / layers)
    figure = style.picture(inch * heads + 1.1, inch * layers + 0.7, said)
    axes = figure.subplots()
    shown = axes.imshow(image, cmap=style.sequential(), norm=style.share(), interpolation="nearest")
    axes.set_xticks((np.arange(heads) + 0.5) * tile - 1, map(str, range(heads)), size=7)
    axes.set_yticks((np.arange(layers) + 0.5) * tile - 1, map(str, range(layers)), size=7)
    axes.set(xlabel="head", ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for layer, head in marked:
        _frame(axes, (head * tile - 0.5, layer * tile - 0.5), tile - 1)
    figure.colorbar(shown, ax=axes, label="share of attention", ticks=_TICKS, shrink=0.8,
                    aspect=30)  # fmt: skip
    axes.set_title(title, size=10, parse_math=False)
    return figure


_TICKS = (0, 0.05, 0.2, 0.5, 1)


def attention_head(
    pattern: Float[style.Numbers, "seq kv_seq"],
    tokens: Sequence[str],
    title: str = "",
    key_tokens: Sequence[str] | None = None,
) -> Picture:
    """One head: each row is a token, and shows which tokens it reads by how much.

    Args:
        pattern: shares from 0 to 1; NaN is shown as not there.
        tokens: of the rows, as people should see them; of up to 12, the shares are printed.
        key_tokens: of the columns, where they differ.

    Raises:
        TypeError, ValueError: no such array; not as many tokens as rows, or columns.
    """
    shares = style.numbers("pattern", pattern, "seq", "kv_seq").copy()
    keys = tokens if key_tokens is None else key_tokens
    style.check_length("tokens", len(tokens), shares.shape[0], "rows in the pattern")
    style.check_length("tokens of the columns", len(keys), shares.shape[1], "columns")
    shares[np.triu_indices_from(shares, 1 + shares.shape[1] - shares.shape[0])] = np.nan
    figure = style.picture(*_square(shares.shape), alt=_most_read(shares, tokens, keys, title))
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap=style.sequential(), norm=style.share())
    style.name_axis(axes, "x", keys)
    style.name_axis(axes, "y", tokens)
    axes.set(xlabel="is read", ylabel="reads")
    if max(shares.shape) <= 12:
        for (row, column), value in np.ndenumerate(shares):
            if np.isfinite(value) and value >= 0.005:
                ink = style.ink_on(shown.to_rgba(value))  # pyright: ignore[reportArgumentType]
                axes.text(column, row, style.number(value), size=7, ha="center", va="center",
                          color=ink)  # fmt: skip
    figure.colorbar(shown, ax=axes, label="share of attention", ticks=_TICKS, shrink=0.8,
                    aspect=30)  # fmt: skip
    axes.set_title(title, size=10, parse_math=False)
    return figure


def _square(shape: tuple[int, ...]) -> tuple[float, float]:
    side = [min(7.5, max(2.6, 0.9 + 0.19 * n)) for n in shape]
    return side[1] + 0.9, side[0] + 0.3


def _most_read(shares: np.ndarray, tokens: Sequence[str], keys: Sequence[str], title: str) -> str:
    """The alt text: the last token's reading, and the token that is read most by all."""
    known = np.nan_to_num(shares)
    last, mean = known[-1], known.mean(0)
    return style.told(
        f"Attention on {len(tokens)} tokens",
        title,
        f"The last token, {style.label(tokens[-1])!r}, reads "
        f"{style.label(keys[int(last.argmax())])!r} most, with {last.max():.0%}; over all "
        f"tokens {style.label(keys[int(mean.argmax())])!r} is read most, with {mean.max():.0%}",
    )


def _pooled(shares: np.ndarray, side: int) -> np.ndarray:
    """[..., side, side]: the largest share of each tile; what can't be read is NaN."""
    seq, kv_seq = shares.shape[-2:]
    rows = np.arange(side) * seq // side
    columns = np.arange(side) * kv_seq // side
    pooled = np.maximum.reduceat(np.maximum.reduceat(shares, rows, -2), columns, -1)
    pooled = np.array(pooled)
    ends = np.append(rows[1:], seq) - 1 + kv_seq - seq  # the last token of a tile reads up to here
    pooled[..., columns[None, :] > ends[:, None]] = np.nan
    return pooled


def _tiled(tiles: np.ndarray) -> np.ndarray:
    """[layers, heads, side, side] as one image, with a gap of two pixels after each tile."""
    layers, heads, side, _ = tiles.shape
    image = np.full((layers, heads, side + 2, side + 2), np.nan, np.float32)
    image[:, :, :side, :side] = tiles
    return image.transpose(0, 2, 1, 3).reshape(layers * (side + 2), heads * (side + 2))


def _frame(axes, corner: tuple[float, float], side: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=style.NEGATIVE, linewidth=2))
