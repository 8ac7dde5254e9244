"""Ablation: what a prediction loses when a head or an MLP is taken away."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.inputs import Prompt, token_id_of, token_ids_of
from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.lens.prompts import check_same_length, kl, log_softmax, nll_of, shown
from gptj_lab.lens.sweeps import CHUNK_BYTES, Progress, each, goes_on, largest, store, use

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


class Means(NamedTuple):
    """Mean values over all tokens of a reference text, for mean ablation; float32."""

    z: Float[np.ndarray, "layers heads d_head"]
    mlp_out: Float[np.ndarray, "layers d_model"]


Reference = Means | str | Sequence[Any]  # a text or token ids, or several of them


@dataclasses.dataclass(frozen=True)
class Effects:
    """What ablating each component does to the prediction after one position of a prompt.

    Attributes:
        component: "heads", or "mlps".
        logprob: change of the answer's log-probability in nats, float64 [layers, heads] or
            [layers]; below 0 the component helps the answer. NaN where a sweep was cancelled.
        logit_difference: change of logit(answer) - logit(instead); None without `instead`.
        kl: KL(plain || ablated) in nats.
        nll: change of the prompt's own mean negative log-likelihood in nats a token.
        answer, instead: token ids.
        plain_logits: float32 [vocab], without ablation.
    """

    component: str
    logprob: Float[np.ndarray, "..."]
    logit_difference: Float[np.ndarray, "..."] | None
    kl: Float[np.ndarray, "..."]
    nll: Float[np.ndarray, "..."]
    answer: int
    instead: int | None
    plain_logits: Float[np.ndarray, "vocab"]

    def __repr__(self) -> str:
        said = f"{self.component} ablated: largest changes of log p(token {self.answer}), in nats"
        return "\n".join([said, *largest(self.logprob, "head")])


def means(model: "LanguageModel", texts: str | Sequence[Any]) -> Means:
    """Each head's z and each MLP's output, averaged over every token of the reference texts.

    Args:
        model: any LanguageModel.
        texts: a text or token ids, or several of either.

    Raises:
        ValueError: no text, or one that doesn't fit the context.
    """
    one = isinstance(texts, str) or (len(texts) and isinstance(texts[0], int | np.integer))
    several = [texts] if one else texts
    config, count = model.config, 0
    z = np.zeros((config.num_layers, config.num_heads, config.d_head))
    mlp_out = np.zeros((config.num_layers, config.d_model))
    for text in several:
        ids = token_ids_of(model, text)
        _, values = run(model, ids, sites=["blocks.*.attn.z", "blocks.*.mlp_out"])
        for layer in range(config.num_layers):
            z[layer] += values[f"blocks.{layer}.attn.z"].sum(0, dtype=np.float64)
            mlp_out[layer] += values[f"blocks.{layer}.mlp_out"].sum(0, dtype=np.float64)
        count += len(ids)
    if not count:
        raise ValueError("means need at least one reference text")
    return Means((z / count).astype(np.float32), (mlp_out / count).astype(np.float32))


def heads(
    model: "LanguageModel", prompt: Prompt, how: str = "zero",
    reference: Reference | None = None, **measure: Any,
) -> Effects:  # fmt: skip
    """The effect of ablating each head, one at a time, at every position.

    Args:
        model: any LanguageModel.
        prompt: text or token ids.
        how: "zero"; "mean" over a reference text; or "resample", each position's value in another
            prompt of as many tokens.
        reference: for "mean" a text or what `means` returns, for "resample" the other prompt.
        measure: `answer` and `instead` (a token or its id; the answer is the likeliest next token
            by default), `position` (-1), `progress` (called with cells done and in total; False
            cancels) and `chunk_bytes`.

    Raises:
        ValueError: a reference that is missing or has another number of tokens; what `token_id_of`
            and `run` refuse.
    """
    config = model.config
    ids = token_ids_of(model, prompt).tolist()
    base, rows = _replacements(model, ids, how, reference, "attn.z")

    def make(cell: int) -> Interventions:
        layer, head = divmod(cell, config.num_heads)
        return use(base, rows[layer], "attn.z", layer, head=head)

    shape = (config.num_layers, config.num_heads)
    return _measure(model, ids, base, make, "heads", shape, **measure)


def mlps(
    model: "LanguageModel", prompt: Prompt, how: str = "zero",
    reference: Reference | None = None, **measure: Any,
) -> Effects:  # fmt: skip
    """The effect of ablating each MLP, one at a time; arguments and errors as `heads`."""
    ids = token_ids_of(model, prompt).tolist()
    base, rows = _replacements(model, ids, how, reference, "mlp_out")

    def make(layer: int) -> Interventions:
        return use(base, rows[layer], "mlp_out", layer)

    return _measure(model, ids, base, make, "mlps", (model.config.num_layers,), **measure)


def _replacements(
    model: "LanguageModel",
    ids: list[int],
    how: str,
    reference: Reference | None,
    site: str,
) -> tuple[Interventions, list[int]]:
    """Interventions that hold each layer's values to put in place, and their rows."""
    config, none = model.config, Interventions.none(model, len(ids))
    if how == "zero":
        return none, [0] * config.num_layers
    if how not in ("mean", "resample"):
        raise ValueError(f"how is {how!r}: 'zero', 'mean' or 'resample' is needed")
    if reference is None:
        raise ValueError(
            f"how={how!r} needs a reference: a text to average over, or another prompt of as many "
            "tokens"
        )
    if how == "mean":
        mean = reference if isinstance(reference, Means) else means(model, reference)
        value = (mean.z if site == "attn.z" else mean.mlp_out).reshape(config.num_layers, 1, -1)
        return store(none, np.repeat(value, none.seq, axis=1))
    if isinstance(reference, Means):
        raise ValueError("how='resample' takes another prompt as its reference, not means")
    other = token_ids_of(model, reference).tolist()
    check_same_length(model, ids, other, ("ablated", "reference"))
    _, values = run(model, other, sites=[f"blocks.*.{site}"])
    return store(none, np.stack([v.reshape(len(ids), -1) for v in values.values()]))


def _measure(
    model: "LanguageModel", ids: list[int], base: Interventions,
    make: Callable[[int], Interventions], component: str, shape: tuple[int, ...], *,
    answer: str | int | None = None, instead: str | int | None = None, position: int = -1,
    progress: Progress | None = None, chunk_bytes: int = CHUNK_BYTES,
) -> Effects:  # fmt: skip
    logits, _ = run(model, ids)
    (at,) = base.indices(position)
    before, before_nll = logits[at], nll_of(logits, ids)
    right = int(before.argmax()) if answer is None else token_id_of(model, answer, "answer")
    wrong = None if instead is None else token_id_of(model, instead, "instead")
    if right == wrong:
        raise ValueError(f"answer and instead are both {shown(model, [right])}: name two tokens")
    total = int(np.prod(shape))
    logprob, gap, divergence, nll = (np.full(total, np.nan) for _ in range(4))
    for chunk in each(
        model, ids, base, make, total, position=position, score_text=True, chunk_bytes=chunk_bytes
    ):
        part = slice(chunk.start, chunk.start + len(chunk.logits))
        change = chunk.logits.astype(np.float64) - before
        logprob[part] = (log_softmax(chunk.logits) - log_softmax(before))[:, right]
        gap[part] = np.nan if wrong is None else change[:, right] - change[:, wrong]
        divergence[part] = kl(before, chunk.logits)
        nll[part] = chunk.nll - before_nll  # type: ignore[operator]
        if not goes_on(progress, part.stop, total):
            break
    return Effects(
        component, logprob.reshape(shape), None if wrong is None else gap.reshape(shape),
        divergence.reshape(shape), nll.reshape(shape), right, wrong, before,
    )  # fmt: skip
