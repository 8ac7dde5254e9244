"""Checks of notebook 12, how induction heads are born."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from gptj_lab.lens import heads
from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.lessons.verdict import UNANSWERED, Verdict, heads_named, not_yet, right, tried

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


def loss_on_repeats(
    model: LanguageModel, without: Iterable[tuple[int, int]] = (), length: int = 16,
    samples: int = 4,
) -> float:  # fmt: skip
    """The mean loss, in nats, on random tokens while they come a second time.

    Args:
        model: any.
        without: (layer, head) pairs whose results are set to zero.
        length, samples: as of `heads.scores_on_repeats`.
    """
    edits = Interventions.none(model, 2 * length)
    for layer, head in without:
        edits = edits.ablate_head(layer, head)
    losses = []
    for sample in range(samples):
        ids = heads.repeated_tokens(model, length, seed=sample)
        logits, _ = run(model, ids.tolist(), edits)
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        # The first token that comes again can't be known; from then on all can.
        read = np.arange(length, 2 * length - 1)
        losses.append(-logprobs[read, ids[read + 1]].mean())
    return float(np.mean(losses))


def phase_change(
    answer: float | None, steps: Sequence[int], losses: Float[np.ndarray | Array, "steps"]
) -> Verdict:
    """Exercise 1: the step at which the loss on the repeat falls.

    Right between the last record that is above four fifths of the way down and the first below one
    fifth of it.

    Args:
        answer: a step.
        steps: at which the loss was recorded, rising.
        losses: on the repeat, in nats.
    """
    if answer is None:
        return UNANSWERED
    values, places = np.asarray(losses, np.float64), np.asarray(steps)
    if not isinstance(answer, int | float | np.number) or not places[0] <= answer <= places[-1]:
        return not_yet(f"a step from {places[0]} to {places[-1]} is needed")
    low, high = values.min(), np.median(values[: max(1, len(values) // 4)])
    above = np.flatnonzero(values > high - 0.2 * (high - low))[-1]
    below = np.flatnonzero(values < low + 0.2 * (high - low))
    first = below[below > above][0]
    there = float(np.interp(float(answer), places, values))
    if answer < places[above]:
        return not_yet(f"at step {answer:g} the loss on the repeat is {there:.2f} nats, still on "
                       f"the plateau of {high:.2f}")  # fmt: skip
    if answer > places[first]:
        return not_yet(f"at step {answer:g} the loss on the repeat is {there:.2f} nats: it has "
                       "fallen by then")  # fmt: skip
    return right(f"within {places[first] - places[above]} of {places[-1]} steps the loss on the "
                 f"repeat goes from {values[above]:.2f} to {values[first]:.2f} nats.")  # fmt: skip


def breaking_heads(
    answer: Iterable[tuple[int, int]] | None, model: LanguageModel, most: int = 2,
    above: float = 1.0,
) -> Verdict:  # fmt: skip
    """Exercise 2: at most `most` heads (layer, head) without which the repeat isn't continued.

    Without them the loss on repeats has to be above `above` nats.
    """
    if answer is None:
        return UNANSWERED
    given = heads_named(answer, model, "[(0, 0), (1, 1)]")
    if isinstance(given, Verdict):
        return given
    if len(given) > most:
        return not_yet(f"{len(given)} heads are named, at most {most} are allowed")
    whole, broken = loss_on_repeats(model), loss_on_repeats(model, given)
    if broken <= above:
        return not_yet(f"without them the loss on the repeat is {broken:.2f} nats, with all heads "
                       f"{whole:.2f}: which head finds the place, and which one tells it what "
                       "stood before?")  # fmt: skip
    return right(f"without them the loss on the repeat is {broken:.2f} nats instead of "
                 f"{whole:.2f}.")  # fmt: skip


def copying(function: Callable[..., Any], model: LanguageModel) -> Verdict:
    """Exercise 3: ids [seq] -> for each place, the token after the latest earlier copy, or -1.

    Held against a slow search, on random ids; then against what the model says on repeats.
    """
    random = np.random.default_rng(12)
    for seq, vocab in ((1, 4), (12, 4), (30, 6), (24, 1000)):
        ids = random.integers(vocab, size=seq)
        found = tried(function, (ids.copy(),), (seq,))
        if isinstance(found, Verdict):
            return found
        expected = np.array([_after(ids, place) for place in range(seq)])
        wrong = np.flatnonzero(found != expected)
        if not len(wrong):
            continue
        place = int(wrong[0])
        told = f"for the ids {ids[: place + 1].tolist()} the last answer"
        if expected[place] == -1:
            return not_yet(f"{told} should be -1, no earlier copy has a token after it; yours is "
                           f"{found[place]:g}")  # fmt: skip
        if (found[wrong] == np.append(ids[1:], -1)[wrong]).all():
            return not_yet(f"{told} should be {expected[place]}: yours is {found[place]:g}, the "
                           "token that comes next, which nobody has read yet")  # fmt: skip
        if (found[wrong] == ids[wrong]).all():
            return not_yet(f"{told} should be {expected[place]}, what came AFTER the copy; yours "
                           "is the copy itself")  # fmt: skip
        return not_yet(f"{told} should be {expected[place]}, yours is {found[place]:g}: is it the "
                       "latest copy that you look at?")  # fmt: skip
    return right(f"and on repeats the network names the same token as your rule in "
                 f"{_agreement(model):.0%} of the places.")  # fmt: skip


def _after(ids: np.ndarray, place: int) -> int:
    for earlier in range(place - 1, -1, -1):
        if ids[earlier] == ids[place]:
            return int(ids[earlier + 1])
    return -1


def _agreement(model: LanguageModel, length: int = 16) -> float:
    """How often the likeliest token is the one after the earlier copy, over random repeats."""
    same = []
    for sample in range(4):
        ids = heads.repeated_tokens(model, length, seed=100 + sample)
        likeliest = np.asarray(model.logits(ids[None])[0].argmax(-1))
        same += [likeliest[place] == _after(ids, place) for place in range(length, 2 * length)]
    return float(np.mean(same))
