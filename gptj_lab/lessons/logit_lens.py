"""Checks of notebook 13, the logit lens and direct logit attribution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gptj_lab.lessons.verdict import UNANSWERED, Verdict, not_yet, right, tried, whole
from gptj_lab.model.transformer import from_normal

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
    if not np.isfinite(found).all():
        return not_yet("a logit is not finite")
    if abs(found.sum() - 1) < 1e-3 and found.min() >= 0:
        return not_yet("those are probabilities; the logits are what the softmax is taken of")
    if np.ptp(found - expected) < 1e-3 * np.abs(expected).max():
        return not_yet("all logits are off by the same number: without the softmax, please")
    nothing = _logits(model, np.zeros_like(residual))  # what the biases alone make
    own = _unembedded(model, np.zeros_like(residual))
    biases = {"the unembedding has a bias of its own (model.network.head.bias)": own,
              "the final LayerNorm has a bias of its own (final_ln.bias)": nothing - own,
              "both the final LayerNorm and the unembedding have a bias": nothing}  # fmt: skip
    for sentence, bias in biases.items():
        if bias.any() and _close(found + bias, expected):
            return not_yet(sentence)
    doubled = tried(function, (2 * residual,), (vocab,))
    if not isinstance(doubled, Verdict) and np.abs(doubled - found).max() > 0.1:
        return not_yet("a residual twice as large gives other logits: the final LayerNorm takes "
                       "the mean off and divides by the standard deviation")  # fmt: skip
    scale, shift = (
        np.asarray(each[...], np.float32)
        for each in (model.network.final_ln.scale, model.network.final_ln.bias)
    )
    plain = (residual - residual.mean()) / residual.std()
    if _close(found, _unembedded(model, plain + shift)):
        return not_yet("the final LayerNorm multiplies by its scale (final_ln.scale)")
    # Whatever it divides by: a mean that stayed adds a multiple of what the scale alone makes.
    parts = np.stack([expected - nothing, _unembedded(model, scale) - own], axis=1)
    fit, *_ = np.linalg.lstsq(parts, found - nothing, rcond=None)
    if _close(parts @ fit + nothing, found):
        return not_yet("the final LayerNorm takes the mean off the residual, then divides by the "
                       "root of the mean square of what is left")  # fmt: skip
    return not_yet(f"the logits are {np.abs(found - expected).max():.2f} off at most")


def _logits(model: LanguageModel, residual: np.ndarray) -> np.ndarray:
    return np.asarray(model.network.unembed(jnp.asarray(residual)[None, None])[0, 0], np.float64)


def _unembedded(model: LanguageModel, normal: np.ndarray) -> np.ndarray:
    """Logits of what the final LayerNorm has made."""
    network, row = model.network, jnp.asarray(normal, jnp.float32)[None]
    made = from_normal(row, network.embed, network.head, network.head_bias)
    return np.asarray(made[0], np.float64)


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
    if not whole(answer) or not 0 <= answer < blocks:
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
    values = {}
    for name, value in answer.items():
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            return not_yet(f"`{name}` is {type(value).__name__}, a number is needed")
        if array.ndim:
            return not_yet(f"`{name}` has the shape {array.shape}, a number is needed: its sum")
        if not np.isfinite(array):
            return not_yet(f"`{name}` is not finite")
        values[name] = float(array)
    if abs(values["heads"] - float(attribution.heads.sum())) > 1e-3:
        return not_yet("`heads` is the sum over all layers and heads")
    if abs(values["MLPs"] - float(attribution.mlps.sum())) > 1e-3:
        return not_yet("`MLPs` is the sum over all layers, without their output biases")
    embed, learned = attribution.embed, attribution.position_embed  # the latter may be counted
    if min(abs(values["embed"] - embed), abs(values["embed"] - embed - learned)) > 1e-3:
        return not_yet("`embed` is what the embedding alone adds")
    # Against the sum of all parts, which is the logit to the rounding of the model's dtype.
    four = sum(values.values()) - values["embed"] + embed + learned
    off = four - (attribution.total - attribution.edits)
    if abs(off) <= 1e-3:
        return right(f"the four sum to {four:.4f}, and the model's own is {attribution.logit:.4f}.")
    kinds = {
        "that of the unembedding": attribution.head_bias,
        "that of the final LayerNorm": attribution.final_bias,
        "those of the MLPs' outputs": float(attribution.mlp_biases.sum()),
        "those of the attentions' outputs": float(attribution.attention_biases.sum()),
    }
    kinds = {name: bias for name, bias in kinds.items() if abs(bias) > 1e-3}
    for count in range(1, len(kinds) + 1):
        for names in itertools.combinations(kinds, count):
            if abs(off + sum(kinds[name] for name in names)) < 1e-3:
                return not_yet("missing among the biases: " + ", ".join(names))
    return not_yet(f"the four sum to {four:.4f}, but the model's logit is {attribution.logit:.4f}: "
                   "which bias is missing?")  # fmt: skip
