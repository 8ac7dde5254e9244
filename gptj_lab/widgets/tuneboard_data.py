"""What the TuneBoard's text becomes: read in a thread, shown in numbers, windows and sentences."""

from __future__ import annotations

import io
import re
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptj_lab.corpora import kinds, reading
from gptj_lab.corpora.reading import HubDataset
from gptj_lab.finetuning.corpus import Corpus

UPLOAD_BYTES = 64 << 20  # of one dropped file; more comes by its path
DOWNLOAD_BYTES = 128 << 20
PART_BYTES = 512 << 10  # of a message: larger ones end a connection (lonboard #514)
_SHOWN = 500  # characters of a stretch


class Preparation:
    """A corpus that is being made in a thread, so that the kernel goes on answering.

    Attributes:
        corpus: the newest that was finished.
        error: the sentence why the newest attempt gave none.
        number: grows with each that is finished, whichever way.
    """

    def __init__(self) -> None:
        self.corpus: Corpus | None = None
        self.error, self.number = "", 0
        self._thread: threading.Thread | None = None
        self._newest = 0

    def take(self, corpus: Corpus) -> None:
        """A corpus that is there already."""
        self._newest += 1  # what is being made is forgotten
        self.corpus, self.error, self.number = corpus, "", self.number + 1

    def begin(self, make: Callable[[], Corpus]) -> None:
        """Starts to make another; an attempt that is under way is forgotten."""
        self._newest += 1
        arguments = (make, self._newest)
        self._thread = threading.Thread(target=self._make, args=arguments, daemon=True)
        self._thread.start()

    def _make(self, make: Callable[[], Corpus], attempt: int) -> None:
        corpus, error = None, ""
        try:
            corpus = make()
        except Exception as failure:  # shown in the view, whatever it is
            known = isinstance(failure, ValueError | TypeError | OSError | ImportError)
            error = str(failure) if known else f"{type(failure).__name__}: {failure}"
        if attempt == self._newest:
            self.corpus = corpus
            self.error = error[:2000]
            self.number += 1

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> Corpus | None:
        """The corpus, when the attempt under way has ended, or after so many seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.corpus


def told(corpus: Corpus, name: str, steps: int, batch: int) -> dict[str, Any]:
    """The `data` answer: the doctor's report as JSON."""
    report = corpus.doctor(steps=steps, batch=batch)
    return {
        "op": "data", "name": name, "sentences": report.sentences, "documents": report.documents,
        "tokens": report.tokens, "bytes": report.bytes, "context": report.context,
        "train_windows": report.train_windows, "held_out_windows": report.held_out_windows,
        "padding": report.padding, "trained": report.trained, "copies": report.copies,
        "near_copies": report.near_copies, "overlap": report.overlap,
        "edges": report.length_edges, "counts": report.length_counts, "windows": report.windows,
    }  # fmt: skip


def window(corpus: Corpus, number: Any) -> dict[str, Any]:
    """The `window` answer: the documents' stretches in one training window.

    Raises:
        ValueError: there is no such window.
    """
    count = len(corpus.train)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ValueError(f"window is {number!r}: the windows are 0 to {count - 1:,}")
    stretches = [
        {"document": each.document, "origin": each.origin, "first": each.first,
         "predictions": each.predictions, "text": each.text[:_SHOWN],
         "more": max(0, len(each.text) - _SHOWN)}
        for each in corpus.preview(number)[:64]
    ]  # fmt: skip
    return {
        "op": "window", "number": number, "context": corpus.train.context, "stretches": stretches,
    }  # fmt: skip


def source_of(path: str) -> Path | HubDataset:
    """What a path that was typed into the view means: a file or folder, else a hub data set."""
    path = path.strip()
    found = Path(path).expanduser()
    if not found.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return HubDataset(name=path)
    return found


def name_of(source: Any) -> str:
    """What a text is called in the view."""
    if isinstance(source, Corpus):
        return f"corpus {source.name[:8]}"
    if isinstance(source, HubDataset):
        return source.name
    if isinstance(source, Path) or (isinstance(source, str) and reading.is_path(source)):
        return Path(source).name
    return "a text" if isinstance(source, str) else f"a {type(source).__name__}"


def packed(save: Callable[[Path], Any]) -> bytes:
    """A zip file of what `save` writes into a folder.

    Raises:
        ValueError: it is larger than a view should load.
    """
    with tempfile.TemporaryDirectory(prefix="gptj_lab_result_") as folder:
        save(Path(folder) / "tuned")
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        if size > DOWNLOAD_BYTES:
            raise ValueError(
                f"the result has {size / 1e6:,.0f} MB, more than the {DOWNLOAD_BYTES >> 20} that a "
                "view downloads: save it into a folder"
            )
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in files:
                archive.write(path, path.relative_to(folder))
    return out.getvalue()


class Upload:
    """A file that a view sends in parts, into a temporary folder that goes with this object."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory | None = None
        self._name, self._next, self._size = "", 0, 0

    def take(self, message: dict[str, Any], data: bytes) -> Path | None:
        """Keeps one part; the file's path after the last.

        Raises:
            ValueError: a kind that isn't read, a file too large, or parts out of order.
        """
        name, part, parts = str(message["name"]), message["part"], message["parts"]
        if part == 0:
            self._begin(name, message["size"])
        if name != self._name or part != self._next:
            raise ValueError(f"part {part} of {name} came out of order: drop the file once more")
        self._size += len(data)
        if self._size > UPLOAD_BYTES or len(data) > 2 * PART_BYTES:
            raise ValueError(_too_large(name))
        assert self._folder is not None
        path = Path(self._folder.name) / safe_name(name)
        with path.open("ab" if part else "wb") as file:
            file.write(data)
        self._next += 1
        if part + 1 < parts:
            return None
        self._name = ""
        return path

    def _begin(self, name: str, size: Any) -> None:
        if kinds.kind_of(safe_name(name)) is None:
            raise ValueError(
                f"{name} is of a kind that isn't read: {kinds.advice(name)}. Read are {kinds.SHOWN}"
            )
        if not isinstance(size, int) or size > UPLOAD_BYTES:
            raise ValueError(_too_large(name))
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="gptj_lab_upload_")
        self._name, self._next, self._size = name, 0, 0


def safe_name(name: str) -> str:
    """A file's name without folders and without what a shell or a file system may stumble over.

    >>> safe_name("../../my novel?.txt")
    'my_novel_.txt'
    """
    last = re.split(r"[/\\\\]", name)[-1]
    return re.sub(r"[^\w.-]", "_", last).lstrip(".")[-100:] or "text"


def _too_large(name: str) -> str:
    return (
        f"{name} is larger than {UPLOAD_BYTES >> 20} MB: put it beside the notebook, or on Drive, "
        "and give its path"
    )
