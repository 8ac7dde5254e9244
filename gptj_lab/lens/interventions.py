"""Interventions as data, and the one way of running a model with them.

An edit is an array's entry and never a new program: toggling a head, moving a position or changing
a vector compiles nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.lens.edits import HEADS, OUTSIDE, STREAMS, WIDE, forward, nan_flags
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model import sites as network_sites

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

Positions = int | Sequence[int] | None
_SHORTEST = 16  # tokens of the smallest bucket
_VECTORS, _PATTERNS, _EDGES = 4, 2, 16  # room at first; doubled when it is full (one compilation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interventions:
    """What to change in a forward pass; each method returns a new one, with one more edit.

    At each site the value x becomes `keep * x + gain * vectors[slot]`, for each token or each head
    of a token; `slot` 0 is a row of zeros. Edits are applied in the order in which they were made.

    Attributes:
        keep, gain: float32 [sites, layers, seq], of the sites edits.STREAMS.
        slots: int32 [sites, layers].
        head_keep, head_gain: float32 [sites, layers, seq, heads], of the sites edits.HEADS.
        head_slots: int32 [sites, layers, heads].
        vectors: float32 [slot, seq, d_model].
        wide_vectors: float32 [slot, seq, d_ff], for mlp.pre and mlp.post.
        edges: int32 [edge, 4], layer, head, query and key of the edges cut; layer -1 is free.
        pattern_slots: int32 [layers, heads]; 0 leaves the pattern as it is.
        patterns: float32 [slot, seq, kv_seq].
        config: the shape of the network.
        tokens: of the prompt that positions are counted in; seq is its padded length.
    """

    keep: Any
    gain: Any
    slots: Any
    head_keep: Any
    head_gain: Any
    head_slots: Any
    vectors: Any
    wide_vectors: Any
    edges: Any
    pattern_slots: Any
    patterns: Any
    tokens: Any
    config: ModelConfig = dataclasses.field(metadata={"static": True})

    @classmethod
    def none(cls, model: "LanguageModel", seq: int) -> "Interventions":
        """No edit at all, for prompts of `seq` tokens and others that are padded to as many.

        Raises:
            ValueError: seq is not between 1 and the context.
        """
        config = model.config
        padded = bucket(seq, config.context)
        streams = (len(STREAMS), config.num_layers, padded)
        heads = (len(HEADS), config.num_layers, padded, config.num_heads)
        return cls(
            keep=np.ones(streams, np.float32),
            gain=np.zeros(streams, np.float32),
            slots=np.zeros(streams[:2], np.int32),
            head_keep=np.ones(heads, np.float32),
            head_gain=np.zeros(heads, np.float32),
            head_slots=np.zeros((heads[0], heads[1], heads[3]), np.int32),
            vectors=np.zeros((_VECTORS, padded, config.d_model), np.float32),
            wide_vectors=np.zeros((1, padded, config.d_ff), np.float32),
            edges=np.full((_EDGES, 4), -1, np.int32),
            pattern_slots=np.zeros((config.num_layers, config.num_heads), np.int32),
            patterns=np.zeros((_PATTERNS, padded, padded), np.float32),
            tokens=np.int32(seq),
            config=config,
        )

    @property
    def seq(self) -> int:
        """The padded length."""
        return self.keep.shape[-1]

    def __repr__(self) -> str:
        streams = int(((self.keep != 1) | (self.gain != 0)).any(-1).sum())
        heads = int(((self.head_keep != 1) | (self.head_gain != 0)).any(2).sum())
        edges, frozen = int((self.edges[:, 0] >= 0).sum()), int((self.pattern_slots > 0).sum())
        return (
            f"Interventions({int(self.tokens)} tokens padded to {self.seq}: {streams} sites and "
            f"{heads} heads' sites changed, {edges} edges cut, {frozen} patterns frozen)"
        )

    def ablate_head(
        self, layer: int, head: int, how: str = "zero", positions: Positions = None,
        value: Float[np.ndarray, "*seq d_head"] | None = None,
    ) -> "Interventions":  # fmt: skip
        """The head's result z replaced: by zeros, or by `value` (a mean, or another prompt's).

        Args:
            layer, head: counted from 0.
            how: "zero"; "mean" or "resample" with the `value` [d_head] or [seq, d_head] that
                lens/ablation.py takes from a reference text or another prompt.
            positions: where; by default everywhere.
            value: see `how`.

        Raises:
            ValueError: what is out of range, or a value that is missing or has another shape.
        """
        self.check_head(head)
        value = self._ablation(how, value, self.config.d_head)
        return self.patch("attn.z", layer, positions, value, head=head)

    def ablate_mlp(
        self, layer: int, how: str = "zero", positions: Positions = None,
        value: Float[np.ndarray, "*seq d_model"] | None = None,
    ) -> "Interventions":  # fmt: skip
        """What the MLP writes (bias included) replaced; arguments and errors as `ablate_head`."""
        value = self._ablation(how, value, self.config.d_model)
        return self.patch("mlp_out", layer, positions, value)

    def patch(
        self, site: str, layer: int, positions: Positions, value: Any, head: int | None = None
    ) -> "Interventions":
        """The value at a site replaced.

        Args:
            site: one of edits.STREAMS or edits.HEADS, without "blocks.N.": "resid_post", "attn.z".
            layer: of the block; 0 for embed, position_embed and final_ln.
            positions: where. By default everywhere, or as far as the value's rows reach.
            value: [width], the same at each position, or [position, width]; width is d_head where
                a head is named.
            head: of "attn.q", "attn.k" (both after rotation), "attn.v" or "attn.z"; None is all.

        Raises:
            ValueError: a site that doesn't exist or can't be edited, something out of range, or a
                value of another shape.
        """
        return self._change(site, layer, positions, head, 0.0, value, 1.0)

    def steer(
        self, site: str, layer: int, vector: Any, scale: float = 1.0,
        positions: Positions = None, head: int | None = None,
    ) -> "Interventions":  # fmt: skip
        """`scale * vector` added to the value at a site; arguments and errors as `patch`."""
        return self._change(site, layer, positions, head, 1.0, vector, float(scale))

    def scale(
        self, site: str, layer: int, factor: float, positions: Positions = None,
        head: int | None = None,
    ) -> "Interventions":  # fmt: skip
        """The value at a site times `factor`; arguments and errors as `patch`."""
        nothing = np.zeros(self._width(site, head), np.float32)
        return self._change(site, layer, positions, head, float(factor), nothing, 1.0)

    def cut_edge(self, layer: int, head: int, query: int, key: int) -> "Interventions":
        """The head no longer reads token `key` at token `query`; its other weights grow to sum 1.

        The score becomes the least number before the softmax (attention knockout, Geva et al.
        2023). A query whose keys are all cut reads nothing: its z is 0.

        Raises:
            ValueError: something out of range, or a key after the query.
        """
        self.check_layer(layer)
        self.check_head(head)
        (query,), (key,) = self.indices(query), self.indices(key)
        if key > query:
            raise ValueError(
                f"key {key} comes after query {query}: a token reads itself and those before it"
            )
        edge = np.array([layer, head, query, key], np.int32)
        if (self.edges == edge).all(axis=1).any():
            return self
        free = np.flatnonzero(self.edges[:, 0] < 0)
        edges = self.edges.copy() if len(free) else _doubled(self.edges, -1)
        edges[free[0] if len(free) else len(self.edges)] = edge
        return dataclasses.replace(self, edges=edges)

    def freeze_pattern(self, layer: int, head: int, pattern: Any) -> "Interventions":
        """The head reads by `pattern` [query, key] (softmax's result), whatever its scores are.

        Raises:
            ValueError: something out of range, or a pattern that isn't square or is too long.
        """
        self.check_layer(layer)
        self.check_head(head)
        pattern = distributed.gather(pattern)
        if pattern.ndim != 2 or pattern.shape[0] != pattern.shape[1] or len(pattern) > self.seq:
            raise ValueError(
                f"the pattern has shape {pattern.shape}: one head's [query, key] of at most "
                f"{self.seq} tokens is needed"
            )
        slots, patterns = self.pattern_slots.copy(), self.patterns
        slots[layer, head] = 0
        slot, patterns = _free_row(patterns, slots)
        patterns[slot] = 0
        patterns[slot, : len(pattern), : len(pattern)] = pattern
        slots[layer, head] = slot
        return dataclasses.replace(self, pattern_slots=slots, patterns=patterns)

    def _change(
        self, site: str, layer: int, positions: Positions, head: int | None,
        factor: float, value: Any, scale: float,
    ) -> "Interventions":  # fmt: skip
        """`factor * x + scale * value` at some positions, on top of what is there already."""
        width = self._width(site, head)
        self.check_layer(layer, site)
        value = distributed.gather(value).astype(np.float32)
        where = self._where(positions, value, width, site)
        of_heads = site in HEADS
        index, prefix = (HEADS if of_heads else STREAMS).index(site), "head_" * of_heads
        at = (where, slice(None) if head is None else head) if of_heads else (where,)
        keep, gain, slots = (getattr(self, prefix + n).copy() for n in ("keep", "gain", "slots"))
        keep[(index, layer, *at)] *= factor
        offset = self._offset(site, layer)
        old = factor * offset[at]
        offset[at] = old + scale * value.reshape(*value.shape[:-1], *old.shape[1:])
        gain[index, layer] = (offset != 0).any(-1)
        slots[index, layer] = 0
        name = "wide_vectors" if site in WIDE else "vectors"
        table = getattr(self, name)
        if gain[index, layer].any():
            slot, table = _free_row(table, *self._slots_of(name, prefix, slots))
            table[slot] = offset.reshape(self.seq, -1)
            slots[index, layer] = slot
        changed = {prefix + "keep": keep, prefix + "gain": gain, prefix + "slots": slots}
        return dataclasses.replace(self, **changed, **{name: table})

    def _offset(self, site: str, layer: int) -> np.ndarray:
        """What is added at the site now, float32 [seq, width] or [seq, heads, d_head]."""
        if site not in HEADS:
            index = STREAMS.index(site)
            table = self.wide_vectors if site in WIDE else self.vectors
            row = np.asarray(table[self.slots[index, layer]])
            return self.gain[index, layer, :, None] * row
        index, heads = HEADS.index(site), self.config.num_heads
        rows = np.asarray(self.vectors).reshape(-1, self.seq, heads, self.config.d_head)
        chosen = rows[self.head_slots[index, layer], :, np.arange(heads)].swapaxes(0, 1)
        return self.head_gain[index, layer, ..., None] * chosen

    def _slots_of(self, name: str, prefix: str, changed: np.ndarray) -> list[np.ndarray]:
        """All slot numbers that point into a table, those of `prefix` being `changed`."""
        streams = changed if not prefix else self.slots
        wide = [STREAMS.index(site) for site in WIDE]
        if name == "wide_vectors":
            return [streams[wide]]
        return [np.delete(streams, wide, 0), changed if prefix else self.head_slots]

    def _ablation(self, how: str, value: Any, width: int) -> Any:
        if how not in ("zero", "mean", "resample"):
            raise ValueError(f"how is {how!r}: 'zero', 'mean' or 'resample' is needed")
        if how == "zero":
            return np.zeros(width, np.float32)
        if value is None:
            raise ValueError(
                f"how={how!r} needs the value that takes its place: see means and the resampling "
                "of gptj_lab.lens.ablation"
            )
        return value

    def check_site(self, site: str) -> None:
        """Nothing, if a site's value can be set.

        Raises:
            ValueError: it doesn't exist (the nearest are listed), or can't be set.
        """
        whole = (*OUTSIDE, "logits")
        network_sites.match([site if site in whole else f"blocks.0.{site}"], self.config)
        if site not in STREAMS + HEADS:
            raise ValueError(
                f"{site} can't be set: use cut_edge or freeze_pattern for scores and patterns, "
                f"else one of {', '.join(STREAMS + HEADS)}"
            )

    def _width(self, site: str, head: int | None) -> int:
        self.check_site(site)
        if head is None:
            return self.config.d_ff if site in WIDE else self.config.d_model
        if site not in HEADS:
            raise ValueError(f"head is {head}, but {site} has no heads: leave it out")
        self.check_head(head)
        return self.config.d_head

    def _where(self, positions: Positions, value: np.ndarray, width: int, site: str) -> np.ndarray:
        """The positions as indices; a value that doesn't fit them is refused."""
        if positions is None:
            where = np.arange(self.seq if value.ndim == 1 else min(len(value), self.seq))
        else:
            where = self.indices(positions)
        if value.shape not in ((width,), (len(where), width)):
            raise ValueError(
                f"the value for {site} has shape {value.shape}: [{width}], or one such row for "
                f"each of the {len(where)} positions is needed"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"the value for {site} holds NaN or infinity: find where it came from")
        return where

    def indices(self, positions: int | Sequence[int]) -> np.ndarray:
        wanted, tokens = np.atleast_1d(np.asarray(positions)), int(self.tokens)
        if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"positions are {positions!r}: whole numbers are needed")
        for position in wanted:
            if not -tokens <= position < tokens:
                raise ValueError(
                    f"position {position} is out of range: the prompt has {tokens} tokens, "
                    f"numbered 0 to {tokens - 1}"
                )
        return wanted % tokens

    def check_layer(self, layer: int, site: str = "") -> None:
        top = 1 if site in OUTSIDE else self.config.num_layers
        if not 0 <= layer < top:
            what = f"{site} is outside of the blocks: its layer is 0" if site in OUTSIDE else (
                f"the network has {top} layers, numbered 0 to {top - 1}"
            )  # fmt: skip
            raise ValueError(f"layer {layer} is out of range: {what}")

    def check_head(self, head: int) -> None:
        if not 0 <= head < self.config.num_heads:
            raise ValueError(
                f"head {head} is out of range: a layer has {self.config.num_heads} heads, "
                f"numbered 0 to {self.config.num_heads - 1}"
            )


def bucket(tokens: int, context: int) -> int:
    """The length that a prompt is padded to: 16, 32, 64, ... or the context.

    >>> [bucket(tokens, 100) for tokens in (1, 16, 17, 65)]
    [16, 16, 32, 100]

    Raises:
        ValueError: there is no token, or there are more than the context has room for.
    """
    if not 0 < tokens <= context:
        raise ValueError(f"{tokens} tokens: 1 to {context} fit into the model's context")
    length = _SHORTEST
    while length < tokens:
        length *= 2
    return min(length, context)


def run(
    model: "LanguageModel",
    token_ids: Sequence[int] | Int[np.ndarray, "seq"],
    interventions: Interventions | None = None,
    sites: str | Sequence[str] = (),
    length: int | None = None,
) -> tuple[Float[np.ndarray, "seq vocab"], Mapping[str, np.ndarray]]:
    """Float32 logits of one prompt under interventions, and the values at sites after the edits.

    One program for each padded length and set of sites; what the interventions are doesn't matter.

    Args:
        model: any LanguageModel, on one device or a mesh.
        token_ids: of one prompt.
        interventions: made for as long a prompt; None for the plain forward pass.
        sites: patterns of full names ("blocks.*.resid_post"), in the network's order on return.
        length: a longer length to pad to, for sharing a program between prompts.

    Raises:
        ValueError: tokens or interventions that don't fit; a pattern that names no site; a logit
            that is NaN (the message names the first site where one appears).
    """
    wanted = tuple(network_sites.match(sites, model.config)) if sites else ()
    ids = np.asarray(model._checked([token_ids])[0])
    if interventions is None:
        interventions = Interventions.none(model, len(ids) if length is None else length)
    check_fits(interventions, model, len(ids))
    padded = np.pad(ids, (0, interventions.seq - len(ids)))[None]
    rows = padded if model.mesh is None else sharding.put_batch(padded, model.mesh)
    out = forward(model.network, rows, interventions, model.dtype, wanted)
    logits, values, broken = jax.tree.map(distributed.gather, out)
    if broken and np.isnan(logits[0, : len(ids)]).any():
        raise ValueError(_where_nan(model, rows, interventions, len(ids)))
    cut = {name: _cut(values[name][0], name, len(ids)) for name in wanted}  # jit sorts a dict
    return logits[0, : len(ids)], cut


def check_fits(interventions: Interventions, model: "LanguageModel", tokens: int) -> None:
    """Nothing, if interventions are for this model and a prompt padded to as many tokens.

    Raises:
        ValueError: they are not; the message says what differs.
    """
    if interventions.config != model.config:
        raise ValueError(
            "the interventions were made for a network of another shape: make them with "
            "Interventions.none(model, seq) of this model"
        )
    if tokens > interventions.seq or bucket(tokens, model.config.context) > interventions.seq:
        raise ValueError(
            f"the prompt has {tokens} tokens, the interventions are for prompts of at most "
            f"{interventions.seq}: make them with Interventions.none(model, {tokens})"
        )


def _where_nan(model: "LanguageModel", rows: Any, interventions: Interventions, tokens: int) -> str:
    """The sentence that names the first site with a NaN; costs one more forward pass."""
    flags = nan_flags(model.network, rows, interventions, model.dtype)
    for name in network_sites.all_of(model.config):
        found = distributed.gather(flags[name])[0, :tokens]
        if found.any():
            return (
                f"activations are NaN: {name} is the first site where one appears, at position "
                f"{int(found.argmax())}. Look at the weights before it, or compute in a wider dtype"
            )
    return "the logits are NaN"


def _cut(value: np.ndarray, name: str, tokens: int) -> np.ndarray:
    """A site's value without the padding."""
    if name.endswith(("attn.scores", "attn.pattern")):
        return value[:, :tokens, :tokens]
    return value[:tokens]


def _doubled(table: np.ndarray, fill: int = 0) -> np.ndarray:
    return np.concatenate([table, np.full_like(table, fill)])


def _free_row(table: np.ndarray, *slots: np.ndarray) -> tuple[int, np.ndarray]:
    """A row that no slot points to, and a copy of the table, twice as long if it was full."""
    used = {0}.union(*(slots_.ravel().tolist() for slots_ in slots))
    free = next((row for row in range(len(table)) if row not in used), None)
    if free is not None:
        return free, np.array(table)
    return len(table), _doubled(np.asarray(table))
