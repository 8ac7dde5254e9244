"""Windows: nothing lost, nothing learnt twice, segments and positions as the documents lie."""

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from gptj_lab.finetuning import corpus
from gptj_lab.finetuning.packing import Batch
from gptj_lab.tokenizer import Tokenizer, train_bpe

WORDS = "once a king and his fox went over the old hill to see the moon and the sea".split()


def tale(seed, length):
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, length))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([tale(0, 400)], 280)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    def make(sources, **settings):
        settings = dict(tokenizer=tokenizer, context=32, held_out=0, cache=tmp_path) | settings
        return corpus.prepare(sources, **settings)

    return make


TEXTS = [tale(seed, 1 + 7 * seed % 90) for seed in range(40)] + ["x"]


def predictions(windows, segments_matter=True):
    """Each window's counted predictions as (segment's tokens so far, next token)."""
    batch = windows.batch(np.arange(len(windows)))
    found = []
    for tokens, segments, weights in zip(batch.tokens, batch.segments, batch.weights, strict=True):
        for i in np.flatnonzero(weights):
            first = np.argmax(segments == segments[i]) if segments_matter else 0
            found.append((tuple(tokens[first : i + 1].tolist()), int(tokens[i + 1])))
    return found


def test_every_token_is_predicted_once_and_after_its_own_document_only(prepare, tokenizer):
    windows = prepare(TEXTS).train
    end, wanted = tokenizer.end_of_text_id, []
    for text in TEXTS:
        ids = [end, *tokenizer.encode(text), end]
        for first in range(0, len(ids) - 1, 32):  # a long document goes on in another window
            part = ids[first : first + 33]
            wanted += [(tuple(part[: i + 1]), part[i + 1]) for i in range(len(part) - 1)]
    assert sorted(predictions(windows)) == sorted(wanted)
    assert windows.predictions == len(wanted)


def test_positions_restart_where_a_segment_does_and_padding_is_segment_0(prepare):
    batch = prepare(TEXTS).train.batch(np.arange(5))
    for segments, positions, weights in zip(
        batch.segments, batch.positions, batch.weights, strict=True
    ):
        for segment in set(segments.tolist()) - {0}:
            places = np.flatnonzero(segments == segment)
            assert (np.diff(places) == 1).all()
            np.testing.assert_array_equal(positions[places], np.arange(len(places)))
        assert not weights[segments == 0].any()
    assert batch.tokens.shape == (5, 33) and batch.positions.shape == (5, 32)
    assert [getattr(batch, n).dtype for n in ("tokens", "segments", "positions", "weights")] == [
        np.int32, np.int32, np.int32, np.float32,
    ]  # fmt: skip


def test_plain_windows_are_the_joined_text_cut_and_the_rest_is_padded(prepare, tokenizer):
    windows = prepare(TEXTS, packing="plain").train
    end = tokenizer.end_of_text_id
    stream = [end]
    for text in TEXTS:
        stream += [*tokenizer.encode(text), end]
    assert len(windows) == -(-(len(stream) - 1) // 32)
    batch = windows.batch(np.arange(len(windows)))
    for row in range(len(windows)):
        part = stream[row * 32 : row * 32 + 33]
        assert batch.tokens[row, : len(part)].tolist() == part
        assert batch.weights[row].sum() == len(part) - 1
        assert batch.positions[row, : len(part) - 1].tolist() == list(range(len(part) - 1))
        assert set(batch.segments[row, : len(part) - 1].tolist()) == {1}


def test_a_document_that_fits_a_window_is_never_cut(prepare, tokenizer):
    windows = prepare(TEXTS).train
    parts = [part for number in range(len(windows)) for part in windows.documents_of(number)]
    for document, text in enumerate(TEXTS):
        size = len(tokenizer.encode(text)) + 1
        sizes = [size_ for number, _, size_ in parts if number == document]
        assert sum(sizes) == size and len(sizes) == -(-size // 32)


def test_best_fit_leaves_little_room(prepare):
    windows = prepare([tale(seed, 1 + seed % 12) for seed in range(200)]).train
    assert windows.padding < 0.05
    assert len(windows) <= np.ceil(windows.predictions / 32) + 2


@pytest.mark.parametrize("packing", ["documents", "plain"])
def test_a_text_shorter_than_a_window_trains(prepare, tokenizer, packing):
    windows = prepare("the fox\n", packing=packing).train
    ids = tokenizer.encode("the fox\n")
    end = tokenizer.end_of_text_id
    assert len(windows) == 1
    batch = windows.batch(np.array([0]))
    assert batch.tokens[0, : len(ids) + 2].tolist() == [end, *ids, end]
    assert batch.weights[0].sum() == len(ids) + 1


@pytest.mark.parametrize("packing", ["documents", "plain"])
@pytest.mark.parametrize("context", [1, 7, 32, 5000])
def test_no_prediction_is_lost_at_any_width(prepare, tokenizer, packing, context):
    windows = prepare(TEXTS, packing=packing, context=context).train
    total = sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)
    batch = windows.batch(np.arange(len(windows)))
    assert batch.weights.sum() == total == windows.predictions
    assert windows.padding == pytest.approx(1 - total / (len(windows) * context))


@pytest.mark.parametrize("packing", ["documents", "plain"])
def test_without_an_end_of_text_mark_only_first_tokens_are_not_predicted(prepare, packing):
    letters = {chr(code): code for code in range(33, 127)}
    inner = tokenizers.Tokenizer(models.BPE(letters, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = ["abc" * 30, "de", "f" * 12, "g"]
    windows = prepare(texts, tokenizer=Tokenizer(inner), packing=packing).train
    found = predictions(windows, segments_matter=packing == "documents")
    assert len(found) == sum(len(text) - 1 for text in texts)
    if packing == "documents":
        assert all(
            len({chr(t) for t in (*seen, target)} & set("defg")) <= 2 for seen, target in found
        )
        assert not any(ord("a") in seen and target > ord("c") for seen, target in found)


def test_windows_of_prompts_alone_are_left_out_and_said(prepare, tokenizer):
    rows = [{"prompt": tale(1, 200), "completion": " fox"}, {"prompt": "a", "completion": "b"}]
    found = prepare(rows)
    batch = found.train.batch(np.arange(len(found.train)))
    assert (batch.weights.sum(axis=1) > 0).all()
    answers = [" fox", "\nAnswer: b"]
    assert batch.weights.sum() == sum(len(tokenizer.encode(text)) + 1 for text in answers)
    assert found.train.silent >= 5
    assert f"{found.train.silent} windows of prompts alone" in str(found.doctor())


def test_a_preview_shows_what_lies_in_a_window(prepare):
    found = prepare(["the fox", {"text": "the king"}])
    (one, two) = sorted(found.preview(0), key=lambda stretch: stretch.document)
    assert (one.text, one.origin) == ("<|endoftext|>the fox<|endoftext|>", "item 1")
    assert (two.text, two.origin) == ("<|endoftext|>the king<|endoftext|>", "item 2")
    assert one.first == two.first == 0


def test_a_batch_is_a_pytree_that_jit_takes(prepare):
    batch = prepare(TEXTS).train.batch(np.arange(3))
    passed = jax.jit(lambda b: jax.tree.map(lambda x: x + 1, b))(batch)
    assert isinstance(passed, Batch)
    np.testing.assert_array_equal(passed.tokens, batch.tokens + 1)


def test_wrong_settings_are_said(prepare):
    with pytest.raises(ValueError, match="context is 0"):
        prepare(TEXTS, context=0)
    with pytest.raises(ValueError, match="packing is 'dense'"):
        prepare(TEXTS, packing="dense")
    with pytest.raises(ValueError, match="held_out is 0.9"):
        prepare(TEXTS, held_out=0.9)
