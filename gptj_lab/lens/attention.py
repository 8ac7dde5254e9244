"""What attention patterns say: how wide a head reads, and whether it is of a known kind.

Patterns are [..., heads, seq, kv_seq], each row a distribution over the tokens before. Scores are
means over queries: by default over those that have a choice, so not over the first; NaN where there
is no such query. Tokens after the queries that count (padding) never matter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Pattern = Float[Array | np.ndarray, "*layers heads seq kv_seq"]
Queries = Bool[Array | np.ndarray, "seq"] | None


@jax.jit
def entropy_of_queries(pattern: Pattern) -> Float[Array, "*layers heads seq"]:
    """The entropy of each query's row, in nats: exp of it is how many tokens it reads."""
    wide = pattern.astype(jnp.float32)
    return -(wide * jnp.log(jnp.where(wide > 0, wide, 1))).sum(-1)


@jax.jit
def entropy(pattern: Pattern, queries: Queries = None) -> Float[Array, "*layers heads"]:
    """The mean entropy of a head's rows, in nats."""
    return _mean(entropy_of_queries(pattern), _with_choice(pattern, queries))


@functools.partial(jax.jit, static_argnames="sinks")
def sink_mass(
    pattern: Pattern, queries: Queries = None, sinks: int = 1
) -> Float[Array, "*layers heads"]:
    """The share of a head's attention that the first `sinks` tokens get (Xiao et al. 2023)."""
    read = pattern[..., :sinks].astype(jnp.float32).sum(-1)
    return _mean(read, _with_choice(pattern, queries))


@functools.partial(jax.jit, static_argnames="sinks")
def without_sink(pattern: Pattern, sinks: int = 1) -> Float[Array, "*layers heads seq kv_seq"]:
    """The pattern over the other tokens alone, each row with sum 1 again.

    Rows that read nothing but the sink are zero.
    """
    rest = jnp.asarray(pattern, jnp.float32).at[..., :sinks].set(0)
    mass = rest.sum(-1, keepdims=True)
    return jnp.where(mass > 0, rest / jnp.where(mass > 0, mass, 1), 0)


@jax.jit
def previous_token_score(
    pattern: Pattern, queries: Queries = None
) -> Float[Array, "*layers heads"]:
    """The share that the token just before the query gets."""
    before = jnp.diagonal(pattern, offset=-1, axis1=-2, axis2=-1).astype(jnp.float32)
    before = jnp.pad(before, [(0, 0)] * (before.ndim - 1) + [(1, 0)])
    return _mean(before, _with_choice(pattern, queries))


@jax.jit
def duplicate_token_score(
    pattern: Pattern, token_ids: Int[Array | np.ndarray, "seq"], queries: Queries = None
) -> Float[Array, "*layers heads"]:
    """The share that earlier copies of the query's own token get, where there are any."""
    return _share_of(pattern, _same_before(jnp.asarray(token_ids)), queries)


@jax.jit
def induction_score(
    pattern: Pattern, token_ids: Int[Array | np.ndarray, "seq"], queries: Queries = None
) -> Float[Array, "*layers heads"]:
    """The share that tokens right after earlier copies of the query's token get (Olsson 2022).

    Mean over the queries whose token came before.
    """
    same = _same_before(jnp.asarray(token_ids))
    return _share_of(pattern, jnp.pad(same, ((0, 0), (1, 0)))[:, :-1], queries)


@jax.jit
def rollout(
    patterns: Float[Array | np.ndarray, "layers heads seq kv_seq"],
) -> Float[Array, "layers seq kv_seq"]:
    """How much each layer's tokens carry of each input token (Abnar and Zuidema 2020).

    The heads' mean, half of it the residual stream's own token, multiplied over the layers up to
    each. A heuristic: it knows nothing of values or MLPs.
    """
    mean = patterns.astype(jnp.float32).mean(1)
    own = jnp.eye(mean.shape[-1], dtype=jnp.float32)

    def layer(below: jax.Array, pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.matmul((pattern + own) / 2, below, precision=jax.lax.Precision.HIGHEST)
        return total, total

    return jax.lax.scan(layer, own, mean)[1]


def _same_before(token_ids: Int[Array, "seq"]) -> Bool[Array, "seq seq"]:
    """Of each query (row), which earlier tokens are the same as its own."""
    return jnp.tril(token_ids[:, None] == token_ids[None, :], -1)


def _share_of(
    pattern: Pattern, there: Bool[Array, "seq kv_seq"], queries: Queries
) -> Float[Array, "*layers heads"]:
    """The mean share of the marked tokens, over the queries that have any."""
    wide = pattern.astype(jnp.float32)
    share = (wide * jnp.broadcast_to(there.astype(jnp.float32), wide.shape)).sum(-1)
    where = there.any(-1)
    return _mean(share, where if queries is None else where & queries)


def _with_choice(pattern: Pattern, queries: Queries) -> Bool[Array, "seq"]:
    later = jnp.arange(pattern.shape[-2]) > 0
    return later if queries is None else later & queries


def _mean(
    values: Float[Array, "*layers heads seq"], where: Bool[Array, "seq"]
) -> Float[Array, "*layers heads"]:
    chosen = jnp.where(jnp.broadcast_to(where, values.shape), values, 0)
    count = where.sum()
    return jnp.where(count > 0, chosen.sum(-1) / jnp.maximum(count, 1), jnp.nan)
