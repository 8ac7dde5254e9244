"""Token ids of texts whose words return: each chunk between spaces is tokenised once."""

import itertools
import json
import re
from collections.abc import Sequence

import tokenizers

_CHUNK = re.compile(r"[ \n\t\r]*[^ \n\t\r]+|[ \n\t\r]+")
# What Unicode, or a version of it, or Python calls white space besides these four.
_OTHER_SPACE = re.compile(
    r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200d\u2028-\u202f\u205f\u2060\u3000\ufeff]"
)
_LONGEST = 64  # characters of a chunk that is kept
_MOST = 1 << 18  # chunks that are kept


class Chunks:
    """The ids of chunks of text that a tokenizer has met.

    GPT-2's splitting never lets a token go from a character that isn't white space to white space
    after it, so that a text may be cut there without changing an id. Prose has a tenth as many
    different chunks as chunks; a look into a dict is several times as fast as a BPE's merges.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing around them: what the tokenizer itself gives."""
        cut = [_cut(text) for text in texts]
        met = set().union(*cut)
        if len(self._known) + len(met) > _MOST:
            self._known = {}
        known = self._known
        fresh = list(met.difference(known))
        found = self._inner.encode_batch_fast(fresh, add_special_tokens=False)
        known.update(zip(fresh, (encoding.ids for encoding in found), strict=True))
        ids = [list(itertools.chain.from_iterable(map(known.__getitem__, each))) for each in cut]
        for chunk in fresh:
            if len(chunk) > _LONGEST:
                del known[chunk]
        return ids


def _cut(text: str) -> list[str]:
    """The chunks of a text; the text itself where it has other white space."""
    return [text] if _OTHER_SPACE.search(text) else _CHUNK.findall(text)


def suits(inner: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer's ids of chunks, joined, are those of the text.

    It splits as GPT-2 does and nothing else, puts no space before a text, and none of its added
    tokens reads white space.
    """
    setup = json.loads(inner.to_str())
    splitting = setup["pre_tokenizer"] or {}
    return (
        setup["normalizer"] is None
        and splitting.get("type") == "ByteLevel"
        and splitting.get("use_regex", True)
        and not splitting.get("add_prefix_space", True)
        and setup["model"]["type"] == "BPE"
        and not setup["model"].get("dropout")
        and not any(
            added["lstrip"] or added["rstrip"] or added["single_word"] or _reads_space(added)
            for added in setup["added_tokens"]
        )
    )


def _reads_space(added: dict) -> bool:
    return any(character.isspace() for character in added["content"])
