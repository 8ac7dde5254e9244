"""Interventions against TransformerLens's hooks on the same weights (extra `reference`)."""

import numpy as np
import pytest
from small_models import small_model
from transformer_lens_reference import bridge_of

from gptj_lab.lens.interventions import Interventions, run

IDS = list(range(40, 51))
VECTOR = np.linspace(-1, 1, 32).astype(np.float32)
PATTERN = np.tril(np.random.default_rng(0).random((11, 11))).astype(np.float32)
PATTERN /= PATTERN.sum(-1, keepdims=True)


def set_heads(value, rows=slice(None)):
    """A change of z, whether its heads are an axis of their own or side by side."""

    def change(z, torch):
        z.view(1, len(IDS), 4, 8)[:, rows, 2] = torch.tensor(value)
        return z

    return change


def set_scores(scores, torch):
    scores[:, 2, 6, [4, 6]] = torch.finfo(scores.dtype).min
    return scores


def set_pattern(pattern, torch):
    pattern[:, 2] = torch.tensor(PATTERN)
    return pattern


def set_rows(x, torch):
    x[:, [3, 7]] = torch.tensor(VECTOR)
    return x


def add(x, torch):
    return x + 2 * torch.tensor(VECTOR)


EDITS = {
    "zero ablation": (lambda n: n.ablate_head(1, 2), "attn.hook_z", set_heads(0.0)),
    "mean ablation": (
        lambda n: n.ablate_head(1, 2, "mean", [1, 4], VECTOR[:8]),
        "attn.hook_z", set_heads(VECTOR[:8], [1, 4]),
    ),
    "MLP": (lambda n: n.ablate_mlp(1), "hook_mlp_out", lambda x, _: x * 0),
    "two edges": (
        lambda n: n.cut_edge(1, 2, 6, 4).cut_edge(1, 2, 6, 6), "attn.hook_attn_scores", set_scores
    ),
    "frozen": (lambda n: n.freeze_pattern(1, 2, PATTERN), "attn.hook_pattern", set_pattern),
    "patch": (lambda n: n.patch("resid_post", 1, [3, 7], VECTOR), "hook_resid_post", set_rows),
    "attention": (lambda n: n.patch("attn_out", 1, [3, 7], VECTOR), "hook_attn_out", set_rows),
    "steering": (lambda n: n.steer("resid_pre", 1, VECTOR, 2.0), "hook_resid_pre", add),
}  # fmt: skip


@pytest.mark.parametrize("family", ["gptj", "gpt2", "gpt_neox"])
def test_each_edit_is_the_hook_of_its_name(family):
    model = small_model(family)
    bridge = bridge_of(model)
    import torch

    ids = torch.tensor([IDS])
    plain, _ = run(model, IDS)
    near = 2e-5 * abs(plain).max()
    np.testing.assert_allclose(plain, bridge(ids)[0].detach().numpy(), atol=near)
    for name, (edit, hook, change) in EDITS.items():
        if family == "gptj" and name in ("two edges", "frozen"):
            continue  # its bridge leaves attention to transformers and discards such edits
        ours, _ = run(model, IDS, edit(Interventions.none(model, len(IDS))))
        with torch.no_grad():
            theirs = bridge.run_with_hooks(
                ids,
                fwd_hooks=[
                    (f"blocks.1.{hook}", lambda x, hook, change=change: change(x.clone(), torch))
                ],
            )[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=near, err_msg=name)
        assert abs(ours - plain).max() > 1e-2, name
