"""Notebook 16's checks: right answers pass, the usual wrong ones are told what they are."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from gptj_lab.finetuning import lora
from gptj_lab.lessons import what_changed
from gptj_lab.lessons.fine_tuning import nats_a_token

TEXT, OTHER = "the cat sat on the mat", "and the dog sat on the log"


def check(verdict, said):
    assert re.search(said, repr(verdict)), verdict
    assert verdict.passed == said.startswith("^Right")


def divergence(p, q, log=np.log2):
    middle = (p + q) / 2
    logs = [log(np.where(row > 0, row / np.where(middle > 0, middle, 1), 1)) for row in (p, q)]
    return sum((row * each).sum() for row, each in zip((p, q), logs, strict=True)) / 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda p, q: max(divergence(p, q), 0) ** 0.5, "^Right"),
        (lambda p, q: None, "returns nothing"),
        (lambda p, q: divergence(p, q), "square root"),
        (lambda p, q: max(divergence(p, q, np.log), 0) ** 0.5, "base 2"),
        (lambda p, q: float("nan"), "0 log 0"),
        (lambda p, q: 1.0, "from itself"),
        (lambda p, q: np.abs(p - q).sum() / 2, "it should be"),
        (lambda p, q: p - q, "shape"),
    ],
)
def test_distance(function, said):
    check(what_changed.distance(function), said)


@pytest.fixture(scope="module")
def tuned(tiny_model):
    """Adapters that change something, most of all those of block 1."""
    model = lora.adapted(tiny_model, lora.LoRA(rank=2, alpha=2))
    for (_, layer, *_), linear in lora.matrices(model.network):
        for adapter in linear.adapters.values():
            ramp = jnp.linspace(-1, 1, adapter.b[...].size).reshape(adapter.b.shape)
            adapter.b[...] = (0.02 + 0.6 * layer) * ramp
    return model


def test_a_layer_is_switched_off_alone(tuned, tiny_model):
    ids = np.array([tiny_model.tokenizer.encode(TEXT)])
    off = what_changed.without_layer(what_changed.without_layer(tuned, 0), 1)
    np.testing.assert_array_equal(off.logits(ids), tiny_model.logits(ids))
    one = np.asarray(what_changed.without_layer(tuned, 0).logits(ids))
    assert not np.allclose(one, tuned.logits(ids)) and not np.allclose(one, tiny_model.logits(ids))
    with pytest.raises(ValueError, match="from 0 to 1"):
        what_changed.without_layer(tuned, 2)
    with pytest.raises(ValueError, match="block 0 has no adapter"):
        what_changed.without_layer(tiny_model, 0)


def test_carrying_layer(tuned):
    whole = nats_a_token(tuned, TEXT, 8)
    lost = [nats_a_token(what_changed.without_layer(tuned, i), TEXT, 8) - whole for i in (0, 1)]
    best = int(np.argmax(lost))
    told = re.escape(f"costs {lost[best]:+.3f} nats")
    check(what_changed.carrying_layer(best, tuned, TEXT, 8), f"^Right: .*{told}")
    check(what_changed.carrying_layer(1 - best, tuned, TEXT, 8), "another block's")
    check(what_changed.carrying_layer(None, tuned, TEXT), "Replace None")
    for wrong in (2, True, 0.0, float("nan")):
        check(what_changed.carrying_layer(wrong, tuned, TEXT), "from 0 to 1")


def test_factor(tuned, tiny_model):
    whole, half, base = (
        [nats_a_token(model, text, 8) for text in (TEXT, OTHER)]
        for model in (tuned, lora.weighed(tuned, default=0.5), tiny_model)
    )
    kept, lost = ((b - h) / (b - w) for b, h, w in zip(base, half, whole, strict=True))
    arguments = (tiny_model, tuned, TEXT, OTHER)

    def verdict(gain, forgotten, answer=0.5):
        return what_changed.factor(
            answer, *arguments, gain=gain, forgotten=forgotten, context=8
        )  # fmt: skip

    check(verdict(kept - 0.01, lost + 0.01), f"^Right: at 0.5 {kept:.0%} of the gain stays, and")
    check(verdict(kept + 0.01, lost + 0.01), "of the gain stays, .* are asked for")
    check(verdict(kept - 0.01, lost - 0.01), "are allowed")
    check(verdict(0, 0, None), "Replace None")
    check(verdict(0, 0, -1), "above 0")
