"""One matrix product, whatever form its weight has: plain or int8."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gptj_lab.model import int8
from gptj_lab.names import DATA, MODEL


class Linear(nnx.Module):
    """`x @ weight.T + bias`, in the dtype of `x`.

    The weight lies as [d_out, d_in], as in PyTorch: one row of `x` then reads it at the memory's
    full speed, and checkpoints need not be transposed. It is an array or an `int8.Int8Weight`.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float, key: jax.Array):
        self.weight = nnx.Param(std * jax.random.normal(key, (d_out, d_in)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        weight = self.weight.get_value()
        if isinstance(weight, int8.Int8Weight):
            return self.add_bias(int8.product(x, weight))
        return self.add_bias(jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype)))

    def partial_sums(
        self, x: Float[Array, "*batch d_in"], mesh: jax.sharding.Mesh
    ) -> Float[Array, "parts *batch d_out"]:
        """`x @ weight.T` as one sum a device along `model`, each of its own part of d_in.

        Added up over the first axis they are the product; whoever adds up has to `add_bias`.
        """
        parts = mesh.shape[MODEL]
        cut = x.reshape(*x.shape[:-1], parts, -1)
        weight = self.weight.get_value()
        scale = None
        if isinstance(weight, int8.Int8Weight):
            weight, scale = weight.values, weight.scale
        rows = weight.astype(x.dtype).reshape(-1, parts, cut.shape[-1])
        sums = jnp.einsum("...pi,opi->p...o", cut, rows)
        if scale is not None:
            sums = sums * jnp.broadcast_to(scale.astype(x.dtype), sums.shape)
        spec = jax.sharding.PartitionSpec(MODEL, DATA)
        return jax.lax.with_sharding_constraint(sums, jax.sharding.NamedSharding(mesh, spec))

    def add_bias(self, out: Float[Array, "*batch d_out"]) -> Float[Array, "*batch d_out"]:
        """`out + bias`, or `out` itself where there is no bias."""
        if self.bias is None:
            return out
        return out + jnp.broadcast_to(self.bias.get_value().astype(out.dtype), out.shape)
