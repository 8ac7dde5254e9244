"""From stored tensors to a network, one tensor at a time: never two copies of the weights."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.stored import DTYPES, StoredTensor, converted
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

ParameterPath = tuple[Any, ...]
Place = Callable[[ParameterPath, np.ndarray], jax.Array]


class Naming(NamedTuple):
    """What a kind of checkpoint calls the parameters.

    Attributes:
        ours: from a tensor's name and values there to our parameters, as paths in a Transformer
            with views of the values; none for a tensor that isn't needed.
            Raises KeyError for a name that is not known.
        theirs: the name there of the parameter at a path.
    """

    ours: Callable[[str, np.ndarray], list[tuple[ParameterPath, np.ndarray]]]
    theirs: Callable[[ParameterPath], str]


def fill(
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    naming: Naming,
    where: str,
    dtype: str,
    place: Place | None = None,
) -> Transformer:
    """A network with these weights, each taken from its file, cast and placed before the next.

    Args:
        config: the shape that the tensors must have.
        where: the checkpoint, for messages.
        dtype: "float32", "bfloat16" or "float16".
        place: takes a parameter's path and its values in `dtype` (contiguous, finite, its own to
            keep) to what the network shall hold: onto a mesh, or quantised. By default onto
            JAX's default device; on the CPU that copies nothing.

    Raises:
        ValueError: a tensor that is missing, too much, of another shape, not of floating point,
            or NaN or infinite; the message names it. All but the last is found before any is read.
    """
    check_dtype(dtype)
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
    flat = nnx.to_flat_state(state)
    check({path: leaf.get_value().shape for path, leaf in flat}, tensors, naming, where)
    found: dict[ParameterPath, jax.Array] = {}
    with progress(sum(tensor.nbytes for tensor in tensors.values()), "Loading") as advance:
        for name, tensor in tensors.items():
            if not naming.ours(name, tensor.stand_in()):
                continue
            for path, view in naming.ours(name, tensor.read()):
                values = converted(view, dtype, name, tensor.where)
                found[path] = place(path, values) if place else jax.device_put(values)
                del view, values
            advance(tensor.nbytes)
    return nnx.merge(graph, nnx.from_flat_state([(p, leaf.replace(found[p])) for p, leaf in flat]))


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype that weights can't have."""
    if dtype not in DTYPES:
        raise ValueError(f"weights is {dtype!r}: one of {', '.join(DTYPES)} is needed")


def check(
    shapes: Mapping[ParameterPath, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    naming: Naming,
    where: str,
) -> None:
    """Holds names and shapes against those of the network, without reading a value.

    Raises:
        ValueError: a tensor that is missing, too much, or of another shape.
    """
    seen: dict[ParameterPath, str] = {}
    for name, tensor in tensors.items():
        try:
            pieces = naming.ours(name, tensor.stand_in())
        except KeyError:
            pieces = [(("?", name), tensor.stand_in())]
        for path, view in pieces:
            if path not in shapes:
                raise ValueError(f"{where} holds a tensor {name} that a GPT-J doesn't have")
            if view.shape != shapes[path]:
                raise ValueError(
                    f"{name} in {where} has shape {tensor.shape}, which doesn't fit its config "
                    f"(its kernel or vector should be {shapes[path]}, kernels transposed)"
                )
            if path in seen:
                raise ValueError(f"{where} holds {name} twice, also as {seen[path]}: remove one")
            seen[path] = name
    missing = sorted(naming.theirs(path) for path in shapes.keys() - seen.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{where} lacks {', '.join(missing[:3])}{more}: its config wants "
            f"{len(shapes)} parameters, {len(seen)} were found"
        )


@functools.lru_cache(maxsize=4)
def parameter_shapes(config: ModelConfig) -> Mapping[ParameterPath, tuple[int, ...]]:
    """The shape of every parameter of a network, by its path; nothing is computed."""
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
    return {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
