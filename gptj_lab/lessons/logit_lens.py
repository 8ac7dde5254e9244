"""Checks of notebook 13, the logit lens and direct logit attribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gptj_lab.lessons.verdict import UNANSWERED, Verdict, not_yet, right, tried

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.lens.attribution import Attribution


def lens(function: Callable[..., Any], model: LanguageModel) -> Verdict:
    """Exercise 1: residual [d_model] -> logits [vocab], as the end of the network makes them.

    Held against the network itself on random residuals; the usual slips are named.
    """
    random = np.random.default_rng(13)
    residual = (random.normal(size=model.config.d_model) * 3 + 0.5).astype(np.float32)
    vocab = model.config.vocab_size
    found = tried(function, (residual,), (vocab,))
    if isinstance(found, Verdict):
        return found
    expected = _logits(model, residual)
    if _close(found, expected):
        return right("to the rounding of float32, these are the network's own logits.")
    nothing = _logits(model, np.zeros_like(residual))
    bias = _head_bias(model)
    if bias is not None and _close(found + bias, expected):
        return not_yet("the unembedding has a bias of its own (model.network.head.bias)")
    norm = model.network.final_ln
    if norm.bias is not None:
        from_norm = nothing - (0 if bias is None else bias)
        if _close(found + from_norm, expected):
            return not_yet("the final LayerNorm has a bias of its own (final_ln.bias)")
    doubled = tried(function, (2 * residual,), (vocab,))
    if not isinstance(doubled, Verdict) and np.abs(doubled - found).max() > 0.1:
        return not_yet("a residual twice as large gives other logits: the final LayerNorm takes "
                       "the mean off and divides by the standard deviation")  # fmt: skip
    return not_yet(f"the logits are {np.abs(found - expected).max():.2f} off at most")


def _logits(model: LanguageModel, residual: np.ndarray) -> np.ndarray:
    return np.asarray(model.network.unembed(jnp.asarray(residual)[None, None])[0, 0], np.float64)


def _head_bias(model: LanguageModel) -> np.ndarray | None:
    head = model.network.head
    if head is None or head.bias is None:
        return None
    return np.asarray(head.bias.get_value(), np.float64)


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() < 1e-3 * np.abs(expected).max())


def deciding_block(answer: int | None, likeliest: list[str]) -> Verdict:
    """Exercise 2: the block after which the final answer is the likeliest for good.

    Args:
        answer: number of a block, from 0.
        likeliest: what the lens says before each block, and at the end: [blocks + 1].
    """
    if answer is None:
        return UNANSWERED
    blocks = len(likeliest) - 1
    if not isinstance(answer, int | np.integer) or not 0 <= answer < blocks:
        return not_yet(f"a whole number from 0 to {blocks - 1} is needed")
    after = likeliest[1:]
    if after[answer] != likeliest[-1]:
        return not_yet(f"after block {answer} the lens still says {after[answer]!r}")
    if any(token != likeliest[-1] for token in after[answer:]):
        return not_yet("a later block says something else again")
    if answer and after[answer - 1] == likeliest[-1]:
        return not_yet(f"it says so before block {answer} already")
    if not answer and likeliest[0] == likeliest[-1]:
        return not_yet("it said so before any block")
    return right(f"before block {answer} the lens says {likeliest[answer]!r}, after it "
                 f"{after[answer]!r}.")  # fmt: skip


def shares(answer: Mapping[str, float] | None, attribution: Attribution) -> Verdict:
    """Exercise 3: the logit as four shares: {"embed": , "heads": , "MLPs": , "biases": }."""
    if answer is None:
        return UNANSWERED
    names = {"embed", "heads", "MLPs", "biases"}
    if not isinstance(answer, Mapping) or set(answer) != names:
        return not_yet("a dict with the keys embed, heads, MLPs and biases is needed")
    if any(value is None for value in answer.values()):
        return UNANSWERED
    values = {name: float(np.asarray(value)) for name, value in answer.items()}
    if abs(values["heads"] - float(attribution.heads.sum())) > 1e-3:
        return not_yet("`heads` is the sum over all layers and heads")
    if abs(values["MLPs"] - float(attribution.mlps.sum())) > 1e-3:
        return not_yet("`MLPs` is the sum over all layers, without their output biases")
    off = sum(values.values()) - attribution.logit
    if abs(off + attribution.head_bias) < 1e-3 < abs(attribution.head_bias):
        return not_yet("the unembedding's own bias is missing among the biases")
    if abs(off + float(attribution.mlp_biases.sum())) < 1e-3:
        return not_yet("the MLPs' output biases are missing among the biases")
    if abs(off) > 1e-3:
        return not_yet(f"the four sum to {attribution.logit + off:.4f}, but the model's logit is "
                       f"{attribution.logit:.4f}: which bias is missing?")  # fmt: skip
    return right(f"the four sum to the model's own {attribution.logit:.4f}, {abs(off):.0e} off.")
