"""Sweeps that a view pulls: every head ablated, or every value of A patched into B's run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.interventions import Interventions
from gptj_lab.lens.prompts import Pair, check_same_length
from gptj_lab.lens.sweeps import CHUNK_BYTES, each, store, use
from gptj_lab.widgets import explorer_edits
from gptj_lab.widgets.explorer_reading import Reading
from gptj_lab.widgets.explorer_session import Session

PATCHED = {
    "resid_pre": "resid_pre",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "heads": "attn.z",
}
ABLATED = {"ablate_heads": "attn.z", "ablate_mlps": "mlp_out"}
_SLOW = 0.25  # seconds of a forward pass from which on a chunk is one row, so that Stop is prompt


class Sweep:
    """A grid that fills as `advance` is called; nothing runs in between.

    Attributes:
        what: of PATCHED: share of A's answer that one of A's values brings back in B's run (0 none,
            1 all); of ABLATED: change of the answer's logit in A without the component.
        grid: float32 [layers, columns], NaN where it isn't done yet.
        columns: "position", "head" or "mlp".
        token, minus: ids of the answer, and of the one that is subtracted; minus may be None.
        position: the token after which the answer is read.
        done: cells of the grid that are finished, in its order.
    """

    def __init__(
        self,
        session: Session,
        what: Any,
        token: int | None = None,
        minus: int | None = None,
        position: int | None = None,
    ):
        """Checks everything; the device begins to work at the first `advance`.

        Args:
            token, minus, position: by default the likeliest token after the last one, and in
                patching minus B's likeliest.

        Raises:
            ValueError: an unknown sweep, or A and B that can't be patched into each other.
        """
        if what not in PATCHED and what not in ABLATED:
            known = ", ".join([*PATCHED, *ABLATED])
            raise ValueError(f"what is {what!r}: one of {known} is needed")
        config, seq = session.model.config, len(session.a)
        self.session, self.what = session, what
        position = seq - 1 if position is None else position
        self.position = explorer_edits.index("position", position, seq)
        self.token = _token(session, token, session.a.logits[self.position])
        self.minus = minus if minus is None else _token(session, minus)
        begun = time.perf_counter()
        Reading(session.model, session.a.ids)
        slow = time.perf_counter() - begun > _SLOW
        self._chunk_bytes = 1 if slow else CHUNK_BYTES
        self.columns = {"heads": "head", "ablate_heads": "head", "ablate_mlps": "mlp"}.get(
            what, "position"
        )
        widths = {"head": config.num_heads, "mlp": 1, "position": seq}
        self.grid = np.full((config.num_layers, widths[self.columns]), np.nan, np.float32)
        self.done = 0
        self._cells = np.arange(self.grid.size)
        self._rows = self._patches() if what in PATCHED else self._ablations()

    @property
    def finished(self) -> bool:
        """Whether every cell is done."""
        return self.done == self.grid.size

    def advance(self) -> tuple[int, Float[np.ndarray, "cells"]]:
        """Computes some more cells: where they begin, and they themselves."""
        begun, flat = self.done, self.grid.reshape(-1)
        values = next(self._rows, None)
        if values is not None:
            count, values = values
            after = self._cells[count:]
            flat[self._cells[:count]] = values
            self._cells = after
        self.done = int(self._cells[0]) if len(self._cells) else self.grid.size
        part = flat[begun : self.done]
        part[np.isnan(part)] = 0.0  # cells that can't matter were not computed
        if self.finished and self.what == "ablate_heads":
            self.session.effects["ablation"] = self.grid
        return begun, part

    def complete(self) -> Float[np.ndarray, "layers columns"]:
        """The whole grid."""
        while not self.finished:
            self.advance()
        return self.grid

    def _ablations(self) -> Iterator[tuple[int, np.ndarray]]:
        session, width = self.session, self.grid.shape[1]
        base = Interventions.none(session.model, len(session.a))

        def make(cell: int) -> Interventions:
            layer, column = divmod(cell, width)
            head = column if self.columns == "head" else None
            return use(base, 0, ABLATED[self.what], layer, head=head)  # row 0 holds zeros

        plain = session.a.logits[self.position]
        for chunk in each(
            session.model, session.a.ids, base, make, self.grid.size,
            position=self.position, chunk_bytes=self._chunk_bytes,
        ):  # fmt: skip
            change = chunk.logits - plain
            minus = 0.0 if self.minus is None else change[:, self.minus]
            yield len(chunk.logits), change[:, self.token] - minus

    def _patches(self) -> Iterator[tuple[int, np.ndarray]]:
        session, site = self.session, PATCHED[self.what]
        session.reading("b")  # refuses where there is none
        if session.two_models:
            raise ValueError(
                "patching puts one prompt's values into another's run: make an Explorer with "
                "compare='another prompt', not another model"
            )
        assert session.b is not None
        a, b, at = session.a, session.b, self.position
        check_same_length(a.model, a.ids.tolist(), b.ids.tolist(), ("A", "B"))
        if self.minus is None:
            self.minus = _token(session, None, b.logits[at])
        pair = Pair(
            a.ids.tolist(), b.ids.tolist(), self.token, self.minus, at, a.logits[at], b.logits[at]
        )
        clean, corrupt = (float(pair.logit_difference(row)) for row in (a.logits[at], b.logits[at]))
        if abs(clean - corrupt) < 1e-6:
            raise ValueError(
                "A and B don't differ in the chosen two tokens: name others, or another prompt B"
            )
        first = pair.first_difference  # before it, and after the answer, nothing can matter
        if self.columns == "position":
            column = self._cells % self.grid.shape[1]
            self._cells = self._cells[(column >= first) & (column <= at)]
        return self._patched(pair, site, self._cells)

    def _patched(self, pair: Pair, site: str, cells: np.ndarray) -> Iterator:
        session, width = self.session, self.grid.shape[1]
        values = [session.a.inside(layer, site) for layer in range(len(self.grid))]
        flat = np.stack([value.reshape(len(value), -1) for value in values])
        base, rows = store(Interventions.none(session.model, len(session.a)), flat)

        def make(number: int) -> Interventions:
            layer, column = divmod(int(cells[number]), width)
            if self.columns == "head":
                return use(base, rows[layer], site, layer, head=column)
            return use(base, rows[layer], site, layer, column)

        for chunk in each(
            session.model, pair.corrupt, base, make, len(cells), position=pair.position,
            chunk_bytes=self._chunk_bytes,
        ):  # fmt: skip
            yield len(chunk.logits), pair.recovered(chunk.logits)


def _token(session: Session, token: Any, logits: np.ndarray | None = None) -> int:
    if token is None and logits is not None:
        return int(logits.argmax())
    return explorer_edits.index("token", token, session.model.config.vocab_size)
