"""From stored tensors to a network, one tensor at a time: never two copies of the weights."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.stored import DTYPES, StoredTensor, converted
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

Place = Callable[[families.Path, np.ndarray], jax.Array]


def fill(
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    where: str,
    dtype: str,
    place: Place | None = None,
) -> Transformer:
    """A network with these weights, each taken from its file, cast and placed before the next.

    Args:
        config: the shape that the tensors must have.
        stored: by the names that Hugging Face gives them.
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
    wanted = families.tensors(config, {path: leaf.get_value().shape for path, leaf in flat})
    tensors = checked(config, stored, where)
    found: dict[families.Path, jax.Array] = {}
    with progress(sum(tensor.nbytes for tensor in tensors.values()), "Loading") as advance:
        for name, tensor in tensors.items():
            for path, view in wanted[name].split(tensor.read()):
                values = converted(view, dtype, name, tensor.where)
                found[path] = place(path, values) if place else jax.device_put(values)
                del view, values
            advance(tensor.nbytes)
    return nnx.merge(graph, nnx.from_flat_state([(p, leaf.replace(found[p])) for p, leaf in flat]))


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype that weights can't have."""
    if dtype not in DTYPES:
        raise ValueError(f"weights is {dtype!r}: one of {', '.join(DTYPES)} is needed")


def checked(
    config: ModelConfig, stored: Mapping[str, StoredTensor], where: str
) -> dict[str, StoredTensor]:
    """The tensors of the network by their full names, buffers left out.

    Names and shapes are held against those of the network; no value is read, but where a tensor
    lies there twice (a tied head beside the embedding).

    Raises:
        ValueError: a tensor that is missing, too much, of another shape, or twice and different.
    """
    wanted = families.tensors(config, parameter_shapes(config))
    found: dict[str, StoredTensor] = {}
    called: dict[str, str] = {}  # by its full name, what the file calls a tensor
    for name, tensor in stored.items():
        known = families.full_name(config, name)
        if known is None:
            continue
        if known not in wanted:
            raise ValueError(
                f"{where} holds a tensor {name} that a {config.family_title} doesn't have"
            )
        if tensor.shape != wanted[known].shape:
            raise ValueError(
                f"{name} in {where} has shape {tensor.shape}, which doesn't fit its config: "
                f"{wanted[known].shape} is needed"
            )
        if known in found and not np.array_equal(found[known].read(), tensor.read()):
            raise ValueError(
                f"{where} holds {called[known]} and {name} with different values, where its "
                "config says that they are the same: set tie_word_embeddings to false if the head "
                "is one of its own, else leave out the wrong one"
            )
        if known not in found:
            found[known], called[known] = tensor, name
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{where} lacks {', '.join(missing[:3])}{more}: its config wants "
            f"{len(wanted)} tensors, {len(found)} were found"
        )
    return found


@functools.lru_cache(maxsize=4)
def parameter_shapes(config: ModelConfig) -> Mapping[families.Path, tuple[int, ...]]:
    """The shape of every parameter of a network, by its path; nothing is computed."""
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
    return {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
