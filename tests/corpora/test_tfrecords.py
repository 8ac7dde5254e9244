"""TFRecords of token ids: against protobuf's own writing, and with each byte damaged."""

import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gptj_lab.corpora import reading, tfrecords
from gptj_lab.corpora.passages import ReadingNotes
from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import Tokenizer

END = 50256


def crc32c(data):
    """CRC-32C a bit at a time, as RFC 3720 states it."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data):
    state = crc32c(data)
    return ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.fixture(scope="module")
def example_message():
    """tf.train.Example, declared as tensorflow/core/example/{example,feature}.proto declare it."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="tf", syntax="proto3")

    def message(name, *fields, parent=file.message_type):
        found = parent.add(name=name)
        for number, label, kind, field, *of in fields:
            named = {"type_name": of[0]} if of else {}
            found.field.add(name=field, number=number, label=label, type=kind, **named)
        return found

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("Int64List", (1, many, kinds.TYPE_INT64, "value"))
    message("Feature", (3, one, kinds.TYPE_MESSAGE, "int64_list", ".tf.Int64List"))
    features = message("Features", (1, many, kinds.TYPE_MESSAGE, "feature", ".tf.Features.Entry"))
    entry = message(
        "Entry",
        (1, one, kinds.TYPE_STRING, "key"),
        (2, one, kinds.TYPE_MESSAGE, "value", ".tf.Feature"),
        parent=features.nested_type,
    )
    entry.options.map_entry = True
    message("Example", (1, one, kinds.TYPE_MESSAGE, "features", ".tf.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


@pytest.fixture
def write(example_message):
    def to_file(path, windows, feature="text"):
        with path.open("wb") as file:
            for window in windows:
                example = example_message()
                example.features.feature[feature].int64_list.value.extend(map(int, window))
                example.features.feature["other"].int64_list.value.extend([1, 2])
                body = example.SerializeToString()
                head = struct.pack("<Q", len(body))
                file.write(head + struct.pack("<I", masked(head)))
                file.write(body + struct.pack("<I", masked(body)))

    return to_file


def windows_of(count, length=17, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, END, (count, length))
    found[:, length // 2] = END
    return found


def test_checksums_are_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's own check value
    records = [b"123456789", b"", b"a", b"abcd", bytes(range(256)) * 3, b"\0" * 9]
    assert tfrecords.masked_checksums(records).tolist() == [masked(r) for r in records]


def test_records_are_read_as_they_were_written(write, tmp_path):
    path, windows = tmp_path / "pile_600.tfrecords", windows_of(600)
    write(path, windows)
    found = list(reading.passages(path, ReadingNotes(strict=True)))
    np.testing.assert_array_equal([p.token_ids for p in found], windows)


@pytest.mark.parametrize("packing", ["documents", "plain"])
def test_windows_are_the_originals_where_the_context_is_theirs(write, tmp_path, packing):
    path, windows = tmp_path / "a.tfrecords", windows_of(5)
    write(path, windows)
    settings = dict(context=16, held_out=0, packing=packing, cache=tmp_path / "cache")
    train = corpus.prepare(path, Tokenizer.gpt2(), **settings).train
    batch = train.batch(np.arange(5))
    np.testing.assert_array_equal(batch.tokens, windows)
    assert batch.weights.all()
    if packing == "documents":  # the mark in the middle begins a document
        np.testing.assert_array_equal(batch.segments[0], [1] * 8 + [2] * 8)
        np.testing.assert_array_equal(batch.positions[0], [*range(8), *range(8)])
    else:
        np.testing.assert_array_equal(batch.positions[0], range(16))


@pytest.mark.parametrize("packing", ["documents", "plain"])
@pytest.mark.parametrize("context", [5, 16, 40])
def test_each_token_but_the_first_of_a_record_is_predicted_at_any_width(
    write, tmp_path, packing, context
):
    path, windows = tmp_path / "a.tfrecords", windows_of(7)
    write(path, windows)
    settings = dict(context=context, held_out=0, packing=packing, cache=tmp_path / "cache")
    train = corpus.prepare(path, Tokenizer.gpt2(), **settings).train
    batch = train.batch(np.arange(len(train)))
    counted = batch.weights.astype(bool)
    pairs = np.stack([batch.tokens[:, :-1][counted], batch.tokens[:, 1:][counted]], axis=1)
    wanted = [pair for window in windows for pair in zip(window[:-1], window[1:], strict=True)]
    assert sorted(map(tuple, pairs.tolist())) == sorted((int(a), int(b)) for a, b in wanted)


@pytest.mark.parametrize("packing", ["documents", "plain"])
@pytest.mark.parametrize("context", [16, 50])
def test_records_beside_texts_and_split_lose_and_cross_nothing(write, tmp_path, packing, context):
    path, windows = tmp_path / "a.tfrecords", windows_of(12, length=33)
    write(path, windows)
    rng, tokenizer = np.random.default_rng(0), Tokenizer.gpt2()
    texts = [tokenizer.decode(rng.integers(0, END, 30 * i)) for i in range(1, 20)]
    settings = dict(context=context, held_out=0.3, packing=packing, cache=tmp_path / "cache")
    found = corpus.prepare([*texts, path], tokenizer, **settings)
    pairs, wanted = [], []
    for side in (found.train, found.held_out):
        assert len(side) > 3
        batch = side.batch(np.arange(len(side)))
        counted = batch.weights.astype(bool)
        pairs += zip(batch.tokens[:, :-1][counted], batch.tokens[:, 1:][counted], strict=True)
    for ids in [*([END, *tokenizer.encode(t), END] for t in texts), *windows]:
        wanted += zip(ids[:-1], ids[1:], strict=True)
    assert sorted(pairs) == sorted(wanted)


def test_an_index_lists_files_beside_it_whatever_bucket_it_names(write, tmp_path):
    one, two = windows_of(2, seed=1), windows_of(3, seed=2)
    write(tmp_path / "a_2.tfrecords", one)
    write(tmp_path / "b_3.tfrecords", two)
    index = tmp_path / "x.train.index"
    index.write_text("gs://bucket/data/b_3.tfrecords\ndata/a_2.tfrecords\n\n")
    found = [p.token_ids for p in reading.passages(index, ReadingNotes(strict=True))]
    np.testing.assert_array_equal(found, np.concatenate([two, one]))
    folder = [p.token_ids for p in reading.passages(tmp_path, ReadingNotes())]
    assert len(folder) == 5  # through the index, not twice
    (tmp_path / "a_2.tfrecords").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists data/a_2.tfrecords: copy it to"):
        list(reading.passages(index, ReadingNotes()))


def test_any_damaged_byte_is_noticed(write, tmp_path):
    path, windows = tmp_path / "a.tfrecords", windows_of(3, length=9)
    write(path, windows)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        notes = ReadingNotes()
        found = [p.token_ids.tolist() for p in reading.passages(path, notes)]
        assert notes.found and len(found) < 3, place
        assert all(window in windows.tolist() for window in found)
    with pytest.raises(ValueError, match=r"a\.tfrecords record 3"):
        list(reading.passages(path, ReadingNotes(strict=True)))
    bounds, place = [], 0  # a file cut between two records is a whole file of fewer
    while place < len(whole):
        place += 16 + struct.unpack_from("<Q", whole, place)[0]
        bounds.append(place)
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        notes = ReadingNotes()
        found = [p.token_ids.tolist() for p in reading.passages(path, notes)]
        assert found == windows.tolist()[: len(found)] and len(found) < 3
        assert bool(notes.found) != (length in bounds)


def test_a_count_in_the_name_is_compared(write, tmp_path):
    write(tmp_path / "a_4.tfrecords", windows_of(3))
    notes = ReadingNotes()
    assert len(list(reading.passages(tmp_path / "a_4.tfrecords", notes))) == 3
    assert "another count: a_4.tfrecords (3)" in "".join(notes.sentences())


def test_records_of_something_else_are_said(write, tmp_path):
    path = tmp_path / "a.tfrecords"
    write(path, windows_of(2), feature="image")
    notes = ReadingNotes()
    assert list(reading.passages(path, notes)) == []
    assert "no feature `text`" in "".join(notes.sentences())
    write(path, [[5, -1, 7]])
    notes = ReadingNotes()
    assert list(reading.passages(path, notes)) == []
    assert "negative" in "".join(notes.sentences())


def test_tokens_beyond_the_tokenizer_are_refused(write, tmp_path):
    path = tmp_path / "a.tfrecords"
    write(path, [[1, 60_000, 2]])
    with pytest.raises(ValueError, match=r"holds token 60000, the tokenizer has 50400"):
        corpus.prepare(path, Tokenizer.gpt2(), context=8, cache=tmp_path / "cache")
