"""Documents as token ids on disk, mapped into memory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import fingerprints

FORMAT = 2  # raised when a cache of an older version must not be used
TRAINED, FORM = 1, 2  # bits of a token: a loss is taken on it; it is a template's own
DOCUMENT = np.dtype(
    [
        ("offset", "<i8"),  # of its first token
        ("length", "<i8"),  # tokens, the end-of-text token in front included
        ("bytes", "<i8"),  # of its text in UTF-8
        ("hash", "<u8"),  # of its words in lower case
        ("closes", "?"),  # its last token predicts the end of text
        ("inner", "?"),  # a window cut elsewhere, with documents' bounds inside
    ]
)


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """The tokens of a corpus, mapped from a cache's folder; only what is read enters memory.

    Attributes:
        name: the folder's name, a hash of content, tokenizer and settings.
        flags: uint8 [tokens], of bits TRAINED and FORM; None where all is trained on.
        documents: a record a document, see DOCUMENT.
        signatures: uint32 [documents, 64], for near-duplicates, see fingerprints.
        end_of_text_id: what stands in front of each document and closes it, if there is one: the
            tokenizer's eos_token, <|endoftext|> in GPT-2's.
        notes: what reading the sources found.
        origins: where the documents came from, by the number of the first of each file.
        about: what the templates were, see corpora.templates.Templates.facts.
    """

    name: str
    tokens: np.ndarray
    flags: np.ndarray | None
    documents: np.ndarray
    signatures: np.ndarray
    end_of_text_id: int | None
    notes: ReadingNotes
    origins: dict[int, str]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, document: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [count] tokens, bool [count] whether trained on) of a document, from `start`.

        One token past its end is the end-of-text token that closes it.
        """
        inside = self._inside(document, start, count)
        tokens = np.full(count, self.end_of_text_id or 0, np.int32)
        trained = np.ones(count, bool)
        taken = inside.stop - inside.start
        tokens[:taken] = self.tokens[inside]
        if self.flags is not None:
            trained[:taken] = self.flags[inside] & TRAINED
        return tokens, trained

    def words(self, document: int, start: int, count: int) -> np.ndarray:
        """The tokens of a document from `start` that aren't a template's own."""
        inside = self._inside(document, start, count)
        tokens = self.tokens[inside].astype(np.int32)
        return tokens if self.flags is None else tokens[(self.flags[inside] & FORM) == 0]

    @property
    def silent(self) -> int:
        """How many tokens no loss is taken on."""
        return 0 if self.flags is None else int(np.count_nonzero((self.flags & TRAINED) == 0))

    def _inside(self, document: int, start: int, count: int) -> slice:
        record = self.documents[document]
        begin, length = int(record["offset"]), int(record["length"])
        return slice(begin + start, begin + min(start + count, length))

    def origin(self, document: int) -> str:
        """The file, or the place in a list, that a document came from."""
        first = max((number for number in self.origins if number <= document), default=0)
        return self.origins.get(first, "text")


def open_store(folder: Path) -> TokenStore | None:
    """The store of a folder, or None where there is none, or one that is damaged."""
    try:
        facts = json.loads((folder / "corpus.json").read_text("utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in facts["sizes"]}
    except (OSError, ValueError, KeyError):
        return None
    if facts.get("format") != FORMAT or sizes != facts["sizes"]:
        return None

    def mapped(name: str, dtype: Any) -> np.ndarray:
        empty = not sizes[name]
        return np.zeros(0, dtype) if empty else np.memmap(folder / name, dtype, mode="r")

    return TokenStore(
        name=folder.name,
        tokens=mapped("tokens.bin", np.dtype(facts["dtype"])),
        flags=mapped("flags.bin", "u1") if "flags.bin" in sizes else None,
        documents=mapped("documents.bin", DOCUMENT),
        signatures=mapped("signatures.bin", "<u4").reshape(-1, fingerprints.BINS),
        end_of_text_id=facts["end_of_text_id"],
        notes=ReadingNotes.from_json(facts["notes"]),
        origins={int(number): origin for number, origin in facts["origins"].items()},
        about=facts.get("about", {}),
    )
