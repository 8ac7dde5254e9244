"""Keys and values of the tokens already seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from gptj_lab.config import ModelConfig


class LayerCache(NamedTuple):
    """Rotated keys, and values, of one block; row r's token at position p lies in [r, :, p].

    Heads come before positions: attention then reads the cache as it lies, without transposing it.
    """

    keys: Float[Array, "batch heads kv_seq d_head"]
    values: Float[Array, "batch heads kv_seq d_head"]

    def write(
        self,
        keys: Float[Array, "batch seq heads d_head"],
        values: Float[Array, "batch seq heads d_head"],
        positions: Int[Array, "batch seq"],
    ) -> "LayerCache":
        """The cache with new tokens at their positions; those past the end are dropped."""

        # Row by row, so that rows on other devices needn't be exchanged.
        @jax.vmap
        def put(row: jax.Array, new: jax.Array, places: jax.Array) -> jax.Array:
            return row.at[:, places].set(new.swapaxes(0, 1), mode="drop")

        return LayerCache(put(self.keys, keys, positions), put(self.values, values, positions))

    def read(self) -> tuple[Float[Array, "batch heads kv_seq d_head"], ...]:
        """The keys and the values."""
        return self.keys, self.values


class OneRow(NamedTuple):
    """The LayerCache of a single row without its first axis, to decode in a loop.

    XLA drops an axis of 1 before a product. Where the cache had one, the loop copied it whole for
    every token; without, it writes in place.
    """

    keys: Float[Array, "heads kv_seq d_head"]
    values: Float[Array, "heads kv_seq d_head"]

    def write(
        self,
        keys: Float[Array, "1 1 heads d_head"],
        values: Float[Array, "1 1 heads d_head"],
        positions: Int[Array, "1 1"],
    ) -> "OneRow":
        """The cache with one new token at its position, which lies inside."""
        start = (0, positions[0, 0], 0)
        return OneRow(*(
            jax.lax.dynamic_update_slice(old, new[0].swapaxes(0, 1).astype(old.dtype), start)
            for old, new in ((self.keys, keys), (self.values, values))
        ))  # fmt: skip

    def read(self) -> tuple[Float[Array, "1 heads kv_seq d_head"], ...]:
        """The keys and the values."""
        return self.keys[None], self.values[None]


BlockCache = LayerCache | OneRow
Cache = tuple[BlockCache, ...]


def empty_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike) -> Cache:
    """A cache of zeros with room for `length` tokens in each of `batch` rows."""
    shape = (batch, config.num_heads, length, config.d_head)
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        for _ in range(config.num_layers)
    )


def cache_bytes(cache: Cache) -> int:
    """Bytes that the cache holds on all devices together."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
