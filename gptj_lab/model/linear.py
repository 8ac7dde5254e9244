"""One matrix product."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Module):
    """`x @ kernel + bias`, with the kernel as [d_in, d_out], in the dtype of `x`."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float, key: jax.Array):
        self.kernel = nnx.Param(std * jax.random.normal(key, (d_in, d_out)))
        self.bias = nnx.Param(jax.numpy.zeros(d_out)) if bias else None

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        out = x @ self.kernel[...].astype(x.dtype)
        if self.bias is None:
            return out
        return out + jax.numpy.broadcast_to(self.bias[...].astype(x.dtype), out.shape)
