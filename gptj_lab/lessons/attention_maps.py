"""Checks of notebook 11, reading attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.lens.interventions import run
from gptj_lab.lessons.verdict import UNANSWERED, Verdict, heads_named, not_yet, right, tried

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_SEQ = 24


def induction_detector(function: Callable[..., Any]) -> Verdict:
    """Exercise 1: (pattern [heads, seq, seq], token ids [seq]) -> [heads], high for induction.

    Heads whose kind is known are made here: a pure induction head has to get a score near 1, and
    those with noise, on a repeat of another length, higher ones than all others.
    """
    random = np.random.default_rng(11)
    ids, pure = _heads(random, period=8)
    patterns = np.stack(list(pure.values()))
    scores = tried(function, (patterns.astype(np.float32), ids), (len(patterns),))
    if isinstance(scores, Verdict):
        return scores
    found = dict(zip(pure, scores, strict=True))
    if not np.isfinite(scores).all():
        return not_yet("a score is not finite: is something divided by nothing?")
    if found["duplicate"] > 0.5 and found["induction"] < 0.5:
        return not_yet("that finds heads that read the same token again; induction reads the one "
                       "that came AFTER it")  # fmt: skip
    if found["previous"] > 0.5 and found["induction"] < 0.5:
        return not_yet("that finds previous-token heads: the token ids have to tell where to look")
    if abs(found["induction"]) < 0.01:
        return not_yet("a head that does nothing but induction gets 0.00, it should get 1: a row "
                       "is the token that reads, a column one that is read, and the column wanted "
                       "is the one right after the earlier copy")  # fmt: skip
    if abs(found["induction"] - 1) > 0.05:
        return not_yet(f"a head that does nothing but induction gets {found['induction']:.2f}, it "
                       "should get 1: average over rows that have something to find")  # fmt: skip
    ids, pure = _heads(random, period=6)
    noisy, labels = _noisy_heads(random, list(pure.values()), list(pure).index("induction"))
    scores = tried(function, (noisy.astype(np.float32), ids), (len(noisy),))
    if isinstance(scores, Verdict):
        return scores
    auc = float((scores[labels][:, None] > scores[~labels][None]).mean())
    if auc < 0.95:
        return not_yet(f"of an induction head and another, the induction head is found in {auc:.0%}"
                       " of the cases only. (Here the text comes again after 6 tokens, before it "
                       "was after 8)")  # fmt: skip
    return right(f"of an induction head and another, yours finds it in {auc:.0%} of the cases.")


def _heads(random: np.random.Generator, period: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Token ids that come again after a period, and the patterns of pure heads on them."""
    ids = np.tile(random.permutation(1000)[:period], _SEQ // period)
    # How far back the token lies that is read; induction: one after the earlier copy.
    back = {"previous": 1, "duplicate": period, "induction": period - 1, "first": _SEQ, "self": 0}
    rows, pure = np.arange(_SEQ), {}
    for name, offset in back.items():
        there = rows >= (offset if offset < period - 1 else period)
        pure[name] = np.zeros((_SEQ, _SEQ))
        pure[name][rows, np.where(there, np.maximum(rows - offset, 0), 0)] = 1
    return ids, pure


def _noisy_heads(
    random: np.random.Generator, pure: list[np.ndarray], wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.arange(60) % len(pure)
    lower = np.tril(random.random((len(kinds), _SEQ, _SEQ)) ** 4)
    noise = lower / lower.sum(-1, keepdims=True)
    share = random.uniform(0.25, 0.9, (len(kinds), 1, 1))
    return share * np.stack(pure)[kinds] + (1 - share) * noise, kinds == wanted


def without_first(function: Callable[..., Any]) -> Verdict:
    """Exercise 2: pattern [heads, seq, seq] -> the same without the first token, rows sum to 1."""
    lower = np.tril(np.random.default_rng(2).random((3, 9, 9)) + 0.01)
    pattern = lower / lower.sum(-1, keepdims=True)
    found = tried(function, (pattern.astype(np.float32),), pattern.shape)
    if isinstance(found, Verdict):
        return found
    if not np.isfinite(found[:, 1:]).all():
        return not_yet("a share is not finite: what is left of each row is what divides it")
    if not np.isfinite(found).all():
        return not_yet("row 0 reads nothing but the first token: without it 0 is divided by 0. "
                       "Leave that row at 0")  # fmt: skip
    if np.abs(found[:, 1:, 0]).max() > 1e-6:
        return not_yet("the first token still has a share: its column should be 0")
    if np.abs(found[:, 0]).max() > 1e-6:
        return not_yet("row 0 has nothing but the first token to read: it should be 0")
    if np.abs(found[:, 1:].sum(-1) - 1).max() > 1e-4:
        return not_yet("the rows don't sum to 1: divide each by what is left of it")
    rest = pattern[:, 1:, 1:]
    if np.abs(found[:, 1:, 1:] * rest.sum(-1, keepdims=True) - rest).max() > 1e-4:
        return not_yet("the shares of the other tokens must keep their ratios")
    return right("each row sums to 1 again, and the other tokens keep their ratios.")


def by_position(
    answer: Iterable[tuple[int, int]] | None, model: LanguageModel, text: str, least: float = 0.5
) -> Verdict:
    """Exercise 3: the (layer, head) pairs that read the token before whatever the tokens are.

    The text's tokens are shuffled here in another way than in the notebook.
    """
    if answer is None:
        return UNANSWERED
    given = heads_named(answer, model, "[(0, 4), (5, 2)]")
    if isinstance(given, Verdict):
        return given
    ids = np.array(model.tokenizer.encode(text))
    _, values = run(
        model, np.random.default_rng(77).permutation(ids).tolist(), sites=["blocks.*.attn.pattern"]
    )
    scores = np.stack([np.diagonal(p, -1, -2, -1).mean(-1) for p in values.values()])
    slack = 0.1  # another shuffle, other numbers
    if wrong := [pair for pair in given if scores[pair] < least - slack]:
        layer, head = min(wrong, key=lambda pair: scores[pair])
        return not_yet(f"on shuffled tokens, layer {layer} head {head} gives the token before "
                       f"{scores[layer, head]:.0%} only")  # fmt: skip
    clear = {(int(x), int(y)) for x, y in np.argwhere(scores > least + slack)}
    if missing := clear - given:
        layer, head = max(missing, key=lambda pair: scores[pair])
        return not_yet(f"layer {layer} head {head} is missing: on shuffled tokens it still gives "
                       f"the token before {scores[layer, head]:.0%}")  # fmt: skip
    return right(f"{len(given)} heads read the token before without looking at what it is.")
