"""Picture: a matplotlib Figure that a notebook shows and keeps, with its alt text."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure with words for those who don't see it.

    Attributes:
        alt: what the picture shows, in a sentence or two.
    """

    alt: str = ""

    def png(self) -> bytes:
        """The picture as a PNG file, at its own resolution."""
        out = io.BytesIO()
        self.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        return (
            {"image/png": self.png(), "text/plain": self.alt},
            {"image/png": {"alt": self.alt}},
        )
