"""Gradients by the embeddings: finite differences in float64, torch, completeness."""

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import FAMILIES, cases, small_model, tokenizer

from gptj_lab.checkpoints import huggingface
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import gradients
from gptj_lab.lens.gradients import gradient_x_input, integrated_gradients

PROMPT = "the cat sat on the mat"
TOKEN, OTHER = " cat", " dog"
MODELS = cases(
    "gptj", ("gpt2", "int8", 1, 4),
    slow=["codegen", "gpt_neox", "gpt_neo", "gpt2", ("gptj", "int8"), ("gptj", "float32", 2, 2)],
)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return small_model(*request.param)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def lead(oracle, found, embed):
    logits = oracle.run(found.token_ids, embed).logits[found.position]
    return logits[found.token] - logits[found.other]


def test_gradients_are_those_of_finite_differences(model):
    found = gradient_x_input(model, PROMPT, TOKEN, OTHER, position=-2)
    oracle = Float64Network(model)
    embed = oracle.w["embed"][found.token_ids]
    np.testing.assert_allclose(found.value, lead(oracle, found, embed), atol=1e-4)
    random = np.random.default_rng(0)
    for _ in range(4):
        along = random.normal(size=embed.shape)
        rise = lead(oracle, found, embed + 1e-5 * along) - lead(oracle, found, embed - 1e-5 * along)
        np.testing.assert_allclose((found.gradients * along).sum(), rise / 2e-5, rtol=1e-3)
    np.testing.assert_allclose(found.scores, (found.gradients * embed).sum(1), atol=1e-4)
    assert found.baseline is None and found.completeness_gap is None


def test_integrated_gradients_add_up_to_the_rise_of_the_logit(model):
    found = integrated_gradients(model, PROMPT, TOKEN, OTHER, baseline=0)
    oracle = Float64Network(model)
    start = np.broadcast_to(oracle.w["embed"][0], (len(found.token_ids), model.config.d_model))
    end = oracle.w["embed"][found.token_ids]
    rise = lead(oracle, found, end) - lead(oracle, found, start)
    assert abs(found.total - rise) < 1e-3 and abs(found.completeness_gap) < 1e-3
    assert f"{found.completeness_gap:+.1e} off" in repr(found)


def test_tokens_after_the_position_score_nothing(gptj):
    for found in (
        gradient_x_input(gptj, PROMPT, TOKEN, position=2),
        integrated_gradients(gptj, PROMPT, TOKEN, position=2, steps=8),
    ):
        assert found.scores[:3].all() and not found.scores[3:].any()
        assert not found.gradients[3:].any()


def test_more_points_come_closer_and_the_prompt_itself_as_baseline_scores_nothing(gptj):
    gaps = [
        abs(
            integrated_gradients(gptj, PROMPT, TOKEN, baseline="mean", steps=steps).completeness_gap
        )
        for steps in (1, 64)
    ]
    assert gaps[1] < 1e-3 < gaps[0]
    same = integrated_gradients(gptj, [7, 7, 7], TOKEN, baseline=7)
    assert not same.scores.any() and abs(same.completeness_gap) < 1e-6


@pytest.mark.parametrize("baseline", gradients.BASELINES)
def test_baselines_are_what_they_are_called(gptj, baseline):
    found = integrated_gradients(gptj, PROMPT, TOKEN, OTHER, baseline=baseline, steps=4)
    oracle = Float64Network(gptj)
    row = oracle.w["embed"].mean(0) if baseline == "mean" else np.zeros(32)
    start = np.broadcast_to(row, (len(found.token_ids), 32))
    np.testing.assert_allclose(found.baseline, lead(oracle, found, start), atol=1e-4)


def test_progress_is_told_and_nothing_is_compiled_twice(gptj):
    told = []
    integrated_gradients(gptj, PROMPT, TOKEN, steps=11, progress=lambda *step: told.append(step))
    assert told == [(8, 11), (11, 11)]
    before = gradients._followed._cache_size()
    integrated_gradients(gptj, PROMPT + " and", OTHER, TOKEN, 1, baseline="zero", steps=5)
    assert gradients._followed._cache_size() == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"baseline": "median"}, "baseline is 'median': one of"),
        ({"baseline": 999}, "ids from 0 to 303"),
        ({"steps": 0}, "steps is 0"),
        ({"position": -9}, "position is -9"),
    ],
)
def test_what_makes_no_sense_is_refused(gptj, settings, said):
    with pytest.raises(ValueError, match=said):
        integrated_gradients(gptj, "the cat", TOKEN, **settings)


def torch_gradients(theirs, ids, start, places, token, other, position):
    """Gradients of the lead by inputs_embeds at points on the line from `start`, by autograd."""
    import torch

    end = theirs.get_input_embeddings().weight.detach()[torch.tensor(ids)]
    found = []
    for place in places:
        x = (start + place * (end - start)).clone().requires_grad_(True)
        logits = theirs(inputs_embeds=x[None]).logits[0, position]
        (logits[token] - logits[other]).backward()
        found.append(x.grad.numpy())
    return np.stack(found), end.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_both_are_those_of_torch_autograd(family, torch_model, tmp_path):
    import torch

    theirs = torch_model(family, vocab_size=304)
    theirs.save_pretrained(tmp_path)
    model = LanguageModel(*huggingface.read(tmp_path), tokenizer())
    theirs = theirs.double()
    ours = gradient_x_input(model, PROMPT, TOKEN, OTHER)
    asked = (ours.token, ours.other, ours.position)
    zero = torch.zeros((), dtype=torch.float64)
    (gradient,), embed = torch_gradients(theirs, ours.token_ids, zero, [1.0], *asked)
    close = dict(rtol=0, atol=2e-5 * np.abs(gradient).max())
    np.testing.assert_allclose(ours.gradients, gradient, **close)
    products = (gradient * embed).sum(1)
    np.testing.assert_allclose(ours.scores, products, rtol=0, atol=2e-5 * abs(products).max())

    ours = integrated_gradients(model, PROMPT, TOKEN, OTHER, baseline=0, steps=12)
    nodes, shares = np.polynomial.legendre.leggauss(12)
    start = theirs.get_input_embeddings().weight.detach()[0]
    along, _ = torch_gradients(theirs, ours.token_ids, start, (nodes + 1) / 2, *asked)
    mean = np.einsum("n,nsd->sd", shares / 2, along)
    products = (mean * (embed - start.numpy())).sum(1)
    np.testing.assert_allclose(ours.scores, products, rtol=0, atol=1e-4 * abs(products).max())
