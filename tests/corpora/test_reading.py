"""Every format gives its text; what is bad is counted, shown and skipped, or refused."""

import csv
import gzip
import json

import numpy as np
import pytest

from gptj_lab.corpora import passages, reading
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import Tokenizer, train_bpe

TEXTS = ["The fox, the “king” and his naïve 🙂.", "Second text\n\nwith a blank line.", "Third one"]


def read(sources, strict=False, **settings):
    """(texts of the documents, notes)."""
    notes = ReadingNotes(strict=strict)
    found = []
    for passage in reading.passages(sources, notes, ReadingOptions(**settings)):
        if passage.begins:
            found.append("")
        found[-1] += passage.text
    return found, notes


def said(notes):
    return "\n".join(notes.sentences())


def as_jsonl(texts):
    lines = [json.dumps({"text": t, "meta": {"pile_set_name": "Pile-CC"}}) for t in texts]
    return ("\n".join(lines) + "\n").encode()


def write(path, format_name):
    if format_name == "txt":
        path.write_text("<|endoftext|>".join(TEXTS), "utf-8")
    elif format_name in ("jsonl", "ndjson"):
        path.write_bytes(as_jsonl(TEXTS))
    elif format_name == "jsonl.gz":
        path.write_bytes(gzip.compress(as_jsonl(TEXTS)))
    elif format_name == "jsonl.zst":  # two frames, as shards joined by cat are
        zstandard = pytest.importorskip("zstandard")
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(as_jsonl(TEXTS[:1])) + pack(as_jsonl(TEXTS[1:])))
    elif format_name in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t" if format_name == "tsv" else ",")
            table.writerows([["id", "text"], *enumerate(TEXTS)])
    elif format_name == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = arrow.table({"text": TEXTS, "id": [1, 2, 3]})
        parquet.write_table(table, path, row_group_size=2)


@pytest.mark.parametrize(
    "kind", ["txt", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "csv", "tsv", "parquet"]
)
def test_each_format_gives_its_texts(tmp_path, kind):
    path = tmp_path / f"some.{kind}"
    write(path, kind)
    assert read(path, strict=True)[0] == TEXTS
    assert read(str(path))[0] == read([str(path)])[0] == TEXTS


def test_a_folder_is_read_in_order_and_what_is_not_read_is_said(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / "x.py").write_text("x = 1\n")
    (tmp_path / "b" / ".git" / "y.py").write_text("y = 1\n")
    (tmp_path / "a.md").write_text("# A\n")
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.txt").write_text(" \n")
    texts, notes = read(tmp_path)
    assert texts == ["# A\n", "x = 1\n"]
    assert "(.png): pictures aren't read: OCR" in said(
        notes
    ) and "without text, left out: empty.txt" in said(notes)


def test_a_data_set_of_the_datasets_library_streams(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "rows.jsonl"
    write(path, "jsonl")
    source = reading.HubDataset(name="json", data_files=str(path))
    assert read(source)[0] == TEXTS
    assert read(datasets.Dataset.from_dict({"text": TEXTS}))[0] == TEXTS
    assert read(datasets.Dataset.from_dict({"story": TEXTS}), text_field="story")[0] == TEXTS


def test_texts_and_paths_are_told_apart(tmp_path):
    (tmp_path / "t.txt").write_text("from a file")
    assert read([str(tmp_path / "t.txt"), "a text", "word", {"text": "a row"}])[0] == [
        "from a file", "a text", "word", "a row",
    ]  # fmt: skip
    for text in ("Then we opened the file notes.txt", "Ask at sea.org", "The answer is in main.c"):
        assert read([text])[0] == [text]
    assert read("Once upon a time.")[0] == ["Once upon a time."]
    for missing in ("stories", "my stories.txt", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="is no file or folder"):
            read(missing)
    with pytest.raises(FileNotFoundError):
        read(["data/none"])
    with pytest.raises(FileNotFoundError, match="to train on these words themselves"):
        read(["my stories.txt", "my other stories.txt"])
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.doc is of no kind that is read: save it as \.docx"):
        read(tmp_path / "a.doc")
    with pytest.raises(TypeError, match="item 2 is a int"):
        read(["a text", 7])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2=", "completion": "4"}, [("2+2=", False), ("\nAnswer: 4", True)]),
        ({"prompt": "2+2=", "completion": " 4"}, [("2+2=", False), (" 4", True)]),
        (
            {"instruction": "Add.", "input": "2, 2", "output": "4"},
            [("Add.\n\n2, 2", False), ("\nAnswer: 4", True)],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello"},
                    {"role": "user", "content": "Who?"},
                    {"role": "assistant", "content": "I."},
                ]
            },
            [
                ("Be brief.\n\nUser: Hi\n\nAssistant:", False),
                (" Hello<|endoftext|>", True),
                ("\n\nUser: Who?\n\nAssistant:", False),
                (" I.", True),
            ],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
            [("User: Hi\n\nAssistant:", False), (" Yo", True)],
        ),
        (
            {
                "prompt": [{"role": "user", "content": "Hi"}],
                "completion": [{"role": "assistant", "content": "Yo"}],
            },
            [("User: Hi\n\nAssistant:", False), (" Yo", True)],
        ),
    ],
)
def test_the_loss_of_a_row_is_on_its_answers(row, expected):
    (found,) = reading.passages([row], ReadingNotes(strict=True))
    pieces, place = [], 0
    for start, end in found.answers:
        pieces += [(found.text[place:start], False), (found.text[start:end], True)]
        place = end
    assert pieces == expected and place == len(found.text)
    assert found.begins and found.closes


def test_weights_are_on_answers_and_their_end(tmp_path):
    tokenizer = Tokenizer.gpt2()
    rows = [{"prompt": "The capital of France is", "completion": " Paris"}]
    found = corpus.prepare(rows, tokenizer, context=16, cache=tmp_path)
    batch = found.train.batch(np.array([0]))
    targets = batch.tokens[0, 1:][batch.weights[0] == 1]
    assert tokenizer.decode(targets) == " Paris<|endoftext|>"
    assert "The loss is on" in str(found.doctor())


BAD_LINES = {
    b'{"text": "cut off': "not JSON",
    b'{"text": "\xff\xfe"}': "not UTF-8",
    b"[1, 2]": "a list where an object",
    b'{"body": "x"}': "its fields are 'body'",
    b'{"text": 7}': "its text is a int",
    b'{"text": "half \\ud83d"}': "half a character",
    b'{"text": "  "}': "without text",
    b'{"prompt": "a", "completion": ""}': "its completion is empty",
    b'{"messages": [{"role": "user", "content": "a"}]}': "no turn is the assistant's",
    b'{"messages": [{"role": "poet", "content": "a"}, {"role": "assistant", "content": "b"}]}':
        "a turn of 'poet'",
    b'{"messages": "hi"}': "its messages is a str",
    b"[" * 100_000: "not JSON",
}  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=list(BAD_LINES.values()))
def test_a_bad_line_is_counted_shown_and_skipped_or_refused(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl(TEXTS[:1]) + line + b"\n" + as_jsonl(TEXTS[1:]) + line)
    texts, notes = read(path)
    assert texts == TEXTS
    ((what, (count, places)),) = notes.found.items()
    assert count == 2 and reason in what and "rows.jsonl line 2" in places[0]
    with pytest.raises(ValueError, match=r"(?s)rows.jsonl line 2.*strict=False to go on"):
        read(path, strict=True)


def test_bad_rows_of_a_table_are_noted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,text\n1,one\n2,two,too many\n3,"th""ree, \n quoted"\n4\n5,five\n')
    texts, notes = read(path)
    assert texts == ["one", 'th"ree, \n quoted', "five"]
    assert "2 x a row of a table left out" in said(notes) and "(3 of 2)" in said(notes)
    with pytest.raises(ValueError, match="t.csv line 3"):
        read(path, strict=True)


@pytest.mark.parametrize("kind", ["jsonl.zst", "jsonl.gz", "parquet"])
def test_a_file_cut_short_is_said(tmp_path, kind):
    path = tmp_path / f"some.{kind}"
    write(path, kind)
    path.write_bytes(path.read_bytes()[:-9])
    _, notes = read(path)
    assert "damaged" in said(notes)
    with pytest.raises(ValueError, match="damaged"):
        read(path, strict=True)


@pytest.mark.parametrize(
    ("data", "expected", "note"),
    [
        ("naïve 🙂\r\nline".encode(), "naïve 🙂\nline", ""),
        ("naïve".encode("utf-8-sig"), "naïve", ""),
        ("naïve 🙂".encode("utf-16"), "naïve 🙂", "UTF-16"),
        ("“naïve” café".encode("cp1252"), "“naïve” café", "not UTF-8, read as Windows-1252"),
        ("éàü ".encode() * 3 + b"\xff", "éàü éàü éàü \ufffd", "read with U+FFFD"),
        ("naïve".encode().decode("cp1252").encode(), "naÃ¯ve", "once read as Windows-1252"),
    ],
)
def test_odd_encodings_are_read_and_said(tmp_path, data, expected, note):
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    texts, notes = read(path)
    assert texts == [expected]
    assert note in said(notes) and bool(note) == bool(notes.found)


def test_a_binary_file_is_not_read(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"\0\1\2" * 50)
    texts, notes = read(path)
    assert texts == [] and "binary, not read: t.txt" in said(notes)


def test_a_long_text_is_read_in_parts_that_change_no_token(monkeypatch, tmp_path):
    monkeypatch.setattr(passages, "CHUNK", 500)
    rng = np.random.default_rng(0)
    pieces = ["word", " ", "\n", "  ", "don't", "\n\n", "ünï", "42", " .", "\t", "<|endoftext|>"]
    text = "".join(rng.choice(pieces, 30_000, p=[0.3, 0.3, *[0.05] * 7, 0.049, 0.001]))
    path = tmp_path / "t.txt"
    path.write_text(text, "utf-8")
    tokenizer = Tokenizer.gpt2()
    found = list(reading.passages(path, ReadingNotes()))
    assert len(found) > 100
    ids = [i for p in found for i in tokenizer.encode("<|endoftext|>" * p.begins + p.text)]
    whole = [part for part in text.split("<|endoftext|>") if part.strip()]
    assert ids == [i for part in whole for i in tokenizer.encode("<|endoftext|>" + part)]


def test_a_missing_library_is_named_with_its_cure(tmp_path, monkeypatch):
    import sys

    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs zstandard.*gptj_lab\[data\]"):
        read(path)


def test_encode_all_is_encode_of_each():
    tokenizer = train_bpe(TEXTS, 300)
    assert tokenizer.encode_all(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode_all(["fine", "\ud83d"])
