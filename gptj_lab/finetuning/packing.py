"""Windows of a corpus: which documents lie in which window, and the arrays that a step takes."""

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Int

from gptj_lab.finetuning.token_store import TokenStore

Packing = Literal["documents", "plain"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows of one step; a pytree, so that it passes through jit and device_put whole.

    Position i of a row reads tokens[i] and predicts tokens[i + 1]. Attention may look back within
    a segment only; segment 0 is padding. `weights` is 1 where the prediction counts (a text's
    every token, a prompt/completion row's answer and its end), else 0: a loss is
    `sum(weights * nats) / sum(weights)`.

    Attributes:
        tokens: int32 [batch, context + 1].
        segments: int32 [batch, context], from 1 on in each row.
        positions: int32 [batch, context], from 0 on in each segment.
        weights: float32 [batch, context].
    """

    tokens: jax.Array | np.ndarray
    segments: jax.Array | np.ndarray
    positions: jax.Array | np.ndarray
    weights: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units:
    """Stretches of documents that belong to one side of a split.

    Stretch k covers predictions start[k] to start[k] + size[k] of document[k]; prediction i of a
    document is of its token i + 1. `opens` says that its first token is the end of text, `closes`
    that its last prediction is: between two such stretches the mark is shared.
    """

    document: Int[np.ndarray, "units"]
    start: Int[np.ndarray, "units"]
    size: Int[np.ndarray, "units"]
    opens: Bool[np.ndarray, "units"]
    closes: Bool[np.ndarray, "units"]

    def __len__(self) -> int:
        return len(self.document)

    def chosen(self, which: np.ndarray) -> "Units":
        """The stretches that a mask or an index array names."""
        return Units(**{name: field[which] for name, field in vars(self).items()})


class Windows:
    """A corpus as windows of `context` predictions, none of which is lost.

    "documents": a document no longer than a window lies in one window whole; a longer one fills
    windows, and its rest is packed like a short one (best fit, longest first: Ding et al. 2024).
    Each is a segment of its own and its positions start at 0. "plain": one document after the
    other, cut wherever a window is full, one segment, as the original trained.
    """

    def __init__(self, store: TokenStore, units: Units, context: int, packing: Packing):
        """Lays the units out; nothing is read from the store yet.

        Raises:
            ValueError: a context below 1, or an unknown packing.
        """
        if context < 1:
            raise ValueError(f"context is {context}: a window needs at least 1 prediction")
        if packing not in ("documents", "plain"):
            raise ValueError(f'packing is {packing!r}: give "documents" or "plain"')
        self.store, self.units, self.context, self.packing = store, units, context, packing
        cut = _cut_into_documents if packing == "documents" else _cut_plain
        window, unit, offset, size, place = cut(units, context)
        self._document, self._start = units.document[unit], units.start[unit] + offset
        self._size, self._place = size, place
        bounds = np.searchsorted(window, np.arange(window.max(initial=-1) + 2))
        counted = np.add.reduceat(self._counted(), bounds[:-1]) if len(window) else np.zeros(0)
        filled = np.add.reduceat(size, bounds[:-1]) if len(window) else np.zeros(0)
        kept = counted > 0
        self._first, self._last = bounds[:-1][kept], bounds[1:][kept]
        self.silent = int(np.count_nonzero(~kept))
        self.predictions = int(counted.sum())
        self.padding = 1 - float(filled[kept].sum()) / max(1, len(self) * context)

    def __len__(self) -> int:
        return len(self._first)

    def batch(self, numbers: Int[np.ndarray, "batch"]) -> Batch:
        """The windows of these numbers; a negative number is a row of padding."""
        rows, context = len(numbers), self.context
        tokens = np.full((rows, context + 1), self.store.end_of_text_id or 0, np.int32)
        segments = np.zeros((rows, context), np.int32)
        positions = np.zeros((rows, context), np.int32)
        weights = np.zeros((rows, context), np.float32)
        for row, number in enumerate(numbers):
            if number >= 0:
                self._fill(int(number), tokens[row], segments[row], positions[row], weights[row])
        return Batch(tokens=tokens, segments=segments, positions=positions, weights=weights)

    def documents_of(self, number: int) -> list[tuple[int, int, int]]:
        """(document, first prediction, predictions) of each stretch in a window, in its order."""
        parts = range(self._first[number], self._last[number])
        return [(int(self._document[i]), int(self._start[i]), int(self._size[i])) for i in parts]

    def _counted(self) -> np.ndarray:
        """How many predictions of each piece count."""
        if self.store.flags is None:
            return self._size
        pieces = zip(self._document, self._start, self._size, strict=True)
        return np.array(
            [
                np.count_nonzero(self.store.read(int(document), int(start) + 1, int(size))[1])
                for document, start, size in pieces
            ],
            np.int64,
        )

    def _fill(
        self,
        number: int,
        tokens: np.ndarray,
        segments: np.ndarray,
        positions: np.ndarray,
        weights: np.ndarray,
    ) -> None:
        begins, end = np.zeros(self.context, bool), 0
        for part in range(self._first[number], self._last[number]):
            document, start = int(self._document[part]), int(self._start[part])
            size, place = int(self._size[part]), int(self._place[part])
            end = place + size
            tokens[place : end + 1], trained = self.store.read(document, start, size + 1)
            weights[place:end] = trained[1:]
            begins[place] = True
            if self.store.documents["inner"][document]:
                begins[place:end] |= tokens[place:end] == self.store.end_of_text_id
        if self.packing == "plain":
            begins[1:] = False
        places = np.arange(end)
        segments[:end] = np.cumsum(begins[:end])
        positions[:end] = places - np.maximum.accumulate(np.where(begins[:end], places, 0))


_Cut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _cut_into_documents(units: Units, context: int) -> _Cut:
    """Sorted by window: window, unit, offset in the unit, size and place of each piece."""
    whole, rest = np.divmod(units.size, context)
    unit = np.repeat(np.arange(len(units)), whole)
    turn = np.arange(len(unit)) - np.repeat(np.cumsum(whole) - whole, whole)
    full = (np.arange(len(unit)), unit, turn * context, np.full(len(unit), context), 0 * unit)

    shorter = np.flatnonzero(rest)
    # Where no mark is shared, the last token of the piece before has a place that predicts nothing.
    before = ~units.opens[shorter] | (whole[shorter] > 0)
    costs = np.minimum(rest[shorter] + before + ~units.closes[shorter], context)
    window, place = _best_fit(costs, context)
    place += before & (place > 0)
    order = np.lexsort((place, window))
    shorter, window, place = shorter[order], window[order] + len(unit), place[order]
    packed = (window, shorter, whole[shorter] * context, rest[shorter], place)
    joined = [np.concatenate(pair) for pair in zip(full, packed, strict=True)]
    return joined[0], joined[1], joined[2], joined[3], joined[4]


def _best_fit(
    costs: Int[np.ndarray, "pieces"], context: int
) -> tuple[Int[np.ndarray, "pieces"], Int[np.ndarray, "pieces"]]:
    """The window of each piece and its place there: longest first, into the fullest that fits."""
    windows, places = np.zeros(len(costs), np.int64), np.zeros(len(costs), np.int64)
    with_room: list[list[int]] = [[] for _ in range(context + 1)]  # windows, by places left
    rooms, count = 0, 0  # bit r of `rooms`: some window has r places left
    for piece in np.argsort(-costs, kind="stable"):
        cost = int(costs[piece])
        fitting = rooms >> cost
        if fitting:
            room = cost + (fitting & -fitting).bit_length() - 1
            window = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, window = context, count
            count += 1
        windows[piece], places[piece] = window, context - room
        if left := room - cost:
            with_room[left].append(window)
            rooms |= 1 << left
    return windows, places


def _cut_plain(units: Units, context: int) -> _Cut:
    """As _cut_into_documents, of one unit after the other."""
    # Where no mark is shared, a unit's last token has a place that predicts nothing, unless each
    # unit fills windows anyway (the original's records do).
    apart = np.append(~(units.closes[:-1] & units.opens[1:]), False)
    costs = units.size + (apart if (units.size % context).any() else 0)
    ends = np.cumsum(costs)
    total = int(ends[-1]) if len(ends) else 0
    begin = np.union1d(np.arange(0, total, context), ends - costs)
    unit = np.searchsorted(ends, begin, side="right")
    offset = begin - (ends - costs)[unit]
    size = np.minimum(np.diff(begin, append=total), units.size[unit] - offset)
    window, place = np.divmod(begin, context)
    there = size > 0
    return window[there], unit[there], offset[there], size[there], place[there]
