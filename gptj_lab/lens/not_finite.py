"""Where the first NaN or infinity of a forward pass comes from."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from gptj_lab import versions
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class NotFinite:
    """The first site, in the order of the computation, whose value isn't finite.

    Attributes:
        site: its name.
        position: of the first token there with such a value.
        token: that token as a person should see it.
        count: values of the site that are NaN or infinite.
        weights: the paths of the parameters that hold such values themselves.
    """

    site: str
    position: int
    token: str
    count: int
    weights: tuple[str, ...]

    def __str__(self) -> str:
        said = (
            f"{self.count} values at {self.site} are NaN or infinite, the first at position "
            f"{self.position} ({self.token}); every site before it is finite"
        )
        if self.weights:
            return f"{said}. Load the weights again: {', '.join(self.weights[:5])} hold such values"
        return f"{said}. All weights are finite: compute in a wider dtype (load with weights=...)"


def first_not_finite(model: LanguageModel, prompt: inputs.Prompt) -> NotFinite | None:
    """The first site whose value isn't finite on a prompt; None if all are.

    Raises:
        ValueError: as `inputs.token_ids_of`.
    """
    ids = inputs.token_ids_of(model, prompt)
    counts = inputs.host(_counts(model.network, inputs.padded(model, ids), model.dtype))
    for site in sites.all_of(model.config):
        counted = counts[site][: len(ids)]
        if counted.any():
            position = int(np.flatnonzero(counted)[0])
            token = model.tokenizer.display(int(ids[position]))
            total = int(counted.sum())
            return NotFinite(site, position, token, total, not_finite_weights(model))
    return None


def not_finite_weights(model: LanguageModel) -> tuple[str, ...]:
    """The paths of the parameters that hold NaN or infinity."""
    paths = []
    for path, leaf in nnx.to_flat_state(nnx.state(model.network)):
        parts = jax.tree.leaves(versions.value(leaf))
        floating = [part for part in parts if jnp.issubdtype(part.dtype, jnp.floating)]
        if not all(bool(jnp.isfinite(part).all()) for part in floating):
            paths.append(".".join(map(str, path)))
    return tuple(paths)


@functools.partial(jax.jit, static_argnames="dtype")
def _counts(network: Transformer, token_ids, dtype) -> dict[str, Int[jax.Array, "seq"]]:
    counts: dict[str, jax.Array] = {}

    def count(name: str, value: jax.Array) -> jax.Array:
        bad = ~jnp.isfinite(value[0])
        # Scores and patterns have their queries second; a masked key may hold anything.
        queries = 1 if name.endswith(("attn.scores", "attn.pattern")) else 0
        others = tuple(axis for axis in range(bad.ndim) if axis != queries)
        counts[name] = bad.sum(others)
        return value

    network(token_ids, site=count, dtype=dtype)
    return counts
