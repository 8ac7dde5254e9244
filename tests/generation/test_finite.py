"""Logits that are no numbers stop the work with a sentence, wherever they are met."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from flax import nnx

from gptj_lab import cli
from gptj_lab.finetuning.run import finetune
from gptj_lab.generation.decoding import Decoding
from gptj_lab.generation.finite import NotFiniteError
from gptj_lab.lessons.fine_tuning import nats_a_token
from gptj_lab.widgets import Playground

ADVICE = {
    "float16": 'not finite in float16, .*weights="bfloat16" or weights="float32"',
    "bfloat16": 'not finite in bfloat16, .*weights="float32"; if not there',
    "float32": "not finite in float32, .*: the weights hold NaN .*first_not_finite",
}


def odd(weights, token=None):
    """A model whose MLP overflows float16, or that has no numbers for one token or for all."""
    model = small_models.small_model("gptj", weights).twin()
    if weights == "float16":
        linear = model.network.blocks[1].mlp.fc_in
        linear.weight = nnx.Param(linear.weight[...] * jnp.float16(30_000))
    else:
        rows = slice(None) if token is None else token
        table = model.network.embed[...].at[rows].set(jnp.nan)
        model.network.embed = nnx.Param(table)
    return model


@pytest.mark.parametrize("weights", ADVICE)
def test_generation_stops_with_the_dtype_to_take(weights):
    model = odd(weights)
    for make in (
        lambda: model.generate("the cat", max_new_tokens=9),
        lambda: list(model.stream("the cat", max_new_tokens=9)),
        lambda: model.generate(["the cat", "a dog sat"], max_new_tokens=9, samples=2),
        lambda: Decoding(model, "the cat", prompt_logprobs=True).complete(),
        lambda: nats_a_token(model, "the cat sat", context=8),
    ):
        with pytest.raises(NotFiniteError, match=ADVICE[weights]):
            make()


def test_the_playground_says_so():
    play, sent = Playground(odd("float16"), "the cat"), []
    play.send = lambda message, buffers=None: sent.append(message)
    settings = dict(temperature=0.8, top_p=0.95, top_k=0, max_new_tokens=9, seed=0)
    play._receive(play, {"op": "start", "req": "1", "prompt": "the cat", "settings": settings}, [])
    play._receive(play, {"op": "next", "req": "1"}, [])
    assert [message["op"] for message in sent] == ["started", "error"]
    assert 'weights="bfloat16"' in sent[1]["text"]
    with pytest.raises(ValueError, match="not finite in float16"):
        play.run()


def test_the_command_line_says_so(tmp_path, capsys):
    odd("float16").save(tmp_path)
    for more in ([], ["--json"]):
        asked = ["generate", "the cat", "--model", str(tmp_path), "--weights", "float16", *more]
        assert cli.main(asked) == 2
        assert 'weights="bfloat16"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_says_so_before_anything_is_trained(tmp_path):
    texts = ["the cat sat on the mat, and the dog sat on the log. " * 9] * 4
    run = finetune(
        odd("float16"), texts, steps=2, batch=2, context=16, out=tmp_path, say=lambda line: None
    )
    assert run.status == "failed"
    assert 'weights="bfloat16"' in run.error


def test_it_is_seen_at_the_token_where_it_begins():
    model = odd("float32", token=7)
    run = Decoding(model, "the cat", max_new_tokens=9, token_bias={7: 1e4})
    with pytest.raises(NotFiniteError, match="at new token 2"):
        run.complete()
    assert (run.rows[0].tokens[0].id, run.rows[0].finish_reason) == (7, "cancelled")


def test_what_is_banned_is_no_error():
    model = small_models.small_model("gptj")
    ban = [i for i in range(304) if i not in (40, 41)]
    (done,) = model.generate("the cat", max_new_tokens=9, ban=ban, end_tokens=[])
    assert set(done.token_ids) <= {40, 41} and np.isfinite(done.logprobs).all()
    (low,) = model.generate("the cat", max_new_tokens=5, token_bias={0: -1e9}, top_k=3)
    assert len(low.token_ids) == 5
