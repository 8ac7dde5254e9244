"""The MLP's activation functions, by the names that transformers gives them (ACT2FN).

Some names mean one function: they differ in the order of its roundings only.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_GELU = functools.partial(jax.nn.gelu, approximate=False)
_GELU_TANH = functools.partial(jax.nn.gelu, approximate=True)


def _laplace(x: jax.Array) -> jax.Array:
    """A normal distribution's share below x, of the mean and width in Ma et al. 2023 (MEGA)."""
    return 0.5 * (1 + jax.scipy.special.erf((x - 0.707107) / (0.282095 * 2**0.5)))


FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _GELU,
    "gelu_python": _GELU,
    "gelu_10": lambda x: jnp.clip(_GELU(x), -10, 10),
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "gelu_python_tanh": _GELU_TANH,
    "gelu_accurate": _GELU_TANH,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "hardswish": jax.nn.hard_swish,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "laplace": _laplace,
    "linear": lambda x: x,
}
