"""A soft prompt that begins as a text is that text; it comes before every text by itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.finetuning import loss, soft_prompts
from gptj_lab.finetuning.soft_prompts import SoftPrompt
from gptj_lab.language_model import load

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 90, (2, 9)).astype(np.int32)
TEXT = "the dog sat"


@pytest.fixture(scope="module")
def pair(tiny_model):
    """A model with a soft prompt that begins as the text, and the text's tokens."""
    begin = tiny_model.tokenizer.encode(TEXT)
    return soft_prompts.prompted(tiny_model, SoftPrompt(length=len(begin), text=TEXT)), begin


def test_logits_are_those_after_the_text(pair, tiny_model):
    model, begin = pair
    rows = np.concatenate([np.tile(begin, (2, 1)), IDS], 1)
    expected = tiny_model.logits(rows)
    assert model.virtual_tokens == list(range(304, 304 + len(begin)))
    assert (model.logits(IDS) == expected[:, len(begin) :]).all()
    whole = np.concatenate([np.tile(model.virtual_tokens, (2, 1)), IDS], 1)
    assert (model.logits(whole) == expected).all()
    assert (soft_prompts.without(model).logits(IDS) == tiny_model.logits(IDS)).all()
    assert tiny_model.virtual_tokens == []


def test_it_generates_and_traces_as_after_the_text(pair, tiny_model):
    model, _ = pair
    settings = dict(max_new_tokens=8, temperature=0.0, repetition_penalty=1.3)
    ours = model.generate([" the cat", " dog"], **settings)
    theirs = tiny_model.generate(
        [TEXT + " the cat", TEXT + " dog"], max_new_tokens=8, temperature=0.0
    )
    plain = model.generate([" the cat", " dog"], max_new_tokens=8, temperature=0.0)
    assert [c.token_ids for c in plain] == [c.token_ids for c in theirs]
    assert all(len(c.token_ids) == 8 for c in ours)
    trace = model.trace(" the cat")
    assert trace.tokens[:2] == ("‹soft 1›", "‹soft 2›") and trace.tokens[-1] == "␣cat"
    other = tiny_model.trace(TEXT + " the cat")
    assert np.allclose(trace["blocks.1.resid_post"], other["blocks.1.resid_post"], atol=1e-5)
    assert np.allclose(trace.logits, other.logits, atol=1e-4)


def test_generation_stops_where_the_context_is_full(pair):
    model, begin = pair
    (made,) = model.generate(" the cat", max_new_tokens=500, ban=[0])
    prompt = len(model.tokenizer.encode(" the cat"))
    assert len(made.token_ids) == model.config.context - len(begin) - prompt


def test_packed_documents_each_see_it(pair):
    model, _ = pair
    first, second = IDS[:1], IDS[1:, :6]
    packed = np.concatenate([first[:, :-1], second], 1)
    weights = jnp.asarray([[1.0] * 7 + [0.0] + [1.0] * 5])
    positions = jnp.asarray([[*range(8), *range(5)]])
    segments = jnp.asarray([[1] * 8 + [2] * 5])
    ours = nats(model, packed, weights=weights, positions=positions, segments=segments)
    alone = [nats(model, first[:, :-1]), nats(model, second)]
    assert ours == pytest.approx((7 * alone[0] + 5 * alone[1]) / 12, rel=1e-5)
    base = soft_prompts.without(model)
    assert abs(nats(base, second) - alone[1]) > 1e-3


def nats(model, tokens, **settings):
    graph, state = nnx.split(model.network)
    function = jax.jit(
        lambda state: loss.next_token_loss(nnx.merge(graph, state), tokens, **settings)
    )
    return float(function(state))


def test_a_mesh_is_one_device(pair, tmp_path, tolerance):
    model, _ = pair
    soft_prompts.save(model, tmp_path / "prompt")
    soft_prompts.without(model).save(tmp_path / "base")
    many = load(tmp_path / "base", mesh=gptj_lab.mesh(data=2, model=4))
    logits = soft_prompts.load(many, tmp_path / "prompt").logits(IDS)
    expected = np.asarray(model.logits(IDS))
    assert np.abs(np.asarray(logits) - expected).max() < 1e-5 * np.abs(expected).max()


def test_peft_computes_the_same(torch_gptj, tiny_tokenizer, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    theirs = torch_gptj(vocab_size=300)
    theirs.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save(tmp_path / "base")
    base = load(tmp_path / "base")
    ours = soft_prompts.prompted(base, SoftPrompt(length=4), seed=3)
    soft_prompts.save(ours, tmp_path / "prompt")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "prompt")
    with torch.no_grad():
        expected = loaded(torch.tensor(IDS).long()).logits.numpy()[:, 4:]
    assert np.abs(ours.logits(IDS) - expected).max() < 5e-5 * np.abs(expected).max()
    loaded.save_pretrained(tmp_path / "theirs")
    again = soft_prompts.load(base, tmp_path / "theirs")
    assert (again.logits(IDS) == ours.logits(IDS)).all()


def test_it_is_saved_and_loaded_to_the_last_bit(pair, tiny_model, tmp_path):
    model, _ = pair
    soft_prompts.save(model, tmp_path)
    assert (soft_prompts.load(tiny_model, tmp_path).logits(IDS) == model.logits(IDS)).all()


def test_what_can_not_be_done_is_a_sentence(pair, tiny_model, tmp_path):
    model, begin = pair
    with pytest.raises(ValueError, match=r"soft prompt, for which .* no place"):
        model.save(tmp_path / "whole")
    with pytest.raises(ValueError, match="has a soft prompt already"):
        soft_prompts.prompted(model, SoftPrompt())
    with pytest.raises(ValueError, match="no soft prompt to save"):
        soft_prompts.save(tiny_model, tmp_path)
    with pytest.raises(ValueError, match=rf"{len(begin)} of them the soft prompt's"):
        model.logits(np.zeros((1, 64), int))
    with pytest.raises(ValueError, match="ids from 0 to 303"):
        model.logits(np.full((1, 4), 305))
    with pytest.raises(ValueError, match="ids from 0 to 303"):
        tiny_model.logits(np.full((1, 4), 304))
    soft_prompts.save(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="peft_type 'LORA': only PROMPT_TUNING"):
        soft_prompts.load(tiny_model, tmp_path)
