"""Sites: named places in the network where a value can be read or replaced.

The network calls `site(name, value)` at each of them and goes on with what comes back. The names
are static, so that an unused site leaves no trace in the compiled program.
"""

import difflib
import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence

import jax

from gptj_lab import names
from gptj_lab.config import ModelConfig

Site = Callable[[str, jax.Array], jax.Array]


def ignore(name: str, value: jax.Array) -> jax.Array:
    """`value` itself: the site function of a plain forward pass."""
    return value


class Collector:
    """A site function that keeps the values of the chosen sites in `values`."""

    def __init__(self, wanted: Sequence[str]):
        self.wanted = frozenset(wanted)
        self.values: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        if name in self.wanted:
            self.values[name] = value
        return value


def intervene(replacements: Mapping[str, Callable[[jax.Array], jax.Array]]) -> Site:
    """A site function that replaces the value of each named site by its function's result."""

    def site(name: str, value: jax.Array) -> jax.Array:
        if name not in replacements:
            return value
        new = replacements[name](value)
        if new.shape != value.shape:
            raise ValueError(
                f"the intervention at {name} returned shape {new.shape}: "
                f"the site's own shape {value.shape} is needed"
            )
        return new.astype(value.dtype)

    return site


@functools.cache
def all_of(config: ModelConfig) -> tuple[str, ...]:
    """Every site of the network that the config describes, in the order of the computation."""
    return names.all_sites(
        config.num_layers,
        parallel=config.parallel,
        shared_layer_norm=config.shared_layer_norm,
        learned_positions=config.positions == "learned",
    )


def match(patterns: str | Sequence[str], config: ModelConfig) -> list[str]:
    """The sites that the patterns name (`*` stands for anything), in the network's order.

    Raises:
        ValueError: a pattern that names no site; the message lists the nearest ones.
    """
    known = all_of(config)
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = fnmatch.filter(known, pattern)
        if not hits:
            if pattern.endswith("resid_mid") and config.parallel:
                raise ValueError(
                    f"{pattern}: {config.family_title}'s blocks are parallel (attention and MLP "
                    "both read resid_pre), so there is no resid_mid"
                )
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
            raise ValueError(f"no site is named {pattern!r}: the nearest are {', '.join(near)}")
        found.update(hits)
    return [site for site in known if site in found]
