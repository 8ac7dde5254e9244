"""What differs between the versions of JAX and Flax that pyproject.toml admits, in one place."""

from typing import Any

from flax import nnx


def value(variable: nnx.Variable) -> Any:
    """What a variable holds, whatever that is: an array, its shape alone, int8 weights, None.

    Where it can only be an array, or int8 weights, `variable[...]` reads it. Flax 0.12.0 has
    `.value` alone, which 0.12.1 deprecates in favour of `get_value`. A variable isn't written:
    its module is given a new one, which is the same for all versions and never copies.
    """
    read = getattr(type(variable), "get_value", None)
    return variable.value if read is None else read(variable)
