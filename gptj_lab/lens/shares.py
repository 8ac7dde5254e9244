"""The shares themselves: what each part's write adds to one logit, in one jitted program."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gptj_lab.lens import weights
from gptj_lab.lens.edits import Edits
from gptj_lab.lens.interventions import Interventions
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer

_EXACT = jax.lax.Precision.HIGHEST
_STREAM = (".resid_pre", ".attn_out", ".resid_mid", ".resid_post")  # not inside of any share


def direction(
    network: Transformer, pair: Int[Array, "two"], minus: Float[Array, ""]
) -> tuple[Float[Array, "d_model"], Float[Array, ""]]:
    """The unembedding's row of pair[0] minus `minus` times that of pair[1], and of its bias."""
    rows = weights.unembedding_rows(network, pair)
    sign = jnp.stack([jnp.ones_like(minus), -minus])
    bias = weights.unembedding_bias(network)
    shift = jnp.zeros(()) if bias is None else jnp.sum(bias[pair] * sign)
    return jnp.sum(rows * sign[:, None], axis=0), shift


@functools.partial(jax.jit, static_argnames="dtype")
def shares_of(
    network: Transformer, token_ids, position, pair, minus, interventions, dtype
) -> dict[str, jax.Array]:
    """The fields of `attribution.Attribution` that are numbers, as arrays.

    Args:
        token_ids: [batch, padded]; the first row counts.
        pair, minus: the token ids of two logits, of which the second counts `-minus` times.
        interventions: None for the plain forward pass.
    """
    wanted = ["embed", "position_embed"]
    for name in ("attn.z", "attn.v", "attn.pattern", "mlp_out"):
        wanted += [f"blocks.{layer}.{name}" for layer in range(len(network.blocks))]
    seen = _Kept(wanted, interventions, position)
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
            towards, network.final_ln.bias[...].astype(jnp.float32), precision=_EXACT
        ),
        "head_bias": head_bias,
        "edits": share(seen.edited) if seen.edited is not None else jnp.zeros(()),
        "scale": scale,
        "logit": logits[0] - minus * logits[1],
    }


class _Kept:
    """A site function that keeps the wanted sites, and what edits change in the stream itself.

    `edited` is the sum of all changes to it at the position, [d_model]; None if there can be none.
    What is edited within a part comes out in the part's own share.
    """

    def __init__(self, wanted: list[str], interventions: Interventions | None, position):
        edited = None if interventions is None else Edits(interventions, wanted=wanted)
        self.site = sites.Collector(wanted) if edited is None else edited
        self.values = self.site.values
        self.position = position
        self.edited: jax.Array | None = None
        self.watching = edited is not None

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        new = self.site(name, value)
        if self.watching and name.endswith(_STREAM):
            after, before = (x[0, self.position].astype(jnp.float32) for x in (new, value))
            change = after - before
            self.edited = change if self.edited is None else self.edited + change
        return new


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
