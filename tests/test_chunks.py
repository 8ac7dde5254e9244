"""Texts are tokenised chunk by chunk, to the same ids as whole."""

import random

import pytest
import tokenizers
from tokenizers import AddedToken

from gptj_lab import chunks
from gptj_lab.tokenizer import Tokenizer

PIECES = [
    "once upon", " a", "  ", "\n", "\r\n", "\t", "The", " don't", "'s", "12", "٣", "é", "e\u0301",
    "\u00a0", "\x0b", "\x1c", "\x85", "\u2003", "\u2028", "\u200b", "\ufeff", "\u3000", "漢字",
    "😀", "<|endoftext|>", "<|extratoken_7|>", "...", " (", "_x", "\x00", "x" * 70,
]  # fmt: skip


def fresh(inner: tokenizers.Tokenizer, **splitting: bool) -> tokenizers.Tokenizer:
    copied = tokenizers.Tokenizer.from_str(inner.to_str())
    if splitting:
        copied.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(**splitting)
    return copied


def test_the_ids_are_those_of_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Tokenizer.gpt2()._inner
    rng = random.Random(0)
    texts = ["", " ", *("".join(rng.choices(PIECES, k=rng.randint(1, 40))) for _ in range(400))]
    whole = [encoding.ids for encoding in inner.encode_batch(texts, add_special_tokens=False)]
    met = chunks.Chunks(inner)
    assert met.encode(texts) == whole
    assert met.encode(texts[::-1]) == whole[::-1]
    assert max(map(len, met._known)) == chunks._LONGEST > len(min(met._known, key=len))
    monkeypatch.setattr(chunks, "_MOST", 50)  # begins anew again and again
    little = chunks.Chunks(inner)
    assert [ids for text in texts for ids in little.encode([text])] == whole
    assert Tokenizer.gpt2().encode_all(texts) == whole


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        (lambda inner: None, True),
        (lambda inner: inner.add_tokens(["<|x|>"]), True),
        (lambda inner: inner.add_tokens(["    "]), False),
        (lambda inner: inner.add_tokens([AddedToken("<|x|>", lstrip=True)]), False),
        (lambda inner: inner.add_tokens([AddedToken("<|x|>", single_word=True)]), False),
        (lambda inner: setattr(inner, "normalizer", tokenizers.normalizers.NFC()), False),
        (lambda inner: setattr(inner.model, "dropout", 0.1), False),
    ],
)
def test_tokenizers_that_read_over_spaces_take_whole_texts(change, suits: bool) -> None:
    inner = fresh(Tokenizer.from_directory("data/pocket")._inner)
    change(inner)
    assert chunks.suits(inner) is suits


def test_another_splitting_takes_whole_texts() -> None:
    inner = Tokenizer.from_directory("data/pocket")._inner
    assert not chunks.suits(fresh(inner, add_prefix_space=True))
    assert not chunks.suits(fresh(inner, add_prefix_space=False, use_regex=False))
