"""Checks of notebook 16, what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.finetuning import lora
from gptj_lab.lessons.fine_tuning import nats_a_token
from gptj_lab.lessons.verdict import UNANSWERED, Verdict, not_yet, right, tried, whole
from gptj_lab.model.linear import Strength

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


def distance(function: Callable[..., Any]) -> Verdict:
    """Exercise 1: two rows of attention [keys] -> their Jensen-Shannon distance, 0 to 1."""
    random = np.random.default_rng(16)
    pairs = [(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5]))]
    for keys in (2, 5, 9):
        p, q = random.dirichlet(np.ones(keys), 2)
        q[-1] = 0.0  # a key that one of them doesn't read
        pairs += [(p, p), (p, q / q.sum()), (q / q.sum(), p)]
    for p, q in pairs:
        found = tried(function, (p.copy(), q.copy()), ())
        if isinstance(found, Verdict):
            return found
        value, divergence = float(found), _divergence(p, q)
        if not np.isfinite(value):
            return not_yet("a key that nobody reads gives 0 log 0, which is 0: leave it out")
        if abs(value - divergence**0.5) < 1e-6:
            continue
        if abs(value - divergence) < 1e-6:
            return not_yet("that is the divergence: the distance is its square root")
        if abs(value - (divergence * np.log(2)) ** 0.5) < 1e-6:
            return not_yet("take the logarithm to base 2: rows that share no key are 1 apart")
        if np.array_equal(p, q):
            return not_yet(f"a row is {value:.3f} from itself, it should be 0")
        return not_yet(f"for {p.round(2)} and {q.round(2)} yours is {value:.3f}, it should be "
                       f"{divergence**0.5:.3f}")  # fmt: skip
    return right("0 from itself, 1 where no key is shared, the same in both directions.")


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    middle = (p + q) / 2
    total = 0.0
    for row in (p, q):
        read = row > 0
        total += 0.5 * float((row[read] * np.log2(row[read] / middle[read])).sum())
    return max(total, 0.0)


def without_layer(tuned: LanguageModel, layer: int) -> LanguageModel:
    """The model with the adapters of one block switched off; `tuned` stays as it is.

    Raises:
        ValueError: there is no such block, or it has no adapter.
    """
    layers = len(tuned.network.blocks)
    if not 0 <= layer < layers:
        raise ValueError(f"layer is {layer!r}: a number from 0 to {layers - 1} is needed")
    copy, found = tuned.twin(), 0
    for matrix in copy.network.blocks[layer].matrices().values():
        for adapter in matrix.adapters.values():
            adapter.strength = Strength(0 * adapter.strength[...])
            found += 1
    if not found:
        raise ValueError(f"block {layer} has no adapter to switch off")
    return copy


def carrying_layer(
    answer: int | None, tuned: LanguageModel, text: str, context: int = 128
) -> Verdict:
    """Exercise 2: the block whose adapters the text's loss needs most."""
    if answer is None:
        return UNANSWERED
    layers = len(tuned.network.blocks)
    if not whole(answer) or not 0 <= answer < layers:
        return not_yet(f"a layer from 0 to {layers - 1} is needed")
    all_on = nats_a_token(tuned, text, context)
    lost = np.array([nats_a_token(without_layer(tuned, layer), text, context) - all_on
                     for layer in range(layers)])  # fmt: skip
    if lost[answer] < lost.max() - 1e-3:
        return not_yet(f"without the adapters of block {answer} the text costs {lost[answer]:+.3f} "
                       "nats a token: another block's are needed more")  # fmt: skip
    return right(f"without the adapters of block {answer} the text costs {lost[answer]:+.3f} nats "
                 f"a token, in the mean over the blocks {lost.mean():+.3f}.")  # fmt: skip


def factor(
    answer: float | None, base: LanguageModel, tuned: LanguageModel, new: str, old: str,
    *, gain: float = 0.6, forgotten: float = 0.5, context: int = 128,
) -> Verdict:  # fmt: skip
    """Exercise 3: a factor of the adapter that learns much and forgets little.

    Args:
        answer: the factor.
        base, tuned: the model before, and with the adapter "default".
        new, old: a text like the one that it was tuned on, and one that the base knows.
        gain: the share of the gain on `new` that has to stay.
        forgotten: the share of the loss on `old` that may stay.
    """
    if answer is None:
        return UNANSWERED
    if not isinstance(answer, int | float | np.number) or not 0 < answer <= 2:
        return not_yet("a number above 0, up to 2, is needed")
    weighed = lora.weighed(tuned, default=float(answer))
    costs = [[nats_a_token(model, text, context) for model in (base, tuned, weighed)]
             for text in (new, old)]  # fmt: skip
    (new_base, new_tuned, new_now), (old_base, old_tuned, old_now) = costs
    kept = (new_base - new_now) / (new_base - new_tuned)
    lost = (old_now - old_base) / (old_tuned - old_base)
    if kept < gain:
        return not_yet(f"at {answer:g} only {kept:.0%} of the gain stays, {gain:.0%} are asked for")
    if lost > forgotten:
        return not_yet(f"at {answer:g} {lost:.0%} of what was forgotten at 1 is forgotten, at most "
                       f"{forgotten:.0%} are allowed")  # fmt: skip
    return right(f"at {answer:g} {kept:.0%} of the gain stays, and {lost:.0%} of the forgetting.")
