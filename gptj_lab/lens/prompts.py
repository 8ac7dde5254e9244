"""The prompts that causal experiments compare: tokens, and which answer is right."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.inputs import Prompt, token_id_of, token_ids_of
from gptj_lab.lens.interventions import Interventions, run

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


def shown(model: "LanguageModel", ids: Sequence[int]) -> str:
    """Tokens as a person should see them, each in bars: `|the|␣cat|`."""
    return f"|{'|'.join(map(model.tokenizer.display, ids))}|"


def check_same_length(
    model: "LanguageModel", first: Sequence[int], second: Sequence[int],
    names: tuple[str, str] = ("clean", "corrupt"),
) -> None:  # fmt: skip
    """Nothing, if both have as many tokens.

    Raises:
        ValueError: they don't; the message says which tokens each has where they part.
    """
    if len(first) == len(second):
        return
    raise ValueError(
        f"the {names[0]} prompt has {len(first)} tokens, the {names[1]} one {len(second)}. "
        f"{parting(model, first, second)}. A position of one has to mean the same in the other: "
        "choose words of as many tokens"
    )


def parting(model: "LanguageModel", first: Sequence[int], second: Sequence[int]) -> str:
    """Where two texts part, and which tokens each has there."""
    unequal = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    at = next(unequal, min(len(first), len(second)))
    parts = (
        shown(model, ids[at : at + 5]) if len(ids) > at else "nothing" for ids in (first, second)
    )
    return f"They part at position {at}: {next(parts)} against {next(parts)}"


def log_softmax(logits: Float[np.ndarray, "*rows vocab"]) -> Float[np.ndarray, "*rows vocab"]:
    """Log-probabilities in nats, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def nll_of(logits: Float[np.ndarray, "seq vocab"], ids: Sequence[int]) -> float:
    """Mean negative log-likelihood of a text's own tokens after the first, nats a token."""
    if len(ids) < 2:
        return 0.0
    said = log_softmax(logits[:-1])
    return -float(said[np.arange(len(ids) - 1), list(ids[1:])].mean())


def kl(
    before: Float[np.ndarray, "vocab"], after: Float[np.ndarray, "*rows vocab"]
) -> Float[np.ndarray, "*rows"]:
    """KL(before || after) in nats of the distributions that logits stand for, float64."""
    p, q = log_softmax(before), log_softmax(after)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt of as many tokens, and the answers that they should get.

    Attributes:
        clean, corrupt: token ids.
        answer, instead: ids of the clean prompt's answer and of the corrupt one's.
        position: token after which the answer is read, counted from 0.
        clean_logits, corrupt_logits: float32 [vocab] there.
    """

    clean: list[int]
    corrupt: list[int]
    answer: int
    instead: int
    position: int
    clean_logits: Float[np.ndarray, "vocab"]
    corrupt_logits: Float[np.ndarray, "vocab"]

    @property
    def first_difference(self) -> int:
        """The first position whose tokens differ; before it nothing can be told apart."""
        return next(
            i for i, (a, b) in enumerate(zip(self.clean, self.corrupt, strict=True)) if a != b
        )

    def logit_difference(self, logits: Float[np.ndarray, "*rows vocab"]) -> np.ndarray:
        """logit(answer) - logit(instead), float64 [rows]."""
        wide = logits.astype(np.float64)
        return wide[..., self.answer] - wide[..., self.instead]

    def recovered(self, logits: Float[np.ndarray, "*rows vocab"]) -> np.ndarray:
        """The logit difference, 0 where it is the corrupt prompt's and 1 where the clean one's."""
        corrupt = self.logit_difference(self.corrupt_logits)
        clean = self.logit_difference(self.clean_logits)
        return (self.logit_difference(logits) - corrupt) / (clean - corrupt)


def pair(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt, answer: str | int | None = None,
    instead: str | int | None = None, position: int = -1,
) -> Pair:  # fmt: skip
    """Both prompts run once, and the answers: by default each prompt's likeliest next token.

    Raises:
        ValueError: token counts differ (the message says which tokens), the prompts are the same,
            an answer is not one token, or the answers can't tell the prompts apart.
    """
    return traced_pair(model, clean, corrupt, answer, instead, position)[0]


def traced_pair(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt, answer: str | int | None,
    instead: str | int | None, position: int, sites: Sequence[str] = (),
) -> tuple[Pair, dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """As `pair`, with the values at sites in the clean and in the corrupt run."""
    first, second = (token_ids_of(model, prompt).tolist() for prompt in (clean, corrupt))
    check_same_length(model, first, second)
    if first == second:
        raise ValueError("clean and corrupt are the same tokens: nothing could be traced back")
    (at,) = Interventions.none(model, len(first)).indices(position)
    (clean_logits, clean_values), (corrupt_logits, corrupt_values) = (
        run(model, ids, sites=sites) for ids in (first, second)
    )
    right = (
        int(clean_logits[at].argmax()) if answer is None else token_id_of(model, answer, "answer")
    )
    wrong = (
        int(corrupt_logits[at].argmax())
        if instead is None
        else token_id_of(model, instead, "instead")
    )
    made = Pair(first, second, right, wrong, int(at), clean_logits[at], corrupt_logits[at])
    gap = made.logit_difference(made.clean_logits) - made.logit_difference(made.corrupt_logits)
    if right == wrong or abs(gap) < 1e-6:
        raise ValueError(
            f"{shown(model, [right])} minus {shown(model, [wrong])} is the same after both "
            "prompts: name answer= and instead= such that the prompts differ in them"
        )
    return made, dict(clean_values), dict(corrupt_values)
