"""Matrices of heads and of the unembedding as plain float32 arrays, whatever form they lie in."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gptj_lab.model.int8 import Int8Weight
from gptj_lab.model.linear import Linear
from gptj_lab.model.transformer import LayerNorm, Transformer


class Ends(nnx.Module):
    """Both ends of the network: what tokens become, and what becomes logits."""

    def __init__(self, network: Transformer):
        self.embed, self.final_ln = network.embed, network.final_ln
        self.head, self.head_bias = network.head, network.head_bias


def matrix(linear: Linear) -> Float[Array, "d_out d_in"]:
    """The float32 matrix that a product multiplies with; int8 weights with their scales."""
    weight = linear.weight[...]
    if isinstance(weight, Int8Weight):
        scale = weight.scale[:, None].astype(jnp.float32)
        return weight.values.astype(jnp.float32) * jnp.broadcast_to(scale, weight.shape)
    return weight.astype(jnp.float32)


def bias(linear: Linear | None) -> Float[Array, "d_out"] | None:
    """The float32 bias that a product adds, if it has one."""
    if linear is None or linear.bias is None:
        return None
    return linear.bias[...].astype(jnp.float32)


def unembedding_bias(network: Transformer | Ends) -> Float[Array, "vocab"] | None:
    """The float32 bias that is added to the logits, if there is one."""
    own = network.head_bias
    return bias(network.head) if own is None else own[...].astype(jnp.float32)


def unembedding(network: Transformer | Ends) -> Float[Array, "vocab d_model"]:
    """The float32 matrix from the normalised residual stream to logits; tied or not."""
    if network.head is None:
        return network.embed[...].astype(jnp.float32)
    return matrix(network.head)


def unembedding_rows(
    network: Transformer | Ends, ids: Int[Array, "rows"]
) -> Float[Array, "rows d_model"]:
    """Some rows of the unembedding, float32: no copy of the whole is made."""
    table = network.embed if network.head is None else network.head.weight
    return jnp.take(table[...], ids, axis=0, mode="clip").astype(jnp.float32)


def gain(norm: LayerNorm) -> Float[Array, "d_model"]:
    """A LayerNorm's float32 scale."""
    return norm.scale[...].astype(jnp.float32)


def pulled_back(
    out: Linear, direction: Float[Array, "d_model"], num_heads: int
) -> Float[Array, "heads d_head"]:
    """What each head's z is multiplied with to give its write's share along `direction`."""
    nothing = jnp.zeros(out.weight[...].shape[1], jnp.float32)
    with jax.default_matmul_precision("highest"):
        _, pull = jax.vjp(out, nothing)  # makes no float copy of int8 weights
        return pull(direction)[0].reshape(num_heads, -1)
