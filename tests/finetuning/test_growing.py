"""A grown model is the same function, and all of it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import small_model

from gptj_lab.finetuning.growing import deeper
from gptj_lab.finetuning.loss import next_token_loss


@pytest.mark.parametrize("num_layers", [4, 7])
def test_new_blocks_change_no_logit_and_every_block_has_a_gradient(num_layers):
    model = small_model("gptj")
    rows = jax.random.randint(jax.random.key(1), (2, 12), 0, model.config.vocab_size)
    grown = deeper(model, num_layers)
    assert len(grown.network.blocks) == grown.config.num_layers == num_layers
    assert np.array_equal(model.logits(rows), grown.logits(rows))
    graph, params = nnx.split(grown.network)
    gradient = jax.grad(lambda p: next_token_loss(nnx.merge(graph, p), rows))(params)
    for block in gradient["blocks"].values():
        assert jnp.abs(block["mlp"]["fc_out"]["weight"][...]).max() > 0
    with pytest.raises(ValueError, match="num_layers is 3, the model has 3"):
        deeper(model, 3)
