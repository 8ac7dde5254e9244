"""Attribution, composition and singular values are TransformerLens' on the same weights.

TransformerLens is in the extra `reference`, not in `test`; without it these tests are skipped.
"""

import numpy as np
import pytest
from small_models import cases, small_model
from transformer_lens_reference import new_bridge

from gptj_lab.lens.attribution import attribute
from gptj_lab.lens.composition import MODES, composition_scores, head_singular_values

PROMPT, TOKEN, OTHER = "the cat sat on the mat, and the dog", " cat", " dog"


@pytest.fixture(scope="module", params=cases(slow=["gptj", "gpt_neox", "gpt2"]))
def both(request):
    """Our model, and TransformerLens' with LayerNorms folded and written means taken off."""
    pytest.importorskip("transformer_lens")
    model = small_model(*request.param)
    bridge = new_bridge(model)
    bridge.enable_compatibility_mode(
        disable_warnings=True, center_unembed=False, fold_value_biases=False
    )
    return model, bridge


def test_shares_are_those_of_transformer_lens(both):
    import torch

    model, bridge = both
    found = attribute(model, PROMPT, TOKEN, OTHER)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor(found.token_ids[None]))
        # Not stack_head_results: the bridge of GPT-J has no hook for it.
        layers = range(model.config.num_layers)
        z = torch.stack([cache[f"blocks.{i}.attn.hook_z"][:, -1] for i in layers])
        heads = torch.einsum("lbhd,lhdm->lhbm", z, bridge.W_O).reshape(found.heads.size, 1, -1)
        mlps = torch.stack([cache[f"blocks.{i}.hook_mlp_out"][:, -1] for i in layers])
        embed = cache["hook_embed"][None, :, -1]
        shares = [
            cache.logit_attrs(stack, found.token, found.other, pos_slice=-1).numpy().ravel()
            for stack in (heads, mlps, embed)
        ]
    np.testing.assert_allclose(found.heads.ravel(), shares[0], atol=1e-4)
    np.testing.assert_allclose(found.mlps + found.mlp_biases, shares[1], atol=1e-4)
    np.testing.assert_allclose(found.embed, shares[2][0], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_composition_is_that_of_transformer_lens(both, mode):
    model, bridge = both
    theirs = bridge.all_composition_scores(mode.upper()).scores.detach().numpy()
    np.testing.assert_allclose(composition_scores(model, mode), theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_singular_values_are_those_of_transformer_lens(both, kind):
    model, bridge = both
    theirs = getattr(bridge, kind.upper()).S.detach().numpy()
    found = head_singular_values(model, kind)
    np.testing.assert_allclose(found, theirs[..., :8], atol=1e-4 * theirs.max())
