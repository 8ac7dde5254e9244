"""A short text that tells one model's weights from another's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from gptj_lab.config import ModelConfig
from gptj_lab.mesh import distributed

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_SAMPLES = 16  # numbers of each weight: a training step moves every one of them


def of_weights(model: LanguageModel) -> str:
    """32 hexadecimal digits from the config and some numbers of every weight.

    The same on one device and on a mesh. A weight that was changed in a few places only may escape
    it; weights loaded in another dtype are others.
    """
    digest = hashlib.sha256(config_text(model.config).encode())
    for leaf in _some(nnx.state(model.network)):
        value = distributed.gather(leaf)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:32]


def config_text(config: ModelConfig) -> str:
    """A config as JSON."""
    return json.dumps(dataclasses.asdict(config))


def config_of(text: str) -> ModelConfig:
    """The config that `config_text` wrote.

    Raises:
        ValueError, TypeError: it is none.
    """
    fields = json.loads(text)
    for name in ("local_windows", "eos_token_id"):  # JSON has lists only
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    return ModelConfig.of_family(fields.pop("family"), **fields)  # older ones lack newer fields


@jax.jit
def _some(state: Any) -> list[jax.Array]:
    """Numbers of each weight, those along its longest diagonal."""
    return [_along_diagonal(leaf) for leaf in jax.tree.leaves(state)]


def _along_diagonal(leaf: jax.Array) -> jax.Array:
    places = [jax.numpy.arange(_SAMPLES) * size // _SAMPLES for size in leaf.shape]
    return leaf[tuple(places)]
