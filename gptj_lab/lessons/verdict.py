"""Verdict: what a check says about an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


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
