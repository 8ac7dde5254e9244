"""Picture: a matplotlib Figure that a notebook shows and keeps, with its alt text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# What a file that is too large gives up, in this order: colours, then sharpness.
_THRIFT = ((256, 1.0), (64, 1.0), (32, 1.0), (32, 0.75), (16, 0.75), (16, 0.5), (8, 0.35))


class Picture(Figure):
    """A figure with words for those who don't see it.

    Attributes:
        alt: what the picture shows, in a sentence or two.
    """

    alt: str = ""

    def png(self, most_bytes: int | None = None) -> bytes:
        """The picture as a PNG file of at most 256 colours, at its own resolution.

        Args:
            most_bytes: fewer colours, then fewer pixels, until the file is no larger.

        Raises:
            ValueError: no thrift makes it as small as that.
        """
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        made = b""
        for colours, scale in _THRIFT:
            size = (round(drawn.width * scale), round(drawn.height * scale))
            image = drawn if scale == 1 else drawn.resize(size, Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
            made = out.getvalue()
            if most_bytes is None or len(made) <= most_bytes:
                return made
        raise ValueError(
            f"the picture has {len(made):,} bytes at the least, more than the {most_bytes:,} "
            "allowed: show fewer tokens or heads"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        return (
            {"image/png": self.png(), "text/plain": self.alt},
            {"image/png": {"alt": self.alt}},
        )
