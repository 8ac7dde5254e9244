"""A corpus: texts of any kind, tokenised once, split, and laid out in windows to train on."""

import dataclasses
import functools
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptj_lab.chat_templates import ChatTemplate
from gptj_lab.corpora import reading, templates
from gptj_lab.corpora.content import content_key
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import Passage, ReadingNotes
from gptj_lab.corpora.reading import HubDataset, Source
from gptj_lab.finetuning import leaks, splitting, token_cache
from gptj_lab.finetuning.doctor import Report, examine
from gptj_lab.finetuning.packing import Batch, Packing, Windows
from gptj_lab.finetuning.pipeline import Batches, once
from gptj_lab.tokenizer import Tokenizer

__all__ = ["Batch", "Batches", "Corpus", "HubDataset", "Report", "Stretch", "Windows", "prepare"]

_READING = 3  # raised when the same sources become another text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a document in a window.

    Attributes:
        document: its number, from 0 in the order of reading.
        origin: the file, or the place in a list, that it came from.
        first: the number of its first token in the document; token 0 is the end of text.
        predictions: how many tokens are predicted in it.
        text: the tokens in words, the end-of-text token that opens and closes it included.
    """

    document: int
    origin: str
    first: int
    predictions: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a run trains on and is measured on; make it with `prepare`.

    Attributes:
        name: a hash of content, tokenizer, context, packing and split.
        train: the windows to train on.
        held_out: the windows to measure on; none of a text too small for that.
        split: what the split found: copies, leaks.
        template: what made text of its prompts and answers; None if it has none, or has them ready.
        asked: the arguments `template` and `loss_on`, for a run's record.
    """

    name: str
    tokenizer: Tokenizer
    train: Windows
    held_out: Windows
    split: splitting.Split
    template: ChatTemplate | None = None
    asked: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def batches(self, batch: int, *, seed: int = 0, host: int = 0, hosts: int = 1) -> Batches:
        """Shuffled batches without end; see Batches for their state.

        Raises:
            ValueError: `batch` isn't a multiple of `hosts`.
        """
        return Batches(self.train, batch, seed=seed, name=self.name, host=host, hosts=hosts)

    def held_out_batches(self, batch: int, *, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
        """Every held-out window once; rows of weight 0 fill the last batch."""
        return once(self.held_out, batch, host=host, hosts=hosts)

    def preview(self, number: int) -> list[Stretch]:
        """The stretches of documents that lie in a training window, in its order."""
        store = self.train.store
        return [
            Stretch(
                document=document,
                origin=store.origin(document),
                first=first,
                predictions=predictions,
                text=self.tokenizer.decode(
                    store.read(document, first, predictions + 1)[0].tolist()
                ),
            )
            for document, first, predictions in self.train.documents_of(number)
        ]

    def doctor(self, *, steps: int | None = None, batch: int | None = None) -> Report:
        """What the text becomes, in numbers and in sentences; see Report."""
        return examine(self.train, self.held_out, self.split, steps, batch)


def prepare(
    sources: Source,
    tokenizer: Tokenizer,
    *,
    context: int,
    held_out: float | Source = 0.05,
    packing: Packing = "documents",
    text_field: str | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    system_field: str | None = None,
    context_field: str | None = None,
    me: str | None = None,
    encoding: str | None = None,
    template: str | Path | ChatTemplate | None = None,
    loss_on: str = "answers",
    own_template: ChatTemplate | None = None,
    strict: bool = False,
    cache: Path | str | None = None,
) -> Corpus:
    """The corpus of `sources`: paths, texts, rows, data sets (see reading.passages).

    Its tokens are kept in `cache` (else $GPTJ_LAB_CACHE, else ~/.cache/gptj_lab/corpora), by
    content, tokenizer and settings, and mapped from there.

    Args:
        context: predictions a window.
        held_out: the share of the text that is measured on only, or sources of such text.
        packing: "documents" or "plain", see Windows.
        text_field: the field of a row that holds its text, where it isn't one that is known.
        prompt_field, answer_field: the fields of a prompt and its answer, likewise.
        system_field, context_field: fields that go into the prompt, likewise.
        me: whose words are the assistant's in an exported chat (WhatsApp, Telegram, ...).
        encoding: of text files that aren't UTF-8, such as "cp1251".
        template: what makes text of prompts and answers: "plain", "chat", "chatml", "alpaca",
            "tokenizer", "none", a form such as "### {question}\\n{answer}", or a .jinja file; by
            default `own_template`, else plain for pairs and chat for conversations.
        loss_on: "answers", or "all" of the text.
        own_template: the model's.
        strict: refuse bad lines and odd encodings instead of skipping and noting them.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ModuleNotFoundError: a file needs a library of the extra `data` or `documents`.
        ValueError: no text; a file of a kind that isn't read; with `strict`, the first fault.
    """
    folder = Path(cache) if cache is not None else default_cache()
    options = ReadingOptions(
        text_field=text_field, prompt_field=prompt_field, answer_field=answer_field,
        system_field=system_field, context_field=context_field, me=me, encoding=encoding,
        templates=templates.chosen(template, tokenizer, own_template, loss_on),
    )  # fmt: skip
    tokenised = functools.partial(
        _tokenised, tokenizer=tokenizer, options=options, strict=strict, folder=folder
    )
    store = tokenised(sources)
    if isinstance(held_out, int | float):
        share = float(held_out)
        split = splitting.split_once(folder / store.name, store, share, context)
        held_store = store
    else:
        share, held_store = None, tokenised(held_out)
        split = _given(store, held_store)
    rules = None if share is None else splitting.VERSION
    about = [store.name, held_store.name, context, packing, share, rules]
    return Corpus(
        name=hashlib.blake2b(repr(about).encode(), digest_size=12).hexdigest(),
        tokenizer=tokenizer,
        train=Windows(store, split.train, context, packing),
        held_out=Windows(held_store, split.held_out, context, packing),
        split=split,
        template=templates.template_of(store.about, options.templates, tokenizer),
        asked={"template": templates.as_text(template), "loss_on": loss_on},
    )


def default_cache() -> Path:
    """Where tokens are kept: $GPTJ_LAB_CACHE, else in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("GPTJ_LAB_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptj_lab" / "corpora"


def _tokenised(
    sources: Source, *, tokenizer: Tokenizer, options: ReadingOptions, strict: bool, folder: Path
) -> token_cache.TokenStore:
    notes = ReadingNotes(strict=strict)
    about = options.templates.facts
    options.templates.begin()
    found: Iterator[Passage] = reading.passages(sources, notes, options)
    settings: dict[str, Any] = {"strict": strict, "reading": _READING, **options.key()}
    content = content_key(sources)
    if content is not None:
        name = token_cache.key(content, tokenizer, settings)
        return token_cache.build(folder / name, found, notes, tokenizer, about)
    # What streams by is known once it was read: it is named then.
    hashed = hashlib.blake2b(digest_size=16)
    aside = folder / f"stream-{uuid.uuid4().hex}"
    token_cache.build(aside, _hashing(found, hashed), notes, tokenizer, about)
    name = token_cache.key(hashed.hexdigest(), tokenizer, settings)
    return token_cache.renamed(aside, folder / name)


def _hashing(passages: Iterator[Passage], hashed: Any) -> Iterator[Passage]:
    for passage in passages:
        content = passage.text if passage.token_ids is None else passage.token_ids.tolist()
        about = (content, passage.trained, passage.begins, passage.answers, passage.closes)
        hashed.update(repr(about).encode())
        yield passage


def _given(store: token_cache.TokenStore, held_store: token_cache.TokenStore) -> splitting.Split:
    """The split where the held-out part is a text of its own; leaks are said, not moved."""
    alone = splitting.split(store, 0.0, 1)
    held = splitting.whole(held_store)
    shares, overlap = leaks.leaks(store, alone.train, held_store, held)
    leaking = int(np.count_nonzero(shares > splitting.LEAK))
    return dataclasses.replace(alone, held_out=held, overlap=overlap, leaking=leaking)
