"""A real byte-level BPE, trained here, round trips every byte and agrees with transformers."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptj_lab.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([open(pytest.__file__).read(), "tokens héllo 🙂 " * 9], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    inner.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("text", ["", "a b\n\tc", "🙂 é 漢", "<|endoftext|>x", "\x00\x7f", "א ב"])
def test_round_trip(directory, text):
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_is_a_token(directory):
    tokenizer = Tokenizer.from_directory(directory)
    single = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_display(directory):
    tokenizer = Tokenizer.from_directory(directory)
    shown = {tokenizer.token_bytes(i): tokenizer.display(i) for i in range(tokenizer.vocab_size)}
    assert (shown[b" "], shown[b"\n"], shown[b"\t"]) == ("␣", "↵", "⇥")
    assert (shown[b"\x00"], shown[b"\xe2"]) == ("␀", "‹E2›")


def test_transformers_agrees_with_what_is_saved(directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_directory(directory)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = open(tokenizers.__file__).read() + " 🙂"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)


def test_bad_input(directory, tmp_path):
    tokenizer = Tokenizer.from_directory(directory)
    with pytest.raises(TypeError, match="bytes"):
        tokenizer.encode(b"no")
    with pytest.raises(ValueError, match="position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)
