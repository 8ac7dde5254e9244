"""The calculator against a compiler's own count, and against GPT-J's published run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gptj_lab
from gptj_lab import presets, scaling
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

GPT_J = presets.named("gpt-j-6b")
PUBLISHED = scaling.TrainingRun(config=GPT_J, tokens=383_500 * 2**20, peak=13.4e15)
SPEED = 5.4e15  # measured as the GPT-3 paper counts


def test_the_published_run():
    """Wang and Komatsuzaki 2021: 402 B tokens, 1.5e22 FLOPs, 5.4 of 13.4 PFLOP/s, five weeks."""
    assert PUBLISHED.tokens == pytest.approx(402e9, rel=1e-3)
    assert PUBLISHED.total == pytest.approx(1.5e22, rel=0.03)
    assert PUBLISHED.share_of_peak(SPEED) == pytest.approx(0.40, abs=0.005)
    assert 0.55 < PUBLISHED.hfu(SPEED) < 0.60  # "about 60 %"
    assert 4.4 < PUBLISHED.days(SPEED) / 7 < 5.0  # without a stop


def test_what_counts_and_what_does_not():
    speed = [PUBLISHED.share_of_peak(SPEED), PUBLISHED.mfu(SPEED), PUBLISHED.hfu(SPEED)]
    assert speed == sorted(speed)
    kept = dataclasses.replace(PUBLISHED, recomputed=False)
    assert kept.hfu(SPEED) == kept.mfu(SPEED) == PUBLISHED.mfu(SPEED)
    needed = scaling.operations(GPT_J)
    assert needed.training() == 3 * needed.forward
    assert needed.training(attention=False) == 3 * (needed.blocks + needed.head)
    half = scaling.operations(GPT_J, 1024)
    assert 2 * half.attention == needed.attention and half.blocks == needed.blocks
    # 6 N counts embedding, norms and biases, which no product uses: a hundredth.
    matrices = scaling.six_n(GPT_J) - 6 * GPT_J.vocab_size * GPT_J.d_model
    assert needed.training(attention=False) == pytest.approx(matrices, rel=0.002)


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_the_compiler_counts_the_same(family):
    """XLA's own count of a forward pass: ours, and a few percent for norms and softmax."""
    rotary = {"d_rotary": 16} if family == "gptj" else {}
    config = ModelConfig.of_family(
        family, vocab_size=512, context=64, d_model=256, num_layers=2, num_heads=8, d_ff=1024,
        bos_token_id=0, eos_token_id=0, **rotary,
    )  # fmt: skip
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((2, config.context), jnp.int32)
    forward = jax.jit(lambda state, ids: nnx.merge(graph, state)(ids)[0]).lower(state, ids)
    counted = forward.compile().cost_analysis()["flops"] / ids.size
    assert counted == pytest.approx(scaling.operations(config).forward, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"peak": float("nan")}, "peak is nan"),
        ({"context": 4096}, "2048 positions at most"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_bad_numbers_are_sentences(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PUBLISHED, **fields)


def test_the_planner_counts_as_the_calculator():
    plan = gptj_lab.plan("gpt-j-6b", "v3-256", "pretrain")
    peak = plan.hardware.peak_flops * plan.hardware.devices
    run = dataclasses.replace(PUBLISHED, peak=peak)
    assert plan.tokens_per_second == pytest.approx(run.tokens_per_second(0.4 * peak))
