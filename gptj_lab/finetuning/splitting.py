"""What is trained on and what is held out, so that nothing held out is seen in training."""

import contextlib
import dataclasses
import uuid
import zipfile
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gptj_lab.finetuning import fingerprints
from gptj_lab.finetuning.leaks import HeldOutRuns, runs
from gptj_lab.finetuning.packing import Units
from gptj_lab.finetuning.token_store import TokenStore

VERSION = 2  # of the rules below: other rules are another corpus
SIMILAR = 0.7  # share of common runs of 8 tokens (of all in both) that makes near-duplicates
LEAK = 0.5  # share of a held-out stretch's runs that the training part may hold at most
_FEWEST = 10  # units below which nothing is held out
_MOST = 0.25  # share of the text that may be held out with one draw, where less was asked for
_SECTION = 256  # tokens, at least, of a section of a long document
_LONGEST = 1 << 18  # and at most: a section is looked at whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The two sides, and what was found on the way.

    Attributes:
        copies: documents whose words were seen before, case and blanks apart.
        near_copies: documents beyond these that are near another one.
        template: documents of the largest group if that was too large to keep together, else 0.
        moved: held-out stretches that went to training, as it holds most of their runs.
        overlap: share of the held-out runs of 13 tokens that training holds too.
        leaking: documents of a held-out text of its own that training mostly holds.
    """

    train: Units
    held_out: Units
    copies: int
    near_copies: int
    template: int = 0
    moved: int = 0
    overlap: float = 0.0
    leaking: int = 0


def whole(store: TokenStore) -> Units:
    """Every document as one unit."""
    closes = np.asarray(store.documents["closes"])
    size = np.asarray(store.documents["length"]) - ~closes
    count = np.arange(len(size))
    opens = ~np.asarray(store.documents["inner"]) & (store.end_of_text_id is not None)
    return _predicting(
        Units(document=count, start=0 * count, size=size, opens=opens, closes=closes)
    )


def split(store: TokenStore, share: float, context: int) -> Split:
    """Holds out about `share` of the text, chosen by a hash of its words.

    Copies and near-copies stay on one side; where they are a large part of the text, that is the
    training side, so that there is always something to train on. Long documents are cut into
    sections first, so that one book has a held-out part too. What is still mostly found in training
    goes there.

    Raises:
        ValueError: a share outside 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"held_out is {share}: give a share from 0 to 0.5")
    group, copies, near, template = _groups(store)
    units = _sections(store, context, share)
    if not share or len(units) < _FEWEST:
        none = units.chosen(np.zeros(len(units), bool))
        kept = dict(copies=copies, near_copies=near, template=template)
        return Split(train=whole(store), held_out=none, **kept)
    chance = _chances(store, units, group)
    held = _held(units, chance, share)
    moved, overlap = _clean(store, units, held)
    held &= ~moved
    return Split(
        train=_rejoined(units.chosen(~held)),
        held_out=units.chosen(held),
        copies=copies,
        near_copies=near,
        template=template,
        moved=int(moved.sum()),
        overlap=overlap,
    )


def split_once(folder: Path, store: TokenStore, share: float, context: int) -> Split:
    """The `split` of the store in `folder`, kept there: that of a large text takes minutes."""
    path = folder / f"split-{VERSION}-{share!r}-{context}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        with np.load(path) as kept:
            sides = {
                side: Units(**{name: kept[f"{side}.{name}"] for name in Units.__annotations__})
                for side in ("train", "held_out")
            }
            counts = {name: kept[name].item() for name in kept.files if "." not in name}
            return Split(**sides, **counts)
    found = split(store, share, context)
    arrays = {
        f"{side}.{name}": values
        for side in ("train", "held_out")
        for name, values in vars(getattr(found, side)).items()
    }
    counts = {name: value for name, value in vars(found).items() if not isinstance(value, Units)}
    aside = path.with_name(f".{uuid.uuid4().hex}.npz")
    np.savez(aside, **arrays, **counts)
    aside.replace(path)
    return found


def _groups(store: TokenStore) -> tuple[np.ndarray, int, int, int]:
    """(group of each document, copies, near-copies, documents in a group that was broken up)."""
    _, same = np.unique(store.documents["hash"], return_inverse=True)
    distinct, count = int(same.max(initial=-1)) + 1, len(same)
    pairs = fingerprints.near_pairs(store.signatures, SIMILAR)
    links = coo_array(
        (np.ones(len(pairs)), (same[pairs[:, 0]], same[pairs[:, 1]])), (distinct,) * 2
    )
    found, near = connected_components(links, directed=False)
    sizes = np.bincount(near, minlength=found)
    template = 0
    group = near.astype(np.int64)
    if count >= 4 * _FEWEST and sizes.max() > distinct / 4:  # a form that all rows fill in
        broken = near == sizes.argmax()
        group[broken] = found + np.flatnonzero(broken)
        template = int(sizes.max())
    return group[same], count - distinct, distinct - found - max(0, template - 1), template


def _sections(store: TokenStore, context: int, share: float) -> Units:
    """Documents, those longer than an eighth of the share cut into sections."""
    units = whole(store)
    total = int(units.size.sum())
    length = max(_SECTION, min(context, 8 * _SECTION), min(_LONGEST, int(total * share / 8)))
    parts = np.maximum(1, units.size // length)
    if store.flags is not None:  # a prompt stays with its answer
        parts = np.ones_like(parts)
    unit = np.repeat(np.arange(len(units)), parts)
    turn = np.arange(len(unit)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = turn * units.size[unit] // parts[unit]
    end = (turn + 1) * units.size[unit] // parts[unit]
    closes = units.closes[unit] & (turn == parts[unit] - 1)
    opens = units.opens[unit] & (turn == 0)
    document = units.document[unit]
    return Units(document=document, start=start, size=end - start, opens=opens, closes=closes)


def _chances(store: TokenStore, units: Units, group: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 for each unit, the same within a group, drawn from its words' hash."""
    hashes = np.asarray(store.documents["hash"])
    least = np.full(int(group.max()) + 1, np.iinfo(np.uint64).max)
    np.minimum.at(least, group, hashes)
    of_group = least[group[units.document]]
    sectioned = units.size < np.bincount(units.document, units.size)[units.document]
    alone = np.bincount(group)[group[units.document]] == 1
    mixed = of_group ^ np.where(
        sectioned & alone, (units.start.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15), 0
    ).astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    return mixed / 2.0**64


def _held(units: Units, chance: np.ndarray, share: float) -> np.ndarray:
    """Which units are held out: those drawn below `share`, else those of the lowest draw.

    What shares a draw goes together; of more than a quarter of the text (or `share`) none does.
    """
    _, draw = np.unique(chance, return_inverse=True)
    together = np.bincount(draw, units.size)[draw]
    free = together <= max(share, _MOST) * units.size.sum()
    held = free & (chance < share)
    if not held.any() and free.any():
        held = free & (chance == chance[free].min())
    if not units.size[~held].any():  # all were drawn: the last of them stays
        held &= chance != chance.max()
    return held


def _clean(store: TokenStore, units: Units, held: np.ndarray) -> tuple[np.ndarray, float]:
    """(held-out units that training mostly holds, share of the others' runs that it holds)."""
    names = np.flatnonzero(held)
    theirs = HeldOutRuns(store, units.chosen(names))
    for unit in np.flatnonzero(~held):
        theirs.see(runs(store, units, int(unit)))
    moved = np.zeros(len(held), bool)
    while (going := (theirs.shares() > LEAK) & ~moved[names]).any():
        for unit in names[going]:
            moved[unit] = True
            theirs.see(runs(store, units, int(unit)))  # what is like it goes with it
    return moved, theirs.share(~moved[names])


def _rejoined(units: Units) -> Units:
    """Sections that follow one another in a document, as one."""
    if not len(units):
        return units
    follows = (units.document[1:] == units.document[:-1]) & (
        units.start[1:] == units.start[:-1] + units.size[:-1]
    )
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    last = np.append(first[1:], len(units)) - 1
    return _predicting(
        Units(
            document=units.document[first],
            start=units.start[first],
            size=np.add.reduceat(units.size, first),
            opens=units.opens[first],
            closes=units.closes[last],
        )
    )


def _predicting(units: Units) -> Units:
    """The units that predict something: a single token without a mark around it doesn't."""
    return units.chosen(units.size > 0)
