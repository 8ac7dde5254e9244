"""The whole network on one page: x + attention(norm(x)) + mlp(norm(x)), over and over.

That is GPT-J. Where the config says so, the MLP reads what attention has written (GPT-2, GPT-Neo),
has a LayerNorm of its own, positions are learned, or the head is the embedding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.model import activations, sites
from gptj_lab.model.attention import Attention
from gptj_lab.model.cache import BlockCache, Cache
from gptj_lab.model.linear import Linear, product


class LayerNorm(nnx.Module):
    """Zero mean and unit variance over d_model, then scale and bias; computed in float32."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones(config.d_model))
        self.bias = nnx.Param(jnp.zeros(config.d_model))
        self.eps = config.layer_norm_eps

    def __call__(self, x: Float[Array, "batch seq d_model"]) -> Float[Array, "batch seq d_model"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        scale = self.scale[None, None].astype(jnp.float32)
        return (normal * scale + self.bias[None, None].astype(jnp.float32)).astype(x.dtype)


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, *, key: jax.Array):
        wide, narrow = jax.random.split(key)
        std = config.initializer_range
        self.fc_in = Linear(config.d_model, config.d_ff, bias=True, std=std, key=wide)
        self.fc_out = Linear(config.d_ff, config.d_model, bias=True, std=std, key=narrow)
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "batch seq d_model"], site: sites.Site
    ) -> Float[Array, "batch seq d_model"]:
        return self.fc_out(self.hidden(x, site))

    def hidden(
        self, x: Float[Array, "batch seq d_model"], site: sites.Site
    ) -> Float[Array, "batch seq d_ff"]:
        """The activations before the output matrix."""
        pre = site("mlp.pre", self.fc_in(x))
        return site("mlp.post", activations.FUNCTIONS[self.activation](pre))


class Block(nnx.Module):
    """Attention and MLP: in parallel, both on the same residual, or one after the other.

    `mesh` is set where the weights are cut over devices (mesh/sharding.py); None on one device.
    """

    mesh: jax.sharding.Mesh | None = None

    def __init__(self, config: ModelConfig, layer: int, *, key: jax.Array):
        attention, mlp = jax.random.split(key)
        self.ln = LayerNorm(config)
        self.attn = Attention(config, layer, key=attention)
        self.ln2 = None if config.shared_layer_norm else LayerNorm(config)
        self.mlp = MLP(config, key=mlp)
        self.parallel = config.parallel

    def __call__(
        self,
        x: Float[Array, "batch seq d_model"],
        positions: Int[Array, "batch seq"],
        cache: BlockCache | None,
        site: sites.Site,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq d_model"], BlockCache | None]:
        x = site("resid_pre", x)
        normal = site("ln", self.ln(x))
        if self.mesh is not None and self.parallel:
            written, cache = self._write_once(
                x, normal, positions, cache, site, segments, self.mesh
            )
            return site("resid_post", x + written), cache
        attended, cache = self.attn(normal, positions, cache, site, segments)
        attended = site("attn_out", attended)
        middle = x if self.parallel else site("resid_mid", x + attended)
        if self.ln2 is not None:
            normal = site("ln2", self.ln2(middle))
        computed = site("mlp_out", self.mlp(normal, site))
        total = x + attended + computed if self.parallel else middle + computed
        return site("resid_post", total), cache

    def matrices(self) -> dict[str, Linear]:
        """Its six products by their paths."""
        attn, mlp = self.attn, self.mlp
        return {
            "attn.q": attn.q, "attn.k": attn.k, "attn.v": attn.v, "attn.out": attn.out,
            "mlp.fc_in": mlp.fc_in, "mlp.fc_out": mlp.fc_out,
        }  # fmt: skip

    def _write_once(
        self,
        x: Float[Array, "batch seq d_model"],
        normal: Float[Array, "batch seq d_model"],
        positions: Int[Array, "batch seq"],
        cache: BlockCache | None,
        site: sites.Site,
        segments: Int[Array, "batch seq"] | None,
        mesh: jax.sharding.Mesh,
    ) -> tuple[Float[Array, "batch seq d_model"], BlockCache | None]:
        """What attention and MLP of a parallel block write together, and the cache, on a mesh.

        Each device adds up its part of both before the devices add up theirs: one all-reduce a
        block, the point of the parallel block (Wang and Komatsuzaki 2021). Attention's and the
        MLP's own sums are computed only where their sites are read or replaced; otherwise the
        compiler drops them.
        """
        z, cache = self.attn.mix(normal, positions, cache, site, segments)
        attention = self.attn.out.partial_sums(z, mesh)
        attended = self.attn.out.add_bias(attention.sum(0))
        replaced = site("attn_out", attended)
        if self.ln2 is not None:
            normal = site("ln2", self.ln2(x))
        mlp = self.mlp.fc_out.partial_sums(self.mlp.hidden(normal, site), mesh)
        computed = self.mlp.fc_out.add_bias(mlp.sum(0))
        replaced_too = site("mlp_out", computed)
        if replaced is not attended or replaced_too is not computed:
            return replaced + replaced_too, cache
        both = (attention + mlp).sum(0)
        return self.mlp.fc_out.add_bias(self.attn.out.add_bias(both)), cache


class SoftPromptTable(nnx.Param):
    """The vectors of virtual tokens, [length, d_model] in float32."""


class Transformer(nnx.Module):
    """GPT-J (Wang and Komatsuzaki 2021) and its relatives, as the config says."""

    def __init__(self, config: ModelConfig, *, key: jax.Array):
        embed, head, *blocks = jax.random.split(key, config.num_layers + 2)
        shape = (config.vocab_size, config.d_model)
        std = config.initializer_range
        self.embed = nnx.Param(std * jax.random.normal(embed, shape))
        self.position_embed = _position_embed(config, jax.random.fold_in(embed, 1))
        self.blocks = nnx.List([Block(config, i, key=block) for i, block in enumerate(blocks)])
        self.final_ln = LayerNorm(config)
        d, bias = config.d_model, config.head_bias
        tied = config.tied_embeddings  # then the embedding is the head
        self.head = None if tied else Linear(d, config.vocab_size, bias=bias, std=std, key=head)
        own = tied and bias  # GPT-J's head keeps its bias where its matrix is the embedding
        self.head_bias = nnx.Param(jnp.zeros(config.vocab_size)) if own else None
        self.soft_prompt: SoftPromptTable | None = nnx.data(None)  # of finetuning/soft_prompts.py

    def __call__(
        self,
        token_ids: Int[Array | np.ndarray, "batch seq"],
        *,
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        cache: Cache | None = None,
        site: sites.Site = sites.ignore,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "batch seq vocab"], Cache | None]:
        """Float32 logits of the next token at every position, and the cache with these tokens.

        Args:
            token_ids: shorter rows are padded on the right: causality hides the padding.
            positions: of the tokens, counted from 0; by default 0, 1, 2, ... in every row.
            segments: of the tokens: those of different ones don't see each other; not with a cache.
            cache: keys and values of earlier tokens, if any.
            site: called at each named place (see sites.py).
            dtype: of the activations; the weights are cast to it at each product.
        """
        x, cache = self.hidden(
            token_ids, positions=positions, segments=segments, cache=cache, site=site, dtype=dtype
        )
        return self.unembed(x, site=site), cache

    def hidden(
        self,
        token_ids: Int[Array | np.ndarray, "batch seq"],
        *,
        positions: Int[Array, "batch seq"] | None = None,
        segments: Int[Array, "batch seq"] | None = None,
        cache: Cache | None = None,
        site: sites.Site = sites.ignore,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "batch seq d_model"], Cache | None]:
        """The residual stream after the last block, before the final LayerNorm."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        x = self.embedded(token_ids, positions, dtype, site=site)
        layers: list[BlockCache | None] = []
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache[i]
            x, layer = block(x, positions, layer, functools.partial(_named, site, i), segments)
            layers.append(layer)
        return x, (None if cache is None else tuple(layers))  # type: ignore[return-value]

    def embedded(
        self,
        token_ids: Int[Array | np.ndarray, "batch seq"],
        positions: Int[Array, "batch seq"],
        dtype: DTypeLike,
        *,
        site: sites.Site = sites.ignore,
    ) -> Float[Array, "batch seq d_model"]:
        """The residual stream before the first block.

        Ids from vocab_size on are the virtual tokens of a soft prompt, where there is one.
        """
        x = self.embed[...][token_ids].astype(dtype)
        if self.soft_prompt is not None:
            number = token_ids - self.embed.shape[0]
            vectors = self.soft_prompt[...].astype(dtype)[jnp.maximum(number, 0)]
            x = jnp.where(number[..., None] >= 0, vectors, x)
        x = site("embed", x)
        if self.position_embed is not None:
            learned = self.position_embed[...][positions].astype(dtype)
            x = x + site("position_embed", learned)
        return x

    def unembed(
        self, x: Float[Array, "batch seq d_model"], *, site: sites.Site = sites.ignore
    ) -> Float[Array, "batch seq vocab"]:
        """Float32 logits of a residual stream."""
        normal = site("final_ln", self.final_ln(x))
        logits = from_normal(normal, self.embed, self.head, self.head_bias)
        return site("logits", logits.astype(jnp.float32))


def from_normal(
    normal: Float[Array, "*batch d_model"],
    embed: nnx.Param,
    head: Linear | None,
    head_bias: nnx.Param | None,
) -> Float[Array, "*batch vocab"]:
    """Logits of what the final LayerNorm has made, in its dtype.

    Args:
        head: None where it is the embedding; then `head_bias`, if there is one, is added.
    """
    if head is not None:
        return head(normal)
    logits = product(normal, embed[...])
    if head_bias is None:
        return logits
    bias = head_bias[...].astype(logits.dtype)
    return logits + jnp.expand_dims(bias, range(logits.ndim - 1))


def _position_embed(config: ModelConfig, key: jax.Array) -> nnx.Param | None:
    if config.positions != "learned":
        return None
    shape = (config.context, config.d_model)
    return nnx.Param(config.initializer_range * jax.random.normal(key, shape))


def _named(site: sites.Site, layer: int, name: str, value: jax.Array) -> jax.Array:
    return site(f"blocks.{layer}.{name}", value)
