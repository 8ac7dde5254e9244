"""Tables in memory and on disk give their rows; what they hold names the cache."""

import json
import types
import zipfile

import numpy as np
import pytest

from gptj_lab.corpora import frames, reading
from gptj_lab.corpora.content import content_key
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import Tokenizer

COLUMNS = {"Question": ["Who?", "Where?"], "Answer": ["I.", "Here."]}
EXPECTED = ["Who?\nAnswer: I.", "Where?\nAnswer: Here."]


def read(source, **options):
    notes, found = ReadingNotes(), []
    for passage in reading.passages(source, notes, ReadingOptions(**options)):
        if passage.begins:
            found.append("")
        found[-1] += passage.text
    return found, "\n".join(notes.sentences())


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS)
    assert read(frame)[0] == read([frame])[0] == EXPECTED
    assert read(frame["Answer"])[0] == ["I.", "Here."]
    numbers = pandas.DataFrame({"prompt": ["two", None], "answer": [2, 3], "x": [np.nan, 1.0]})
    found, said = read(numbers)
    assert found == ["two\nAnswer: 2"] and "its prompt is empty" in said
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    arrays = pandas.DataFrame({"messages": [np.array(turns, dtype=object)]})
    assert read(arrays)[0] == ["User: Hi\n\nAssistant: Yo"]
    with pytest.raises(ValueError, match=r"no column of text: its columns are a \(int64\), b \(fl"):
        read(pandas.DataFrame({"a": [1], "b": [0.5]}))


def test_polars():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(COLUMNS)
    assert read(frame)[0] == read(frame.lazy())[0] == EXPECTED
    assert read(frame["Answer"])[0] == ["I.", "Here."]
    assert content_key(frame) == content_key(polars.DataFrame(COLUMNS)) is not None
    with pytest.raises(ValueError, match=r"no column of text: its columns are a \(Int64\)"):
        read(polars.DataFrame({"a": [1]}))


def test_pyarrow_and_whatever_speaks_its_interface():
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table(COLUMNS)
    assert (
        read(table)[0] == read(table.to_batches()[0])[0] == read(table.to_reader())[0] == EXPECTED
    )
    assert read(table["Answer"])[0] == ["I.", "Here."]
    other = types.SimpleNamespace(__arrow_c_stream__=table.__arrow_c_stream__)
    assert read(other)[0] == EXPECTED
    assert content_key(table) is not None and content_key(table.to_reader()) is None


def test_splits_of_datasets_in_memory_and_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(COLUMNS)
    both = datasets.DatasetDict(test=made.select([0]), train=made)
    assert read(made)[0] == read(made.to_iterable_dataset())[0] == EXPECTED
    found, said = read(both)
    assert found == EXPECTED and "of which 'train' is read and not 'test'" in said
    both.save_to_disk(tmp_path / "both")
    assert read(tmp_path / "both")[0] == read(tmp_path)[0] == EXPECTED
    assert read(tmp_path / "both" / "test")[0] == EXPECTED[:1]
    assert read(next((tmp_path / "both" / "train").glob("*.arrow")))[0] == EXPECTED
    state = tmp_path / "both" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../../etc/passwd"}]}))
    with pytest.raises(FileNotFoundError, match="lists passwd, which isn't there"):
        read(tmp_path / "both")


@pytest.mark.parametrize("kind", ["arrow file", "arrow stream", "feather"])
def test_files_of_arrow(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, ipc

    table, path = arrow.table(COLUMNS), tmp_path / f"t.{kind.split()[0]}"
    if kind.startswith("feather"):
        feather.write_feather(table, path)
    else:
        opened = ipc.new_file if kind == "arrow file" else ipc.new_stream
        with opened(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read(path)[0] == EXPECTED
    path.write_bytes(path.read_bytes()[:40])
    assert "a damaged Arrow file" in read(path)[1]


def test_generators_dicts_and_what_is_no_source():
    assert read(f"text number {i}" for i in range(2))[0] == ["text number 0", "text number 1"]
    assert read({"text": "one row"})[0] == ["one row"]
    assert read(COLUMNS)[0] == EXPECTED
    with pytest.raises(TypeError, match="is a function: call it"):
        read(lambda: ["a text"])
    with pytest.raises(TypeError, match="is a bytes: give a path"):
        read(b"a text")
    assert not frames.is_frame({"a": 1}) and not frames.is_frame("text")


def test_the_cache_is_named_by_all_that_is_in_a_source(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS)
    changed = frame.assign(Answer=["I.", "There."])
    assert content_key(frame) == content_key(frame.copy()) != content_key(changed)
    long = [{"text": "x", "v": np.arange(5000)}, {"text": "x", "v": np.arange(5000)}]
    long[1]["v"][2500] = 0  # beyond what repr shows
    assert content_key(long[:1]) != content_key(long[1:])
    assert content_key([("a", "b")]) != content_key([["a", "b"]])
    for words in ("one", "two"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
            packed.writestr("a.txt", words)
        (tmp_path / words).write_text(content_key(tmp_path / "a.zip") or "")
    assert (tmp_path / "one").read_text() != (tmp_path / "two").read_text()


def test_each_setting_of_reading_has_a_cache_of_its_own(tmp_path):
    path, tokenizer = tmp_path / "chat.txt", Tokenizer.gpt2()
    path.write_text("05/03/2024, 20:14 - Anna: Hi\n05/03/2024, 20:15 - Ben: Yo\n" * 3)

    def name(source, **options):
        return corpus.prepare(
            source, tokenizer, context=16, held_out=0.0, cache=tmp_path / "cache", **options
        ).name

    names = [
        name(path),
        name(path, me="Ben"),
        name(path, me="Anna"),
        name(path, encoding="latin-1"),
    ]
    rows = [{"prompt": "a", "answer": "b", "text": "c", "system": "d"}]
    names += [name(rows), name(rows, text_field="text"), name(rows, prompt_field="system")]
    names += [name(rows, answer_field="text"), name(rows, context_field="text")]
    assert len(set(names)) == len(names)
    assert name(path, me="Ben") == names[1]
