"""What a mesh does with a model: which device holds which slice, and what a block exchanges."""

import math
import re
from dataclasses import dataclass, field

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptj_lab import versions
from gptj_lab.mesh.sharding import constrain
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA


@dataclass(frozen=True)
class WeightPlacement:
    """Where one weight lies.

    Attributes:
        name: its path, such as "blocks.3.attn.q.weight".
        axes: for each dimension the mesh axis that it is cut over, or None.
        slices: for each device's id, (start, stop) in each dimension.
        bytes_per_device: of one device's slice.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    slices: dict[int, tuple[tuple[int, int], ...]] = field(repr=False)
    bytes_per_device: int


@dataclass(frozen=True)
class Collective:
    """One exchange between devices in a compiled program.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
        axes: the mesh axes along which devices exchange.
        bytes: of the result on one device.
        where: the operation of the program that it serves, if the compiler tells.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class MeshReport:
    """Where a model's weights lie, and what its first block exchanges for a batch.

    Attributes:
        axes: devices along each axis of the mesh.
        devices: the ids of the devices, in the mesh's form [data, model].
        weights: one placement a weight, in the order of their paths.
        bytes_per_device: of all weights, for each device's id.
        block: the collectives of one block's forward pass.
        batch, seq: the batch for which that was compiled.
    """

    axes: dict[str, int]
    devices: list[list[int]]
    weights: list[WeightPlacement] = field(repr=False)
    bytes_per_device: dict[int, int]
    block: list[Collective]
    batch: int
    seq: int


def describe(
    network: Transformer, mesh: Mesh, batch: int, seq: int, dtype: str = "float32"
) -> MeshReport:
    """The report on a network that `sharding.place` has put on the mesh.

    Args:
        batch, seq: rows and tokens a row for which the block is compiled; `data` divides the rows.
        dtype: of the activations.
    """
    weights = [
        _placement(".".join(map(str, path)), versions.value(leaf))
        for path, leaf in nnx.to_flat_state(nnx.state(network))
    ]
    held = {int(device.id): 0 for device in mesh.devices.flat}
    for weight in weights:
        for device in weight.slices:
            held[device] += weight.bytes_per_device
    return MeshReport(
        dict(mesh.shape),
        [[int(device.id) for device in row] for row in mesh.devices],
        weights,
        held,
        collectives(compiled_block(network, mesh, batch, seq, dtype), mesh),
        batch,
        seq,
    )


def compiled_block(
    network: Transformer, mesh: Mesh, batch: int, seq: int, dtype: str = "float32"
) -> str:
    """The text (HLO) of the first block's forward pass as compiled for the mesh."""
    graph, params = nnx.split(network.blocks[0])
    d_model = network.final_ln.scale[...].shape[0]
    rows = NamedSharding(mesh, PartitionSpec(DATA))
    x = jax.ShapeDtypeStruct((batch, seq, d_model), dtype, sharding=rows)
    positions = jax.ShapeDtypeStruct((batch, seq), np.int32, sharding=rows)

    def forward(params, x, positions):
        out, _ = nnx.merge(graph, params)(x, positions, None, sites.ignore)
        return constrain(out, mesh, DATA)

    return str(jax.jit(forward).lower(params, x, positions).compile().as_text())


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%\S+ = (.+?) ({_KINDS})(-start)?\((.*)$")
_ARRAY = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")


def collectives(program: str, mesh: Mesh) -> list[Collective]:
    """The collectives in the text of a compiled program, in its order.

    Several arrays that are reduced by one instruction are one collective of all their bytes.

    Raises:
        ValueError: an instruction names its devices in a form that is not known here.
    """
    found = []
    for line in program.splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        result, kind, begins, rest = match.groups()
        arrays = [_bytes(array) for array in _ARRAY.finditer(result)]
        if begins and kind != "all-reduce":  # an asynchronous one names its operand first
            arrays = arrays[len(arrays) // 2 :]
        where = re.search(r'op_name="([^"]*)"', rest)
        found.append(
            Collective(kind, _axes(rest, mesh), sum(arrays), where.group(1) if where else "")
        )
    return found


def _placement(name: str, value: jax.Array) -> WeightPlacement:
    spec = value.sharding.spec if isinstance(value.sharding, NamedSharding) else ()
    axes = (*spec, *(None,) * (value.ndim - len(spec)))
    slices = {
        int(device.id): tuple(
            part.indices(size)[:2] for part, size in zip(index, value.shape, strict=True)
        )
        for device, index in value.sharding.devices_indices_map(value.shape).items()
    }
    one = math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize
    return WeightPlacement(name, value.shape, str(value.dtype), axes, slices, one)


def _bytes(array: re.Match[str]) -> int:
    kind, bits, sizes = array.groups()
    count = math.prod(int(size) for size in sizes.split(",") if size)
    return count * (1 if kind == "pred" else max(int(bits or 8) // 8, 1))


def _axes(attributes: str, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    groups = _groups(attributes, mesh.size)
    places = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)
    differs = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, moves in zip(mesh.axis_names, differs, strict=True) if moves)


def _groups(attributes: str, count: int) -> np.ndarray:
    """[groups, devices] of the numbers that an instruction names, in any of XLA's four forms."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", attributes):
        return np.array([
            [int(number) for number in group.split(",")]
            for group in re.findall(r"\{([\d,]+)\}", listed.group(1))
        ])  # fmt: skip
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return _iota(iota.group(2), iota.group(3)).reshape(_numbers(iota.group(1)))
    order = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if named := re.search(rf"replica_groups=mesh\[(.*?)\]{order} \{{(.*?)\}}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        inside = re.findall(r"'(\w+)'", named.group(4))
        devices = _iota(named.group(2) or str(count), named.group(3))
        devices = devices.reshape([int(size) for size in sizes.values()])
        last = [list(sizes).index(axis) for axis in inside]
        devices = np.moveaxis(devices, last, range(-len(last), 0))
        return devices.reshape(-1, math.prod(int(sizes[axis]) for axis in inside))
    if "replica_groups={}" in attributes:
        return np.arange(count)[None]
    raise ValueError(f"a collective names its devices in an unknown form: {attributes[:200]}")


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    sizes = _numbers(dimensions)
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
