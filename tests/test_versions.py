"""What differs between versions: a product that some CPUs of JAX 0.7.2 lack, a variable's value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptj_lab import versions
from gptj_lab.model import int8, narrow
from gptj_lab.model.int8 import Int8Weight
from gptj_lab.model.linear import product


def narrow_operands():
    """Random factors as products of bfloat16 meet them: rows, a matrix, heads, who sees whom."""
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(2, 9, 32)), random.normal(size=(24, 32))
    heads = random.normal(size=(2, 4, 9, 16))
    return *(jnp.asarray(each, jnp.float32) for each in (x, weight, heads)), jnp.tril(
        jnp.ones((1, 1, 9, 9), bool)
    )


def test_without_the_product_training_computes_the_same(monkeypatch):
    x, weight, heads, seen = narrow_operands()

    def computed(x, weight, heads):
        read = narrow.attend(heads, heads, heads, seen, 0.25)
        plain = product(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
        return (narrow.product(x, weight) ** 2).sum() + (read**2).sum() + plain.sum()

    def program():
        jax.clear_caches()  # branches of platform_dependent are traced once
        traced = jax.jit(jax.value_and_grad(lambda *each: computed(*each), argnums=(0, 1, 2)))
        return traced.lower(x, weight, heads)

    assert versions.has_bfloat16_products() in (True, False)
    monkeypatch.setattr(versions, "has_bfloat16_products", lambda: True)
    there = program()
    monkeypatch.setattr(versions, "has_bfloat16_products", lambda: False)
    missing = program()
    products = [line for line in missing.as_text().splitlines() if "dot_general" in line]
    assert products and not any("bf16" in line and "f32>" in line for line in products), products
    expected, found = there.compile()(x, weight, heads), missing.compile()(x, weight, heads)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-2 * float(abs(a).max()))


@pytest.mark.parametrize("rows", [8, 100])
def test_gradients_go_through_int8_weights(rows):
    random = np.random.default_rng(1)
    values = random.integers(-127, 128, (300, 64)).astype(np.int8)
    scale = random.uniform(0.5, 1, 300).astype(np.float32)
    weight = Int8Weight(jnp.asarray(values), jnp.asarray(scale))
    layer = nnx.Param(weight)
    assert (layer[...].values == values).all() and (layer[...].scale == scale).all()
    x = jnp.asarray(random.normal(size=(rows, 64)), jnp.float32)
    found = jax.jit(jax.grad(lambda x: int8.product(x, weight).sum()))(x)
    expected = np.broadcast_to((values * scale[:, None]).sum(0), x.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_a_value_is_read_whatever_it_is():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    for value in (None, shape, jnp.ones(2), jax.random.key(1)):
        found = versions.value(nnx.Variable(value))
        assert found is value or (found == value).all()
