"""What differs between the versions of JAX and Flax that pyproject.toml admits, in one place."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def value(variable: nnx.Variable) -> Any:
    """What a variable holds, whatever that is: an array, its shape alone, int8 weights, None.

    Where it can only be an array, or int8 weights, `variable[...]` reads it. Flax 0.12.0 has
    `.value` alone, which 0.12.1 deprecates in favour of `get_value`. A variable isn't written:
    its module is given a new one, which is the same for all versions and never copies.
    """
    read = getattr(type(variable), "get_value", None)
    return variable.value if read is None else read(variable)


def factors(
    left: Float[Array, "..."], right: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Both factors of a product with a float32 result, in the dtype that this machine can take.

    That is their own but for bfloat16 on some CPUs, where JAX 0.7.2 has no such product: float32
    there, in which products of bfloat16 are exact, so that the result is the same.
    """
    narrow = left.dtype == right.dtype == jnp.bfloat16
    if narrow and jax.default_backend() == "cpu" and not has_bfloat16_products():
        return left.astype(jnp.float32), right.astype(jnp.float32)
    return left, right


@functools.lru_cache(maxsize=1)
def has_bfloat16_products() -> bool:
    """Whether this CPU's XLA multiplies bfloat16 into float32; tried once, in some 50 ms."""
    one = np.ones((2, 64, 64), jnp.bfloat16)  # too large for a loop: goes to XLA's library
    for axes in ((((1,), (1,)), ((), ())), (((2,), (2,)), ((0,), (0,)))):
        x = one if axes[1][0] else one[0]

        def product(x: Array, axes: Any = axes) -> Array:
            return jax.lax.dot_general(x, x, axes, preferred_element_type=jnp.float32)

        try:  # compiled ahead: a plain call would become part of the program that is being traced
            np.asarray(jax.jit(product).lower(x).compile()(x))
        except jax.errors.JaxRuntimeError:
            return False
    return True
