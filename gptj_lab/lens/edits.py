"""What interventions do inside the network: the site function that edits and collects."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gptj_lab.model.sites import Collector
from gptj_lab.model.transformer import Transformer

if TYPE_CHECKING:
    from gptj_lab.lens.interventions import Interventions

# The sites that can be edited, by what an entry of the value is: a token, or a token's head.
STREAMS = (
    "embed", "position_embed", "resid_pre", "ln", "attn_out", "resid_mid", "ln2", "mlp_out",
    "resid_post", "final_ln", "mlp.pre", "mlp.post",
)  # fmt: skip
WIDE = ("mlp.pre", "mlp.post")  # of STREAMS, those that are d_ff wide instead of d_model
OUTSIDE = ("embed", "position_embed", "final_ln")  # those of no block
HEADS = ("attn.q", "attn.k", "attn.v", "attn.z")


class Edits:
    """A site function that applies interventions to every row, and keeps the `wanted` sites.

    Args:
        interventions: their arrays; those that `by_row` names have a leading axis of rows.
        by_row: fields of the interventions that differ from row to row.
        wanted: names of the sites to keep, after the edit, in `values`.
    """

    def __init__(
        self, interventions: "Interventions", by_row: Sequence[str] = (), wanted: Sequence[str] = ()
    ):
        self.interventions = interventions
        self.by_row = tuple(by_row)
        self.collect = Collector(wanted)
        self._scores: jax.Array | None = None

    @property
    def values(self) -> dict[str, jax.Array]:
        """The values of the wanted sites, after the edits."""
        return self.collect.values

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        layer, site = place(name)
        if site in STREAMS:
            edit: Callable[..., jax.Array] = functools.partial(_stream, site, layer)
        elif site in HEADS:
            edit = functools.partial(_heads, site, layer)
        elif site == "attn.pattern":
            edit = functools.partial(_attention, layer)
            value = self._row_by_row(edit, (self._scores, value))
            return self.collect(name, value)
        else:
            if site == "attn.scores":
                self._scores = value
            return self.collect(name, value)
        return self.collect(name, self._row_by_row(edit, value))

    def _row_by_row(self, edit: Callable[..., jax.Array], value: Any) -> jax.Array:
        def one(fields: dict[str, jax.Array], row: Any) -> jax.Array:
            return edit(dataclasses.replace(self.interventions, **fields), row)

        fields = {name: getattr(self.interventions, name) for name in self.by_row}
        return jax.vmap(one)(fields, value)


def place(name: str) -> tuple[int, str]:
    """The block's number (0 outside of blocks) and the site's name within it.

    >>> place("blocks.3.attn.z"), place("final_ln")
    ((3, 'attn.z'), (0, 'final_ln'))
    """
    if not name.startswith("blocks."):
        return 0, name
    _, layer, site = name.split(".", 2)
    return int(layer), site


def _affine(x: jax.Array, keep: jax.Array, gain: jax.Array, vector: jax.Array) -> jax.Array:
    """`keep * x + gain * vector`; where keep is 0, not even a NaN of x stays."""
    kept = jnp.where(keep == 0, jnp.zeros((), x.dtype), x * keep.astype(x.dtype))
    return kept + (gain * vector).astype(x.dtype)


def _stream(
    site: str, layer: int, what: "Interventions", x: Float[Array, "seq width"]
) -> Float[Array, "seq width"]:
    index = STREAMS.index(site)
    table = what.wide_vectors if site in WIDE else what.vectors
    keep, gain = what.keep[index, layer, :, None], what.gain[index, layer, :, None]
    return _affine(x, keep, gain, table[what.slots[index, layer]])


def _heads(
    site: str, layer: int, what: "Interventions", x: Float[Array, "seq heads d_head"]
) -> Float[Array, "seq heads d_head"]:
    index = HEADS.index(site)
    keep, gain = what.head_keep[index, layer, ..., None], what.head_gain[index, layer, ..., None]
    table = what.vectors.reshape(len(what.vectors), *x.shape)
    # Each head has a slot of its own: heads of one layer may be patched from different runs.
    chosen = jax.vmap(lambda slot, of_head: of_head[slot], (0, 2), 1)
    return _affine(x, keep, gain, chosen(what.head_slots[index, layer], table))


def _attention(
    layer: int, what: "Interventions", scores_and_pattern: tuple[jax.Array, jax.Array]
) -> Float[Array, "heads seq kv_seq"]:
    """The pattern with edges cut and frozen heads; untouched, not even recomputed, without."""
    here, slots = what.edges[:, 0] == layer, what.pattern_slots[layer]

    def change(scores: jax.Array, pattern: jax.Array) -> jax.Array:
        least = jnp.finfo(scores.dtype).min
        _, head, query, key = what.edges.T
        head = jnp.where(here, head, len(scores))  # past the end: dropped
        scores = scores.at[head, query, key].set(least, mode="drop")
        cut = jax.nn.softmax(scores, axis=-1).astype(pattern.dtype)
        # A query that lost every key would look at all of them, padding too.
        reads = scores.max(axis=-1, keepdims=True) > least
        pattern = jnp.where(here.any(), jnp.where(reads, cut, jnp.zeros_like(cut)), pattern)
        return jnp.where(
            (slots > 0)[:, None, None], what.patterns[slots].astype(cut.dtype), pattern
        )

    changed = here.any() | (slots > 0).any()
    return jax.lax.cond(changed, change, lambda _, pattern: pattern, *scores_and_pattern)


@functools.partial(jax.jit, static_argnames=("dtype", "wanted", "by_row"))
def forward(
    network: Transformer, token_ids: jax.Array, interventions: "Interventions",
    dtype: str, wanted: tuple[str, ...], by_row: tuple[str, ...] = (),
):  # fmt: skip
    """Logits [rows, seq, vocab], the wanted sites' values, and whether a logit is NaN."""
    edits = Edits(interventions, by_row, wanted)
    logits, _ = network(token_ids, site=edits, dtype=dtype)
    return logits, edits.values, jnp.isnan(logits).any()


@functools.partial(jax.jit, static_argnames="dtype")
def nan_flags(
    network: Transformer, token_ids: jax.Array, interventions: "Interventions", dtype: str
) -> dict[str, Bool[Array, "rows seq"]]:
    """At which tokens each site's value, after the edits, holds a NaN."""
    edits, flags = Edits(interventions), {}

    def site(name: str, value: jax.Array) -> jax.Array:
        value = edits(name, value)
        # Scores and patterns have their queries third, everything else its tokens second.
        tokens = 2 if name.endswith(("attn.scores", "attn.pattern")) else 1
        others = tuple(axis for axis in range(1, value.ndim) if axis != tokens)
        flags[name] = jnp.isnan(value).any(others)
        return value

    network(token_ids, site=site, dtype=dtype)
    return flags
