"""Where the optimiser's state lives: as the weights do, and cut over `data` too (ZeRO-1)."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptj_lab.names import DATA


def optimizer_spec(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The axes that a parameter's moments are cut over: those of the parameter, and `data`.

    Replicas of the weights need only one copy of their moments among them (Rajbhandari et al.
    2020, stage 1). `data` goes to the largest dimension that it divides, a free one before one
    that `model` cuts already; where it divides none, the moments lie as the parameter does.
    """
    axes = [*spec, *(None,) * (len(shape) - len(spec))]
    parts = [
        math.prod(mesh.shape[name] for name in _names(axis)) * mesh.shape[DATA] for axis in axes
    ]
    fits = [i for i, size in enumerate(shape) if size % parts[i] == 0]
    if mesh.shape[DATA] == 1 or not fits:
        return spec
    best = max(fits, key=lambda i: (axes[i] is None, shape[i]))
    axes[best] = DATA if axes[best] is None else (*_names(axes[best]), DATA)
    return PartitionSpec(*axes)


def optimizer_shardings(state: Any, params: Any) -> Any:
    """A tree like `state` that tells, for each array of an optax state, where it shall lie.

    An array is a parameter's if its path ends in the parameter's path and its shape is the same;
    others (counts) lie on every device. Give it to jax.jit as out_shardings, or to
    jax.device_put.

    Args:
        state: what `optax.GradientTransformation.init(params)` made, or its jax.eval_shape.
        params: the parameters, placed on a mesh.

    Raises:
        ValueError: a parameter doesn't lie on a mesh; the message names it.
    """
    known = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in known.items():
        if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
            raise ValueError(
                f"the parameter {jax.tree_util.keystr(path)} doesn't lie on a mesh: load the model "
                "with mesh=gptj_lab.mesh(...)"
            )
    mesh = next(iter(known.values())).sharding.mesh

    def place(path: tuple, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            owner = known.get(path[start:])
            if owner is not None and owner.shape == leaf.shape:
                spec = optimizer_spec(owner.sharding.spec, owner.shape, mesh)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def _names(axis: Any) -> tuple[str, ...]:
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else tuple(axis)
