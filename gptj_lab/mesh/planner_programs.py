"""The steps that the planner hands to the TPU compiler, made from the project's own network.

Nothing here holds an array: parameters, caches and optimiser states are shapes with a placement.
Training steps are finetuning's, but for the blocks: one scan, which compiles in less time than 28.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.mesh.sharding import parameter_spec
from gptj_lab.model import sites
from gptj_lab.model.cache import empty_cache
from gptj_lab.model.cross_entropy import cross_entropy
from gptj_lab.model.int8 import Int8Weight
from gptj_lab.model.linear import Adapter, LowRank
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA, MODEL

_OUTERMOST = ("embed", "position_embed", "blocks", "final_ln", "head", "head_bias")
BLOCK, LOSS = "one_block", "piece_of_the_loss"  # what the compiled program's operations are called
_ADAPTED = ("attn.q", "attn.v")  # the matrices that LoRA adapts, as its paper did


class Program(NamedTuple):
    """A jitted step and the shapes that it is called with."""

    step: Any
    arguments: tuple[Any, ...]


def generate_programs(
    config: ModelConfig, mesh: Mesh, weights: str, batch: int, context: int
) -> dict[str, Program]:
    """Reading a prompt of `context` tokens, and one more token after it."""
    dtype = "bfloat16" if weights == "int8" else weights
    graph, state = nnx.split(on_mesh(abstract_network(config, weights, None), mesh))
    state = placed(state, config, mesh, dtype)
    token = _shape(mesh, (batch, 1), jnp.int32, DATA)
    prompt = _shape(mesh, (batch, context), jnp.int32, DATA)
    lengths = _shape(mesh, (batch,), jnp.int32, DATA)
    layout = NamedSharding(mesh, PartitionSpec(DATA, MODEL))
    cache = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        jax.eval_shape(lambda: empty_cache(config, batch, context, dtype)),
    )

    def decode(state: Any, cache: Any, token: Array, positions: Array) -> Any:
        logits, cache = nnx.merge(graph, state)(
            token, positions=positions, cache=cache, dtype=dtype
        )
        return logits[:, 0], cache

    def prefill(state: Any, prompt: Array, lengths: Array) -> Any:
        network = nnx.merge(graph, state)
        empty = jax.lax.with_sharding_constraint(empty_cache(config, batch, context, dtype), layout)
        x, cache = network.hidden(prompt, cache=empty, dtype=dtype)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return network.unembed(last)[:, 0], cache

    return {
        "decode": Program(jax.jit(decode, donate_argnums=1), (state, cache, token, token)),
        "prefill": Program(jax.jit(prefill), (state, prompt, lengths)),
    }


def training_program(
    config: ModelConfig,
    mesh: Mesh,
    weights: str,
    batch: int,
    context: int,
    *,
    rank: int | None,
    remat: bool | str | None,
) -> Program:
    """One AdamW step: of adapters of a rank, or of every weight if `rank` is None."""
    network = on_mesh(
        abstract_network(dataclasses.replace(config, num_layers=1), weights, rank), mesh
    )
    kind = nnx.Param if rank is None else Adapter
    graph, trained, frozen = (
        part if isinstance(part, nnx.GraphDef) else _stacked(part, config.num_layers)
        for part in nnx.split(network, kind, ...)
    )
    place = functools.partial(placed, config=config, mesh=mesh, stacked=True)
    trained = place(trained, dtype=weights if rank is None else "float32")
    frozen = place(frozen, dtype="bfloat16" if weights == "int8" else weights)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.1))
    moments = place(jax.eval_shape(optimiser.init, trained), dtype=None)
    ids = _shape(mesh, (batch, context), jnp.int32, DATA)

    def step(trained: Any, moments: Any, frozen: Any, ids: Array, targets: Array) -> Any:
        def loss(trained: Any) -> Array:
            return _loss(nnx.merge(graph, trained, frozen), ids, targets, remat)

        value, gradients = jax.value_and_grad(loss)(trained)
        updates, moments = optimiser.update(gradients, moments, trained)
        return value, optax.apply_updates(trained, updates), moments

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return Program(jitted, (trained, moments, frozen, ids, ids))


def _loss(
    network: Transformer,
    ids: Int[Array, "batch seq"],
    targets: Int[Array, "batch seq"],
    remat: bool | str | None,
) -> Float[Array, ""]:
    """As finetuning's loss, but blocks of equal shapes are a scan over their stacked weights."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    x = network.embedded(ids, positions, jnp.bfloat16)
    block_graph, blocks = nnx.split(network.blocks[0])  # its leaves are stacked over layers

    @jax.named_scope(BLOCK)
    def block(x: Array, state: Any) -> tuple[Array, None]:
        return nnx.merge(block_graph, state)(x, positions, None, sites.ignore)[0], None

    x, _ = jax.lax.scan(jax.checkpoint(block) if remat else block, x, blocks)
    with jax.named_scope(LOSS):
        total = cross_entropy(network, x, targets, jnp.ones(ids.shape))
    return total / ids.size


def abstract_network(config: ModelConfig, weights: str, rank: int | None) -> Transformer:
    """The network with shapes in place of arrays, its products in the form that is asked for."""

    def make() -> Transformer:
        network = Transformer(config, key=jax.random.key(0))
        for block in network.blocks:
            for path, linear in block.matrices().items():
                d_out, d_in = linear.weight[...].shape
                if weights == "int8":
                    linear.weight = nnx.Param(_int8((d_out, d_in)))  # type: ignore[assignment]
                if rank is not None and path in _ADAPTED:
                    linear.adapters["lora"] = LowRank(
                        d_in, d_out, rank=rank, strength=1.0, dropout=0.0, key=jax.random.key(0)
                    )
        return network

    return nnx.eval_shape(make)


def on_mesh(network: Transformer, mesh: Mesh) -> Transformer:
    """The network as sharding.place leaves it: its blocks know the mesh, where there is one."""
    for block in network.blocks:
        block.mesh = mesh if mesh.size > 1 else None
    return network


def _int8(shape: tuple[int, ...]) -> Int8Weight:
    return Int8Weight(jnp.zeros(shape, jnp.int8), jnp.ones(shape[0]))


def _stacked(tree: Any, layers: int) -> Any:
    """The shapes of a network of one block with room for so many in the block's leaves.

    Unrolled, four blocks of the 6B took the compiler 82 to 326 seconds; a scan takes it as one.
    """

    def stack(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (layers, *leaf.shape) if "blocks" in path_name(path) else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(stack, tree)


def placed(
    tree: Any, config: ModelConfig, mesh: Mesh, dtype: str | None, *, stacked: bool = False
) -> Any:
    """The shapes of a tree with their placements; floats in `dtype`, scales of int8 in float32."""

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = path_name(path)
        cast = dtype is not None and leaf.dtype == jnp.float32 and not is_int8_scale(name)
        spec = placement(name, config, mesh) if leaf.ndim else PartitionSpec()
        if stacked and "blocks" in name:
            spec = PartitionSpec(None, *spec)
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path: Any) -> str:
    """The dotted path of a leaf: 'blocks.0.attn.q.weight'."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def is_int8_scale(name: str) -> bool:
    """Whether a leaf is the scales of an int8 weight."""
    parts = name.split(".")
    return "weight" in parts and parts[-1] == "scale"


def placement(name: str, config: ModelConfig, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where the leaf of that path lies, by sharding's table.

    The path may begin with an optimiser's own, as in "1.0.mu.embed.value".
    """
    parts = [part for part in name.split(".") if part != "value"]
    if "weight" in parts:  # of int8: values as a plain weight, a scale for each of its rows
        parts[parts.index("weight") :] = ["scale" if is_int8_scale(name) else "weight"]
    first = next(i for i, part in enumerate(parts) if part in _OUTERMOST)
    return parameter_spec(parts[first:], config, mesh)


def rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The shape of a batch whose rows are cut over `data`."""
    return _shape(mesh, shape, dtype, DATA)


def _shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
