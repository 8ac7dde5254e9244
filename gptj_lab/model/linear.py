"""One matrix product, whatever form its weight has: plain or int8, and LoRA adapters beside it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gptj_lab import versions
from gptj_lab.model import int8, narrow
from gptj_lab.names import DATA, MODEL


def product(
    x: Float[Array, "*batch d_in"], weight: Float[Array, "d_out d_in"]
) -> Float[Array, "*batch d_out"]:
    """`x @ weight.T` in the dtype of `x`."""
    weight = weight.astype(x.dtype)
    if x.dtype != jnp.bfloat16:
        return _product(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=_product_on_cpu, default=_product)


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, weight)


def _product_on_cpu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Of bfloat16: XLA:CPU has fast kernels for float32 results of two rows or more.

    Measured beside `_product` with a [4096, 4096] matrix: 1 row 15 times as fast, 8 rows 19
    times, 256 rows 3 times.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    rows, weight = versions.factors(rows, weight)
    out = jnp.einsum("ri,oi->ro", rows, weight, preferred_element_type=jnp.float32)
    return out[: x.size // x.shape[-1]].reshape(*x.shape[:-1], -1).astype(x.dtype)


Weight = Any  # a matrix [d_out, d_in]: an array, or an int8.Int8Weight


class Adapter(nnx.Param):
    """A weight of a LoRA adapter."""


class Strength(nnx.Variable):
    """By what an adapter is multiplied: data, so that moving it compiles nothing."""


class DropoutKey(nnx.Variable):
    """The random key of an adapter's dropout; None outside training."""


class Norms(nnx.Variable):
    """The norms of a matrix's rows together with its DoRA adapter."""


class LowRank(nnx.Module):
    """What LoRA adds to a product: `strength * (x @ a.T) @ b.T` (Hu et al. 2021).

    `a` lies as [rank, d_in], `b` as [d_out, rank], both in float32; `b` begins at zero, so that a
    new adapter changes nothing. `bias` [d_out], where there is one, is added to `b`'s product.

    With a `magnitude` [d_out] it is DoRA (Liu et al. 2024): the rows of `weight + strength * b @ a`
    are made as long as the magnitudes, and `share` of what that changes is added. `norms` are how
    long they are without; while it is trained (`live`) they are computed anew in each step, and
    taken as constants in its gradient.
    """

    def __init__(
        self, d_in: int, d_out: int, *, rank: int, strength: float, dropout: float, key: jax.Array,
        dora: bool = False, bias: bool = False,
    ):  # fmt: skip
        # As nn.Linear begins, which PEFT leaves to `a`: uniform, of variance 1 / (3 d_in).
        bound = d_in**-0.5
        self.a = Adapter(jax.random.uniform(key, (rank, d_in), minval=-bound, maxval=bound))
        self.b = Adapter(jnp.zeros((d_out, rank)))
        self.bias = Adapter(jnp.zeros(d_out)) if bias else None
        self.magnitude = Adapter(jnp.ones(d_out)) if dora else None
        self.norms = Norms(jnp.ones(d_out)) if dora else None
        self.share = Strength(jnp.ones(())) if dora else None
        self.strength = Strength(jnp.asarray(strength, jnp.float32))
        self.dropout = dropout
        self.live = False
        self.key = DropoutKey(None)

    def __call__(
        self, x: Float[Array, "*batch d_in"], plain: Float[Array, "*batch d_out"], weight: Weight
    ) -> Float[Array, "*batch d_out"]:
        """What is added to `plain`, which is `x @ weight.T`; without `bias`."""
        low = jnp.einsum("...i,ri->...r", self._dropped(x), self.a[...].astype(x.dtype))
        return self._resized(self._raised(low), plain, weight)

    def partial_sums(
        self,
        x: Float[Array, "*batch parts part"],
        plain: Float[Array, "parts *batch d_out"],
        weight: Weight,
    ) -> Float[Array, "parts *batch d_out"]:
        """The same as one sum for each part of d_in."""
        rows = self.a[...].astype(x.dtype).reshape(-1, *x.shape[-2:])
        dropped = self._dropped(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
        raised = self._raised(jnp.einsum("...pi,rpi->p...r", dropped, rows))
        return self._resized(raised, plain, weight)

    def row_norms(self, weight: Weight) -> Float[Array, "d_out"]:
        """How long the rows of the matrix and what the adapter adds to it are together."""
        if isinstance(weight, int8.Int8Weight):
            weight = weight.values.astype(jnp.float32) * weight.scale[:, None]
        low = self.strength[...] * (self.b[...] @ self.a[...])
        return jnp.linalg.norm(weight.astype(jnp.float32) + low, axis=1)

    def _raised(self, low: Float[Array, "*batch rank"]) -> Float[Array, "*batch d_out"]:
        strength = self.strength[...].astype(low.dtype)
        return jnp.einsum("...r,or->...o", low * strength, self.b[...].astype(low.dtype))

    def _resized(
        self, raised: Float[Array, "*batch d_out"], plain: Float[Array, "*batch d_out"], weight: Any
    ) -> Float[Array, "*batch d_out"]:
        if self.magnitude is None or self.norms is None or self.share is None:
            return raised
        norms = jax.lax.stop_gradient(self.row_norms(weight)) if self.live else self.norms[...]
        longer = jnp.broadcast_to((self.magnitude[...] / norms).astype(plain.dtype), plain.shape)
        return self.share[...].astype(plain.dtype) * (longer * raised + (longer - 1) * plain)

    def _dropped(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        key = versions.value(self.key)
        if key is None or not self.dropout:
            return x
        kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)


class Linear(nnx.Module):
    """`x @ weight.T + bias`, in the dtype of `x`, and what its adapters add.

    The weight lies as [d_out, d_in], as in PyTorch: one row of `x` then reads it at the memory's
    full speed, and checkpoints need not be transposed. It is an array or an `int8.Int8Weight`.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float, key: jax.Array):
        self.weight = nnx.Param(std * jax.random.normal(key, (d_out, d_in)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None
        self.adapters = nnx.Dict()  # LowRank by name

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        weight = self.weight[...]
        if isinstance(weight, int8.Int8Weight):
            out = int8.product(x, weight)
        elif narrow.wanted():
            out = narrow.product(x, weight)
        else:
            out = product(x, weight)
        plain = out
        for adapter in self.adapters.values():
            out = out + adapter(x, plain, weight)
        return self.add_bias(out)

    def partial_sums(
        self, x: Float[Array, "*batch d_in"], mesh: jax.sharding.Mesh
    ) -> Float[Array, "parts *batch d_out"]:
        """`x @ weight.T` as one sum a device along `model`, each of its own part of d_in.

        Added up over the first axis they are the product; whoever adds up has to `add_bias`.
        """
        parts = mesh.shape[MODEL]
        cut = x.reshape(*x.shape[:-1], parts, -1)
        weight = self.weight[...]
        scale = None
        if isinstance(weight, int8.Int8Weight):
            weight, scale = weight.values, weight.scale
        rows = weight.astype(x.dtype).reshape(-1, parts, cut.shape[-1])
        sums = jnp.einsum("...pi,opi->p...o", cut, rows)
        if scale is not None:
            sums = sums * jnp.broadcast_to(scale.astype(x.dtype), sums.shape)
        plain = sums
        for adapter in self.adapters.values():
            sums = sums + adapter.partial_sums(cut, plain, self.weight[...])
        spec = jax.sharding.PartitionSpec(MODEL, DATA)
        return jax.lax.with_sharding_constraint(sums, jax.sharding.NamedSharding(mesh, spec))

    def has_adapter(self, name: str) -> bool:
        """Whether it has an adapter of this name."""
        return name in list(self.adapters)  # the `in` of Flax 0.12.0's Dict raises AttributeError

    def add_bias(self, out: Float[Array, "*batch d_out"]) -> Float[Array, "*batch d_out"]:
        """`out + bias` and the biases of adapters, or `out` itself where there is none."""
        for adapter in self.adapters.values():
            if adapter.bias is not None:
                bias = (adapter.strength[...] * adapter.bias[...]).astype(out.dtype)
                out = out + jnp.broadcast_to(bias, out.shape)
        if self.bias is None:
            return out
        return out + jnp.broadcast_to(self.bias[...].astype(out.dtype), out.shape)
