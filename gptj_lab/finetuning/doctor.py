"""What a text becomes, in numbers and in sentences: before a run, not after it."""

import dataclasses

import numpy as np

from gptj_lab.corpora import templates
from gptj_lab.finetuning.packing import Windows
from gptj_lab.finetuning.splitting import LEAK, Split
from gptj_lab.finetuning.token_store import TokenStore

_OFTEN = 20  # times that a window is seen, from which on a model learns it by heart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A corpus in numbers; `print(report)` gives the sentences.

    Attributes:
        documents, tokens, bytes: of the whole text, both sides; tokens without the marks.
        train_windows, held_out_windows: how many there are of each.
        context: predictions a window.
        padding: share of the training windows' places that hold nothing.
        trained: share of the tokens that a loss is taken on.
        length_edges: upper bounds of the bins, in tokens a document: 1, 2, 4, 8, ...
        length_counts: documents in each bin.
        copies, near_copies: documents whose words came before; documents that are near another.
        overlap: share of the held-out runs of 13 tokens that training holds too.
        moved: held-out stretches that went to training, as it held most of them.
        windows: of the first training windows, how many tokens of each document lie in them.
        sentences: all of it, and what reading found, in words.
    """

    documents: int
    tokens: int
    bytes: int
    train_windows: int
    held_out_windows: int
    context: int
    padding: float
    trained: float
    length_edges: list[int]
    length_counts: list[int]
    copies: int
    near_copies: int
    overlap: float
    moved: int
    windows: list[list[int]]
    sentences: list[str]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def examine(
    train: Windows,
    held_out: Windows,
    split: Split,
    steps: int | None,
    batch: int | None,
) -> Report:
    """The report on a corpus; with `steps` and `batch`, how often a run sees each window."""
    stores = [train.store] + ([held_out.store] if held_out.store is not train.store else [])
    records = np.concatenate([np.asarray(store.documents) for store in stores])
    marks = (train.store.end_of_text_id is not None) & ~records["inner"]
    lengths = records["length"] - marks
    edges = [1 << i for i in range(int(lengths.max(initial=1)).bit_length() + 1)]
    bins = np.searchsorted(edges, np.maximum(lengths, 1))
    sizes = [[size for _, _, size in train.documents_of(i)] for i in range(min(8, len(train)))]
    tokens = int(lengths.sum())
    report = Report(
        documents=len(records),
        tokens=tokens,
        bytes=int(records["bytes"].sum()),
        train_windows=len(train),
        held_out_windows=len(held_out),
        context=train.context,
        padding=train.padding,
        trained=_trained(stores, tokens),
        length_edges=edges,
        length_counts=np.bincount(bins, minlength=len(edges)).tolist(),
        copies=split.copies,
        near_copies=split.near_copies,
        overlap=split.overlap,
        moved=split.moved,
        windows=sizes,
        sentences=[],
    )
    sentences = [
        *_becomes(report, train, steps * batch if steps and batch else 0),
        *templates.sentences(train.store.about),
        *_held_out(report, held_out, split),
        *_repeats(report, split),
        *_oddities(train, report),
        *(sentence for store in stores for sentence in store.notes.sentences()),
    ]
    return dataclasses.replace(report, sentences=sentences)


def _trained(stores: list[TokenStore], tokens: int) -> float:
    silent = sum(store.silent for store in stores)
    return 1 - silent / tokens if tokens else 0.0


def _becomes(report: Report, train: Windows, taken: int) -> list[str]:
    """`taken`: windows that a run takes, 0 where that isn't known."""
    tokens, windows = _count(report.tokens, "token"), _count(report.train_windows, "window")
    if report.documents > 1:
        tokens = f"{_count(report.documents, 'document')}, {tokens}"
    seen, times = "", taken / max(1, report.train_windows)
    if times:
        seen = ", seen once" if times == 1 else f", seen {times:,.{0 if times >= 10 else 1}f} times"
        if times < 1:
            seen = f", {taken:,} of them seen"
    words = f"{tokens}: {_one(windows)} of {report.context:,} to train on{seen}."
    said = [words.replace(".0 times", " times")]
    if times >= _OFTEN:
        said.append(
            f"A text seen {_OFTEN} times or more is learnt by heart: fewer steps, or more text."
        )
    if report.padding >= 0.01:
        fuller = ' packing="plain" fills them.' if train.packing == "documents" else ""
        few = report.train_windows < 2
        said.append(f"{report.padding:.0%} of the windows is padding.{'' if few else fuller}")
    longest = int(max(train.units.size, default=0))
    if longest > report.context:
        # Of a document with a held-out part there are several units.
        cut = len(np.unique(train.units.document[train.units.size > report.context]))
        longest = int(np.bincount(train.units.document, train.units.size).max())
        said.append(
            f"{_count(cut, 'document')} longer than a window (the longest {longest:,} tokens) "
            f"{'is' if cut == 1 else 'are'} cut into several, none of it lost."
        )
        if report.trained < 1:
            said.append("There an answer may lie in another window than its prompt.")
    if train.silent:
        said.append(
            f"{_one(_count(train.silent, 'window'))} of prompts alone, which teach nothing, "
            f"{'is' if train.silent == 1 else 'are'} left out: use a longer context."
        )
    if report.trained < 1:
        said.append(f"The loss is on {report.trained:.0%} of the tokens: the answers, not prompts.")
    return said


def _held_out(report: Report, held_out: Windows, split: Split) -> list[str]:
    said = []
    if report.held_out_windows:
        stretches = len(held_out.units)
        said.append(
            f"Held out: {held_out.predictions:,} tokens in {_count(stretches, 'stretch', 'es')}, "
            f"{_one(_count(report.held_out_windows, 'window'))}; {split.overlap:.1%} of their runs "
            "of 13 tokens are in the training text too."
        )
    else:
        said.append("Nothing is held out: the run has no measure of what it doesn't train on.")
    if split.moved:
        said.append(
            f"{_count(split.moved, 'stretch', 'es')} drawn to be held out went to training, which "
            f"holds more than {LEAK:.0%} of their text already."
        )
    if split.leaking:
        said.append(
            f"LEAK: {_count(split.leaking, 'held-out document')} of yours lie in the training text "
            f"for more than {LEAK:.0%}: the held-out loss will look too good."
        )
    return said


def _repeats(report: Report, split: Split) -> list[str]:
    said = []
    if report.copies:
        said.append(
            f"{_count(report.copies, 'document')} say{'s' * (report.copies == 1)} the words of "
            f"another once more ({report.copies / report.documents:.0%}); they are kept, "
            "on the same side."
        )
    if report.near_copies:
        said.append(
            f"{_count(report.near_copies, 'document')} nearly "
            f"repeat{'s' * (report.near_copies == 1)} another; "
            "they are kept, on the same side."
        )
    if split.template:
        said.append(
            f"{split.template:,} documents share most of their words (a form that all fill in?): "
            "only exact copies among them are kept on one side."
        )
    return said


def _oddities(train: Windows, report: Report) -> list[str]:
    said = []
    store = train.store
    if store.end_of_text_id is None:
        said.append(
            "The tokenizer has no token that ends a text: documents have no mark between them, and "
            "each one's first token is never predicted."
        )
    alone = int(np.count_nonzero(store.documents["length"] < 2))
    if store.end_of_text_id is None and alone:
        said.append(f"{_count(alone, 'document')} of one token predict nothing and are left out.")
    if report.tokens and report.bytes / report.tokens < 1.5 and not store.documents["inner"].any():
        said.append(
            f"A token is {report.bytes / report.tokens:.1f} bytes of this text, where English has "
            "about 4: the tokenizer hardly knows its language."
        )
    return said


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _one(words: str) -> str:
    return "one window" if words == "1 window" else words
