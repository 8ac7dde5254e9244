"""Direct logit attribution: a logit as the sum of what each part wrote into the residual stream.

The residual stream is a sum, and the logit is linear in it once the final LayerNorm's standard
deviation is frozen at its value: so every part has a share, and the shares add up to the logit
(Elhage et al. 2021).
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs
from gptj_lab.lens.edits import STREAMS
from gptj_lab.lens.interventions import Interventions, check_fits
from gptj_lab.lens.shares import shares_of

TOLERANCE = 1e-4  # logits; what the sum may differ by in float32
_SHOWN = 10  # parts that a repr lists


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Shares of one logit, or of a difference of two, in logits. `repr` prints the sum check.

    Attributes:
        tokens: the prompt's tokens as a person should see them; `token_ids` their ids.
        position: of the token whose next-token logit is split up, counted from 0.
        token, other: ids; the logit of `token`, minus that of `other` if it is not None.
        subject: what is split up, in words.
        embed: share of the token embedding.
        position_embed: share of the learned position; 0 where positions are rotary.
        heads: float32 [layers, heads], what each head wrote, its value bias included.
        heads_by_token: float32 [layers, heads, seq], the same by the token it was read from (as
            the head's pattern has it: an intervention on its z isn't split up).
        attention_biases: float32 [layers], of attention's output bias; 0 where there is none.
        mlps: float32 [layers], what each MLP wrote without its output bias.
        mlp_biases: float32 [layers], of that bias.
        final_bias: share of the final LayerNorm's bias.
        head_bias: the unembedding's own bias; 0 where there is none.
        edits: share of what interventions put into the residual stream itself, in place of what the
            parts had written; 0 without any.
        scale: 1 / standard deviation in the final LayerNorm, frozen.
        logit: the model's own logit (or difference), from its forward pass.
        dtype: of the activations.
    """

    tokens: tuple[str, ...]
    token_ids: Int[np.ndarray, "seq"]
    position: int
    token: int
    other: int | None
    subject: str
    embed: float
    position_embed: float
    heads: Float[np.ndarray, "layers heads"]
    heads_by_token: Float[np.ndarray, "layers heads seq"]
    attention_biases: Float[np.ndarray, "layers"]
    mlps: Float[np.ndarray, "layers"]
    mlp_biases: Float[np.ndarray, "layers"]
    final_bias: float
    head_bias: float
    edits: float
    scale: float
    logit: float
    dtype: str

    @property
    def parts(self) -> dict[str, float]:
        """Every share by name, in the order of the computation: "L3H5" is head 5 of layer 3.

        What the network doesn't have (learned positions, some biases) is left out.
        """
        parts = {"embed": self.embed}
        if self.position_embed:
            parts["position_embed"] = self.position_embed
        for layer, heads in enumerate(self.heads):
            parts |= {f"L{layer}H{head}": float(share) for head, share in enumerate(heads)}
            if self.attention_biases.any():
                parts[f"L{layer} attention bias"] = float(self.attention_biases[layer])
            parts[f"L{layer} MLP"] = float(self.mlps[layer])
            parts[f"L{layer} MLP bias"] = float(self.mlp_biases[layer])
        parts["final LayerNorm bias"] = self.final_bias
        last = {"head bias": self.head_bias, "interventions": self.edits}
        return parts | {name: share for name, share in last.items() if share}

    @property
    def total(self) -> float:
        """The sum of all shares, in logits."""
        return float(np.sum(np.array(list(self.parts.values()), np.float64)))

    def largest(self, count: int = _SHOWN) -> list[tuple[str, float]]:
        """The `count` largest shares by size, name and signed value, largest first."""
        return sorted(self.parts.items(), key=lambda part: -abs(part[1]))[:count]

    def by_layer(self) -> Float[np.ndarray, "layers"]:
        """What each block as a whole wrote towards the logit."""
        return self.heads.sum(1) + self.attention_biases + self.mlps + self.mlp_biases

    def __repr__(self) -> str:
        lines = [self.subject]
        largest = self.largest()
        lines += [f"  {name:<21} {share:+9.4f}" for name, share in largest]
        rest = self.total - sum(share for _, share in largest)
        others = f"{len(self.parts) - len(largest)} others"
        lines.append(f"  {others:<21} {rest:+9.4f}")
        return "\n".join([*lines, f"  {'sum':<21} {self.total:+9.4f}   {self._check()}"])

    def _check(self) -> str:
        off = abs(self.total - self.logit)
        said = f"the model's own is {self.logit:+.4f}, {off:.1e} off"
        if off <= TOLERANCE:
            return f"{said}: the sum holds within {TOLERANCE:g}"
        return f"{said}: that is the rounding of {self.dtype} sums of this size"


def attribute(
    model: LanguageModel,
    prompt: inputs.Prompt,
    token: str | int,
    other: str | int | None = None,
    position: int = -1,
    interventions: Interventions | None = None,
) -> Attribution:
    """The shares of `token`'s logit after a prompt, or of its lead over `other`.

    Args:
        model: any family, any weights, on a mesh or not.
        prompt: a text or its token ids.
        token: the text of one token (" cat") or its id.
        other: a second token, whose logit is subtracted; shares that both have then cancel.
        position: the token after which the logit is read; negative ones count from the end.
        interventions: under which the logit is split up; all but edits of final_ln are possible.

    Raises:
        ValueError: more or less than one token, a position or id that isn't there, a prompt that
            doesn't fit the context, or interventions that don't fit the prompt.
    """
    ids = inputs.token_ids_of(model, prompt)
    position = inputs.position_of(position, len(ids))
    first = inputs.token_id_of(model, token)
    second = None if other is None else inputs.token_id_of(model, other, "other")
    pair = np.array([first, first if second is None else second], np.int32)
    minus = np.float32(second is not None)
    rows = inputs.padded(model, ids)
    if interventions is not None:
        _check_linear(interventions, model, ids, rows.shape[1])
    found = shares_of(model.network, rows, position, pair, minus, interventions, model.dtype)
    shares = inputs.host(found)
    shares["heads_by_token"] = shares["heads_by_token"][..., : len(ids)]
    tokens = inputs.display(model, ids)
    numbers: dict = {name: v if v.ndim else float(v) for name, v in shares.items()}
    return Attribution(
        tokens=tokens, token_ids=ids, position=position, token=first, other=second,
        subject=_subject(model, first, second, tokens, position), dtype=model.dtype, **numbers,
    )  # fmt: skip


def _check_linear(interventions: Interventions, model: LanguageModel, ids, padded: int) -> None:
    """Nothing, if the logit is still a sum of shares, and the interventions fit the prompt."""
    check_fits(interventions, model, len(ids))
    if interventions.seq != padded:
        raise ValueError(
            f"the interventions are for prompts padded to {interventions.seq} tokens, this one is "
            f"padded to {padded}: make them with Interventions.none(model, {len(ids)})"
        )
    index = STREAMS.index("final_ln")
    if (interventions.keep[index] != 1).any() or interventions.gain[index].any():
        raise ValueError(
            "the interventions edit final_ln, after which the logit is no sum of what parts wrote: "
            "edit resid_post of the last block instead"
        )


def _subject(
    model: LanguageModel, token: int, other: int | None, tokens: tuple[str, ...], position: int
) -> str:
    name = model.tokenizer.display(token)
    what = f"logit of {name}" if other is None else (
        f"logit of {name} minus that of {model.tokenizer.display(other)}"
    )  # fmt: skip
    return f"{what}, after {tokens[position]} at position {position}"
