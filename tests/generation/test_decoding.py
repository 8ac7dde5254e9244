"""Decoding equals the network asked token by token, however it is batched, cut or streamed."""

import jax
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.generation import decoding
from gptj_lab.generation.decoding import Decoding, Row, Token
from gptj_lab.language_model import LanguageModel


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


def only(model, *texts):
    """token_bias that leaves nothing but the tokens of these texts."""
    wanted = {i for text in texts for i in model.tokenizer.encode(text)}
    return {i: 100.0 for i in wanted}


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(logits, -1))


def test_greedy_is_the_argmax_of_the_full_forward_pass(model):
    (done,) = model.generate("the cat", max_new_tokens=20, temperature=0)
    start = model.tokenizer.encode("the cat")
    full = log_softmax(model.logits([start + done.token_ids[:-1]]))[0, len(start) - 1 :]
    for token, logprob, alternatives, logprobs in zip(
        done.token_ids, done.logprobs, done.alternatives, full, strict=True
    ):
        assert token == int(logprobs.argmax())
        assert logprob == pytest.approx(logprobs[token], abs=1e-4)
        assert len(alternatives) == 10 and alternatives[0][0] == token
        for other, theirs in alternatives:
            assert theirs == pytest.approx(logprobs[other], abs=1e-4)
        assert [p for _, p in alternatives] == sorted((p for _, p in alternatives), reverse=True)
    assert len(done.token_ids) == 20 and done.finish_reason == "length"
    assert done.text == model.tokenizer.decode(done.token_ids)


def test_greedy_equals_transformers(torch_gptj, tiny_tokenizer, tmp_path):
    import torch

    theirs = torch_gptj(vocab_size=300, n_positions=64)
    theirs.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    ours = gptj_lab.load(tmp_path)
    prompts = ["the cat sat on", "a", "dogs and logs and cats"]
    for done, prompt in zip(
        ours.generate(prompts, max_new_tokens=24, temperature=0), prompts, strict=True
    ):
        ids = torch.tensor([ours.tokenizer.encode(prompt)])
        out = theirs.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        expected = out[0, ids.shape[1] :].tolist()
        assert done.token_ids == expected


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_among_samples(model):
    prompts = ["the cat", "a dog sat on the log and the mat and", "x"]
    settings = dict(max_new_tokens=20, temperature=0.9, top_k=50, seed=7)
    together = model.generate(prompts, samples=3, **settings)
    assert len(together) == 9
    for i, prompt in enumerate(prompts):
        alone = model.generate(prompt, **settings)[0]
        assert alone.token_ids == together[3 * i].token_ids
        assert alone.text == together[3 * i].text
        assert together[3 * i].prompt == prompt
        texts = {done.text for done in together[3 * i : 3 * i + 3]}
        assert len(texts) == 3, "samples of one prompt differ"
    again = model.generate(prompts[0], **settings)[0]
    other = model.generate(prompts[0], **(settings | {"seed": 8}))[0]
    assert again.token_ids == together[0].token_ids != other.token_ids


def test_chunks_of_any_size_give_the_same_tokens(model, monkeypatch):
    expected = model.generate("the cat", max_new_tokens=30, seed=3)[0]
    monkeypatch.setattr(decoding, "_LATENCY", 0.0)  # one token a chunk
    one = Decoding(model, "the cat", max_new_tokens=30, seed=3)
    calls = 1
    while one.advance():
        calls += 1
    assert calls >= 20
    assert one.completions()[0].token_ids == expected.token_ids


def test_moving_a_setting_compiles_nothing_new(model):
    model.generate("the cat", max_new_tokens=9)
    before = decoding._chunk._cache_size(), decoding._prefill._cache_size()
    moves = [
        dict(temperature=0.0), dict(temperature=1.7), dict(top_k=5), dict(top_k=40),
        dict(top_p=0.3),        dict(min_p=0.1), dict(typical_p=0.5), dict(repetition_penalty=1.3),
        dict(frequency_penalty=0.5), dict(presence_penalty=-0.5), dict(seed=99), dict(seed=-1),
        dict(token_bias={5: 2.0}), dict(ban=[3, 4]), dict(stop=["cat"]), dict(max_new_tokens=40),
    ]  # fmt: skip
    for move in moves:
        model.generate("the cat sat on the mat", **({"max_new_tokens": 17} | move))
    assert (decoding._chunk._cache_size(), decoding._prefill._cache_size()) == before


def test_stop_strings_are_found_across_token_borders(model):
    settings = dict(max_new_tokens=30, token_bias=only(model, "the cat sat"), seed=2)
    whole = model.generate("a", **settings)[0].text
    tokens = [model.tokenizer.decode([i]) for i in model.generate("a", **settings)[0].token_ids]
    border = len(tokens[0]) + len(tokens[1])
    stop = whole[border - 1 : border + 1]  # the end of one token, the beginning of the next
    (done,) = model.generate("a", stop=[stop, "never made"], **settings)
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)]
    assert len(done.token_ids) < 30
    shown = "".join(model.stream("a", stop=stop, **settings))
    assert shown == done.text


def test_text_that_may_become_a_stop_string_waits(model):
    row = Row(model, "a", [5], ["cat sat"])
    seen = []
    for token in model.tokenizer.encode("the cat so"):
        row.push(Token(token, -1.0, ()), limit=99)
        seen.append(row.text)
    assert not any(text.endswith(("c", "ca", "cat", "cat ", "cat s")) for text in seen[:-1])
    assert row.text == "the cat so"
    for token in model.tokenizer.encode(" cat"):
        row.push(Token(token, -1.0, ()), limit=99)
    assert row.text == "the cat so "
    row.cancel()
    assert (row.text, row.finish_reason) == ("the cat so cat", "cancelled")


def test_streams_whole_characters(model, monkeypatch):
    monkeypatch.setattr(decoding, "_LATENCY", 0.0)
    ids = [model.tokenizer.encode(c)[0] for c in "🙂"] + list(range(1, 257))
    assert len(model.tokenizer.token_bytes(ids[0])) >= 1
    row = Row(model, "a", [5], [])
    for byte in "é🙂漢".encode():
        token = next(
            i for i in range(model.tokenizer.vocab_size)
            if model.tokenizer.token_bytes(i) == bytes([byte])
        )  # fmt: skip
        row.push(Token(token, -1.0, ()), limit=99)
        assert "\ufffd" not in row.text
    assert row.text == "é🙂漢"
    for seed in range(5):
        settings = dict(max_new_tokens=25, temperature=1.5, seed=seed)
        assert "".join(model.stream("a", **settings)) == model.generate("a", **settings)[0].text


def test_closing_a_stream_stops_the_work(model, monkeypatch):
    monkeypatch.setattr(decoding, "_LATENCY", 0.0)
    made = []
    advance = Decoding.advance
    monkeypatch.setattr(Decoding, "advance", lambda self: made.append(self) or advance(self))
    pieces = model.stream("the cat", max_new_tokens=50, token_bias=only(model, "the cat"))
    next(pieces)
    pieces.close()
    assert len(made) < 5 and made[0].rows[0].finish_reason == "cancelled"
    assert made[0].advance() is False


def test_end_of_text_ends(model):
    (done,) = model.generate("the", token_bias={0: 1e4}, max_new_tokens=9)
    assert (done.finish_reason, done.text, done.token_ids) == ("end_of_text", "", [0])
    two = model.generate(["the", "a cat sat on"], token_bias={0: 3.0}, max_new_tokens=40, seed=4)
    assert {len(done.token_ids) for done in two} != {40}
    alone = model.generate("a cat sat on", token_bias={0: 3.0}, max_new_tokens=40, seed=4)[0]
    assert two[1].token_ids == alone.token_ids, "a row goes on after another has ended"


def test_the_context_is_the_limit(model):
    prompt = "cat " * 14
    used = len(model.tokenizer.encode(prompt))
    (done,) = model.generate(prompt, max_new_tokens=500, ban=[0])
    assert done.finish_reason == "length" and len(done.token_ids) == 64 - used


def test_prompt_logprobs(model):
    prompts = ["the cat sat", "on"]
    run = Decoding(model, prompts, max_new_tokens=1, prompt_logprobs=True, samples=2)
    assert run.rows[0].prompt_tokens is None
    run.advance()
    for row in run.rows:
        tokens = row.prompt_tokens
        assert [token.id for token in tokens] == row.prompt_ids
        assert np.isnan(tokens[0].logprob) and tokens[0].alternatives == ()
        logprobs = log_softmax(model.logits([row.prompt_ids]))[0]
        for before, token in enumerate(tokens[1:]):
            assert token.logprob == pytest.approx(logprobs[before, token.id], abs=1e-4)
            assert token.alternatives[0][0] == int(logprobs[before].argmax())


def test_a_prompt_too_long_says_by_how_much_and_can_keep_its_end(model):
    prompt = "the cat sat on the mat " * 30
    ids = model.tokenizer.encode(prompt)
    with pytest.raises(ValueError, match=f"{len(ids)} tokens, {len(ids) - 63} too many.*keep_end"):
        model.generate(prompt)
    run = Decoding(model, prompt, keep_end=True, max_new_tokens=10, temperature=0)
    assert run.rows[0].prompt_ids == ids[-54:]
    while run.advance():
        pass
    assert len(run.rows[0].tokens) == 10
    assert len(Decoding(model, prompt, keep_end=True, max_new_tokens=900).rows[0].prompt_ids) == 32


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ("", {}, ValueError, "prompt is empty.*endoftext"),
        ([], {}, ValueError, "no prompt"),
        (b"cat", {}, TypeError, "the prompt is bytes"),
        (3, {}, TypeError, "the prompt is of the type int"),
        (["cat", None], {}, TypeError, "the prompt is None"),
        ("a\ud800", {}, ValueError, "surrogate"),
        ("a", {"max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ("a", {"max_new_tokens": 2.5}, ValueError, "max_new_tokens is 2.5"),
        ("a", {"samples": True}, ValueError, "samples is True"),
        ("a", {"stop": [""]}, ValueError, "stop holds ''"),
        ("a", {"temperature": -1}, ValueError, "temperature is -1"),
        ("a", {"temperature": float("nan")}, ValueError, "temperature is nan"),
        ("a", {"top_p": 0}, ValueError, "top_p is 0"),
        ("a", {"top_p": 1.01}, ValueError, "top_p is 1.01"),
        ("a", {"seed": "x"}, TypeError, "seed"),
        ("a", {"ban": [304]}, ValueError, "304"),
    ],
)
def test_bad_input_is_one_sentence(model, prompt, settings, error, message):
    with pytest.raises(error, match=message):
        model.generate(prompt, **settings)


def test_stream_takes_one_text(model):
    with pytest.raises(TypeError, match="give stream one str"):
        model.stream(["a", "b"])
    with pytest.raises(ValueError, match="samples is 2"):
        model.stream("a", samples=2)


def test_bfloat16_generates(model):
    half = nnx.merge(*(_cast(part) for part in nnx.split(model.network)))
    low = LanguageModel(model.config, half, model.tokenizer)
    (done,) = low.generate("the cat", max_new_tokens=12, temperature=0)
    assert low.dtype == "bfloat16" and len(done.token_ids) == 12


def _cast(part):
    if isinstance(part, nnx.State):
        return jax.tree.map(lambda x: x.astype("bfloat16"), part)
    return part
