"""Texts to token ids on disk: made once, whole or absent."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from gptj_lab.corpora.passages import Passage, ReadingNotes
from gptj_lab.finetuning import fingerprints
from gptj_lab.finetuning.token_store import DOCUMENT, FORM, FORMAT, TRAINED, TokenStore, open_store
from gptj_lab.tokenizer import END_OF_TEXT, Tokenizer

_BATCH = 1 << 19  # characters that are tokenised together


def key(content: str, tokenizer: Tokenizer, settings: dict[str, Any]) -> str:
    """The name of the cache of this content, tokenizer and settings."""
    parts = [FORMAT, content, tokenizer.fingerprint(), settings]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def build(
    folder: Path,
    passages: Iterable[Passage],
    notes: ReadingNotes,
    tokenizer: Tokenizer,
    about: Callable[[], dict[str, Any]] = dict,
) -> TokenStore:
    """The store of `folder`, tokenised now if it isn't there yet.

    It is written beside its place and renamed when it is whole and on disk: a process that dies
    leaves nothing that is taken for a cache. A second process waits for the first.

    Args:
        about: gives what is to be kept beside the tokens, once all are there.

    Raises:
        ValueError: what `passages` raises; no document in them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if (store := open_store(folder)) is not None:
            return store
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or of an older format
        aside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that died
        aside.mkdir()
        try:
            _write(aside, passages, notes, tokenizer, about)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    store = open_store(folder)
    if store is None:
        raise OSError(f"{folder} was written and can't be read back: is the disk full?")
    return store


def renamed(aside: Path, folder: Path) -> TokenStore:
    """The store of `aside`, moved to `folder` unless one is there already."""
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if (store := open_store(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            store = open_store(folder)
        shutil.rmtree(aside, ignore_errors=True)
        aside.with_name(f"{aside.name}.lock").unlink(missing_ok=True)
    if store is None:
        raise OSError(f"{folder} was written and can't be read back: is the disk full?")
    return store


class _Document:
    """Facts of the document that is being written."""

    def __init__(self, offset: int, origin: str, *, inner: bool):
        self.offset, self.origin, self.inner = offset, origin, inner
        self.length = self.bytes = 0
        self.closes = True
        self.words = hashlib.blake2b(digest_size=8)
        self.signature = fingerprints.Signature()

    def add(self, passage: Passage, tokens: np.ndarray, flags: np.ndarray) -> None:
        if passage.text is not None:
            text = passage.text.encode()
            self.words.update(" ".join([*passage.text.lower().split(), ""]).encode())
        else:
            text = tokens.tobytes()
            self.words.update(text)
        self.bytes += len(text)
        self.signature.add(tokens[(flags & FORM) == 0])

    def record(self, closes: bool) -> tuple[int, int, int, int, bool, bool]:
        words = int.from_bytes(self.words.digest(), "little")
        closes = closes and not self.inner
        return self.offset, self.length, self.bytes, words, closes, self.inner


class _Writer:
    """The files of a store, written from front to back."""

    def __init__(self, aside: Path, tokenizer: Tokenizer, files: contextlib.ExitStack):
        def file(name: str) -> Any:
            return files.enter_context((aside / name).open("wb"))

        self._tokens, self._flags = file("tokens.bin"), file("flags.bin")
        self._documents, self._signatures = file("documents.bin"), file("signatures.bin")
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._end = tokenizer.end_of_text_id
        # A bos_token that the tokenizer puts before a text; where it is the mark, once is enough.
        self._before = [] if tokenizer.before == [self._end] else tokenizer.before
        self._vocab_size = tokenizer.vocab_size
        self._open: _Document | None = None
        self.count = self.documents = 0
        self.all_trained = True
        self.origins: dict[int, str] = {}

    def add(self, passage: Passage, tokens: np.ndarray, flags: np.ndarray) -> None:
        if tokens.max(initial=0) >= self._vocab_size:
            raise ValueError(
                f"{passage.origin} holds token {tokens.max()}, the tokenizer has "
                f"{self._vocab_size}: give the tokenizer that the file was made with"
            )
        if passage.begins:
            self.close()
            self._open = _Document(self.count, passage.origin, inner=passage.text is None)
            if self._end is not None and passage.text is not None:
                self._put(np.array([self._end]), _flags(1, trained=True))
            # A template says itself whether a bos_token comes first.
            if passage.text is not None and passage.answers is None:
                before = np.array(self._before, np.int64)
                self._put(before, _flags(len(before), trained=passage.trained))
        if self._open is None:
            raise ValueError(f"{passage.origin}: its first passage doesn't begin a document")
        self._open.add(passage, tokens, flags)
        self._open.closes = passage.closes
        self._put(tokens, flags)

    def close(self) -> None:
        """Ends the document that is open, if one is."""
        if (document := self._open) is None:
            return
        closes = self._end is not None and document.closes
        record = np.array([document.record(closes)], DOCUMENT)
        self._documents.write(record.tobytes())
        self._signatures.write(document.signature.value().tobytes())
        if document.origin != next(reversed(self.origins.values()), None):
            self.origins[self.documents] = document.origin
        self.documents += 1
        self._open = None

    def _put(self, tokens: np.ndarray, flags: np.ndarray) -> None:
        self._tokens.write(tokens.astype(self.dtype).tobytes())
        self._flags.write(flags.tobytes())
        self.all_trained &= bool((flags == TRAINED).all())
        self.count += len(tokens)
        if self._open is not None:
            self._open.length += len(tokens)


def _flags(count: int, *, trained: bool) -> np.ndarray:
    return np.full(count, TRAINED if trained else 0, np.uint8)


def _write(
    aside: Path, passages: Iterable[Passage], notes: ReadingNotes, tokenizer: Tokenizer,
    about: Callable[[], dict[str, Any]],
) -> None:  # fmt: skip
    with contextlib.ExitStack() as files:
        writer = _Writer(aside, tokenizer, files)
        for together in _gathered(passages):
            for passage, encoded in zip(together, _encode(together, tokenizer), strict=True):
                writer.add(passage, *encoded)
        writer.close()
    if not writer.documents:
        raise ValueError("the sources hold no text: " + (" ".join(notes.sentences()) or "nothing"))
    if writer.all_trained:
        (aside / "flags.bin").unlink()
    facts = {
        "format": FORMAT,
        "dtype": writer.dtype.str,
        "end_of_text_id": tokenizer.end_of_text_id,
        "notes": notes.to_json(),
        "origins": writer.origins,
        "about": about(),
        "sizes": {path.name: path.stat().st_size for path in aside.iterdir()},
    }
    (aside / "corpus.json").write_text(json.dumps(facts, indent=1), "utf-8")
    for path in aside.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _gathered(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Passages in lists of about _BATCH characters."""
    together, size = [], 0
    for passage in passages:
        together.append(passage)
        size += len(passage.text or "")
        if size >= _BATCH or len(together) >= 4096:
            yield together
            together, size = [], 0
    if together:
        yield together


def _encode(passages: list[Passage], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, flags) of each."""
    # In what was read <|endoftext|> is the end of a text, whatever token of the tokenizer is that.
    end = "" if tokenizer.end_of_text_id is None else tokenizer.end_of_text
    parts = [p for p in passages if p.text is not None and p.answers is None]
    texts = [(str(p.text).replace(END_OF_TEXT, end), not p.begins) for p in parts]
    encoded = iter(tokenizer.encode_all(*map(list, zip(*texts, strict=True))) if texts else [])
    made = [str(p.text) for p in passages if p.answers is not None]
    spans = iter(tokenizer.encode_spans(made) if made else [])
    found = []
    for p in passages:
        if p.answers is not None:
            found.append(_of_template(p, *next(spans), tokenizer))
        else:
            ids = np.asarray(p.token_ids if p.text is None else next(encoded), np.int64)
            found.append((ids, _flags(len(ids), trained=p.trained)))
    return found


def _of_template(
    passage: Passage, ids: list[int], offsets: list[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and flags: a token that overlaps an answer is trained on, as in transformers."""
    place = np.array(offsets, np.int64).reshape(-1, 2)

    def overlaps(spans: Iterable[tuple[int, int]]) -> np.ndarray:
        found = np.zeros(len(ids), bool)
        for start, end in spans:
            found |= (place[:, 1] > start) & (place[:, 0] < end)
        return found

    trained, answers = overlaps(passage.answers or ()), passage.answers or ()
    if passage.parted:
        before = tokenizer.encode_spans([str(passage.text)[:start] for start, _ in answers])
        for (start, _), (prompt, _) in zip(answers, before, strict=True):
            same = len(os.path.commonprefix([prompt, ids]))
            trained[same:] |= place[same:, 0] < start
    flags = TRAINED * trained + FORM * ~overlaps(passage.words)
    return np.asarray(ids, np.int64), flags.astype(np.uint8)
