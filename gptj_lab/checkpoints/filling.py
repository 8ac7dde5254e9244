"""From stored tensors to a network, one tensor at a time: never two copies of the weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from gptj_lab import notices, versions
from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.progress import progress
from gptj_lab.checkpoints.stored import DTYPES, StoredTensor, aligned, converted
from gptj_lab.config import ModelConfig
from gptj_lab.model import int8
from gptj_lab.model.transformer import Transformer

# From a parameter's path and its values (contiguous, finite, its own to keep) to what the network
# shall hold.
Place = Callable[[families.Path, np.ndarray], Any]
_TIED = (
    "where its config says that they are the same (transformers 5 then takes the head as one of "
    "its own): set tie_word_embeddings to false if it is one, else leave out the wrong one"
)
_TWICE = "which are two names of one tensor: leave out the wrong one"
SCALE = "_scale"  # ends the name of the scales of an int8 tensor


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
        dtype: "float32", "bfloat16" or "float16"; or "int8": the matrices of the blocks are
            quantised (one already so is taken as it is), everything else is float32 on the CPU
            and bfloat16 elsewhere.
        place: puts an array onto its device or devices. By default onto JAX's default device; on
            the CPU that copies nothing.

    Raises:
        ValueError: a tensor that is missing, of another shape, of another dtype, or NaN
            or infinite; the message names it. All but the last is found before any is read.
    """
    check_dtype(dtype)
    graph, state = _abstract(config)
    wanted = families.tensors(config, parameter_shapes(config))
    tensors = checked(config, stored, where)
    put = place or (lambda path, values: jax.device_put(values))
    found: dict[families.Path, Any] = {}
    with progress(sum(tensor.nbytes for tensor in tensors.values()), "Loading") as advance:
        for name, tensor in tensors.items():
            if name.endswith(SCALE):
                continue
            scales = tensors.get(name + SCALE)
            parts = [None] * len(wanted[name].paths)
            if scales is not None:
                values = converted(scales.read(), "float32", name + SCALE, scales.where)
                parts = [part for _, part in wanted[name].split(values)]
            for (path, view), scale in zip(wanted[name].split(tensor.read()), parts, strict=True):
                found[path] = _held(path, view, scale, dtype, put, name, tensor.where)
                del view
            advance(tensor.nbytes)
    flat = [(path, leaf.replace(found[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _held(
    path: families.Path,
    view: np.ndarray,
    scale: np.ndarray | None,
    dtype: str,
    put: Place,
    name: str,
    where: str,
) -> Any:
    """What the network holds of one parameter: an array, or an Int8Weight."""
    if scale is not None and dtype != "int8":
        view = int8.dequantize(view, scale)
    if dtype != "int8":
        return put(path, converted(view, dtype, name, where))
    if not quantised(path):
        return put(path, converted(view, activations_of_int8(), name, where))
    if scale is None:
        view, scale = int8.quantize(converted(view, "float32", name, where))
    values = aligned(view.shape, np.dtype(np.int8))
    values[...] = view
    return int8.Int8Weight(put(path, values), put((*path[:-1], "scale"), scale))


def quantised(path: families.Path) -> bool:
    """Whether a parameter is int8 in a network with int8 weights: the matrices of the blocks."""
    return path[0] == "blocks" and path[-1] == "weight"


def activations_of_int8() -> str:
    """The dtype in which a network with int8 weights computes: the fast one of the device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype that weights can't have."""
    if dtype not in (*DTYPES, "int8"):
        raise ValueError(f"weights is {dtype!r}: one of {', '.join(DTYPES)} or int8 is needed")


def checked(
    config: ModelConfig, stored: Mapping[str, StoredTensor], where: str
) -> dict[str, StoredTensor]:
    """The tensors of the network by their full names, buffers left out.

    Names and shapes are held against those of the network; no value is read, but where a tensor
    lies there twice (a tied head beside the embedding). As in transformers, tensors that the
    network doesn't have are left out, which is told in one line.

    Raises:
        ValueError: a tensor that is missing, of another shape, or twice and different.
    """
    wanted = families.tensors(config, parameter_shapes(config))
    found: dict[str, StoredTensor] = {}
    called: dict[str, str] = {}  # by its full name, what the file calls a tensor
    scales: dict[str, StoredTensor] = {}
    surplus: list[str] = []
    for name, tensor in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            scales[name] = tensor
            continue
        known = families.full_name(config, families.unwrapped(name))
        if known is None:
            continue
        if known not in wanted:
            surplus.append(name)
            continue
        if tensor.shape != wanted[known].shape:
            raise ValueError(
                f"{name} in {where} has shape {tensor.shape}, which doesn't fit its config: "
                f"{wanted[known].shape} is needed"
            )
        if tensor.dtype.name.startswith("float8"):
            raise ValueError(
                f"{name} in {where} has dtype {tensor.dtype}, which no weights here have: write "
                "the model in bfloat16 first, where it was quantised or with transformers "
                "(model.dequantize() where its config.json has a quantization_config, then "
                "model.to(torch.bfloat16).save_pretrained(folder))"
            )
        if known in found and not np.array_equal(found[known].read(), tensor.read()):
            raise ValueError(
                f"{where} holds {called[known]} and {name} with different values, "
                + (_TIED if families.is_head(name) or families.is_head(called[known]) else _TWICE)
            )
        if known not in found:
            found[known], called[known] = tensor, name
    missing = sorted(wanted.keys() - found.keys())
    others = _listed(sorted(surplus))
    if missing:
        has = f"; it has {others} instead" if surplus else ""
        raise ValueError(
            f"{where} lacks {_listed(missing)}: its config wants "
            f"{len(wanted)} tensors, {len(found)} were found{has}"
        )
    if surplus:
        notices.tell(
            f"{where} holds {others}, which a {config.family_title} of its config.json doesn't "
            "have: left out, as transformers does"
        )
    for known, name in called.items():
        scale = scales.get(name + SCALE)
        outputs = found[known].shape[-1 if wanted[known].conv1d else 0]
        if (found[known].dtype == np.int8) != (scale is not None):
            raise ValueError(f"{name} in {where}: an int8 tensor and {name}{SCALE} go together")
        if scale is not None and scale.shape not in ((outputs,), (outputs, 1)):
            raise ValueError(
                f"{name}{SCALE} in {where} has shape {scale.shape}: {scale_shape(wanted[known])} "
                "is needed"
            )
        if scale is not None:
            found[known + SCALE] = scale.reshaped((outputs,))
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:80] for name in names[:3]) + more


def scale_shape(tensor: families.Tensor) -> tuple[int, ...]:
    """The shape in which an int8 tensor's scales are written; also plain rows of them are read."""
    return tensor.shape[1:] if tensor.conv1d else (tensor.shape[0], 1)


def parameter_shapes(config: ModelConfig) -> Mapping[families.Path, tuple[int, ...]]:
    """The shape of every parameter of a network, by its path; nothing is computed."""
    flat = nnx.to_flat_state(_abstract(config)[1])
    return {path: versions.value(leaf).shape for path, leaf in flat}


@functools.lru_cache(maxsize=4)
def _abstract(config: ModelConfig) -> tuple[Any, Any]:
    """The graph of a network, and its state with shapes in place of arrays."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0))))
