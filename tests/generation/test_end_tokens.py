"""A text ends at every token that a checkpoint's files name, or at those that a caller names."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Inner

import gptj_lab
from gptj_lab import cli
from gptj_lab.finetuning import corpus
from gptj_lab.generation.decoding import Decoding
from gptj_lab.tokenizer import Tokenizer
from gptj_lab.widgets import Playground

PROMPT = "the cat"


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder)
    return folder


@pytest.fixture(scope="module")
def greedy(tiny_model):
    """What the model writes by itself; its third, fourth, ... token is to end it in a test."""
    (done,) = tiny_model.generate(PROMPT, max_new_tokens=20, temperature=0, end_tokens=[])
    assert len(done.token_ids) == 20
    return done.token_ids


def changed(folder, tmp_path, **files):
    """A copy of the model whose JSON files have these fields besides their own."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, fields in files.items():
        path = tmp_path / f"{name}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | fields))
    return gptj_lab.load(tmp_path)


def ends_at(model, token):
    (done,) = model.generate(PROMPT, max_new_tokens=20, temperature=0)
    assert (done.finish_reason, done.token_ids[-1]) == ("end_of_text", token)
    assert done.token_ids.count(token) == 1
    assert done.text == model.tokenizer.decode(done.token_ids[:-1])
    streamed = "".join(model.stream(PROMPT, max_new_tokens=20, temperature=0))
    assert streamed == done.text
    return done


def test_every_file_has_its_say(folder, greedy, tmp_path, tiny_model):
    three = list(dict.fromkeys(greedy))[2:5]
    assert len(three) == 3, "the model writes too little to tell"
    text = tiny_model.tokenizer.id_to_token(three[2])
    typed = {"__type": "AddedToken", "content": text, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}  # fmt: skip
    said = {
        "config": {"eos_token_id": three[0]},
        "generation_config": {"eos_token_id": three[1]},
        "tokenizer_config": {"eos_token": text},
    }
    as_lists = {
        "config": {"eos_token_id": [300, three[0]]},
        "generation_config": {"eos_token_id": [three[1], 301]},
        "tokenizer_config": {"eos_token": typed},
    }
    for number, (form, extra) in enumerate([(said, ()), (as_lists, (300, 301))]):
        for name, end in zip(form, three, strict=True):
            quiet = {"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": None}}
            where = tmp_path / f"{number} {name}"
            where.mkdir()
            model = changed(folder, where, **(quiet | {name: form[name]}))
            assert set(model.end_tokens) - set(extra) == {end}
            ends_at(model, end)
        where = tmp_path / f"{number} all"
        where.mkdir()
        model = changed(folder, where, **form)
        assert set(model.end_tokens) == {*three, *extra}
        ends_at(model, next(token for token in greedy if token in three))


def test_none_is_named(folder, tmp_path):
    quiet = {"eos_token_id": None}
    model = changed(folder, tmp_path, config=quiet, tokenizer_config={"eos_token": None})
    assert model.end_tokens == (model.tokenizer.token_to_id("<|endoftext|>"),)


def test_an_end_without_an_embedding_is_left_out(folder, tmp_path):
    model = changed(folder, tmp_path, generation_config={"eos_token_id": [50256, 0]})
    assert model.end_tokens == (0,)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("<|im_end|>", []),
        (-1, []),
        (True, []),
        ([2, "x"], [2]),
        (238.0, []),
        ([[238]], []),
        ({}, []),
    ],
)
def test_a_bad_generation_config_is_told_and_passed_over(folder, tmp_path, value, kept, capfd):
    others = gptj_lab.load(folder).end_tokens
    model = changed(folder, tmp_path, generation_config={"eos_token_id": value})
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path}: generation_config.json: eos_token_id is {value!r}" in line
    assert "those of config.json and the tokenizer" in line
    assert set(model.end_tokens) == {*others, *kept}


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "not JSON"), (b"{\xff", "not JSON"), (b"[3]", "holds a list")]
)
def test_a_damaged_generation_config_is_told_and_kept(folder, tmp_path, content, said, capfd):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_bytes(content)
    model = gptj_lab.load(tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path}: generation_config.json" in line and said in line
    assert model.end_tokens == gptj_lab.load(folder).end_tokens
    model.save(tmp_path / "again")
    assert (tmp_path / "again" / "generation_config.json").read_bytes() == content


def test_greedy_equals_transformers_with_a_list_of_ends(folder, tmp_path, greedy):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ends = [list(dict.fromkeys(greedy))[3], 301]
    ours = changed(folder, tmp_path, generation_config={"eos_token_id": ends})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([ours.tokenizer.encode(PROMPT)])
    out = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert ends_at(ours, ends[0]).token_ids == out[0, ids.shape[1] :].tolist()


def test_a_caller_names_others(tiny_model, greedy):
    settings = dict(max_new_tokens=20, temperature=0)
    end = list(dict.fromkeys(greedy))[2]
    upto = greedy[: greedy.index(end) + 1]
    for named in (end, [end], (301, end), [np.int32(end)]):
        (done,) = tiny_model.generate(PROMPT, end_tokens=named, **settings)
        assert (done.token_ids, done.finish_reason) == (upto, "end_of_text")
    (cat,) = tiny_model.tokenizer.encode(" cat")
    (done,) = tiny_model.generate(PROMPT, end_tokens=" cat", token_bias={cat: 100.0}, **settings)
    assert (done.finish_reason, len(done.token_ids)) == ("end_of_text", 1)
    (never,) = tiny_model.generate(PROMPT, end_tokens=[], token_bias={0: 1e4}, max_new_tokens=9)
    assert (never.token_ids, never.finish_reason) == ([0] * 9, "length")
    assert "".join(tiny_model.stream(PROMPT, end_tokens=[end], **settings)) == (
        tiny_model.tokenizer.decode(upto[:-1])
    )


def test_rows_end_alone(tiny_model):
    settings = dict(token_bias={5: 3.0, 6: 3.0}, max_new_tokens=30, seed=4, end_tokens=[5, 6])
    two = tiny_model.generate(["the", "a cat sat on"], **settings)
    assert {len(done.token_ids) for done in two} != {30}
    alone = tiny_model.generate("a cat sat on", **settings)[0]
    assert two[1].token_ids == alone.token_ids


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("the cat", ValueError, "'the cat', which is 2 tokens .*stop="),
        ([""], ValueError, "'', which is 0 tokens"),
        ([304], ValueError, "304: ids from 0 to 303"),
        (-1, ValueError, "-1: ids"),
        ([True], TypeError, "True, a bool"),
        (1.5, TypeError, "1.5, a float"),
        ([None], TypeError, "None"),
    ],
)
def test_a_bad_end_is_one_sentence(tiny_model, named, error, message):
    with pytest.raises(error, match=f"end_tokens holds {message}"):
        tiny_model.generate(PROMPT, end_tokens=named)


def test_in_the_command_line(folder, greedy, capsys):
    end = list(dict.fromkeys(greedy))[2]
    asked = ["generate", PROMPT, "--model", str(folder), "--json", "--temperature", "0",
             "--max-new-tokens", "20"]  # fmt: skip
    assert cli.main([*asked, "--end-token", str(end), "--end-token", "<|endoftext|>"]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == greedy[: greedy.index(end) + 1]
    assert cli.main([*asked, "--end-token", ""]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "length"
    assert cli.main([*asked, "--end-token", "the cat"]) == 2
    assert "which is 2 tokens" in capsys.readouterr().err


def test_in_the_playground(tiny_model, greedy):
    end = list(dict.fromkeys(greedy))[2]
    play = Playground(tiny_model, PROMPT, temperature=0, end_tokens=[end])
    assert play.run().finish_reason == "end_of_text"
    assert f"end_tokens=[{end}]" in play.code()
    namespace = {"model": tiny_model}
    assert eval(play.code(), namespace) == play.completion.text


def chat_tokenizer(tiny_tokenizer, **roles):
    inner = Inner.from_str(tiny_tokenizer._inner.to_str())
    inner.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<s>", special=True)])
    return Tokenizer(inner, {"eos_token": "<|im_end|>", **roles})


def test_the_tokenizers_end_separates_documents(tiny_tokenizer, tmp_path):
    tokenizer = chat_tokenizer(tiny_tokenizer)
    chat = [("user", "hi"), ("assistant", "a cat"), ("user", "so"), ("assistant", "a dog")]
    messages = [{"role": role, "content": words} for role, words in chat]
    rows = [{"text": "the cat<|endoftext|>sat"}, {"messages": messages}]
    found = corpus.prepare(rows, tokenizer, context=90, held_out=0, cache=tmp_path)
    texts = [found.preview(0)[number].text for number in range(3)]
    assert sorted(texts) == sorted([
        "<|im_end|>the cat<|im_end|>", "<|im_end|>sat<|im_end|>",
        "<|im_end|>User: hi\n\nAssistant: a cat<|im_end|>\n\n"
        "User: so\n\nAssistant: a dog<|im_end|>",
    ])  # fmt: skip
    batch = found.train.batch(np.array([0]))
    trained = batch.tokens[0, 1:][batch.weights[0] == 1].tolist()
    assert trained.count(tokenizer.end_of_text_id) == 4, "two ends of answers, two of texts"


@pytest.mark.parametrize("bos", ["<s>", "<|im_end|>"])
def test_a_document_begins_with_what_a_prompt_begins_with(bos, tiny_tokenizer, tmp_path):
    tokenizer = chat_tokenizer(tiny_tokenizer)
    ids = [(bos, tokenizer.token_to_id(bos))]
    tokenizer._inner.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=ids)
    assert tokenizer.decode(tokenizer.encode("the cat")) == f"{bos}the cat"
    texts = ["the cat sat on the mat " * 9]
    found = corpus.prepare(texts, tokenizer, context=90, held_out=0, cache=tmp_path)
    begin = "<|im_end|><s>" if bos == "<s>" else "<|im_end|>"
    assert found.preview(0)[0].text == f"{begin}{texts[0]}<|im_end|>"


def test_a_long_prompt_keeps_what_it_begins_with(tiny_model, tiny_tokenizer):
    tokenizer = chat_tokenizer(tiny_tokenizer)
    begin = tokenizer.token_to_id("<s>")
    tokenizer._inner.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", begin)]
    )
    model = tiny_model.twin()
    model.tokenizer = tokenizer
    kept = Decoding(model, "cat " * 90, keep_end=True, max_new_tokens=4).rows[0].prompt_ids
    whole = tokenizer.encode("cat " * 90)
    assert kept == [begin, *whole[len(whole) - 59 :]]
