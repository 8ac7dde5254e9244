"""Causal self-attention, over everything before or over a local window."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab import versions
from gptj_lab.config import ModelConfig
from gptj_lab.model import narrow
from gptj_lab.model.cache import BlockCache
from gptj_lab.model.linear import Linear
from gptj_lab.model.positions import rotary_angles, rotate
from gptj_lab.model.sites import Site, ignore

EVERYONE = -1  # the segment of a soft prompt: tokens of every segment see it


class Attention(nnx.Module):
    """Attention of the block `layer`; what the config leaves off costs nothing."""

    def __init__(self, config: ModelConfig, layer: int, *, key: jax.Array):
        d, std = config.d_model, config.initializer_range
        q, k, v, out = jax.random.split(key, 4)
        self.q = Linear(d, d, bias=config.qkv_bias, std=std, key=q)
        self.k = Linear(d, d, bias=config.qkv_bias, std=std, key=k)
        self.v = Linear(d, d, bias=config.qkv_bias, std=std, key=v)
        self.out = Linear(d, d, bias=config.attn_out_bias, std=std, key=out)
        self.num_heads = config.num_heads
        self.positions = config.positions
        self.d_rotary = config.d_rotary
        self.rotary_base = config.rotary_base
        self.rotary_scaling = config.rotary_scaling
        self.divisor = config.score_divisor(layer)
        self.window = config.local_window(layer)

    def __call__(
        self,
        x: Float[Array, "batch seq d_model"],
        positions: Int[Array, "batch seq"],
        cache: BlockCache | None,
        site: Site,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq d_model"], BlockCache | None]:
        """What attention writes into the residual stream, and the cache with these tokens."""
        z, cache = self.mix(x, positions, cache, site, segments)
        return self.out(z), cache

    def mix(
        self,
        x: Float[Array, "batch seq d_model"],
        positions: Int[Array, "batch seq"],
        cache: BlockCache | None,
        site: Site,
        segments: Int[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq d_model"], BlockCache | None]:
        """The heads' results side by side, before the output matrix, and the cache.

        Tokens of different segments don't see each other; within one, positions count from 0.
        """
        batch, seq, d_model = x.shape
        heads = (batch, seq, self.num_heads, d_model // self.num_heads)
        turn = self._rotation(positions)
        q = site("attn.q", turn(self.q(x).reshape(heads)))
        k = site("attn.k", turn(self.k(x).reshape(heads)))
        v = site("attn.v", self.v(x).reshape(heads))

        if cache is None:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # heads before positions, as in the cache
            kv_positions = positions
        else:
            cache = cache.write(k, v, positions)
            k, v = (kept.astype(x.dtype) for kept in cache.read())
            kv_positions = jnp.arange(k.shape[2])[None, :]
        seen = kv_positions[:, None, None, :] <= positions[:, None, :, None]
        if self.window is not None:
            oldest = positions[:, None, :, None] - self.window
            seen = seen & (kv_positions[:, None, None, :] > oldest)
        if segments is not None:
            alike = segments[:, None, None, :] == segments[:, None, :, None]
            seen = seen & (alike | (segments[:, None, None, :] == EVERYONE))

        if narrow.wanted() and cache is None and site is ignore:
            read: jax.Array = narrow.attend(q.swapaxes(1, 2), k, v, seen, 1 / self.divisor)  # type: ignore
            return read.swapaxes(1, 2).reshape(batch, seq, d_model), None

        # Scores and softmax in float32, as Hugging Face's GPT-J does.
        wide = {"preferred_element_type": jnp.float32}
        if seq == 1:  # keys first: on the CPU they are read as they lie, and not turned
            scores = jnp.einsum("bhkd,bhd->bhk", *versions.factors(k, q[:, 0]), **wide)[:, :, None]
        else:
            scores = jnp.einsum("bqhd,bhkd->bhqk", *versions.factors(q, k), **wide)
        if self.divisor != 1:
            scores = scores / self.divisor
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        scores = site("attn.scores", scores)
        pattern = site("attn.pattern", jax.nn.softmax(scores, axis=-1).astype(x.dtype))
        # Transposed after the product: on the CPU four times as fast as a product that transposes.
        z = site("attn.z", jnp.einsum("bhqk,bhkd->bhqd", pattern, v).swapaxes(1, 2))
        return z.reshape(batch, seq, d_model), cache

    def _rotation(self, positions: Int[Array, "batch seq"]) -> Callable[[jax.Array], jax.Array]:
        """What turns queries and keys by their positions; nothing where positions are learned."""
        if self.positions == "learned":
            return lambda x: x
        angles = rotary_angles(positions, self.d_rotary, self.rotary_base, self.rotary_scaling)
        interleaved = self.positions == "rotary_interleaved"
        if narrow.wanted() and interleaved:
            return functools.partial(narrow.rotate, angles=angles)
        return functools.partial(rotate, angles=angles, interleaved=interleaved)
