"""The device mesh, and one table from a parameter's path to the axes that it is cut over."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gptj_lab import versions
from gptj_lab.config import ModelConfig
from gptj_lab.mesh.distributed import gather
from gptj_lab.model.int8 import Int8Weight
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA, MODEL

# Matrices lie as [d_out, d_in]. Rows where a product begins, columns where it ends: between the
# two nothing is exchanged (Shoeybi et al. 2019). The vocabulary is cut too. What every device needs
# whole is not cut.
_COLUMNS = PartitionSpec(None, MODEL)
_ROWS = PartitionSpec(MODEL, None)
_ENTRIES = PartitionSpec(MODEL)
_WHOLE = PartitionSpec()
_TABLE = (
    (r"embed", _ROWS),
    (r"position_embed|positions|soft_prompt", _WHOLE),
    (r"blocks\.\d+\.(ln|ln2)\.(scale|bias)", _WHOLE),
    (r"blocks\.\d+\.attn\.(q|k|v)\.weight", _ROWS),
    (r"blocks\.\d+\.attn\.(q|k|v)\.(bias|scale)", _ENTRIES),
    (r"blocks\.\d+\.attn\.out\.weight", _COLUMNS),
    (r"blocks\.\d+\.attn\.out\.(bias|scale)", _WHOLE),
    (r"blocks\.\d+\.mlp\.fc_in\.weight", _ROWS),
    (r"blocks\.\d+\.mlp\.fc_in\.(bias|scale)", _ENTRIES),
    (r"blocks\.\d+\.mlp\.fc_out\.weight", _COLUMNS),
    (r"blocks\.\d+\.mlp\.fc_out\.(bias|scale)", _WHOLE),
    (r"blocks\.\d+\.(attn\.(q|k|v)|mlp\.fc_in)\.adapters\.[^.]+\.b", _ROWS),
    (r"blocks\.\d+\.(attn\.out|mlp\.fc_out)\.adapters\.[^.]+\.a", _COLUMNS),
    (r"blocks\.\d+\.(attn\.(q|k|v)|mlp\.fc_in)\.adapters\.[^.]+\.(bias|magnitude|norms)", _ENTRIES),
    (r"blocks\.\d+\..*\.adapters\.[^.]+\.(a|b|bias|magnitude|norms|share|strength|key)", _WHOLE),
    (r"final_ln\.(scale|bias)", _WHOLE),
    (r"head\.weight", _ROWS),
    (r"head\.(bias|scale)|head_bias", _ENTRIES),
)
# A vocabulary that `model` doesn't divide (GPT-2's 50,257 = 29 x 1,733) stays whole, and these
# are cut along d_model: as few bytes a device; the logits cost one all-reduce.
_ODD_VOCABULARY = {
    "embed": _COLUMNS,
    "head.weight": _COLUMNS,
    "head.bias": _WHOLE,
    "head_bias": _WHOLE,
    "head.scale": _WHOLE,
}


def make_mesh(
    data: int | None = None, model: int | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `data` x `model` devices: the batch is cut over `data`, weights over `model`.

    Args:
        data, model: devices along each axis. None or -1 takes what the other leaves; both None
            put every device on `model`, which suits one prompt at a time.
        devices: by default all that JAX sees, in every process.

    Raises:
        ValueError: the devices don't suffice, or can't be split so; the message names them.
    """
    there = list(jax.devices() if devices is None else devices)
    data, model = _size("data", data), _size("model", model)
    if data is None and model is None:
        data = 1
    known = (data or 1) * (model or 1)
    what = f"{len(there)} {there[0].platform} device{'s' * (len(there) > 1)}"
    named = f"{what} ({', '.join(map(str, there[:8]))}{', ...' * (len(there) > 8)})"
    if None in (data, model) and len(there) % known:
        raise ValueError(
            f"{'data' if data else 'model'}={known} doesn't divide the {named}: choose one of "
            f"{_listed(_divisors(len(there)))}"
        )
    data, model = data or len(there) // known, model or len(there) // known
    if data * model > len(there):
        raise ValueError(
            f"a mesh of data={data} x model={model} takes {data * model} devices, but there are "
            f"only {named}: choose smaller numbers, or for a trial on the CPU set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={data * model} before JAX starts"
        )
    if data * model < len(there) and jax.process_count() > 1:
        raise ValueError(
            f"a mesh of data={data} x model={model} leaves some of the {named} out: with several "
            "processes all of them have to take part"
        )
    return jax.make_mesh(
        (data, model), (DATA, MODEL), (AxisType.Auto,) * 2, devices=there[: data * model]
    )


def check(config: ModelConfig, mesh: Mesh) -> None:
    """Nothing, if a network of this shape can be cut over the mesh.

    Raises:
        ValueError: an axis is missing, or `model` doesn't divide the heads or the MLP's width; the
            message names the numbers that work.
    """
    if not isinstance(mesh, Mesh) or mesh.axis_names != (DATA, MODEL):
        raise ValueError(f"the mesh is {mesh!r}: make one with gptj_lab.mesh(data=..., model=...)")
    parts = mesh.shape[MODEL]
    works = [n for n in _divisors(config.num_heads) if config.d_ff % n == 0]
    for name in ("num_heads", "d_ff"):
        if getattr(config, name) % parts:
            raise ValueError(
                f"model={parts} doesn't divide {name} {getattr(config, name)}: for this network "
                f"model may be {_listed(works)}"
            )


def parameter_spec(
    path: Sequence[Any] | str, config: ModelConfig, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The axes that the parameter at `path` ("blocks.3.attn.q.weight", or its parts) is cut over.

    Raises:
        ValueError: the table has no row for it; the message names it.
    """
    name = path if isinstance(path, str) else ".".join(map(str, path))
    if config.vocab_size % mesh.shape[MODEL] and name in _ODD_VOCABULARY:
        return _ODD_VOCABULARY[name]
    for pattern, spec in _TABLE:
        if re.fullmatch(pattern, name):
            return spec
    raise ValueError(
        f"the parameter {name} has no place on a mesh: add a row for it to the table in "
        "gptj_lab/mesh/sharding.py"
    )


def parameter_sharding(path: Sequence[Any] | str, config: ModelConfig, mesh: Mesh) -> NamedSharding:
    """Which device holds which slice of the parameter at `path`; errors as `parameter_spec`."""
    return NamedSharding(mesh, parameter_spec(path, config, mesh))


def place(network: Transformer, config: ModelConfig, mesh: Mesh) -> Transformer:
    """The network with every weight cut over the mesh as the table says.

    Each process hands over the slices that its own devices hold; all have read the same weights.

    Raises:
        ValueError: as `check` and `parameter_spec`.
    """
    onto = placing(config, mesh)
    graph, state = nnx.split(network)
    placed = [
        (path, leaf.replace(_placed(path, versions.value(leaf), onto)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    network = nnx.merge(graph, nnx.from_flat_state(placed))
    for block in network.blocks:
        block.mesh = mesh
    return network


def _placed(path: Sequence[Any], value: Any, onto: Callable[[Sequence[Any], Any], Any]) -> Any:
    if isinstance(value, Int8Weight):
        return Int8Weight(onto(path, value.values), onto((*path[:-1], "scale"), value.scale))
    return None if value is None else onto(path, value)  # a dropout key outside training


def placing(config: ModelConfig, mesh: Mesh) -> Callable[[Sequence[Any], Any], jax.Array]:
    """A function that puts the parameter at a path onto the mesh, for loading one by one.

    Raises:
        ValueError: as `check`; the function itself as `parameter_spec`.
    """
    check(config, mesh)
    return lambda path, value: put(value, parameter_sharding(path, config, mesh))


def put(value: Any, sharding: NamedSharding) -> jax.Array:
    """`value`, the same in every process, with each device holding its slice.

    Nothing is copied where a value lies so already.
    """
    if isinstance(value, jax.Array) and value.sharding.is_equivalent_to(sharding, value.ndim):
        return value
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    host = gather(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_batch(ids: Int[np.ndarray, "batch seq"], mesh: Mesh) -> Int[Array, "padded seq"]:
    """Rows cut over `data`; rows of zeros are added at the end until `data` divides them."""
    rows = -len(ids) % mesh.shape[DATA]
    padded = np.pad(ids, ((0, rows), (0, 0)))
    return put(padded, NamedSharding(mesh, PartitionSpec(DATA, None)))


def constrain(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Inside jit: the arrays cut over these mesh axes; as they are where there is no mesh."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def _size(name: str, value: int | None) -> int | None:
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: a whole number of at least 1, or -1 for the rest")
    return value


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
