"""The same weights in TransformerLens: activations, lenses, scores of heads.

Slow, and skipped where it isn't installed (extra `reference`). Its CodeGen adapter (4.3.0) fails
under transformers 5.24: CodeGenAttention has no `embed_positions` there.
"""

import numpy as np
import pytest
from small_models import small_model
from transformer_lens_reference import bridge_of, cache_of

from gptj_lab.lens import heads, logit_lens
from gptj_lab.lens.jacobian_lens import fit_jacobian_lens

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and the dog on the cat"
OTHER = "the dog sat on the log, and the cat on the dog"
HOOKS = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out", "attn.hook_pattern": "attn.pattern", "attn.hook_z": "attn.z",
    "attn.hook_v": "attn.v", "mlp.hook_pre": "mlp.pre", "mlp.hook_post": "mlp.post",
}  # fmt: skip
ATOL = 2e-5


@pytest.fixture(scope="module", params=["gptj", "gpt2", "gpt_neox", "gpt_neo"])
def model(request):
    pytest.importorskip("transformer_lens")
    return small_model(request.param)


def test_activations_are_the_same(model):
    trace = model.trace(PROMPT)
    logits, cache = cache_of(model, trace.token_ids)
    np.testing.assert_allclose(trace.logits, logits, atol=ATOL)
    compared = set()
    for layer in range(model.config.num_layers):
        for hook, site in HOOKS.items():
            theirs, name = cache.get(f"blocks.{layer}.{hook}"), f"blocks.{layer}.{site}"
            if theirs is not None and name in trace:
                np.testing.assert_allclose(trace[name], theirs, atol=ATOL, err_msg=name)
                compared.add(site)
    assert compared >= {"resid_pre", "attn_out", "mlp_out", "attn.pattern", "attn.z", "mlp.pre"}


def test_the_logit_lens_is_the_same(model):
    import torch
    from transformer_lens.tools.analysis import logit_lens as theirs

    lens = logit_lens.logit_lens(model.trace(PROMPT))
    tokens = torch.tensor(lens.trace.token_ids[None].astype(np.int64))
    found = theirs(bridge_of(model), tokens, positions=None)
    stack = found.values.detach().numpy()[:, 0]
    if len(stack) == len(lens.rows) + 1:  # tokens alone, before the learned positions
        stack = stack[1:]
    for row, expected in enumerate(stack):
        np.testing.assert_allclose(lens.logits(row), expected, atol=5 * ATOL)


def test_the_fitted_jacobian_lens_is_the_same(model):
    from transformer_lens.tools.analysis import JacobianLens

    bridge, texts = bridge_of(model), [PROMPT, OTHER]
    theirs = JacobianLens.fit(
        bridge, texts, corpus="test", max_seq_len=10, skip_first_positions=2, show_progress=False
    )
    first = bridge.to_tokens(PROMPT)[0].tolist()
    assert first == model.tokenizer.encode(PROMPT)  # no token before the text
    ours = fit_jacobian_lens(model, texts, seq=10, skip=2)
    assert theirs.source_layers == [0, 1]
    for layer in theirs.source_layers:  # theirs is of a block's output, ours of the next's input
        expected = theirs.jacobians[layer].numpy()
        np.testing.assert_allclose(ours.matrix[layer + 1], expected, atol=5 * ATOL)


@pytest.mark.parametrize("name", ["previous_token", "duplicate_token", "induction"])
def test_head_scores_are_the_same(model, name):
    from transformer_lens.head_detector import detect_head

    trace = model.trace(PROMPT)
    theirs = detect_head(bridge_of(model), PROMPT, f"{name}_head").numpy()
    ids = trace.token_ids
    queries = len(ids) - 1  # theirs is a mean over all queries, ours over those it can be said of
    if name != "previous_token":
        queries = sum(ids[query] in ids[:query] for query in range(len(ids)))
    np.testing.assert_allclose(
        heads.scores(trace)[name] * queries / len(ids), theirs, atol=ATOL, err_msg=name
    )
