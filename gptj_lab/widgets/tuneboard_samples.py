"""Samples of a run, with what is new in each since the evaluation before it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 4000  # characters of a sample that are shown and compared


def samples(evaluations: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any]:
    """The `samples` answer: an evaluation's texts in pieces, each with whether it is new.

    Raises:
        ValueError: there is no such evaluation.
    """
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(evaluations):
        raise ValueError(f"evaluation is {index!r}: there are {len(evaluations)}, from 0 on")
    chosen = evaluations[index]
    before = {each["prompt"]: each["text"] for each in evaluations[index - 1]["samples"]}
    items = [
        {
            "prompt": each["prompt"],
            "pieces": pieces(before.get(each["prompt"]) if index else None, each["text"]),
        }
        for each in chosen.get("samples") or ()
    ]
    return {
        "op": "samples", "index": index, "count": len(evaluations), "step": chosen["step"],
        "items": items,
    }  # fmt: skip


def pieces(before: str | None, text: str) -> list[tuple[str, bool]]:
    """A text in pieces of words, each with whether `before` lacks it; nothing is new at first.

    >>> pieces("the cat sat", "the dog sat")
    [('the ', False), ('dog', True), (' sat', False)]
    """
    text = text[:_MOST]
    if before is None:
        return [(text, False)]
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", each) for each in (before[:_MOST], text))
    found: list[tuple[str, bool]] = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if start < stop:
            found.append(("".join(new[start:stop]), kind != "equal"))
    return found
