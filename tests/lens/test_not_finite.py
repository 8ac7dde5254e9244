"""The first site that isn't finite, in every family and on a mesh."""

import numpy as np
import pytest
from small_models import FAMILIES, cases, changed, small_model

from gptj_lab.lens.not_finite import first_not_finite

PROMPT = "the cat sat on the mat"


@pytest.mark.parametrize("model", cases("gptj", slow=[*FAMILIES[1:], ("gptj", "int8", 2, 2)]))
def test_a_finite_run_has_none(model):
    assert first_not_finite(small_model(*model), PROMPT) is None


@pytest.mark.parametrize(
    ("weight", "site"),
    [
        ("attn.k.weight", "attn.k"), ("attn.out.weight", "attn_out"),
        ("mlp.fc_in.bias", "mlp.pre"), ("mlp.fc_out.weight", "mlp_out"), ("ln.scale", "ln"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_weight_is_found_where_it_is_used(weight, site, bad):
    def spoil(network):
        *path, name = weight.split(".")
        part = network.blocks[1]
        for step in path:
            part = getattr(part, step)
        value = np.array(getattr(part, name)[...])
        value.flat[3] = bad
        getattr(part, name)[...] = value

    model = changed(small_model("gptj"), spoil)
    found = first_not_finite(model, PROMPT)
    assert found.site == f"blocks.1.{site}" and found.position == 0
    assert found.weights == (f"blocks.1.{weight}",)
    assert f"values at blocks.1.{site}" in str(found) and "Load the weights again" in str(found)


def test_a_token_whose_embedding_is_broken_is_named():
    def spoil(network):
        rows = np.array(network.embed[...])
        rows[9] = np.nan
        network.embed[...] = rows

    model = changed(small_model("gptj"), spoil)  # untied: logits don't use the row
    assert first_not_finite(model, [1, 2, 3]) is None
    found = first_not_finite(model, [1, 2, 9, 3])
    assert (found.site, found.position, found.count) == ("embed", 2, 32)
    assert found.token == model.tokenizer.display(9)


def test_what_overflows_is_told_from_what_is_stored():
    def grow(network):
        weight = network.blocks[0].mlp.fc_out.weight
        weight[...] = np.full_like(np.asarray(weight[...]), 3e38)

    found = first_not_finite(changed(small_model("gptj", d_ff=32), grow), PROMPT)
    assert found.site == "blocks.0.mlp_out" and found.weights == ()
    assert "compute in a wider dtype" in str(found)
