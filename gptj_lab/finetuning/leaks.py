"""How much of what is held out stands in the training text too."""

import numpy as np

from gptj_lab.finetuning import fingerprints
from gptj_lab.finetuning.packing import Units
from gptj_lab.finetuning.token_store import TokenStore

RUN = 13  # tokens in a row that count as seen, as in GPT-3's test (Brown et al. 2020)
_REMEMBERED = 1 << 21  # hashes of held-out runs kept in memory; of more, a sample


def runs(store: TokenStore, units: Units, unit: int) -> np.ndarray:
    """The hashes of a unit's runs of 13 tokens, those of a template left out."""
    document, start = int(units.document[unit]), int(units.start[unit])
    first = int(units.opens[unit])  # the mark in front is in all
    length = int(store.documents["length"][document])
    tokens = store.words(
        document, start + first, min(int(units.size[unit]) + 1, length - start) - first
    )
    return fingerprints.shingles(tokens, RUN)


class HeldOutRuns:
    """The runs of held-out units, and which of them training holds too."""

    def __init__(self, store: TokenStore, units: Units):
        self._keep = max(1, -(-int(units.size.sum()) // _REMEMBERED))  # of so many hashes one
        self._own = [self._sample(runs(store, units, unit)) for unit in range(len(units))]
        known = np.concatenate([np.zeros(0, np.uint64), *self._own])
        known.sort()  # numpy.unique would need several times the memory
        self._known = known[np.append(True, known[1:] != known[:-1])[: len(known)]]
        self._seen = np.zeros(len(self._known), bool)

    def see(self, hashes: np.ndarray) -> None:
        """Marks what training holds."""
        found = self._sample(hashes)
        if len(self._known):
            place = np.minimum(np.searchsorted(self._known, found), len(self._known) - 1)
            self._seen[place[self._known[place] == found]] = True

    def shares(self) -> np.ndarray:
        """Of each unit, the share of its runs that was seen."""
        return np.array([self._share(hashes) for hashes in self._own])

    def share(self, which: np.ndarray) -> float:
        """Of these units together, the share of their runs that was seen."""
        own = [hashes for hashes, chosen in zip(self._own, which, strict=True) if chosen]
        return self._share(np.concatenate(own)) if own else 0.0

    def _share(self, hashes: np.ndarray) -> float:
        return (
            float(self._seen[np.searchsorted(self._known, hashes)].mean()) if len(hashes) else 0.0
        )

    def _sample(self, hashes: np.ndarray) -> np.ndarray:
        return hashes if self._keep == 1 else hashes[hashes % np.uint64(self._keep) == 0]


def leaks(
    store: TokenStore, units: Units, held_store: TokenStore, held: Units
) -> tuple[np.ndarray, float]:
    """(share of each held-out unit's runs that training holds too, share of all together)."""
    theirs = HeldOutRuns(held_store, held)
    for unit in range(len(units)):
        theirs.see(runs(store, units, unit))
    return theirs.shares(), theirs.share(np.ones(len(held), bool))
