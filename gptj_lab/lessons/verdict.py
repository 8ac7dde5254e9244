"""Verdict: what a check says about an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
    """Whether an answer is right, and a sentence about it; it prints as the sentence."""

    passed: bool
    text: str

    def __repr__(self) -> str:
        return self.text


UNANSWERED = Verdict(False, "Replace None by your answer, then run again.")


def right(text: str) -> Verdict:
    """The answer is right."""
    return Verdict(True, f"Right: {text}")


def not_yet(text: str) -> Verdict:
    """The answer is wrong, and why."""
    return Verdict(False, f"Not yet: {text}")


def tried(
    function: Callable[..., Any], arguments: tuple[Any, ...], shape: tuple[int, ...]
) -> np.ndarray | Verdict:
    """What a learner's function returns, as float64 of the shape; or what is wrong with it."""
    if not callable(function):
        return not_yet(f"a function is needed, not {type(function).__name__}")
    try:
        found = function(*arguments)
    except Exception as error:  # whatever a learner's code may do
        return not_yet(f"your function stopped with {type(error).__name__}: {error}")
    if found is None:
        return not_yet("your function returns nothing: replace the line below `def`")
    try:
        array = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return not_yet(f"your function returns {type(found).__name__}, numbers are needed")
    if array.shape != shape:
        return not_yet(f"your function returns shape {array.shape}, {shape} is needed")
    return array


def whole(answer: Any) -> bool:
    """Whether an answer is a whole number; True and False are none."""
    return isinstance(answer, int | np.integer) and not isinstance(answer, bool)


def heads_named(
    answer: Iterable[tuple[int, int]], model: LanguageModel, example: str
) -> set[tuple[int, int]] | Verdict:
    """The (layer, head) pairs of an answer; or what is wrong with them."""
    config, given = model.config, set()
    try:
        pairs = [(layer, head) for layer, head in answer]
        if any(isinstance(x, str) or int(x) != x for pair in pairs for x in pair):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        return not_yet(f"pairs (layer, head) of whole numbers are needed, such as {example}")
    for layer, head in pairs:
        if not (0 <= layer < config.num_layers and 0 <= head < config.num_heads):
            return not_yet(
                f"there is no layer {layer} head {head}: a pair is (layer, head), counted from 0 "
                f"to ({config.num_layers - 1}, {config.num_heads - 1})"
            )
        given.add((int(layer), int(head)))
    return given
