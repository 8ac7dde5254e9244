"""Sweeps: the same as one intervention at a time, in any chunks, on a mesh, and cancelled."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from small_models import changed, small_model

from gptj_lab.lens import ablation, patching, path_patching, prompts, sweeps
from gptj_lab.lens.interventions import Interventions, run

CLEAN = [7, 40, 41, 99, 43, 44, 45, 46, 47]
CORRUPT = [7, 40, 41, 98, 43, 44, 60, 46, 47]
NAMED = dict(answer=50, instead=70)


@pytest.fixture(scope="module", params=["one device", "mesh"])
def model(request):
    if request.param == "mesh":
        return small_model("codegen", "int8", data=2, model=4, num_layers=2)
    return small_model("gptj", num_layers=2)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj", num_layers=2)


def test_a_sweep_is_one_intervention_after_the_other(model, tolerance):
    none = Interventions.none(model, len(CLEAN))
    vector = np.linspace(-3, 3, 32)
    made = [
        none,
        none.ablate_head(0, 1).steer("resid_post", 0, vector, positions=2),
        none.cut_edge(1, 0, 8, 3).patch("attn.k", 1, 4, vector),
        none.ablate_mlp(1).patch("final_ln", 0, 6, vector),
        none.freeze_pattern(1, 2, np.eye(len(CLEAN))).scale("mlp.post", 0, 0.5, [7, 8]),
    ]
    for position, score_text in ((-1, False), (6, True))[: 1 if model.mesh else 2]:
        chunks = sweeps.each(
            model, CLEAN, none, made.__getitem__, 5, position=position, score_text=score_text
        )
        found, losses = [], []
        for chunk in chunks:
            assert chunk.start == len(found)
            found += list(chunk.logits)
            losses += list(chunk.nll) if score_text else []
        for row, interventions in zip(found, made, strict=True):
            logits, _ = run(model, CLEAN, interventions)
            near = tolerance["float32"] * abs(logits).max()
            np.testing.assert_allclose(row, logits[position], atol=2 * near)
        if score_text:
            expected = [prompts.nll_of(run(model, CLEAN, one)[0], CLEAN) for one in made]
            np.testing.assert_allclose(losses, expected, atol=1e-4)


def test_ablation_by_the_prompts_own_values_does_nothing(model):
    for component in (ablation.heads, ablation.mlps)[: 1 if model.mesh else 2]:
        effects = component(model, CLEAN, "resample", CLEAN, **NAMED)
        for change in (effects.logprob, effects.logit_difference, effects.kl, effects.nll):
            np.testing.assert_allclose(change, 0, atol=1e-4)


def test_mean_and_resample_put_the_references_values_in_place(gptj):
    none = Interventions.none(gptj, len(CLEAN))
    texts = [CORRUPT, CLEAN[:4]]
    mean = ablation.means(gptj, texts)
    runs = [run(gptj, ids, sites=["*"])[1] for ids in texts]
    for layer in range(2):
        joined = np.concatenate([values[f"blocks.{layer}.attn.z"] for values in runs])
        np.testing.assert_allclose(mean.z[layer], joined.mean(0), atol=1e-6)
        joined = np.concatenate([values[f"blocks.{layer}.mlp_out"] for values in runs])
        np.testing.assert_allclose(mean.mlp_out[layer], joined.mean(0), atol=1e-6)
    plain = prompts.log_softmax(run(gptj, CLEAN)[0][-1])
    heads = ablation.heads(gptj, CLEAN, "mean", texts, **NAMED)
    mlps = ablation.mlps(gptj, CLEAN, "resample", CORRUPT, **NAMED)
    for layer in range(2):
        for head in range(4):
            one = none.ablate_head(layer, head, "mean", value=mean.z[layer, head])
            after = prompts.log_softmax(run(gptj, CLEAN, one)[0][-1])
            assert heads.logprob[layer, head] == pytest.approx((after - plain)[50], abs=1e-4)
        one = none.ablate_mlp(layer, "resample", value=runs[0][f"blocks.{layer}.mlp_out"])
        after = prompts.log_softmax(run(gptj, CLEAN, one)[0][-1])
        assert mlps.logprob[layer] == pytest.approx((after - plain)[50], abs=1e-4)


SITES = ("embed", "mlp.post")


def test_patching_any_site_where_the_answer_is_read(gptj):
    none = Interventions.none(gptj, len(CLEAN))
    _, values = run(gptj, CLEAN, sites=["*"])
    for site in SITES:
        grid = patching.positions(gptj, CLEAN, CORRUPT, site, **NAMED)
        outside = site == "embed"
        assert grid.recovered.shape == (1 if outside else 2, len(CLEAN)) and grid.complete
        layer = 0 if outside else 1
        value = values[site if outside else f"blocks.1.{site}"].reshape(len(CLEAN), -1)
        for position in (3, 6, 8):
            one = none.patch(site, layer, position, value[position])
            expected = grid.pair.recovered(run(gptj, CORRUPT, one)[0][-1])
            assert grid.recovered[layer, position] == pytest.approx(expected, abs=1e-4)


def test_paths_to_receiving_heads_are_three_runs(gptj):
    receivers = [(1, 1, "q"), (1, 3, "v"), (1, 0, "k")]
    sites = [f"blocks.1.attn.{part}" for _, _, part in receivers]
    sent = path_patching.senders(gptj, CLEAN, CORRUPT, receivers, **NAMED)
    none = Interventions.none(gptj, len(CLEAN))
    clean, corrupt = (run(gptj, ids, sites=["*"])[1] for ids in (CLEAN, CORRUPT))
    held = none
    for layer in range(2):
        held = held.patch("attn.z", layer, None, corrupt[f"blocks.{layer}.attn.z"].reshape(9, -1))
    for head in range(4):
        value = clean["blocks.0.attn.z"][:, head]
        _, reached = run(gptj, CORRUPT, held.patch("attn.z", 0, None, value, head), ["*"])
        last = none
        for (to, of, part), site in zip(receivers, sites, strict=True):
            last = last.patch(f"attn.{part}", to, None, reached[site][:, of], of)
        expected = sent.pair.recovered(run(gptj, CORRUPT, last, ["*"])[0][-1])
        assert sent.recovered[0, head] == pytest.approx(expected, abs=1e-3)
    assert (sent.recovered[1] == 0).all() and abs(sent.recovered[0]).max() > 1e-2


def test_chunks_of_any_size_give_the_same_grid_and_say_how_far_they_are(gptj):
    reports = []
    whole = patching.heads(gptj, CLEAN, CORRUPT, **NAMED)
    one_by_one = patching.heads(
        gptj, CLEAN, CORRUPT, chunk_bytes=1, progress=lambda *done: reports.append(done), **NAMED
    )
    np.testing.assert_allclose(one_by_one.recovered, whole.recovered, rtol=1e-4, atol=1e-4)
    assert reports == [(done, 8) for done in range(1, 9)]
    stopped = patching.heads(
        gptj, CLEAN, CORRUPT, chunk_bytes=1, progress=lambda done, total: done < 3, **NAMED
    )
    assert not stopped.complete
    assert (np.isnan(stopped.recovered.ravel()) == (np.arange(8) >= 3)).all()
    effects = ablation.heads(gptj, CLEAN, chunk_bytes=1, progress=lambda done, total: False)
    assert np.isnan(effects.logprob).sum() == 7 and effects.logit_difference is None
    change = f"  layer 0, head 0 {effects.logprob[0, 0]:+13.4f}"
    assert repr(effects).splitlines()[1:] == [change, "  7 not computed"]


def test_results_show_their_largest_effects_first(gptj):
    found = patching.positions(gptj, CLEAN, CORRUPT, **NAMED)
    said, first, *_ = repr(found).splitlines()
    layer, place = np.unravel_index(np.abs(found.recovered).argmax(), found.recovered.shape)
    assert said.startswith("resid_pre patched") and len(repr(found).splitlines()) == 6
    assert first.split() == f"layer {layer}, position {place} {found.recovered.max():+.4f}".split()
    paths = path_patching.senders(gptj, CLEAN, CORRUPT, [(1, 0, "q"), (1, 2, "k")], **NAMED)
    assert repr(paths).startswith("paths to 2 receivers: what brings most of the answer back")
    mlps = repr(ablation.mlps(gptj, CLEAN)).splitlines()
    assert mlps[0].startswith("mlps ablated") and len(mlps) == 3 and "head" not in mlps[1]


def test_sweeps_of_other_prompts_and_components_compile_nothing(gptj):
    def both(clean, corrupt):
        patching.heads(gptj, clean, corrupt, **NAMED)
        return ablation.heads(gptj, clean), ablation.mlps(gptj, clean)

    both(CLEAN, CORRUPT)
    before = sweeps._forward._cache_size()
    both(CLEAN[2:], CORRUPT[2:])
    assert sweeps._forward._cache_size() == before
    patching.heads(gptj, CLEAN, CORRUPT, where=[3, 4], **NAMED)
    ablation.heads(gptj, CORRUPT, **NAMED)
    assert sweeps._forward._cache_size() == before


def test_a_chunk_stays_within_its_bytes(gptj):
    none = Interventions.none(gptj, 60)
    row = sweeps._activation_bytes(gptj, none.seq, False)
    assert sweeps._rows(1000, 100 * row // row, None) == sweeps._MOST_ROWS
    assert sweeps._rows(1000, 5, None) == 4
    assert sweeps._rows(1000, 0, None) == 1
    assert sweeps._rows(3, 100, None) == 4
    mesh = small_model("codegen", "int8", data=2, model=4, num_layers=2).mesh
    assert sweeps._rows(1000, 0, mesh) == 2 and sweeps._rows(1000, 5, mesh) == 4
    # What the compiler reserves for a row of 64 tokens is no more than what is reckoned with.
    assert gptj.config.context == none.seq == 64
    many = {name: np.stack([getattr(none, name)] * 8) for name in sweeps._SMALL}
    compiled = sweeps._forward.lower(
        gptj.network, np.zeros((8, 64), np.int32), dataclasses.replace(none, **many), 59,
        "float32", tuple(sorted(sweeps._SMALL)), False, (),
    ).compile()  # fmt: skip
    assert compiled.memory_analysis().temp_size_in_bytes <= 8 * row


def test_prompts_of_unequal_length_are_told_apart_by_their_tokens(gptj):
    with pytest.raises(ValueError) as caught:
        patching.positions(gptj, "the cat sat", "the dog sat on")
    first, second = (len(gptj.tokenizer.encode(t)) for t in ("the cat sat", "the dog sat on"))
    assert f"clean prompt has {first} tokens, the corrupt one {second}" in str(caught.value)
    assert "|␣cat|␣sat| against |␣dog|␣sat|␣on|" in str(caught.value)
    with pytest.raises(ValueError, match="ablated prompt has 9 tokens, the reference one 8"):
        ablation.heads(gptj, CLEAN, "resample", CLEAN[:-1])


REFUSED = {
    "same": (lambda m: patching.heads(m, CLEAN, CLEAN), "the same tokens"),
    "answers": (lambda m: patching.heads(m, CLEAN, CORRUPT, answer=5, instead=5), "name answer="),
    "token": (lambda m: ablation.heads(m, CLEAN, answer=304), "answer is 304"),
    "two tokens": (lambda m: ablation.mlps(m, CLEAN, answer=" cat dog"), "which is 2 tokens"),
    "reference": (lambda m: ablation.mlps(m, CLEAN, "mean"), "needs a reference"),
    "how": (lambda m: ablation.mlps(m, CLEAN, "noise"), "how is 'noise'"),
    "no text": (lambda m: ablation.means(m, []), "at least one reference"),
    "position": (lambda m: ablation.mlps(m, CLEAN, position=9), "position 9 is out of range"),
    "site": (lambda m: patching.positions(m, CLEAN, CORRUPT, "resid_mid"), "no resid_mid"),
    "heads": (lambda m: patching.heads(m, CLEAN, CORRUPT, "mlp_out"), "mlp_out has no heads"),
    "receiver": (lambda m: path_patching.senders(m, CLEAN, CORRUPT, [(1, 0, "z")]), "not 'z'"),
    "first": (lambda m: path_patching.senders(m, CLEAN, CORRUPT, [(0, 0, "q")]), "no head before"),
    "word": (lambda m: path_patching.senders(m, CLEAN, CORRUPT, "logit"), "receivers is 'logit'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(gptj, case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        make(gptj)


def test_a_nan_within_a_sweep_names_its_site(gptj):
    def poison(network):
        weight = network.blocks[1].attn.v.weight
        network.blocks[1].attn.v.weight = nnx.Param(weight[...].at[0, 0].set(np.inf))

    broken = changed(gptj, poison)
    none = Interventions.none(broken, len(CLEAN))
    with pytest.raises(ValueError, match=r"NaN: blocks\.1\.attn\.(v|z) is the first site"):
        list(sweeps.each(broken, CLEAN, none, lambda row: none.ablate_mlp(0), 2))


def test_kl_and_log_probabilities_are_those_of_the_definition():
    random = np.random.default_rng(0)
    before, after = random.normal(size=9), random.normal(size=(4, 9)) * 30
    p = np.exp(before) / np.exp(before).sum()
    q = np.exp(after) / np.exp(after).sum(-1, keepdims=True)
    np.testing.assert_allclose(prompts.log_softmax(after), np.log(q), rtol=1e-9)
    np.testing.assert_allclose(prompts.kl(before, after), (p * np.log(p / q)).sum(-1), rtol=1e-9)
    assert prompts.kl(before, before) == 0
