"""What a head does with each token: whom it looks for (QK), and what it then writes (OV).

A head's full circuits (Elhage et al. 2021) map tokens to tokens: the query of one token meets the
key of every other, and what is read from a token becomes logits of every token. Both are
[vocab, vocab] matrices of rank d_head; they are kept as factors, and only the strongest entries of
a row are ever looked at.

The residual stream is taken to hold a token's embedding alone. That is what a first block sees
where positions are rotary; for later blocks it is the direct path around the blocks before.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs, weights
from gptj_lab.model import sites
from gptj_lab.model.transformer import Block, LayerNorm, Transformer

KINDS = ("qk", "ov")
_EXACT = jax.lax.Precision.HIGHEST
_ROWS = 64  # rows of the table at a time: [64, vocab] is all that exists of [vocab, vocab]
_CHUNK = 512  # tokens of the vocabulary whose keys are made at a time


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CircuitTable:
    """The strongest entries of some rows of a head's QK or OV circuit.

    Attributes:
        kind: "qk": a row is a query token, its entries the attention scores of key tokens; "ov": a
            row is the token that is read, its entries the logits of next tokens before the final
            LayerNorm's 1 / standard deviation (`attribution.Attribution.scale`).
        layer, head: the head.
        rows: int [rows], token ids; `row_tokens` as a person should see them.
        ids: int [rows, k], the tokens with the largest entries, largest first; `values` [rows, k]
            the entries; `tokens` as a person should see them.
        lowest_ids, lowest_values, lowest_tokens: the same of the smallest entries, smallest first.
        own_values: float32 [rows], the entry of the row's own token.
        own_ranks: int [rows], how many tokens have a larger entry than the row's own.
    """

    kind: str
    layer: int
    head: int
    rows: Int[np.ndarray, "rows"]
    row_tokens: tuple[str, ...]
    ids: Int[np.ndarray, "rows k"]
    values: Float[np.ndarray, "rows k"]
    tokens: tuple[tuple[str, ...], ...]
    lowest_ids: Int[np.ndarray, "rows k"]
    lowest_values: Float[np.ndarray, "rows k"]
    lowest_tokens: tuple[tuple[str, ...], ...]
    own_values: Float[np.ndarray, "rows"]
    own_ranks: Int[np.ndarray, "rows"]

    def strongest(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The largest entries of all rows together: row's token, entry's token, value.

        Exact for counts up to the k that the table was made with.
        """
        order = np.argsort(-self.values, axis=None)[:count]
        places = zip(*np.unravel_index(order, self.values.shape), strict=True)
        return [
            (self.row_tokens[i], self.tokens[i][j], float(self.values[i, j])) for i, j in places
        ]

    def __repr__(self) -> str:
        verb = "looks for" if self.kind == "qk" else "writes"
        lines = [f"{self.kind.upper()} circuit of L{self.layer}H{self.head}"]
        for i, row in enumerate(self.row_tokens[:20]):
            tops = "  ".join(
                f"{token} {value:+.2f}"
                for token, value in list(zip(self.tokens[i], self.values[i], strict=True))[:5]
            )
            lines.append(f"  {row:<14} {verb}  {tops}")
        more = len(self.rows) - 20
        return "\n".join([*lines, f"  and {more} more rows"] if more > 0 else lines)


def qk_table(
    model: LanguageModel,
    layer: int,
    head: int,
    tokens: str | int | Sequence[str | int] | None = None,
    k: int = 10,
    distance: int = 0,
) -> CircuitTable:
    """For query tokens, the key tokens with the highest attention scores, before the softmax.

    Args:
        tokens: the query tokens, as texts of one token or ids; by default the whole vocabulary.
        k: entries kept of each row.
        distance: how many tokens before the query the key lies. Scores depend on it where
            positions are rotary; learned positions are left out.

    Raises:
        ValueError: a layer, head or token that isn't there, a k or a distance out of range.
    """
    if not 0 <= distance < model.config.context:
        raise ValueError(
            f"distance is {distance}: from 0 to {model.config.context - 1} tokens lie between a "
            "query and a key"
        )
    return _table(model, "qk", layer, head, tokens, k, distance)


def ov_table(
    model: LanguageModel,
    layer: int,
    head: int,
    tokens: str | int | Sequence[str | int] | None = None,
    k: int = 10,
) -> CircuitTable:
    """For tokens that are read, the next tokens whose logits the head raises and lowers most.

    Args:
        tokens: the tokens read, as texts of one token or ids; by default the whole vocabulary.
        k: entries kept of each row, at both path.

    Raises:
        ValueError: a layer, head or token that isn't there, or a k out of range.
    """
    return _table(model, "ov", layer, head, tokens, k, 0)


def _table(model, kind, layer, head, tokens, k, distance) -> CircuitTable:
    inputs.check_head(model.config, layer, head)
    vocab = model.config.vocab_size
    if not 1 <= k <= vocab:
        raise ValueError(f"k is {k}: from 1 to the vocabulary's {vocab} entries can be kept")
    if tokens is None:
        rows = np.arange(vocab)
    else:
        rows = inputs.several_ids(model, tokens)
    find = functools.partial(_entries, _Path(model.network, layer), model.config.d_head, kind, k)
    found = []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        filled = np.pad(some, (0, _ROWS - len(some)))
        parts = inputs.host(find(head, filled, distance))
        found.append({name: part[: len(some)] for name, part in parts.items()})
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return CircuitTable(
        kind=kind, layer=layer, head=head, rows=rows, row_tokens=inputs.display(model, rows),
        tokens=tuple(inputs.display(model, row) for row in columns["ids"]),
        lowest_tokens=tuple(inputs.display(model, row) for row in columns["lowest_ids"]), **columns,
    )  # fmt: skip


class _Path(weights.Ends):
    """One block between both ends of the network: equal for every block, so compiled once."""

    def __init__(self, network: Transformer, layer: int):
        super().__init__(network)
        self.block = network.blocks[layer]


@functools.partial(jax.jit, static_argnames=("d_head", "kind", "k"))
def _entries(path: _Path, d_head, kind, k, head, rows, distance) -> dict[str, jax.Array]:
    if kind == "qk":
        entries = _scores(path, d_head, head, rows, distance)
    else:
        entries = _logits(path, d_head, head, rows)
    values, ids = jax.lax.top_k(entries, k)
    lowest_values, lowest_ids = jax.lax.top_k(-entries, k)
    own = jnp.take_along_axis(entries, rows[:, None], axis=1)
    return {
        "ids": ids,
        "values": values,
        "lowest_ids": lowest_ids,
        "lowest_values": -lowest_values,
        "own_values": own[:, 0],
        "own_ranks": jnp.sum(entries > own, axis=1),
    }


def _scores(path, d_head, head, rows, distance) -> Float[Array, "rows vocab"]:
    """Attention scores of the rows' queries with every token's key, `distance` tokens before."""
    block, embed = path.block, path.embed[...]

    def rotated(site: str, ids: jax.Array, position: jax.Array) -> Float[Array, "n d_head"]:
        x = embed[ids][:, None].astype(jnp.float32)  # each token is a row of its own
        seen = sites.Collector([site])
        block.attn.mix(block.ln(x), jnp.broadcast_to(position, (len(ids), 1)), None, seen)
        return seen.values[site][:, 0, head]

    queries = rotated("attn.q", rows, jnp.asarray(distance))
    vocab = jnp.arange(embed.shape[0])
    keys = jax.lax.map(
        lambda token: rotated("attn.k", token[None], jnp.asarray(0))[0], vocab, batch_size=_CHUNK
    )
    scores = jnp.einsum("rd,vd->rv", queries, keys, precision=_EXACT)
    return scores / block.attn.divisor


def _logits(path, d_head, head, rows) -> Float[Array, "rows vocab"]:
    """What the head writes after reading the rows' tokens, on the unembedding."""
    block: Block = path.block
    x = path.embed[...][rows][:, None].astype(jnp.float32)
    values = block.attn.v(block.ln(x))[:, 0].reshape(len(rows), -1, d_head)[:, head]
    start = head * d_head
    out = jax.lax.dynamic_slice_in_dim(weights.matrix(block.attn.out), start, d_head, axis=1)
    written = jnp.einsum("rd,md->rm", values, out, precision=_EXACT)
    return jnp.einsum(
        "rm,vm->rv", read_at_the_end(path.final_ln, written), weights.unembedding(path),
        precision=_EXACT,
    )  # fmt: skip


def read_at_the_end(
    final_ln: LayerNorm, written: Float[Array, "rows d_model"]
) -> Float[Array, "rows d_model"]:
    """What the final LayerNorm makes of a write, but for 1 / standard deviation and bias."""
    gain = jnp.broadcast_to(weights.gain(final_ln)[None], written.shape)
    return (written - written.mean(-1, keepdims=True)) * gain
