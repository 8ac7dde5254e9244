"""The type checker of the test suite: beartype, on array annotations only.

Other annotations are for pyright and readers: what a public function does with a value of another
type is its own business (a sentence), and is tested as that.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which now checks the dtype and the shape of the arrays it takes and returns."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if "jaxtyping" in repr(hint)
    }
    return beartype(function)
