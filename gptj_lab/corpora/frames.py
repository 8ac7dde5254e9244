"""Tables in memory as rows: of pandas, polars, pyarrow and datasets; none of them is imported."""

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gptj_lab.corpora.passages import ReadingNotes

_CHUNK = 1024  # rows made into dicts at a time


def is_frame(source: Any) -> bool:
    """Whether a source is a table, a column or a dict of splits of one of these libraries."""
    if _library(source) is not None:
        return True
    is_own = type(source).__module__.partition(".")[0] == "datasets"  # rows, as any iterable
    return hasattr(source, "__arrow_c_stream__") and not is_own and not isinstance(source, type)


def is_lasting(source: Any) -> bool:
    """Whether a table can be read twice."""
    return _library(source) is not None and type(source).__name__ != "RecordBatchReader"


def _library(source: Any) -> str | None:
    """The library whose table, column or splits `source` is, by the classes that it is of."""
    for kind in type(source).__mro__:
        library, name = kind.__module__.partition(".")[0], kind.__name__
        if name in _TABLES.get(library, ()):
            return library
    return None


_TABLES = {
    "pandas": ("DataFrame", "Series"),
    "polars": ("DataFrame", "LazyFrame", "Series"),
    "pyarrow": ("Table", "RecordBatch", "RecordBatchReader", "ChunkedArray", "Array"),
    "datasets": ("DatasetDict", "IterableDatasetDict"),
}


def split_of(source: Any, notes: ReadingNotes) -> Any:
    """Of a dict of splits (`datasets.DatasetDict`) the one that is read, which is noted."""
    if _library(source) != "datasets":
        return source
    names = list(source)
    if not names:
        raise ValueError("the DatasetDict has no split: give a Dataset")
    chosen = "train" if "train" in names else names[0]
    if len(names) > 1:
        others = ", ".join(repr(name) for name in names if name != chosen)
        what = f"data of several splits, of which {chosen!r} is read and not {others}"
        notes.remark(what, f"give data[{others.split(',')[0]}] for another")
    return source[chosen]


def frame_rows(source: Any) -> Iterator[Any]:
    """The rows of a table as dicts, the values of a column as they are; NaN is None.

    Raises:
        ValueError: no column holds text.
    """
    library, kind = _library(source), type(source).__name__
    if kind == "LazyFrame":
        source = source.collect()
    names = getattr(source, "columns", None)
    if library in ("pandas", "polars") and names is not None:
        kinds = dict(zip(map(str, names), map(str, source.dtypes), strict=True))
        wordless = ("int", "uint", "float", "bool", "datetime", "timedelta", "date", "time")
        if not kinds or all(each.lower().startswith(wordless) for each in kinds.values()):
            listed = ", ".join(f"{name} ({each})" for name, each in list(kinds.items())[:12])
            raise ValueError(
                f"the {kind} of {library} has no column of text: its columns are "
                f"{listed or 'none'}; give one with texts, or with prompts and answers"
            )
    yield from (_plain(row) for row in _rows(source, library, kind))


def _rows(source: Any, library: str | None, kind: str) -> Iterable[Any]:
    if library == "pandas" and kind == "Series":
        return iter(source)
    if library == "pandas":
        starts = range(0, len(source), _CHUNK)
        parts = (source.iloc[start : start + _CHUNK] for start in starts)
        return (row for part in parts for row in part.to_dict("records"))
    if library == "polars":
        return source.to_list() if kind == "Series" else source.iter_rows(named=True)
    if hasattr(source, "to_pylist") and not hasattr(source, "to_batches"):
        return source.to_pylist()  # a column, or one batch
    if hasattr(source, "to_batches"):
        return (row for b in source.to_batches(max_chunksize=_CHUNK) for row in b.to_pylist())
    import pyarrow  # another library's table, by Arrow's own interface

    reader = pyarrow.RecordBatchReader.from_stream(source)
    return (row for batch in reader for row in batch.to_pylist())


def _plain(value: Any) -> Any:
    """A value as JSON has it: arrays are lists, NaN and NaT are None, numpy's numbers Python's."""
    if isinstance(value, str | int | bool) or value is None:
        return value if type(value) in (str, int, bool) or value is None else _python(value)
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime.date | datetime.timedelta):
        return None if str(value) == "NaT" else str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if str(value) in ("NaT", "<NA>") else value


def _python(value: Any) -> Any:
    """A subclass's value as its plain type: numpy.str_ is a str."""
    kind = next(kind for kind in (str, bool, int) if isinstance(value, kind))
    return kind(value)
