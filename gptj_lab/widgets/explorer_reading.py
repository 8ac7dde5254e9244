"""One text in one model, read once; whatever the Explorer asks of it later is made from that."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gptj_lab.lens import passes
from gptj_lab.lens.edits import Edits
from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.transformer import Block
from gptj_lab.widgets import explorer_encoding as encoding
from gptj_lab.widgets.explorer_scores import scores

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_TABLES = ("vectors", "wide_vectors", "patterns")
_BY_LAYER = ("keep", "gain", "slots", "head_keep", "head_gain", "head_slots")
_KEPT_BYTES = 256 * 2**20  # of values that were made again; the latest one is always kept


class Reading:
    """The forward pass of one text, with or without interventions.

    Kept are the logits and what each block reads; everything inside a block is made again when it
    is asked for, one block at a time, by one program for all blocks of a length.

    Attributes:
        model: whose pass it is.
        ids: int32 [seq], the text's tokens.
        interventions: the edits, or none of them.
        logits: float32 [seq, vocab].
        residuals: [layers + 1, seq, d_model], what each block reads (resid_pre), and what the last
            one leaves, in the dtype of the activations.
        edited: whether there are interventions.
        pushed: for a position float32 [layers, d_model], what the Jacobian lens has made of it.

    Raises:
        ValueError: tokens that don't fit; a logit that is NaN (the message names the site).
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Int[np.ndarray, "seq"],
        interventions: Interventions | None = None,
    ):
        self.model = model
        self.ids = ids
        self.edited = interventions is not None
        self.interventions = interventions or Interventions.none(model, len(ids))
        layers = model.config.num_layers
        names = [f"blocks.{layer}.resid_pre" for layer in range(layers)]
        names.append(f"blocks.{layers - 1}.resid_post")
        logits, values = run(model, ids, self.interventions, names)
        self.logits = np.asarray(logits, np.float32)
        self.residuals = np.stack([values[name] for name in names])
        self.pushed: dict[int, np.ndarray] = {}
        self._made: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    def inside(self, layer: int, site: str) -> np.ndarray:
        """A value inside a block, float32 without padding: "attn.pattern" is [heads, seq, kv_seq].

        Args:
            layer: counted from 0.
            site: as in `gptj_lab.model.sites`, without "blocks.N.".
        """
        if site == "resid_pre":
            return self.residuals[layer].astype(np.float32)
        if (layer, site) not in self._made:
            self._made[layer, site] = self._make(layer, site)
        self._made.move_to_end((layer, site))
        while len(self._made) > 1 and sum(v.nbytes for v in self._made.values()) > _KEPT_BYTES:
            self._made.popitem(last=False)
        return self._made[layer, site]

    def pattern(self, layer: int) -> Float[np.ndarray, "heads seq kv_seq"]:
        """How much each token reads of those before it, for every head of a layer."""
        return self.inside(layer, "attn.pattern")

    def logprobs(self, position: int) -> Float[np.ndarray, "vocab"]:
        """Of the next token after a position, in nats."""
        return log_softmax(self.logits[position])

    @functools.cached_property
    def token_logprobs(self) -> Float[np.ndarray, "seq"]:
        """Of each token given those before it, in nats; NaN for the first."""
        told = np.full(len(self.ids), np.nan, np.float32)
        for position, token in enumerate(self.ids[1:]):  # row by row: no second [seq, vocab]
            told[position + 1] = self.logprobs(position)[token]
        return told

    @functools.cached_property
    def thumbnails(self) -> Float[np.ndarray, "layers heads tiles kv_tiles"]:
        """Every pattern pooled to at most 32 x 32, the largest weight of each tile.

        Apart from `scores`, which take as long again: a view can be drawn before it has those.
        """
        seq = len(self.ids)
        side = min(seq, encoding.THUMBNAIL)
        starts = np.array(encoding.bounds(seq, side), np.int32)
        stops = np.append(starts[1:], seq)
        fill = (0, encoding.THUMBNAIL - side)
        tiles = np.pad(starts, fill), np.pad(stops, fill, constant_values=1)
        return np.stack([pooled[:, :side, :side] for pooled in self._of_all(_pooled, *tiles)])

    @functools.cached_property
    def scores(self) -> Float[np.ndarray, "scores layers heads"]:
        """explorer_scores.SCORES of every head."""
        seq, padded = len(self.ids), self.interventions.seq
        ids, queries = np.pad(self.ids, (0, padded - seq)), np.arange(padded) < seq
        return np.stack(self._of_all(_scores, ids, queries), 1)

    def _of_all(self, program: Any, *arguments: np.ndarray) -> list[np.ndarray]:
        """What a program says of each block's patterns, which stay on the device."""
        layers = range(self.model.config.num_layers)
        found = [program(*self._block(layer), *arguments) for layer in layers]
        return [distributed.gather(each) for each in found]  # all are under way by now

    def _make(self, layer: int, site: str) -> np.ndarray:
        seq = len(self.ids)
        value = distributed.gather(_inside(*self._block(layer), site)[0])
        value = value[:, :seq, :seq] if site in ("attn.pattern", "attn.scores") else value[:seq]
        return value.astype(np.float32)

    def _block(self, layer: int) -> tuple[Block, Any, Interventions]:
        """What makes a block's inside again: itself, what it reads, its edits."""
        block = self.model.network.blocks[layer]
        x = passes.rows_of(self.model, self.residuals[layer])
        return block, x, _of_layer(self._placed, layer) if self.edited else self._placed

    @functools.cached_property
    def _placed(self) -> Interventions:
        """The edits with their tables on the device: at 2,048 tokens of GPT-J they are 300 MB.

        No edits are the same for each layer, so they are there as a whole: 2 ms a layer less.
        """
        mesh = self.model.mesh
        names = _TABLES if self.edited or mesh is not None else (*_TABLES, *_BY_LAYER, "edges")
        tables = {name: getattr(self.interventions, name) for name in names}
        if mesh is None:
            placed = {name: jnp.asarray(table) for name, table in tables.items()}
        else:
            everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            placed = {name: sharding.put(table, everywhere) for name, table in tables.items()}
        return dataclasses.replace(self.interventions, **placed)


def log_softmax(logits: Float[np.ndarray, "*rows vocab"]) -> Float[np.ndarray, "*rows vocab"]:
    """Log-probabilities in nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _of_layer(interventions: Interventions, layer: int) -> Interventions:
    """The edits of one layer in layer 0's place, so that one program does for every layer."""
    edges = interventions.edges
    here = edges[:, :1] == layer
    zero = np.zeros_like(edges[:, :1])
    moved = np.where(here, np.concatenate([zero, edges[:, 1:]], axis=1), -1).astype(np.int32)
    rolled = {name: np.roll(getattr(interventions, name), -layer, axis=1) for name in _BY_LAYER}
    slots = np.roll(interventions.pattern_slots, -layer, axis=0)
    return dataclasses.replace(interventions, edges=moved, pattern_slots=slots, **rolled)


@functools.partial(jax.jit, static_argnames="wanted")
def _inside(block: Block, x: Float[Array, "batch seq d_model"], edits: Any, wanted: str) -> Array:
    """A site's value [batch, ...] inside a block that reads x; what it doesn't need is left out."""
    site = Edits(edits, wanted=(f"blocks.0.{wanted}",))

    def inside(name: str, value: jax.Array) -> jax.Array:
        return value if name == "resid_pre" else site(f"blocks.0.{name}", value)  # edited already

    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    block(x, places, None, inside)
    return site.values[f"blocks.0.{wanted}"]


@jax.jit
def _pooled(
    block: Block,
    x: Float[Array, "batch seq d_model"],
    edits: Any,
    starts: Int[Array, "tiles"],
    stops: Int[Array, "tiles"],
) -> Float[Array, "heads tiles kv_tiles"]:
    """The largest weight of each tile of a block's patterns."""
    pattern = _inside(block, x, edits, "attn.pattern")[0].astype(jnp.float32)
    widest = -(-pattern.shape[-1] // encoding.THUMBNAIL)
    within = jnp.minimum(starts[:, None] + jnp.arange(widest)[None], stops[:, None] - 1)
    rows = pattern[:, within].max(2)
    return rows[:, :, within].max(3)


@jax.jit
def _scores(
    block: Block,
    x: Float[Array, "batch seq d_model"],
    edits: Any,
    ids: Int[Array, "seq"],
    queries: Bool[Array, "seq"],
) -> Float[Array, "scores heads"]:
    """The scores of a block's heads."""
    pattern = _inside(block, x, edits, "attn.pattern")[0].astype(jnp.float32)
    return scores(pattern, ids, queries)
