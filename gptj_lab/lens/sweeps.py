"""Many interventions on one prompt: rows of a batch, in chunks that fit into memory."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from gptj_lab.lens.edits import HEADS, STREAMS, Edits
from gptj_lab.lens.interventions import Interventions, Positions, check_fits, run
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

Progress = Callable[[int, int], Any]
CHUNK_BYTES = 256 * 2**20  # of activations at a time
_MOST_ROWS = 16  # 16 x 256 tokens keep any device busy
_SMALL = ("keep", "gain", "slots", "head_keep", "head_gain", "head_slots")
_SEQ_AXIS = {"keep": -1, "gain": -1, "vectors": -2}  # of the fields that final_ln's edit reads


class Chunk(NamedTuple):
    """The rows `start`, `start + 1`, ... of a sweep."""

    start: int
    logits: Float[np.ndarray, "rows vocab"]  # float32, at the position asked for
    nll: Float[np.ndarray, "rows"] | None  # nats a token, mean over the prompt
    values: dict[str, np.ndarray]  # [rows, ...], of the sites asked for


def each(
    model: "LanguageModel",
    token_ids: Sequence[int] | np.ndarray,
    base: Interventions,
    make: Callable[[int], Interventions],
    total: int,
    *,
    position: int = -1,
    score_text: bool = False,
    sites: tuple[str, ...] = (),
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Chunk]:
    """The logits under each of `total` interventions, chunk by chunk; stop whenever you like.

    Args:
        model: any LanguageModel; on a mesh the rows are cut over `data`.
        token_ids: of the one prompt.
        base: what every intervention is made from; what a row doesn't change is sent only once.
        make: the intervention of a row, made from `base` by its methods or by `use`.
        total: number of rows.
        position: token after which the logits are taken; -1 is the last.
        score_text: whether the prompt's own negative log-likelihood is computed, too.
        sites: full names whose values (padding included) are kept.
        chunk_bytes: about how much memory a chunk may take; at least one row is computed.

    Raises:
        ValueError: what doesn't fit the model or the prompt; a NaN among the logits.
    """
    ids = np.asarray(model._checked([token_ids])[0])
    check_fits(base, model, len(ids))
    (position,) = base.indices(position)
    row_bytes = _activation_bytes(model, base.seq, score_text)
    row_bytes += max(_by_row(base, [make(row)])[1] for row in (0, total - 1))
    rows = _rows(total, chunk_bytes // row_bytes, model.mesh)
    tokens = np.tile(np.pad(ids, (0, base.seq - len(ids))), (rows, 1))
    tokens = tokens if model.mesh is None else sharding.put_batch(tokens, model.mesh)
    on_devices = _putter(model.mesh)  # what rows share is sent once
    for start in range(0, total, rows):
        made = [make(min(start + row, total - 1)) for row in range(rows)]
        by_row, _ = _by_row(base, made)
        shared = {name: on_devices(getattr(base, name)) for name in _arrays(base) - set(by_row)}
        interventions = dataclasses.replace(base, **shared, **_stacked(made, by_row))
        out = _forward(
            model.network, tokens, interventions, position, model.dtype, by_row, score_text, sites
        )
        count = min(rows, total - start)
        whole = jax.tree.map(distributed.gather, out)
        logits, nll, values = jax.tree.map(operator.itemgetter(slice(count)), whole)
        if np.isnan(logits).any():
            row = int(np.isnan(logits).any(-1).argmax())
            run(model, token_ids, made[row])  # names the first site
        yield Chunk(start, logits, nll, values)


def store(
    interventions: Interventions, values: Float[np.ndarray, "rows tokens width"], wide: bool = False
) -> tuple[Interventions, list[int]]:
    """Interventions that hold these values without using them, and the row of each.

    `use` then puts them to use. An edit by a method of Interventions may take rows that are not in
    use: make those first.
    """
    name = "wide_vectors" if wide else "vectors"
    table = np.asarray(getattr(interventions, name))
    padding = ((0, 0), (0, interventions.seq - values.shape[1]), (0, 0))
    added = np.pad(np.asarray(values, np.float32), padding)
    grown = dataclasses.replace(interventions, **{name: np.concatenate([table, added])})
    return grown, list(range(len(table), len(table) + len(added)))


def use(
    interventions: Interventions, row: int, site: str, layer: int,
    positions: Positions = None, head: int | None = None,
) -> Interventions:  # fmt: skip
    """The value at a site replaced by the stored row, at the positions (by default at all)."""
    prefix = "head_" if site in HEADS else ""
    index = (HEADS if prefix else STREAMS).index(site)
    keep, gain, slots = (
        getattr(interventions, prefix + name).copy() for name in ("keep", "gain", "slots")
    )
    where = slice(None) if positions is None else interventions.indices(positions)
    heads = () if not prefix else (slice(None) if head is None else head,)
    keep[index, layer, where, *heads] = 0
    gain[index, layer, where, *heads] = 1
    slots[index, layer, *heads] = row
    changed = {prefix + "keep": keep, prefix + "gain": gain, prefix + "slots": slots}
    return dataclasses.replace(interventions, **changed)


def largest(values: Float[np.ndarray, "layers *columns"], column: str, count: int = 5) -> list[str]:
    """Lines about the places of largest magnitude of a sweep; what was cancelled is left out."""
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), axis=None, kind="stable")
    lines = []
    for layer, *places in (np.unravel_index(i, values.shape) for i in order[:count]):
        where = "".join(f", {column} {place}" for place in places)
        lines.append(f"  layer {layer}{where:<14} {values[layer, *places]:+.4f}")
    missing = int(np.isnan(values).sum())
    return lines[: values.size - missing] + [f"  {missing} not computed"] * (missing > 0)


def goes_on(progress: Progress | None, done: int, total: int) -> bool:
    """Tells `progress` how far a sweep is; False if it answered False, which cancels."""
    return progress is None or progress(done, total) is not False


@functools.partial(jax.jit, static_argnames=("dtype", "by_row", "score_text", "wanted"))
def _forward(
    network: Transformer, token_ids: jax.Array, interventions: Interventions,
    position: Any, dtype: str, by_row: tuple[str, ...], score_text: bool, wanted: tuple[str, ...],
):  # fmt: skip
    """Logits at one position [rows, vocab], mean NLL of the prompt [rows], values of sites."""
    edits = Edits(interventions, by_row, wanted)
    x, _ = network.hidden(token_ids, site=edits, dtype=dtype)
    if score_text:
        logits = network.unembed(x, site=edits)
        return logits[:, position], _nll(logits, token_ids, interventions.tokens), edits.values
    # Only one position goes through the head, so only its part of the edits applies there.
    at = {
        name: jax.lax.dynamic_slice_in_dim(
            getattr(interventions, name), position, 1, getattr(interventions, name).ndim + axis
        )
        for name, axis in _SEQ_AXIS.items()
    }
    last = jax.lax.dynamic_slice_in_dim(x, position, 1, 1)
    edit_last = Edits(dataclasses.replace(interventions, **at), by_row)
    return network.unembed(last, site=edit_last)[:, 0], None, edits.values


def _nll(logits: jax.Array, token_ids: jax.Array, tokens: Any) -> jax.Array:
    said = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    next_ids = token_ids[:, 1:, None]
    right = jnp.take_along_axis(said, next_ids, axis=-1)[..., 0]
    counted = (jnp.arange(right.shape[1]) < tokens - 1)[None]
    return -jnp.where(counted, right, 0.0).sum(-1) / jnp.maximum(tokens - 1, 1)


def _arrays(interventions: Interventions) -> set[str]:
    return {field.name for field in dataclasses.fields(interventions)} - {"config"}


def _by_row(base: Interventions, made: Sequence[Interventions]) -> tuple[tuple[str, ...], int]:
    """The fields that have a row each, and the bytes of one: always the same small ones.

    So that all sweeps share a program; a table of vectors only where some row has its own.
    """

    def differs(name: str) -> bool:
        return any(getattr(one, name) is not getattr(base, name) for one in made)

    by_row = tuple(name for name in sorted(_arrays(base)) if name in _SMALL or differs(name))
    return by_row, sum(getattr(made[0], name).nbytes for name in by_row)


def _stacked(made: Sequence[Interventions], names: Sequence[str]) -> dict[str, np.ndarray]:
    fields = {name: [getattr(one, name) for one in made] for name in names}
    for name, values in fields.items():
        if len({value.shape for value in values}) > 1:
            raise ValueError(
                f"the rows of a sweep hold {name} of unequal size: give each as many edits, or put "
                "the values into the base with store"
            )
    return {name: np.stack(values) for name, values in fields.items()}


def _activation_bytes(model: "LanguageModel", seq: int, score_text: bool) -> int:
    """About what one row needs in the widest layer, in float32."""
    config = model.config
    layer = seq * (8 * config.d_model + 2 * config.d_ff) + 3 * config.num_heads * seq * seq
    return 4 * (layer + 2 * config.vocab_size * (seq if score_text else 1))


def _rows(total: int, fitting: int, mesh: jax.sharding.Mesh | None) -> int:
    """Rows of a chunk: a power of two that fits, times what `data` takes at least."""
    least = 1 if mesh is None else mesh.shape[DATA]
    rows = least
    while rows < total and 2 * rows <= min(fitting, _MOST_ROWS):
        rows *= 2
    return rows


def _putter(mesh: jax.sharding.Mesh | None) -> Callable[[Any], jax.Array]:
    """What puts an array onto all devices whole, and the same array only once."""
    put: dict[int, jax.Array] = {}

    def once(value: Any) -> jax.Array:
        if id(value) not in put:
            whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
            put[id(value)] = jnp.asarray(value) if whole is None else sharding.put(value, whole)
        return put[id(value)]

    return once
