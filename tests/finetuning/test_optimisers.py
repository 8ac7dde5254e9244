"""Optimisers take the steps of torch and of their papers; schedules hold at their corners."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptj_lab.finetuning import optimisers
from gptj_lab.finetuning.optimisers import ORIGINAL, Optimiser

RNG = np.random.default_rng(0)
STEPS = 12
START = {
    "weight": RNG.normal(0, 1, (128, 160)).astype(np.float32),
    "bias": RNG.normal(0, 1, (160,)).astype(np.float32),
}
GRADIENTS = [
    {name: (RNG.normal(0, 0.1, value.shape) * RNG.lognormal()).astype(np.float32)}
    | {"bias": RNG.normal(0, 0.1, START["bias"].shape).astype(np.float32)}
    for name, value in [("weight", START["weight"])] * STEPS
]


def ours(optimiser, gradients=GRADIENTS):
    """The weights after each step."""
    params = jax.tree.map(jnp.asarray, START)
    rule = optimiser.transformation(STEPS, params)
    state = rule.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    walked = []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        walked.append(jax.tree.map(np.asarray, params))
    return walked


def agree(walked, expected, tolerance=2e-6):
    for step, (a, b) in enumerate(zip(walked, expected, strict=True)):
        for name in START:
            assert np.abs(a[name] - b[name]).max() < tolerance, (step, name)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_adamw_is_torchs(clip):
    torch = pytest.importorskip("torch")
    optimiser = Optimiser(
        learning_rate=3e-3, weight_decay=0.2, clip=clip, b2=0.98, schedule="linear", warmup_steps=3
    )
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in START.items()}
    theirs = torch.optim.AdamW(
        [
            {"params": [params["weight"]], "weight_decay": 0.2},
            {"params": [params["bias"]], "weight_decay": 0.0},
        ],
        lr=1.0, betas=(0.9, 0.98), eps=1e-8,
    )  # fmt: skip
    rates = torch.optim.lr_scheduler.LambdaLR(theirs, lambda i: optimiser.rate(i, STEPS))
    walked = []
    for gradient in GRADIENTS:
        for name, value in gradient.items():
            params[name].grad = torch.tensor(value)
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        theirs.step()
        rates.step()
        walked.append({name: value.detach().numpy().copy() for name, value in params.items()})
    norms = [math.sqrt(sum((g**2).sum() for g in gradient.values())) for gradient in GRADIENTS]
    assert min(norms) > 1 or clip is None  # so that it is cut
    agree(ours(optimiser), walked)


def test_lion_is_its_papers():
    optimiser = Optimiser(name="lion", learning_rate=1e-3, weight_decay=0.5, clip=None)
    params = {name: value.astype(np.float64) for name, value in START.items()}
    moment = {name: 0 * value for name, value in params.items()}
    walked = []
    for i, gradient in enumerate(GRADIENTS):
        rate = optimiser.rate(i, STEPS)
        for name, g in gradient.items():
            direction = np.sign(0.9 * moment[name] + 0.1 * g)
            decay = 0.5 * params[name] if name == "weight" else 0
            params[name] = params[name] - rate * (direction + decay)
            moment[name] = 0.99 * moment[name] + 0.01 * g
        walked.append({name: value.copy() for name, value in params.items()})
    agree(ours(optimiser), walked)


def test_adafactor_is_its_papers():
    """Algorithm 4 without the scale of the parameters; a vector keeps its whole second moment."""
    optimiser = Optimiser(
        name="adafactor", learning_rate=1e-2, weight_decay=0, clip=None, schedule="constant"
    )
    params = {name: value.astype(np.float64) for name, value in START.items()}
    rows, columns, whole = np.zeros(128), np.zeros(160), np.zeros(160)
    walked = []
    for t, gradient in enumerate(GRADIENTS, 1):
        decay = 1 - t**-0.8
        for name, g in gradient.items():
            square = g.astype(np.float64) ** 2 + 1e-30
            if name == "weight":
                rows = decay * rows + (1 - decay) * square.mean(1)
                columns = decay * columns + (1 - decay) * square.mean(0)
                second = np.outer(rows, columns) / rows.mean()
            else:
                whole = second = decay * whole + (1 - decay) * square
            update = g / np.sqrt(second)
            update /= max(1.0, np.sqrt((update**2).mean()))
            params[name] = params[name] - optimiser.rate(t - 1, STEPS) * update
        walked.append({name: value.copy() for name, value in params.items()})
    agree(ours(optimiser), walked, 2e-5)


def test_adafactor_keeps_two_vectors_for_a_matrix():
    for name, most in (("adafactor", 3 * 128 + 3 * 160), ("adamw", 2 * 129 * 160)):
        rule = Optimiser(name=name, learning_rate=1.0).transformation(9, START)
        held = sum(leaf.size for leaf in jax.tree.leaves(rule.init(START)))
        assert held <= most + 20, name


CORNERS = [  # schedule, warm-up, step of 50, share of the highest rate
    ("cosine", 4, 0, 1 / 5), ("cosine", 4, 3, 4 / 5), ("cosine", 4, 4, 1), ("cosine", 4, 49, 0.1),
    ("cosine", 0, 0, 1), ("cosine", 1, 25, 0.55), ("linear", 0, 49, 0.1), ("linear", 9, 29, 0.55),
    ("constant", 9, 10, 1), ("constant", 9, 49, 1), ("cosine", 4, 80, 0.1), ("linear", 4, 80, 0.1),
    ("cosine", None, 5, 1), ("cosine", 70, 49, 50 / 71),
    ("original", 10, 0, 0), ("original", 10, 5, 0.5), ("original", 10, 10, 1),
    ("original", 10, 30, 0.55), ("original", 10, 50, 0.1), ("original", 0, 0, 1),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "warmup", "step", "share"), CORNERS)
def test_schedules_at_their_corners(schedule, warmup, step, share):
    optimiser = Optimiser(learning_rate=2e-4, schedule=schedule, warmup_steps=warmup)
    assert optimiser.rate(step, 50) == pytest.approx(2e-4 * share, rel=1e-6, abs=1e-15)


def test_the_originals_schedule_is_that_of_its_guide():
    """72 steps, 7 of them warm-up, 65 anneal, 5e-5 to 1e-5 (howto_finetune.md)."""

    def gpt3_schedule(step):  # mesh_transformer/util.py
        warmup = np.clip(step, 0, 7) / 7
        anneal = np.clip(step - 7, 0, 65) / 65
        return warmup * 5e-5 - (5e-5 - 1e-5) * (1 - np.cos(np.pi * anneal)) / 2

    assert ORIGINAL.warmup(72) == 7
    for step in range(73):
        assert ORIGINAL.rate(step, 72) == pytest.approx(gpt3_schedule(step), rel=1e-9)


@pytest.mark.parametrize("schedule", optimisers.SCHEDULES)
def test_the_rate_that_is_told_is_the_rate_that_is_taken(schedule):
    optimiser = Optimiser(
        name="lion", learning_rate=0.25, schedule=schedule, warmup_steps=3, weight_decay=0,
        clip=None,
    )  # fmt: skip
    ones = [jax.tree.map(np.ones_like, START)] * STEPS  # each step is the rate
    before = START["bias"][0]
    for step, params in enumerate(ours(optimiser, ones)):
        taken = before - params["bias"][0]
        assert taken == pytest.approx(optimiser.rate(step, STEPS), rel=1e-4, abs=1e-7)
        before = params["bias"][0]


def test_only_matrices_decay():
    tree = {
        "soft_prompt": np.ones((3, 4)),
        "blocks": [{"ln": {"scale": np.ones(4)}, "q": {"weight": np.ones((4, 4))}}],
    }
    assert optimisers.decaying(tree) == {
        "soft_prompt": False, "blocks": [{"ln": {"scale": False}, "q": {"weight": True}}],
    }  # fmt: skip
    still = [jax.tree.map(np.zeros_like, START)]
    (after,) = ours(Optimiser(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), still)
    assert (after["bias"] == START["bias"]).all()
    assert np.allclose(after["weight"], START["weight"] * 0.95, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "name is 'adam': choose 'adamw', 'adafactor' or 'lion'"),
        ({"schedule": "step"}, "schedule is 'step': choose"),
        ({"learning_rate": 0}, "learning_rate is 0: a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"eps": None}, "eps is None"),
        ({"warmup_steps": -1}, "warmup_steps is -1: a whole number from 0"),
        ({"accumulate": 0}, "accumulate is 0: a whole number from 1"),
        ({"accumulate": True}, "accumulate is True"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"b1": 1.0}, "b1 is 1.0: a number from 0 to below 1"),
        ({"b2": "x"}, "b2 is 'x'"),
        ({"final_share": 1.5}, "final_share is 1.5"),
    ],
)
def test_bad_fields_are_sentences(fields, message):
    with pytest.raises(ValueError, match=message):
        Optimiser(**fields)


def test_a_run_without_a_rate_or_steps_is_a_sentence():
    with pytest.raises(ValueError, match="learning_rate is None"):
        Optimiser().transformation(10, START)
    with pytest.raises(ValueError, match="steps is 0"):
        Optimiser(learning_rate=1.0).rate(0, 0)
