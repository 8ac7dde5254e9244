"""Sources of text: files and folders of many kinds, rows, tables, data sets of the hub."""

import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptj_lab.corpora import (
    archives,
    chat_exports,
    chat_texts,
    columns,
    documents,
    files,
    frames,
    json_files,
    kinds,
    markup,
    tables,
    tfrecords,
)
from gptj_lab.corpora.chats import Chat, conversations
from gptj_lab.corpora.folders import Folder, units
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import Passage, ReadingNotes
from gptj_lab.corpora.passages import documents as text_passages
from gptj_lab.corpora.rows import row_passages, whole_passages

_SNIFFED = 1 << 14  # characters that tell a chat from a text
_NAME_WORDS = 4  # of a file's name in a list: a longer text that ends so is a sentence
_PLAIN = ReadingOptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set that `datasets.load_dataset` streams: of the hub, or of files through a builder.

    It is read anew for each `prepare`, to see whether it changed, unless `revision` is a commit.

    >>> HubDataset(name="roneneldan/TinyStories", split="train").split
    'train'
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether `revision` is a whole commit, so that it is the same text each time."""
        return bool(re.fullmatch("[0-9a-f]{40}", self.revision or "")) and not self.data_files

    def rows(self) -> Iterator[Any]:
        """Its rows, streamed."""
        datasets = files.needed("datasets", f"the data set {self.name!r}")
        yield from datasets.load_dataset(
            self.name,
            self.config,
            split=self.split,
            revision=self.revision,
            data_files=self.data_files,
            streaming=True,
        )


Source = str | Path | HubDataset | Iterable[Any]


def passages(
    sources: Source, notes: ReadingNotes, options: ReadingOptions = _PLAIN
) -> Iterator[Passage]:
    """The passages of all sources, one after the other, a file at a time.

    A source is a path (a file, or a folder with all that is below it), a text, a HubDataset, a
    table in memory (of pandas, polars, pyarrow, datasets), a dict (a row, columns, or lists of
    rows), or an iterable of such, of rows (dicts, lists of messages, pairs) and of texts. A str is
    a path if there is such a file, if it has an ending that is read (of several: and at most four
    words), or has no blanks in it (of several: and has a slash); else it is a text.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ModuleNotFoundError: a file needs a library of an extra that isn't installed.
        ValueError: a file of a kind that isn't read; with strict notes, whatever is wrong.
    """
    if isinstance(sources, str) and not is_path(sources):
        yield from text_passages([sources], "text", notes)
    elif isinstance(sources, str | Path):
        yield from _of_path(Path(sources), notes, options)
    elif isinstance(sources, HubDataset):
        for number, row in enumerate(sources.rows(), 1):
            yield from row_passages(row, f"{sources.name} row {number:,}", notes, options)
    elif frames.is_frame(sources):
        table = frames.split_of(sources, notes)
        rows = frames.frame_rows(table) if frames.is_frame(table) else table
        for number, row in enumerate(rows, 1):
            yield from row_passages(row, f"row {number:,}", notes, options)
    elif isinstance(sources, Mapping):
        yield from _of_object(sources, "the dict", notes, options)
    elif isinstance(sources, Iterable) and not isinstance(sources, bytes):
        yield from _of_items(sources, notes, options)
    else:
        call = ": call it" if callable(sources) else ""
        raise TypeError(
            f"the source is a {type(sources).__name__}{call}: give a path, a text, a table or a "
            "list"
        )


def _of_items(
    sources: Iterable[Any], notes: ReadingNotes, options: ReadingOptions
) -> Iterator[Passage]:
    for number, source in enumerate(sources, 1):
        place = f"item {number:,}"
        if isinstance(source, str) and not is_path(source, alone=False):
            if not source.strip():
                notes.skip("a text of blanks only, left out", place)
            yield from text_passages([source], place, notes)
        elif isinstance(source, str | Path | HubDataset) or frames.is_frame(source):
            yield from passages(source, notes, options)
        elif isinstance(source, dict | list | tuple):
            yield from row_passages(source, place, notes, options)
        else:
            raise TypeError(f"{place} is a {type(source).__name__}: give texts, paths or dicts")


def is_path(text: str, *, alone: bool = True) -> bool:
    """Whether a str, alone or one of several, names a file rather than being a text."""
    if len(text) > 1024 or not text.strip() or {"\n", "\0"} & set(text):
        return False
    if os.path.exists(text):
        return True
    kind = kinds.kind_of(text)
    if kind in kinds.UNMISTAKABLE and (alone or len(text.split()) <= _NAME_WORDS):
        return True
    if any(character.isspace() for character in text):
        return False
    return kind is not None or alone or "/" in text or "\\" in text


def _of_path(
    path: Path, notes: ReadingNotes, options: ReadingOptions, depth: int = 0
) -> Iterator[Passage]:
    """The passages of a file, or of all files of a folder; `depth`: of archives around it."""
    is_folder = path.is_dir()
    for unit in units(path, notes):
        try:
            if isinstance(unit, Folder):
                yield from _of_folder(unit, notes, options)
            else:
                yield from _of_file(unit, notes, options, depth)
        except ModuleNotFoundError as error:
            if not is_folder:
                raise
            notes.skip(f"a file left out: {error}", unit.name)


def _of_folder(folder: Folder, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    """The passages of a folder that is one source: Slack's export, a saved data set."""
    if folder.kind == "slack":
        chats = chat_exports.slack_folder(folder.path)
        yield from _of_chats(chats, folder.name, notes, options)
        return
    for path in tables.saved_data_set(folder.path):
        yield from _of_rows(tables.arrow(path, notes, options), folder.name, notes, options)


def _of_file(
    path: Path, notes: ReadingNotes, options: ReadingOptions, depth: int
) -> Iterator[Passage]:
    """The passages of one file; one that gives none is noted."""
    before = notes.count
    kind = kinds.kind_of(path.name)
    if kind in kinds.ARCHIVES:
        found = _of_archive(path, notes, options, depth)
    else:
        found = _readers()[kind](path, notes, options)
    first = next(found, None)
    if first is None:
        if notes.count == before:  # else it was told why
            notes.skip("a file without text, left out", path.name)
        return
    yield first
    yield from found


_Reader = Callable[[Path, ReadingNotes, ReadingOptions], Iterator[Passage]]


def _readers() -> dict[str | None, _Reader]:
    """What reads a file, by its kind."""
    together: dict[_Reader, tuple[str, ...]] = {
        _text: kinds.TEXTS, _code: kinds.CODE, _markdown: kinds.MARKDOWN,
        _subtitles: kinds.SUBTITLES, _json_lines: kinds.LINES, _json: kinds.JSON,
        _separated: kinds.SEPARATED, _arrow: kinds.ARROW, _records: kinds.RECORDS,
        _document: (*kinds.WEB, *kinds.DOCUMENTS), _notebook: kinds.NOTEBOOKS,
    }  # fmt: skip
    return {kind: reader for reader, several in together.items() for kind in several}


def _text(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    parts = files.text(path, notes, options.encoding)
    first = next(parts, "")
    form, whole = chat_texts.form_of(first[:_SNIFFED]), itertools.chain([first], parts)
    if form is None:
        yield from text_passages(whole, path.name, notes)
        return
    chat = (chat_texts.whatsapp if form == "WhatsApp" else chat_texts.discord)(files.lines(whole))
    yield from _of_chats([chat], path.name, notes, options)


def _code(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    return text_passages(files.text(path, notes, options.encoding), path.name, notes)


def _markdown(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    lines = files.lines(files.text(path, notes, options.encoding), keep=True)
    found = files.joined(markup.markdown(lines, path.name, notes))
    return text_passages(found, path.name, notes)


def _subtitles(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    lines = files.lines(files.text(path, notes, options.encoding))
    return text_passages(files.joined(markup.subtitles(lines)), path.name, notes)


def _notebook(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    return text_passages(markup.notebook(path, notes, options), path.name, notes)


def _document(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    return text_passages(documents.of_file(path, notes, options), path.name, notes)


def _records(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    del options
    listed = tfrecords.index_files(path) if path.suffix.lower() == ".index" else [path]
    each = (tfrecords.record_passages(file, notes) for file in listed)
    return itertools.chain.from_iterable(each)


def _json_lines(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    return _of_rows(tables.json_lines(path, notes, options), path.name, notes, options)


def _arrow(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    return _of_rows(tables.arrow(path, notes, options), path.name, notes, options)


def _separated(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    rows = tables.separated(path, notes, options)
    first = next(rows, None)
    if first is None:
        return
    whole = itertools.chain([first], rows)
    if chat_exports.DISCORD_COLUMNS <= set(first[1]):
        chats = (chat_exports.discord_rows(each) for each in [[row for _, row in whole]])
        yield from _of_chats(chats, path.name, notes, options)
    else:
        yield from _of_rows(whole, path.name, notes, options)


def _json(path: Path, notes: ReadingNotes, options: ReadingOptions) -> Iterator[Passage]:
    values = json_files.values(path, notes, options)
    first = next(values, None)
    if first is None:
        return
    place, value = first
    whole = itertools.chain([first], values)
    if not place:
        found = _of_object(value, path.name, notes, options)
    elif chat_exports.is_slack_message(value):
        chats = (chat_exports.slack(each, {}) for each in [[row for _, row in whole]])
        found = _of_chats(chats, path.name, notes, options)
    elif columns.is_message(value):  # the whole file is one conversation
        row = [message for _, message in whole]
        found = row_passages(row, path.name, notes, options)
    else:
        found = _of_rows(whole, path.name, notes, options)
    yield from found


def _of_object(
    value: Mapping[str, Any], name: str, notes: ReadingNotes, options: ReadingOptions
) -> Iterator[Passage]:
    """The passages of one object: an exported chat, or rows in one of several shapes."""
    if (chats := chat_exports.of_object(value)) is not None:  # of a program's export
        yield from _of_chats(chats, name, notes, options)
    else:
        yield from _of_rows(json_files.rows_of(value, name, notes), name, notes, options)


def _of_rows(
    rows: tables.Rows, name: str, notes: ReadingNotes, options: ReadingOptions
) -> Iterator[Passage]:
    for place, row in rows:
        yield from row_passages(row, f"{name} {place}".strip(), notes, options, name)


def _of_chats(
    chats: Iterable[Chat], name: str, notes: ReadingNotes, options: ReadingOptions
) -> Iterator[Passage]:
    source = iter(chats)
    while True:
        try:
            chat = next(source, None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = "an exported chat that isn't as its program writes it, left out"
            notes.skip(what, f"{name} ({type(error).__name__}: {error!s:.100})")
            return
        if chat is None:
            return
        for place, example in conversations(chat, options.me, name, notes):
            yield from whole_passages(example, place, notes, options, name)


def _of_archive(
    path: Path, notes: ReadingNotes, options: ReadingOptions, depth: int
) -> Iterator[Passage]:
    """The passages of an archive's files, unpacked into a folder that goes afterwards."""
    if depth >= archives.DEEPEST:
        what = "an archive too deep inside others, left out: unpack it"
        notes.skip(what, path.name)
        return
    inside, before = notes.within(path.name), notes.count
    with tempfile.TemporaryDirectory(prefix="gptj_lab_archive_") as aside:
        folder = Path(aside) / path.name.partition(".")[0]
        folder.mkdir()
        try:
            archives.unpack(path, folder, inside)
        except archives.Bomb as error:
            what = f"an archive that unpacks to too much, left out ({error})"
            notes.skip(what, path.name)
            return
        if not any(folder.iterdir()):
            if notes.count == before:
                notes.skip("an archive without a file that is read, left out", path.name)
            return
        for passage in _of_path(folder, inside, options, depth + 1):
            yield dataclasses.replace(passage, origin=f"{path.name}: {passage.origin}")
