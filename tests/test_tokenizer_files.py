"""A folder's tokenizer equals transformers' AutoTokenizer: ids, decoded text and roles."""

import json
import re
import warnings

import pytest
import tokenizer_setups as setups
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from gptj_lab.tokenizer import StreamDecoder, Tokenizer, train_bpe

transformers = pytest.importorskip("transformers", "5.0", "the comparison is with transformers 5")


@pytest.fixture(scope="module")
def small():
    """A BPE of 700 tokens, soon loaded."""
    samples = setups.SAMPLES.glob("*.[tj]*")
    return train_bpe([path.read_text("utf-8")[:40_000] for path in samples], 700)._inner


def both(make, folder, base):
    make(folder, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer.from_directory(folder), transformers.AutoTokenizer.from_pretrained(folder)


def agree(ours, theirs, size):
    added = [token.content for token in theirs.added_tokens_decoder.values()]
    found = setups.texts(size, added)
    for text in found:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == bare
        assert ours.decode(ids) == theirs.decode(ids)
        skipped = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == skipped
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ids[:2000])) + stream.flush() == ours.decode(ids[:2000])
    return found


@pytest.mark.parametrize("make", [*setups.TEN, *setups.MORE], ids=lambda make: make.__name__)
def test_equals_transformers(make, tmp_path, small):
    ours, theirs = both(make, tmp_path, small)
    agree(ours, theirs, 20_000)
    assert ours.vocab_size == len(theirs)
    known = {
        role: getattr(theirs, role) for role in transformers.GPT2Tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    }
    assert {role: ours.roles.get(role) for role in known} == known
    ends = [] if theirs.eos_token_id is None else [theirs.eos_token_id]
    assert ends in ([ours.end_of_text_id], [])
    for token_id in range(690, ours.vocab_size):
        assert ours.display(token_id).isprintable()
        assert ours.id_to_token(token_id) == theirs.convert_ids_to_tokens(token_id)


MASK, START = {"image_token": "<mask>"}, ["<|im_start|>"]
TYPED = {"__type": "AddedToken", "content": "<typed>", "lstrip": True, "rstrip": False,
         "normalized": False, "single_word": False, "special": True}  # fmt: skip
ROLES_OF_ITS_OWN = [
    {"extra_special_tokens": MASK, "additional_special_tokens": START},
    {"model_specific_special_tokens": MASK},
    {"model_specific_special_tokens": MASK, "audio_token": "<audio>"},
    {"model_specific_special_tokens": MASK, "extra_special_tokens": {"b_token": "<b>"}},
    {"extra_special_tokens": {**MASK, "b": "<b>"}, "audio_token": "<audio>", "x_token": TYPED},
    {"model_specific_special_tokens": {"t": TYPED}, "additional_special_tokens": START},
    {"extra_special_tokens": {"eos_token": "<mask>"}, "additional_special_tokens": MASK},
    {"extra_special_tokens": [], "additional_special_tokens": START},
    {"extra_special_tokens": ["<a>"], "additional_special_tokens": START},
    {"a_token": {"content": "<untyped>"}, "add_a_token": "<added>", "b_token": 3},
]  # fmt: skip
SPECIAL_TOKENS_MAPS = [
    {"additional_special_tokens": ["<|im_end|>"], "audio_token": "<map>"},
    {"extra_special_tokens": ["<|im_end|>"], "audio_token": {"content": "<map>"}},
    {"extra_special_tokens": {"audio_token": "<map>"}},
]


@pytest.mark.parametrize(
    ("form", "model_type"),
    [
        *(("file", kind) for kind in ("gptj", "gpt2", "gpt_neo", "gpt_neox", "codegen", None)),
        ("pair", "gptj"), ("pair", "gpt_neox"), ("decoder", "codegen"), ("decoder", None),
    ],
)  # fmt: skip
def test_roles_of_the_models_own_have_transformers_ids(form, model_type, tmp_path, small):
    """Every way to write a special token, and the two ways to write them beside each other."""
    cases = [(settings, {}) for settings in ROLES_OF_ITS_OWN]
    cases += [(ROLES_OF_ITS_OWN[number], told) for number in (0, 2) for told in SPECIAL_TOKENS_MAPS]
    for number, (settings, told) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        if form == "pair":
            small.model.save(str(folder))
        else:
            small.save(str(folder / "tokenizer.json"))
        if form == "decoder":
            settings = settings | {"added_tokens_decoder": {"700": {"content": "<first>"}}}
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"} if model_type is None else {}
        config = {"model_type": model_type or "gptj"}
        for name, fields in (
            ("tokenizer_config", settings | kind), ("special_tokens_map", told), ("config", config)
        ):  # fmt: skip
            (folder / f"{name}.json").write_text(json.dumps(fields))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = Tokenizer.from_directory(folder)
        known = theirs.get_vocab()
        added = {token: i for token, i in known.items() if i >= 699}
        assert {token: ours.token_to_id(token) for token in added} == added, (settings, told)
        text = " <|im_start|> x" + " y ".join(added)
        assert ours.encode(text) == theirs(text)["input_ids"], (settings, told)
        roles = {role: token for role, token in theirs.special_tokens_map.items() if token}
        assert ours.roles == {role: str(token) for role, token in roles.items()}, (settings, told)


@pytest.mark.slow
@pytest.mark.parametrize("make", setups.TEN, ids=lambda make: make.__name__)
def test_equals_transformers_on_a_megabyte(make, tmp_path):
    ours, theirs = both(make, tmp_path, Tokenizer.gpt2(0)._inner)
    assert sum(len(text.encode()) for text in agree(ours, theirs, 1_050_000)) > 1_000_000


def test_an_added_token_keeps_its_letters(small):
    """tokenizers' decoder takes letters of GPT-2's alphabet for bytes: "Caf\ufffd"."""
    inner = Inner.from_str(small.to_str())
    inner.add_tokens(["Café"])
    ours = Tokenizer(inner)
    assert ours.decode(ours.encode("a Café")) == "a Café"


def test_text_that_goes_on_gets_no_prefix_space(small, tmp_path):
    setups.gpt2_prefix_space(tmp_path, small)
    ours = Tokenizer.from_directory(tmp_path)
    first, rest = ours.encode_all(["the sea", "man\nof"], [False, True])
    assert ours.decode([*first, *rest]) == " the seaman\nof"
    setups.gpt2_bos(tmp_path, small)
    (tmp_path / "tokenizer.json").unlink()
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.before == [ours.token_to_id("<|begin|>")] == ours.encode("")
    assert ours.encode_all(["the"]) == [ours.encode("the")[1:]]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (setups.disagreeing, "pre_tokenizer.*normalizer.*add_bos_token.*<in file>.*GPT2Tokenizer"),
        (setups.neox_template, "post_processor is not used.*GPTNeoXTokenizer"),
    ],
)
def test_what_transformers_5_leaves_out_is_told(make, told, small, tmp_path, capsys):
    make(tmp_path, small)
    Tokenizer.from_directory(tmp_path)
    assert re.search(told, capsys.readouterr().err)


def test_nothing_is_told_of_usual_files(small, tmp_path, capsys):
    for make in (setups.gpt2, setups.neox_spaces, setups.codegen, setups.chat, setups.template):
        make(tmp_path, small)
        Tokenizer.from_directory(tmp_path)
    assert not capsys.readouterr().err


def _changed(inner, **parts):
    state = json.loads(inner.to_str())
    return Inner.from_str(json.dumps(state | parts))


def _model(inner, **parts):
    state = json.loads(inner.to_str())
    return Inner.from_str(json.dumps(state | {"model": state["model"] | parts}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "BertTokenizer"}, "BertTokenizer.*PreTrainedTokenizerFast"),
        ({"tokenizer_class": "T5TokenizerFast"}, "T5Tokenizer"),
        ({"auto_map": {"AutoTokenizer": ["own.Own", None]}}, "auto_map.*own.Own"),
        ({"auto_map": ["own.Own", None]}, "auto_map.*own.Own"),
        ({"add_prefix_space": "yes"}, "add_prefix_space is 'yes'"),
        ({"eos_token": 5}, "eos_token is 5"),
        ({"eos_token": {"lstrip": True}}, "eos_token is .*lstrip"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "'x' is no token id"),
        ({"added_tokens_decoder": {"700": "<a>"}}, "added_tokens_decoder is '<a>'"),
        ({"added_tokens_decoder": ["<a>"]}, "holds a list"),
        ({"added_tokens_decoder": {"900": {"content": "<a>"}}}, "'<a>'.* id 900.*gets 700"),
        ({"extra_special_tokens": "<a>"}, "extra_special_tokens is '<a>'"),
        ({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.json"]}, "fast_tokenizer_files"),
        (
            {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
            "clean_up.* is true",
        ),
        ([1], "tokenizer_config.json holds a list"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(settings, message, small, tmp_path):
    setups.file_alone(tmp_path, small)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inner: _model(inner, dropout=0.1), "dropout of its model is 0.1"),
        (lambda inner: _model(inner, end_of_word_suffix="</w>"), "end_of_word_suffix .*'</w>'"),
        (lambda inner: _changed(inner, pre_tokenizer=None), "pre-tokenizer is none"),
        (
            lambda inner: _changed(
                inner, pre_tokenizer=json.loads(pre_tokenizers.Metaspace().__getstate__())
            ),
            "pre-tokenizer is Metaspace",
        ),
        (lambda _: Inner(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), "is WordPiece"),
        (lambda _: Inner(models.Unigram([("a", 0.0)])), "is Unigram"),
    ],
)
def test_other_kinds_of_tokenizer_are_refused_by_name(change, message, small, tmp_path):
    change(small).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{message}.*byte-level BPE"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("spiece.model", "SentencePiece"), ("vocab.txt", "WordPiece")]
)
def test_other_kinds_of_file_are_named(name, kind, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is a {kind}"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer_config.json", "{"), ("special_tokens_map.json", "[]"), ("added_tokens.json", "3")],
)
def test_damaged_files_are_named(name, content, small, tmp_path):
    setups.file_alone(tmp_path, small)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("line", ["", " ", "word", "a b c"])
def test_a_bad_line_of_merges_is_named(line, small, tmp_path):
    """transformers refuses them too, a blank line at the end among them."""
    small.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    merges = tmp_path / "merges.txt"
    lines = merges.read_text("utf-8").splitlines()
    for at in (3, len(lines)):
        merges.write_text("\n".join([*lines[:at], line, *lines[at:]]) + "\n", "utf-8")
        with pytest.raises(
            ValueError, match=rf"merges.txt: line {at + 1} is '{line}', not two tok"
        ):
            Tokenizer.from_directory(tmp_path)
        with pytest.raises(Exception, match="BPE"):
            transformers.AutoTokenizer.from_pretrained(tmp_path)
    merges.write_bytes(b"#version: 0.2\n\xff a\n")
    with pytest.raises(ValueError, match="merges.txt isn't UTF-8"):
        Tokenizer.from_directory(tmp_path)
    merges.write_bytes(b"zzzz qqqq\n")
    with pytest.raises(ValueError, match="vocab.json with merges.txt .*zzzz.*from one model"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("make", [*setups.TEN, *setups.MORE], ids=lambda make: make.__name__)
def test_saved_and_loaded_again(make, small, tmp_path):
    ours, _ = both(make, tmp_path, small)
    ours.save(tmp_path / "again")
    again = Tokenizer.from_directory(tmp_path / "again")
    assert again.fingerprint() == ours.fingerprint()
    assert again.end_of_text_id == ours.end_of_text_id
    assert again.roles == ours.roles or not ours.roles
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    text = setups.texts(4000, ["<|im_end|>", "  "])[2]
    assert theirs(text)["input_ids"] == again.encode(text) == ours.encode(text)


def test_tokens_without_an_embedding_are_refused_in_texts(small):
    ours = Tokenizer(Inner.from_str(small.to_str()), {"pad_token": "[PAD]"})
    ours._inner.add_tokens(["[PAD]"])
    fits = Tokenizer(ours._inner).within(700)
    assert fits.encode("a cat") == small.encode("a cat").ids
    with pytest.raises(ValueError, match=r"'\[PAD\]', token 700.*700 rows"):
        fits.encode("a [PAD] cat")
    stops = Tokenizer(ours._inner, {"eos_token": "[PAD]"})
    assert (stops.end_of_text_id, stops.within(700).end_of_text) == (700, "<|endoftext|>")
    with pytest.raises(ValueError, match="only 699 rows"):
        ours.within(699)
