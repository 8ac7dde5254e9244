"""Interventions: neutral ones change no bit, edits compile nothing and do what they say."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_models import FAMILIES, changed, small_model

import gptj_lab
from gptj_lab.lens.edits import HEADS, OUTSIDE, STREAMS, WIDE
from gptj_lab.lens.interventions import Interventions, bucket, run

IDS = list(range(40, 51))
ALL = [(family, "float32", None) for family in FAMILIES if family != "codegen"]
ALL += [("gptj", "int8", 4)]
ALL += [
    pytest.param(case, marks=pytest.mark.slow)
    for case in (
        ("codegen", "float32", None),
        ("gptj", "int8", None),
        ("gpt2", "bfloat16", None),
        ("gpt2", "float32", 4),
    )  # fmt: skip
]
EVERY = ["*"]  # the same sites in most tests: one program a model


@pytest.fixture(scope="module", params=ALL, ids=str)
def model(request):
    family, weights, devices = request.param
    mesh = {} if devices is None else {"data": 2, "model": devices}
    return small_model(family, weights, **mesh)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def plain(model):
    return np.asarray(model.logits([IDS + [0] * (bucket(len(IDS), 64) - len(IDS))]))[0, : len(IDS)]


@pytest.fixture
def compilations():
    """How many programs XLA has compiled since the test began."""
    seen = []

    def hear(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    yield seen
    jax.monitoring.unregister_event_duration_listener(hear)


def test_no_intervention_changes_no_bit_and_is_the_plain_forward_pass(model, tolerance):
    baseline, values = run(model, IDS, sites=EVERY)
    none, same = run(model, IDS, Interventions.none(model, len(IDS)), EVERY)
    assert (none == baseline).all()
    assert all((same[name] == value).all() for name, value in values.items())
    # XLA fuses another program where a value can be edited: the last bits may differ.
    largest = float(abs(baseline).max())
    np.testing.assert_allclose(none, plain(model), atol=tolerance[model.dtype] * largest)


def test_every_site_patched_with_its_own_value_changes_no_bit(model):
    before, values = run(model, IDS, sites=EVERY)
    none = Interventions.none(model, len(IDS))
    for site in (*STREAMS, *HEADS):
        layers = [layer for layer in range(3) if _name(site, layer) in values]
        if site in WIDE or not layers:  # wide ones: test_edits_do_what_their_names_say
            continue
        itself = none.freeze_pattern(1, 2, values["blocks.1.attn.pattern"][2])
        for layer in layers[: 1 if site in OUTSIDE else 3]:
            value = values[_name(site, layer)].reshape(len(IDS), -1)
            itself = itself.patch(site, layer, None, value)
        after, again = run(model, IDS, itself, EVERY)
        assert (after == before).all(), site
        assert all((again[name] == value).all() for name, value in values.items()), site


def test_clean_values_everywhere_turn_the_corrupt_prompt_into_the_clean_one(model):
    corrupt = IDS[::-1]
    clean, values = run(model, IDS, sites=EVERY)
    none = Interventions.none(model, len(IDS))
    assert abs(run(model, corrupt, none, EVERY)[0] - clean).max() > 0.1
    for patched in (
        none.patch("embed", 0, None, values["embed"]),
        none.patch("resid_post", 1, list(range(len(IDS))), values["blocks.1.resid_post"]),
    ):
        assert (run(model, corrupt, patched, EVERY)[0] == clean).all()


def test_nothing_is_compiled_for_another_intervention_or_prompt(gptj, compilations):
    none = Interventions.none(gptj, len(IDS))
    vector = np.linspace(-1, 1, 32)
    run(gptj, IDS, none)
    run(gptj, IDS, none.patch("resid_pre", 1, 2, vector))
    compilations.clear()
    for layer in range(3):
        for head in range(4):
            run(gptj, IDS, none.ablate_head(layer, head))
            run(gptj, IDS, none.ablate_head(layer, head, "mean", value=vector[:8]))
    for position in range(len(IDS)):
        run(gptj, IDS, none.patch("resid_pre", 1, position, vector).ablate_mlp(2))
        run(gptj, IDS, none.steer("mlp_out", 0, vector * position, 0.5, position))
        run(gptj, IDS, none.cut_edge(2, 1, position, 0).scale("attn.z", 1, 0.5, position, head=2))
    run(gptj, IDS, none.freeze_pattern(1, 3, np.eye(len(IDS))))
    run(gptj, IDS[:-3], Interventions.none(gptj, len(IDS) - 3).ablate_head(0, 0, positions=1))
    run(gptj, [7, *IDS], none.ablate_head(0, 1))
    assert compilations == []
    run(gptj, IDS * 2, Interventions.none(gptj, 2 * len(IDS)))
    assert len(compilations) == 1  # another bucket; so the counting works


def test_edits_do_what_their_names_say(model):
    none = Interventions.none(model, len(IDS))
    vector = np.linspace(-1, 1, 32).astype(np.float32)
    _, before = run(model, IDS, none, EVERY)

    def value(interventions, name):
        return run(model, IDS, interventions, EVERY)[1][name]

    z = value(none.ablate_head(1, 2, positions=[0, -1]), "blocks.1.attn.z")
    expected = before["blocks.1.attn.z"].copy()
    expected[[0, -1], 2] = 0
    assert (z == expected).all()

    mean = none.ablate_head(1, 2, "mean", value=vector[:8])
    z = value(mean.ablate_head(1, 0), "blocks.1.attn.z")
    expected = before["blocks.1.attn.z"].copy()
    expected[:, 2], expected[:, 0] = vector[:8], 0
    assert (z == expected).all()

    out = value(none.ablate_mlp(0, positions=3), "blocks.0.mlp_out")
    expected = before["blocks.0.mlp_out"].copy()
    expected[3] = 0
    assert (out == expected).all()

    steered = none.steer("resid_post", 1, vector, 2.0, 4).steer(
        "resid_post", 1, vector, 0.5, [4, 5]
    )
    moved = value(steered, "blocks.1.resid_post").astype(np.float32)
    expected = before["blocks.1.resid_post"].astype(np.float32)
    expected[4] += 2.5 * vector
    expected[5] += 0.5 * vector
    near = 1e-5 if model.dtype == "float32" else 2e-2
    np.testing.assert_allclose(moved, expected, atol=near * abs(expected).max())


def test_the_mlps_inside_is_patched_too(gptj, compiled_well):
    none, wide = Interventions.none(gptj, len(IDS)), np.linspace(-1, 1, 64).astype(np.float32)
    patched = none.patch("mlp.post", 2, 6, wide).patch("mlp.pre", 1, None, wide)
    before, after = run(gptj, IDS, none, EVERY)[1], run(gptj, IDS, patched, EVERY)[1]
    assert (after["blocks.1.mlp.pre"] == wide).all()
    assert (after["blocks.2.mlp.post"][6] == wide).all()
    assert (after["blocks.1.attn.z"] == before["blocks.1.attn.z"]).all()


def test_a_patch_then_a_scale_then_a_steer_are_applied_in_that_order(gptj):
    value, vector = np.full(32, 3.0), np.ones(32)
    both = Interventions.none(gptj, len(IDS)).patch("mlp_out", 1, 2, value)
    both = both.scale("mlp_out", 1, 0.5, 2).steer("mlp_out", 1, vector, 4.0, 2)
    assert (run(gptj, IDS, both, ["blocks.1.mlp_out"])[1]["blocks.1.mlp_out"][2] == 5.5).all()
    anew = both.patch("mlp_out", 1, 2, vector)
    assert (run(gptj, IDS, anew, ["blocks.1.mlp_out"])[1]["blocks.1.mlp_out"][2] == 1).all()


def test_a_cut_edge_leaves_the_other_weights_in_proportion(model):
    _, before = run(model, IDS, sites=EVERY)
    cut = Interventions.none(model, len(IDS)).cut_edge(1, 2, 6, 4).cut_edge(1, 2, 6, 6)
    _, after = run(model, IDS, cut.cut_edge(1, 0, 0, 0), EVERY)
    expected = before["blocks.1.attn.pattern"].astype(np.float64)
    expected[2, 6, [4, 6]] = 0
    expected[2, 6] /= expected[2, 6].sum()
    expected[0, 0] = 0  # its only key: it reads nothing
    wide = 1e-6 if model.dtype == "float32" else 1e-2
    np.testing.assert_allclose(after["blocks.1.attn.pattern"].astype(float), expected, atol=wide)
    assert (after["blocks.1.attn.z"][0, 0] == 0).all()
    assert (after["blocks.0.attn.pattern"] == before["blocks.0.attn.pattern"]).all()


def test_more_edits_than_there_is_room_for_make_room(gptj):
    random = np.random.default_rng(0)
    none = many = Interventions.none(gptj, len(IDS))
    patterns = random.dirichlet(np.ones(len(IDS)), (3, 4, len(IDS))).astype(np.float32)
    vectors = random.normal(size=(3, 4, 32)).astype(np.float32)
    for layer in range(3):
        for head in range(4):
            many = many.freeze_pattern(layer, head, patterns[layer, head])
        for index, site in enumerate(("ln", "attn_out", "mlp_out")):
            many = many.patch(site, layer, 5, vectors[layer, index])
        for query in range(1, len(IDS)):
            many = many.cut_edge(layer, 0, query, query - 1)
    assert many.cut_edge(0, 0, 1, 0) is many
    _, values = run(gptj, IDS, many, EVERY)
    for layer in range(3):
        assert (values[f"blocks.{layer}.attn.pattern"] == patterns[layer]).all()
        for index, site in enumerate(("ln", "attn_out", "mlp_out")):
            assert (values[f"blocks.{layer}.{site}"][5] == vectors[layer, index]).all()
    assert "30 edges cut, 12 patterns frozen" in repr(many)
    assert "0 sites and 0 heads' sites changed, 0 edges cut" in repr(none)


def test_attention_reads_what_is_patched_into_q_k_and_v(gptj):
    _, values = run(gptj, IDS, sites=EVERY)
    _, other = run(gptj, IDS[::-1], sites=EVERY)
    patched = Interventions.none(gptj, len(IDS))
    for part in "qkv":
        patched = patched.patch(
            f"attn.{part}", 1, None, other[f"blocks.1.attn.{part}"][:, 3], head=3
        )
    _, after = run(gptj, IDS, patched, EVERY)
    for name in ("blocks.1.attn.pattern", "blocks.1.attn.z"):
        at = (3,) if name.endswith("pattern") else (slice(None), 3)
        np.testing.assert_allclose(after[name][at], other[name][at], atol=1e-6)
        at = (0,) if name.endswith("pattern") else (slice(None), 0)
        assert (after[name][at] == values[name][at]).all()


def test_sites_come_in_the_networks_order_and_without_padding(gptj):
    _, values = run(gptj, IDS, sites=["blocks.*.attn.pattern", "logits", "embed"])
    assert list(values) == ["embed", *(f"blocks.{i}.attn.pattern" for i in range(3)), "logits"]
    assert values["blocks.0.attn.pattern"].shape == (4, len(IDS), len(IDS))
    long, _ = run(gptj, IDS, length=40)
    np.testing.assert_allclose(long, run(gptj, IDS)[0], atol=1e-4)


def test_the_first_site_with_a_nan_is_named(gptj):
    def poison(network):
        bias = network.blocks[1].mlp.fc_in.bias
        network.blocks[1].mlp.fc_in.bias = nnx.Param(bias[...].at[3].set(np.nan))

    broken = changed(gptj, poison)
    with pytest.raises(ValueError, match=r"NaN: blocks\.1\.mlp\.pre is the first .* position 0"):
        run(broken, IDS)
    repaired = Interventions.none(broken, len(IDS)).ablate_mlp(1)
    assert np.isfinite(run(broken, IDS, repaired)[0]).all()


REFUSED = {
    "layer": (lambda n: n.ablate_head(3, 0), "layer 3 is out of range: the network has 3 layers"),
    "head": (lambda n: n.ablate_head(0, 4), "head 4 is out of range: a layer has 4 heads"),
    "position": (lambda n: n.ablate_mlp(0, positions=11), "position 11 .* has 11 tokens"),
    "negative": (lambda n: n.ablate_mlp(0, positions=-12), "position -12 is out of range"),
    "future": (lambda n: n.cut_edge(0, 0, 2, 3), "key 3 comes after query 2"),
    "site": (lambda n: n.patch("resid_past", 0, 0, [0]), "nearest are .*resid_post"),
    "middle": (lambda n: n.steer("resid_mid", 0, [0]), "GPT-J's blocks are parallel"),
    "scores": (lambda n: n.patch("attn.scores", 0, 0, [0]), "use cut_edge or freeze_pattern"),
    "shape": (lambda n: n.patch("resid_pre", 0, [0, 1], np.ones(3)), r"shape \(3,\): \[32\]"),
    "no heads": (lambda n: n.patch("mlp_out", 0, 0, np.ones(8), head=1), "mlp_out has no heads"),
    "outside": (lambda n: n.patch("embed", 1, 0, np.ones(32)), "embed is outside of the blocks"),
    "nan": (lambda n: n.steer("mlp_out", 0, np.full(32, np.nan)), "holds NaN"),
    "how": (lambda n: n.ablate_head(0, 0, "median"), "how is 'median'"),
    "mean": (lambda n: n.ablate_head(0, 0, "mean"), "needs the value"),
    "pattern": (lambda n: n.freeze_pattern(0, 0, np.ones((2, 3))), r"shape \(2, 3\)"),
    "float": (lambda n: n.ablate_mlp(0, positions=1.5), "whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(gptj, case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        make(Interventions.none(gptj, len(IDS)))


def test_interventions_of_another_shape_are_refused(gptj):
    none = Interventions.none(gptj, len(IDS))
    with pytest.raises(ValueError, match="20 tokens, the interventions are for .* 16"):
        run(gptj, [1] * 20, none)
    with pytest.raises(ValueError, match="network of another shape"):
        run(small_model("gpt2"), IDS, none)
    with pytest.raises(ValueError, match="65 tokens: 1 to 64 fit"):
        Interventions.none(gptj, 65)


def test_pocket_model_is_ablated_without_a_new_program(compilations, compiled_well):
    pocket = gptj_lab.load()
    ids = pocket.tokenizer.encode("Once upon a time there was a king who")
    none = Interventions.none(pocket, len(ids))
    before, _ = run(pocket, ids)
    padded = np.pad(ids, (0, none.seq - len(ids)))
    assert (before == np.asarray(pocket.logits([padded]))[0, : len(ids)]).all()
    compilations.clear()
    after, _ = run(pocket, ids, none.ablate_head(2, 3))
    assert compilations == [] and abs(after - before).max() > 1e-2


def _name(site, layer):
    return site if site in OUTSIDE else f"blocks.{layer}.{site}"
