"""Direct logit attribution: a logit as the sum of what each part wrote into the residual stream.

The residual stream is a sum, and the logit is linear in it once the final LayerNorm's standard
deviation is frozen at its value: so every part has a share, and the shares add up to the logit
(Elhage et al. 2021; Nostalgebraist's and TransformerLens' "logit attribution").
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs, weights
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer

TOLERANCE = 1e-4  # logits; what the sum may differ by in float32
_EXACT = jax.lax.Precision.HIGHEST
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
        heads_by_token: float32 [layers, heads, seq], the same by the token it was read from.
        attention_biases: float32 [layers], of attention's output bias; 0 where there is none.
        mlps: float32 [layers], what each MLP wrote without its output bias.
        mlp_biases: float32 [layers], of that bias.
        final_bias: share of the final LayerNorm's bias.
        head_bias: the unembedding's own bias; 0 where there is none.
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
        return parts | ({"head bias": self.head_bias} if self.head_bias else {})

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
) -> Attribution:
    """The shares of `token`'s logit after a prompt, or of its lead over `other`.

    Args:
        model: any family, any weights, on a mesh or not.
        prompt: a text or its token ids.
        token: the text of one token (" cat") or its id.
        other: a second token, whose logit is subtracted; shares that both have then cancel.
        position: the token after which the logit is read; negative ones count from the end.

    Raises:
        ValueError: more or less than one token, a position or id that isn't there, or a prompt
            that doesn't fit the context.
    """
    ids = inputs.token_ids_of(model, prompt)
    position = inputs.position_of(position, len(ids))
    first = inputs.token_id_of(model, token)
    second = None if other is None else inputs.token_id_of(model, other, "other")
    pair = np.array([first, first if second is None else second], np.int32)
    minus = np.float32(second is not None)
    graph, state = inputs.split(model)
    shares = inputs.host(
        _shares(graph, state, inputs.padded(model, ids), position, pair, minus, model.dtype)
    )
    shares["heads_by_token"] = shares["heads_by_token"][..., : len(ids)]
    tokens = inputs.display(model, ids)
    numbers: dict = {name: v if v.ndim else float(v) for name, v in shares.items()}
    return Attribution(
        tokens=tokens, token_ids=ids, position=position, token=first, other=second,
        subject=_subject(model, first, second, tokens, position), dtype=model.dtype, **numbers,
    )  # fmt: skip


def _subject(
    model: LanguageModel, token: int, other: int | None, tokens: tuple[str, ...], position: int
) -> str:
    name = model.tokenizer.display(token)
    what = f"logit of {name}" if other is None else (
        f"logit of {name} minus that of {model.tokenizer.display(other)}"
    )  # fmt: skip
    return f"{what}, after {tokens[position]} at position {position}"


def direction(
    network: Transformer, pair: Int[Array, "two"], minus: Float[Array, ""]
) -> tuple[Float[Array, "d_model"], Float[Array, ""]]:
    """The unembedding's row of pair[0] minus `minus` times that of pair[1], and of its bias."""
    rows = weights.unembedding(network)[pair]
    sign = jnp.stack([jnp.ones_like(minus), -minus])
    bias = weights.bias(network.head)
    shift = jnp.zeros(()) if bias is None else jnp.sum(bias[pair] * sign)
    return jnp.sum(rows * sign[:, None], axis=0), shift


@functools.partial(jax.jit, static_argnames=("graph", "dtype"))
def _shares(graph, state, token_ids, position, pair, minus, dtype) -> dict[str, jax.Array]:
    network: Transformer = nnx.merge(graph, state)
    wanted = ["embed", "position_embed"]
    for name in ("attn.z", "attn.v", "attn.pattern", "mlp_out"):
        wanted += [f"blocks.{layer}.{name}" for layer in range(len(network.blocks))]
    seen = sites.Collector(wanted)
    final, _ = network.hidden(token_ids, site=seen, dtype=dtype)
    final = jax.lax.dynamic_slice_in_dim(final, position, 1, axis=1)
    towards, head_bias = direction(network, pair, minus)
    logits = network.unembed(final)[0, 0, pair]

    wide = final[0, 0].astype(jnp.float32)
    scale = jax.lax.rsqrt(wide.var() + network.final_ln.eps)
    read = towards * weights.gain(network.final_ln)
    read = scale * (read - read.mean())  # the LayerNorm takes the mean off what was written

    def share(written: Float[Array, "d_model"]) -> Float[Array, ""]:
        return jnp.dot(written.astype(jnp.float32), read, precision=_EXACT)

    layers = [
        _block_shares(block, read, share, functools.partial(_at, seen.values, i, position))
        for i, block in enumerate(network.blocks)
    ]
    learned = seen.values.get("position_embed")
    return {
        "embed": share(seen.values["embed"][0, position]),
        "position_embed": jnp.zeros(()) if learned is None else share(learned[0, position]),
        **jax.tree.map(lambda *shares: jnp.stack(shares), *layers),
        "final_bias": jnp.dot(
            towards, network.final_ln.bias.get_value().astype(jnp.float32), precision=_EXACT
        ),
        "head_bias": head_bias,
        "scale": scale,
        "logit": logits[0] - minus * logits[1],
    }


def _at(values: dict[str, jax.Array], layer: int, position, name: str) -> jax.Array:
    """A site's float32 value at the position; `attn.v` at every position."""
    value = values[f"blocks.{layer}.{name}"][0].astype(jnp.float32)
    if name == "attn.v":
        return value
    return value[:, position] if name == "attn.pattern" else value[position]


def _block_shares(block, read, share, at) -> dict[str, jax.Array]:
    pulled = weights.pulled_back(block.attn.out, read, block.attn.num_heads)
    by_token = jnp.einsum("khd,hd->hk", at("attn.v"), pulled, precision=_EXACT)
    attention_bias, mlp_bias = weights.bias(block.attn.out), weights.bias(block.mlp.fc_out)
    from_bias = jnp.zeros(()) if mlp_bias is None else share(mlp_bias)
    return {
        "heads": jnp.einsum("hd,hd->h", at("attn.z"), pulled, precision=_EXACT),
        "heads_by_token": by_token * at("attn.pattern"),
        "attention_biases": jnp.zeros(()) if attention_bias is None else share(attention_bias),
        "mlps": share(at("mlp_out")) - from_bias,
        "mlp_biases": from_bias,
    }
