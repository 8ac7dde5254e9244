"""One matrix product."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from gptj_lab.names import DATA, MODEL


class Linear(nnx.Module):
    """`x @ kernel + bias`, with the kernel as [d_in, d_out], in the dtype of `x`."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float, key: jax.Array):
        self.kernel = nnx.Param(std * jax.random.normal(key, (d_in, d_out)))
        self.bias = nnx.Param(jax.numpy.zeros(d_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        return self.add_bias(x @ self.kernel[...].astype(x.dtype))

    def partial_sums(
        self, x: Float[Array, "*batch d_in"], mesh: jax.sharding.Mesh
    ) -> Float[Array, "parts *batch d_out"]:
        """`x @ kernel` as one sum a device along `model`, each of its own part of d_in.

        Added up over the first axis they are the product; whoever adds up has to `add_bias`.
        """
        parts = mesh.shape[MODEL]
        cut = x.reshape(*x.shape[:-1], parts, -1)
        kernel = self.kernel[...].astype(x.dtype).reshape(parts, cut.shape[-1], -1)
        sums = jax.numpy.einsum("...pi,pio->p...o", cut, kernel)
        spec = jax.sharding.PartitionSpec(MODEL, DATA)
        return jax.lax.with_sharding_constraint(sums, jax.sharding.NamedSharding(mesh, spec))

    def add_bias(self, out: Float[Array, "*batch d_out"]) -> Float[Array, "*batch d_out"]:
        """`out + bias`, or `out` itself where there is no bias."""
        if self.bias is None:
            return out
        return out + jax.numpy.broadcast_to(self.bias[...].astype(out.dtype), out.shape)
