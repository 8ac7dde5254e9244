"""Checks of notebook 14, ablation and activation patching."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.lessons.verdict import (
    UNANSWERED,
    Verdict,
    heads_named,
    not_yet,
    right,
    tried,
    whole,
)

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.lens.attribution import Attribution
    from gptj_lab.lens.patching import Patching
    from gptj_lab.lens.prompts import Pair


def recovered(function: Callable[..., Any]) -> Verdict:
    """Exercise 1: (patched, clean, corrupt) logit differences -> 0 at corrupt, 1 at clean."""
    for clean, corrupt in ((2.5, -4.4), (-1.0, 3.0), (5.0, 4.0)):
        for share in (0.0, 1.0, 0.3, -0.2, 1.4):
            patched = corrupt + share * (clean - corrupt)
            found = tried(function, (patched, clean, corrupt), ())
            if isinstance(found, Verdict):
                return found
            if share == 0 and abs(float(found) - 1) < 1e-6:
                return not_yet("that is 1 where nothing came back: clean and corrupt are swapped")
            if share < 0 < float(found):
                return not_yet("a patch that makes it worse has to be negative")
            if not np.isclose(float(found), share, atol=1e-6):
                slips = {
                    patched / clean: ". 0 has to lie at corrupt, not at 0 logits",
                    patched - corrupt: ". That is in logits: of how many in all?",
                    (patched - corrupt) / clean: ". The whole way leads from corrupt to clean",
                    100 * share: ". A share is asked for, not per cent",
                    min(max(share, 0), 1): ". A patch may do harm, or more than is needed",
                }
                hint = next((slips[v] for v in slips if np.isclose(float(found), v)), "")
                return not_yet(f"clean {clean}, corrupt {corrupt}, patched {patched:.2f}: yours "
                               f"gives {float(found):.2f}, it should be {share}{hint}")  # fmt: skip
    return right("0 at the corrupt prompt, 1 at the clean one, a straight line between and beyond.")


def few_heads(
    answer: Iterable[tuple[int, int]] | None, model: LanguageModel, compared: Pair,
    most: int = 5, least: float = 0.8,
) -> Verdict:  # fmt: skip
    """Exercise 2: at most `most` heads (layer, head) that together bring the answer back.

    Their clean z are put into the corrupt run all at once, at every position.
    """
    if answer is None:
        return UNANSWERED
    given = heads_named(answer, model, "[(0, 1), (3, 2)]")
    if isinstance(given, Verdict):
        return given
    if len(given) > most:
        return not_yet(f"{len(given)} heads are named, at most {most} are allowed")
    _, clean = run(model, compared.clean, sites=["blocks.*.attn.z"])
    patches = Interventions.none(model, len(compared.corrupt))
    for layer, head in given:
        value = clean[f"blocks.{layer}.attn.z"][:, head]
        patches = patches.patch("attn.z", layer, None, value, head=head)
    logits, _ = run(model, compared.corrupt, patches)
    share = float(compared.recovered(logits[compared.position]))
    if share < least:
        return not_yet(f"together they bring {share:.0%} back, {least:.0%} are asked for. The "
                       "grid of heads shows where more is to be had")  # fmt: skip
    return right(f"{len(given)} of {model.config.num_layers * model.config.num_heads} heads bring "
                 f"{share:.0%} of the answer back.")  # fmt: skip


def false_positive(
    answer: int | None, attribution: Attribution, mlps: Patching, size: float = 0.3
) -> Verdict:
    """Exercise 3: an MLP that wrote much towards the answer, and has nothing to do with it.

    Args:
        answer: the MLP's layer.
        attribution: of the answer's lead, on the clean prompt, at its last token.
        mlps: patches of "mlp_out" by layer and position.
        size: how large a share is much, in logits.
    """
    if answer is None:
        return UNANSWERED
    layers = len(attribution.mlps)
    if not whole(answer) or not 0 <= answer < layers:
        return not_yet(f"a layer from 0 to {layers - 1} is needed")
    share = float(attribution.mlps[answer])
    back = float(mlps.recovered[answer, attribution.position])
    if abs(share) < size:
        return not_yet(f"the MLP of layer {answer} wrote {share:+.2f} only: nobody would take it "
                       "for important")  # fmt: skip
    if abs(back) > 0.1:
        return not_yet(f"the MLP of layer {answer} does count: patched at the last token it brings "
                       f"{back:.0%} back")  # fmt: skip
    return right(f"it wrote {share:+.2f} logits, but writes nearly the same after the other "
                 f"prompt: patched there, {round(back, 2) + 0:.0%} comes back.")  # fmt: skip
