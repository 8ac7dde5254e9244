"""JSON in every shape; a broken row costs itself, wherever it stands, and is named."""

import json

import pytest

from gptj_lab.corpora import reading
from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.corpora.passages import ReadingNotes

ROWS = [{"prompt": f"q {i}", "answer": f"a {i}"} for i in range(40)]


def read(path, strict=False):
    notes, found = ReadingNotes(strict=strict), []
    for passage in reading.passages(path, notes, ReadingOptions()):
        if passage.begins:
            found.append("")
        found[-1] += passage.text
    return found, "\n".join(notes.sentences())


def chat(number):
    turns = [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "yes"}]
    return {"messages": turns}


@pytest.mark.parametrize("indent", [None, 2, 4])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("make", [ROWS.__getitem__, chat])
def test_one_broken_row_of_an_array_costs_itself(tmp_path, indent, wrapped, make):
    rows = [make(number) for number in range(40)]
    text = json.dumps({"v": 1, "data": rows} if wrapped else rows, indent=indent)
    path = tmp_path / "rows.json"
    path.write_text(text.replace('"q 20"', '"q "20""'))
    found, said = read(path)
    assert len(found) == 39 and not any("q 20" in text for text in found)
    assert "1 x a row left out, not JSON: rows.json row 21 (line" in said
    with pytest.raises(ValueError, match=r"rows.json row 21 \(line"):
        read(path, strict=True)


@pytest.mark.parametrize(
    "value",
    [
        ROWS[:2], {"data": ROWS[:2]}, {"version": "2", "rows": ROWS[:2]}, {"train": ROWS[:2]},
        {"prompt": ["q 0", "q 1"], "answer": ["a 0", "a 1"]},
        {"Prompt": {"0": "q 0", "1": "q 1"}, "Answer": {"0": "a 0", "1": "a 1"}},
        {"0": ROWS[0], "1": ROWS[1]},
        {"columns": ["prompt", "answer"], "data": [["q 0", "a 0"], ["q 1", "a 1"]]},
    ],
)  # fmt: skip
def test_rows_lie_in_many_shapes(tmp_path, value):
    path = tmp_path / "rows.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps(value), encoding)
        assert read(path)[0] == ["q 0\nAnswer: a 0", "q 1\nAnswer: a 1"]


def test_other_values_of_a_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(["one", "two"]))
    assert read(path)[0] == ["one", "two"]
    path.write_text(json.dumps(chat(1)["messages"]))
    assert read(path)[0] == ["User: q 1\n\nAssistant: yes"]
    path.write_text("\n".join(json.dumps(row) for row in ROWS[:3]))  # lines of JSON
    assert len(read(path)[0]) == 3
    path.write_text(json.dumps({"train": ROWS[:2], "test": ROWS[:3]}))
    found, said = read(path)
    assert len(found) == 2 and "of which 'train' is read and not 'test'" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "without text"), ("null", "begins with neither"), ("{garbage", "isn't valid JSON"),
        ('[{"prompt": "a', "Unterminated string"), ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"), ('[{"text": "x"}', "breaks off"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_a_sentence(tmp_path, text, said):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert said in read(path)[1]


def test_values_longer_than_what_is_read_at_a_time_are_whole(tmp_path):
    path = tmp_path / "rows.json"
    texts = ["x y " * 100_000, "12", "z " * 70_000]
    path.write_text(json.dumps([{"text": text} for text in texts]))
    assert read(path)[0] == texts
