"""What tells near-duplicates: hashes of runs of tokens, and MinHash signatures of them."""

import numpy as np
from jaxtyping import Int, UInt32, UInt64

RUN = 8  # tokens in a row that make one shingle
BINS = 64  # of a signature: one-permutation hashing, Li, Owen and Zhang 2012
_BANDS = 16  # signatures that agree in a band of 4 bins are compared: similar by a half, about

_FACTORS = np.random.default_rng(0).integers(1, 1 << 63, 16, dtype=np.uint64) * 2 + 1
_EMPTY = np.uint32(0xFFFFFFFF)


def shingles(tokens: Int[np.ndarray, "seq"], run: int = RUN) -> UInt64[np.ndarray, "shingles"]:
    """A hash of each run of `run` tokens, at most 16; of the whole where it is shorter."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    run = min(run, len(values))
    if not run:
        return np.zeros(0, np.uint64)
    total = np.zeros(len(values) - run + 1, np.uint64)
    for i in range(run):
        total += values[i : i + len(total)] * _FACTORS[i]
    # Splitmix64's mixing, so that the high bits choose bins evenly.
    total ^= total >> np.uint64(30)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    total ^= total >> np.uint64(27)
    total *= np.uint64(0x94D049BB133111EB)
    return total ^ (total >> np.uint64(31))


class Signature:
    """The MinHash signature of a document whose tokens come in parts."""

    def __init__(self) -> None:
        self._least = np.full(BINS, _EMPTY)
        self._rest = np.zeros(0, np.int64)
        self._whole = False  # a run of 8 was seen

    def add(self, tokens: Int[np.ndarray, "seq"]) -> None:
        """Takes the document's next tokens."""
        joined = np.concatenate([self._rest, tokens])
        if len(joined) >= RUN:
            self._take(shingles(joined))
            self._whole = True
        self._rest = joined[-(RUN - 1) :]

    def value(self) -> UInt32[np.ndarray, "bins"]:
        """uint32 [64]; an empty bin repeats the next one that isn't (Shrivastava and Li 2014)."""
        if not self._whole:
            self._take(shingles(self._rest))
            self._whole = True
        full = np.flatnonzero(self._least != _EMPTY)
        if not len(full):
            return self._least
        return self._least[full[np.searchsorted(full, np.arange(BINS)) % len(full)]]

    def _take(self, hashes: UInt64[np.ndarray, "shingles"]) -> None:
        bins = (hashes >> np.uint64(58)).astype(np.int64)
        np.minimum.at(self._least, bins, (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32))


def near_pairs(
    signatures: UInt32[np.ndarray, "documents bins"], similarity: float
) -> Int[np.ndarray, "pairs 2"]:
    """Pairs that link documents whose signatures agree in at least this share of the bins."""
    found = [np.zeros((0, 2), np.int64)]
    width = BINS // _BANDS
    for band in range(0, BINS, width):
        part = np.ascontiguousarray(signatures[:, band : band + width])
        keys = part.view(np.dtype((np.void, part.itemsize * width))).ravel()
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        pairs = np.stack([order[same], order[same + 1]], axis=1)
        agree = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(axis=1)
        found.append(pairs[agree >= similarity])
    return np.unique(np.concatenate(found), axis=0)
