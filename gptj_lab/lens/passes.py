"""A plain pass's residuals, and whatever lies between them made again, one block at a time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.lens import inputs
from gptj_lab.lens.edits import place
from gptj_lab.lens.interventions import bucket
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.sites import Collector
from gptj_lab.model.transformer import Block, LayerNorm, Transformer
from gptj_lab.names import DATA

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


def residuals(
    model: LanguageModel, token_ids: Int[np.ndarray, "seq"]
) -> Float[np.ndarray, "rows seq d_model"]:
    """What each block reads, and what the last one leaves, in the dtype of the activations."""
    rows = streams(model.network, inputs.padded(model, token_ids), model.dtype)
    return np.stack([distributed.gather(row)[0, : len(token_ids)] for row in rows])


def value(
    model: LanguageModel,
    name: str,
    token_ids: Int[np.ndarray, "seq"],
    streams: Float[np.ndarray, "rows seq d_model"],
) -> np.ndarray:
    """The value of any site, from the tokens and the `residuals` of their pass.

    One program for all blocks that are alike; it computes no more of a block than the site needs.
    """
    seq = len(token_ids)
    layer, site = place(name)
    if name == "logits":  # the model's own function: the same bits
        length = bucket(seq, model.config.context)
        return distributed.gather(model.logits(np.pad(token_ids, (0, length - seq))[None]))[0, :seq]
    if name in ("embed", "position_embed"):
        found = _outside(model.network, inputs.padded(model, token_ids), model.dtype, name)
    elif name == "final_ln":
        found = _final_ln(model.network.final_ln, rows_of(model, streams[-1]))
    else:
        found = inside(model.network.blocks[layer], rows_of(model, streams[layer]), site)
    row = distributed.gather(found)[0]
    return row[:, :seq, :seq] if site in ("attn.pattern", "attn.scores") else row[:seq]


def rows_of(
    model: LanguageModel, x: Float[np.ndarray, "seq d_model"]
) -> Float[Array | np.ndarray, "rows padded d_model"]:
    """A residual filled up to its bucket, as the row (on a mesh, rows) that the devices take."""
    room = bucket(len(x), model.config.context) - len(x)
    row = np.pad(x, ((0, room), (0, 0)))[None].astype(model.dtype)
    if model.mesh is None:
        return row
    rows = np.repeat(row, model.mesh.shape[DATA], axis=0)
    spec = jax.sharding.PartitionSpec(DATA)
    return sharding.put(rows, jax.sharding.NamedSharding(model.mesh, spec))


@functools.partial(jax.jit, static_argnames="dtype")
def streams(network: Transformer, token_ids: jax.Array, dtype: str) -> list[jax.Array]:
    """What each block reads, and what the last one leaves, [rows, seq, d_model] on the devices."""
    names = [f"blocks.{layer}.resid_pre" for layer in range(len(network.blocks))]
    collect = Collector(names)
    last, _ = network.hidden(token_ids, site=collect, dtype=dtype)
    return [*(collect.values[name] for name in names), last]


@functools.partial(jax.jit, static_argnames=("dtype", "wanted"))
def _outside(network: Transformer, token_ids: jax.Array, dtype: str, wanted: str) -> jax.Array:
    collect = Collector([wanted])
    network.hidden(token_ids, site=collect, dtype=dtype)
    return collect.values[wanted]  # the compiler drops the rest


@jax.jit
def _final_ln(norm: LayerNorm, x: Float[Array, "rows seq d_model"]) -> jax.Array:
    return norm(x)


@functools.partial(jax.jit, static_argnames="wanted")
def inside(block: Block, x: Float[Array, "rows seq d_model"], wanted: str) -> jax.Array:
    """The value of a site inside a block, from what the block reads."""
    collect = Collector([wanted])
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    block(x, positions, None, collect)
    return collect.values[wanted]
