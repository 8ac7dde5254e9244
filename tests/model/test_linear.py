"""The product of plain arrays, in the dtypes that they come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj_lab.model.linear import product


def random(*shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (3, 20)])
def test_it_and_its_derivatives_are_those_of_float64(rows, dtype):
    x, weight = random(*rows, 96, dtype=dtype, seed=1), random(40, 96, dtype=dtype, seed=2)
    by_x, by_out = random(*rows, 96, dtype=dtype, seed=3), random(*rows, 40, dtype=dtype, seed=4)
    out, change = jax.jvp(lambda x: product(x, weight), (x,), (by_x,))
    back = jax.vjp(product, x, weight)[1](by_out)
    wide = [np.asarray(each, np.float64) for each in (x, weight, by_x, by_out)]
    for found, (left, right), summed in (
        (out, (wide[0], wide[1].T), 96),
        (change, (wide[2], wide[1].T), 96),
        (back[0], (wide[3], wide[1]), 40),
        (back[1], (wide[3].reshape(-1, 40).T, wide[0].reshape(-1, 96)), rows[0] * rows[1]),
    ):
        assert found.dtype == dtype
        expected = left @ right
        # Rounded once to the dtype, after float32 sums in whatever order a processor likes.
        rounded = float(jnp.finfo(dtype).eps) * abs(expected).max()
        sums = summed * 2.0**-24 * (abs(left) @ abs(right)).max()
        assert abs(np.asarray(found, np.float64) - expected).max() <= rounded + sums


def test_on_the_cpu_no_float_copy_is_made_of_a_bfloat16_weight():
    """XLA's slow way, fifteen times as slow for a row: the whole weight is converted first."""
    weight = jnp.zeros((512, 256), jnp.bfloat16)
    for rows in (1, 8):
        compiled = jax.jit(product).lower(jnp.zeros((1, rows, 256), jnp.bfloat16), weight).compile()
        assert "f32[512,256]" not in compiled.as_text()
