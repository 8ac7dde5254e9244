"""Checks of notebook 15, fine-tuning all weights and LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gptj_lab.generation.finite import NotFiniteError
from gptj_lab.lessons.verdict import UNANSWERED, Verdict, not_yet, right, tried

if TYPE_CHECKING:
    from gptj_lab.config import ModelConfig
    from gptj_lab.language_model import LanguageModel

_ROWS = 4  # windows read at a time


def nats_a_token(model: LanguageModel, text: str, context: int = 128) -> float:
    """The mean loss of a text in nats a token, read in windows of `context` tokens.

    The first token of the text is predicted from the mark between documents, the first of each
    later window from the last token of the one before.

    Raises:
        ValueError: the text is empty, or the model's logits on it are not finite.
    """
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ValueError("the text is empty: there is nothing to measure")
    ids = np.array([model.tokenizer.end_of_text_id or 0, *ids])
    count = -(-(len(ids) - 1) // context)
    rows = np.zeros((count + -count % _ROWS, context), np.int32)
    targets = np.full(rows.shape, -1)
    for i in range(count):
        part = ids[i * context : (i + 1) * context + 1]
        rows[i, : len(part) - 1], targets[i, : len(part) - 1] = part[:-1], part[1:]
    nats = 0.0
    for first in range(0, len(rows), _ROWS):
        wanted = targets[first : first + _ROWS]
        logprobs = jax.nn.log_softmax(model.logits(rows[first : first + _ROWS]))
        chosen = jnp.take_along_axis(logprobs, jnp.maximum(wanted, 0)[..., None], -1)[..., 0]
        nats -= float(jnp.where(wanted >= 0, chosen, 0).sum())
    if not np.isfinite(nats):
        raise NotFiniteError(model.dtype, "so the text can't be measured")
    return nats / (len(ids) - 1)


def low_rank(function: Callable[..., Any]) -> Verdict:
    """Exercise 1: (x [seq, d_in], weight [d_out, d_in], a [rank, d_in], b [d_out, rank], alpha).

    -> [seq, d_out], what the matrix and its adapter give together. Held against the product with
    one merged matrix, made another way.
    """
    random = np.random.default_rng(15)
    for seq, d_in, d_out, rank, alpha in ((5, 6, 4, 2, 3.0), (3, 4, 8, 1, 16.0), (2, 5, 5, 4, 4.0)):
        x, weight = random.normal(size=(seq, d_in)), random.normal(size=(d_out, d_in))
        a, b = random.normal(size=(rank, d_in)), random.normal(size=(d_out, rank))
        found = tried(function, (x, weight, a, b, alpha), (seq, d_out))
        if isinstance(found, Verdict):
            return found
        added = np.sum([np.outer(b[:, i], a[i]) for i in range(rank)], axis=0)
        plain, low = x @ weight.T, x @ added.T
        if np.allclose(found, plain + alpha / rank * low, atol=1e-6):
            continue
        slips = {
            "the adapter's part is missing": plain,
            "the matrix's own part is missing": alpha / rank * low,
            "the adapter's part has to be multiplied by alpha / rank": plain + low,
            "multiply by alpha / rank, not by alpha": plain + alpha * low,
            "divide alpha by the rank, which is the number of a's rows": plain + alpha * rank * low,
        }
        for said, wrong in slips.items():
            if np.allclose(found, wrong, atol=1e-6):
                return not_yet(said)
        most = np.abs(found - plain - alpha / rank * low).max()
        return not_yet(f"for d_in {d_in}, d_out {d_out}, rank {rank} it is {most:.2f} off at most")
    return right("with b = 0 it is the matrix alone, so that a new adapter changes nothing.")


def trained_numbers(
    answer: int | None, config: ModelConfig, rank: int = 16, matrices: int = 2
) -> Verdict:
    """Exercise 2: how many numbers LoRA trains on `matrices` square matrices of each block."""
    if answer is None:
        return UNANSWERED
    if not isinstance(answer, int | float | np.integer) or not 1 <= answer < np.inf:
        return not_yet("a number of numbers is needed")
    one = rank * config.d_model  # a, or b
    expected = config.num_layers * matrices * 2 * one
    if answer == expected:
        share = expected / config.num_parameters
        return right(f"{expected:,} numbers, {share:.2%} of {config.num_parameters:,}.")
    slips = {
        expected // 2: "that is half of it: each adapter has a [rank, d_in] and b [d_out, rank], "
        f"and {matrices} matrices of each block have an adapter",
        expected // config.num_layers: "that is one block",
        matrices * config.num_layers * config.d_model**2: "that is the matrices themselves",
    }
    return not_yet(slips.get(int(answer), f"{int(answer):,} is {answer / expected:.3g} times it"))


def times_seen(answer: float | None, steps: int, batch: int, context: int, tokens: int) -> Verdict:
    """Exercise 3: how often the run has read its text."""
    if answer is None:
        return UNANSWERED
    if not isinstance(answer, int | float | np.number):
        return not_yet("a number is needed")
    expected = steps * batch * context / tokens
    if abs(float(answer) - expected) <= 0.05 * expected:
        return right(f"{steps * batch * context:,} of {tokens:,} tokens, {expected:.1f} times.")
    if abs(float(answer) - expected / context) <= 0.05 * expected / context:
        return not_yet("each row of a step has `context` tokens")
    if abs(float(answer) - expected / batch) <= 0.05 * expected / batch:
        return not_yet("each step has `batch` rows")
    if abs(float(answer) * expected - 1) <= 0.05:
        return not_yet("the other way round: what was read, divided by what there is")
    return not_yet(f"{float(answer):.3g} is {float(answer) / expected:.3g} times it")
