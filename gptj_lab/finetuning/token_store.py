"""Documents as token ids on disk, mapped into memory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import fingerprints

FORMAT = 1  # raised when a cache of an older version must not be used
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
        documents: a record a document, see DOCUMENT.
        signatures: uint32 [documents, 64], for near-duplicates, see fingerprints.
        end_of_text_id: what stands in front of each document and closes it, if there is one: the
            tokenizer's eos_token, <|endoftext|> in GPT-2's.
        notes: what reading the sources found.
        origins: where the documents came from, by the number of the first of each file.
    """

    name: str
    tokens: np.ndarray
    trained: np.ndarray | None
    documents: np.ndarray
    signatures: np.ndarray
    end_of_text_id: int | None
    notes: ReadingNotes
    origins: dict[int, str]

    def read(self, document: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [count] tokens, bool [count] whether trained on) of a document, from `start`.

        One token past its end is the end-of-text token that closes it.
        """
        record = self.documents[document]
        begin, length = int(record["offset"]), int(record["length"])
        inside = slice(begin + start, begin + min(start + count, length))
        tokens = np.full(count, self.end_of_text_id or 0, np.int32)
        trained = np.ones(count, bool)
        taken = inside.stop - inside.start
        tokens[:taken] = self.tokens[inside]
        if self.trained is not None:
            trained[:taken] = self.trained[inside]
        return tokens, trained

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
        trained=mapped("trained.bin", bool) if "trained.bin" in sizes else None,
        documents=mapped("documents.bin", DOCUMENT),
        signatures=mapped("signatures.bin", "<u4").reshape(-1, fingerprints.BINS),
        end_of_text_id=facts["end_of_text_id"],
        notes=ReadingNotes.from_json(facts["notes"]),
        origins={int(number): origin for number, origin in facts["origins"].items()},
    )
