"""A small GPT-J as every form of checkpoint has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer


@pytest.fixture(scope="session")
def small_config():
    return ModelConfig.of_family(
        "gptj",
        vocab_size=104, context=32, d_model=16, num_layers=11, num_heads=4, d_rotary=2, d_ff=64,
        activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def random_network():
    """A function that makes a network of a shape, every parameter random (std 0.3)."""

    def make(config: ModelConfig) -> Transformer:
        random = np.random.default_rng(5)
        shapes = nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0)))
        graph, state = nnx.split(shapes)
        flat = [
            (path, leaf.replace(jnp.asarray(random.normal(0, 0.3, leaf.shape), "float32")))
            for path, leaf in nnx.to_flat_state(state)
        ]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    return make


@pytest.fixture(scope="session")
def small_network(small_config, random_network):
    """Its 11 layers sort otherwise as text than as numbers."""
    return random_network(small_config)


@pytest.fixture(scope="session")
def small_directory(small_config, small_network, tmp_path_factory):
    """The same as safetensors, in one file."""
    folder = tmp_path_factory.mktemp("small")
    huggingface.write(folder, small_config, small_network)
    return folder


@pytest.fixture(scope="session")
def same():
    """Whether two networks have the same bits."""

    def compare(one: Transformer, other: Transformer) -> bool:
        pairs = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True)
        return all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)

    return compare
