"""The trace: every site is what float64 says, made again or not; files; what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from float64_network import Float64Network
from small_models import FAMILIES, changed, small_model

from gptj_lab.checkpoints.safetensors_files import Entry, write_safetensors
from gptj_lab.lens import passes
from gptj_lab.lens.trace import Trace
from gptj_lab.model import sites
from gptj_lab.names import AXES

PROMPT = "the cat sat on the mat, and the dog"
MODELS = [("gptj",), ("gpt2", "int8"), ("gpt_neo", "float32", 1, 4)]
SLOW = [
    ("codegen",), ("gpt_neox",), ("gpt_neo",), ("gpt2",), ("gptj", "int8"),
    ("gptj", "float32", 2, 2), ("codegen", "int8", 1, 2),
]  # fmt: skip
QUICK = ["*.attn.pattern", "*.attn_out", "*.mlp_out", "*.resid_post", "logits"]


def name_of(case):
    return "-".join(map(str, case))


@pytest.fixture(
    scope="module",
    params=[("gptj",), pytest.param(("gpt_neo", "int8", 1, 4), marks=pytest.mark.slow)],
    ids=name_of,
)
def model(request):
    return small_model(*request.param)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def of_float64(model, ids):
    """Every site that the oracle keeps, and what else follows from the weights."""
    oracle = Float64Network(model).run(ids)
    found = {"embed": oracle.embed, "logits": oracle.logits}
    found["final_ln"] = oracle.norm("final_ln", oracle.final)
    if oracle.position_embed is not None:
        found["position_embed"] = oracle.position_embed
    after = [*oracle.resid_pre[1:], oracle.final]
    for i in range(model.config.num_layers):
        mlp = oracle.mlp[i] + oracle.w[f"blocks.{i}.mlp.fc_out.bias"]
        found |= {
            f"blocks.{i}.resid_pre": oracle.resid_pre[i], f"blocks.{i}.resid_post": after[i],
            f"blocks.{i}.ln": oracle.norm(f"blocks.{i}.ln", oracle.resid_pre[i]),
            f"blocks.{i}.attn.q": oracle.q[i], f"blocks.{i}.attn.k": oracle.k[i],
            f"blocks.{i}.attn.v": oracle.v[i], f"blocks.{i}.attn.z": oracle.z[i],
            f"blocks.{i}.attn.pattern": oracle.pattern[i], f"blocks.{i}.mlp_out": mlp,
            f"blocks.{i}.attn_out": after[i] - oracle.resid_pre[i] - mlp,
        }  # fmt: skip
        if not model.config.parallel:
            found[f"blocks.{i}.resid_mid"] = after[i] - mlp
    return found


def check(model, patterns):
    trace = model.trace(PROMPT, patterns)
    expected = of_float64(model, trace.token_ids)
    for name in trace.keys() & expected.keys():
        assert trace[name].shape == expected[name].shape, name
        np.testing.assert_allclose(trace[name], expected[name], atol=5e-5, err_msg=name)
    return trace.keys(), expected.keys()


@pytest.mark.parametrize("case", MODELS[1:], ids=name_of)
def test_sites_are_those_of_float64(case):
    found, expected = check(small_model(*case), QUICK)
    assert found <= expected


@pytest.mark.parametrize(
    "case",
    [MODELS[0], *(pytest.param(c, marks=pytest.mark.slow) for c in MODELS[1:] + SLOW)],
    ids=name_of,
)
def test_every_site_is_that_of_float64(case):
    model = small_model(*case)
    found, expected = check(model, None)
    assert found == set(sites.all_of(model.config)) >= expected


def test_logits_are_the_models_to_the_last_bit(model):
    trace = model.trace(PROMPT)
    padded = np.pad(trace.token_ids, (0, 16 - len(trace.token_ids)))
    assert (trace.logits == np.asarray(model.logits([padded]))[0, : len(trace.token_ids)]).all()
    whole = model.trace(padded)  # 16 tokens fill their bucket
    assert (whole.logits == np.asarray(model.logits([padded]))[0]).all()


@pytest.mark.parametrize(
    "family", ["gptj", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES[1:])]
)
def test_axes_have_names_that_fit_the_shapes(family):
    trace, sizes = small_model(family).trace(PROMPT), {}
    for name, value in trace.items():
        axes = trace.axes(name)
        assert set(axes) <= set(AXES) and len(axes) == value.ndim
        for axis, size in zip(axes, value.shape, strict=True):
            assert sizes.setdefault(axis, size) == size, name
    config = trace.config
    for axis in ("d_model", "d_ff", "d_head"):
        assert sizes[axis] == getattr(config, axis)
    assert (sizes["heads"], sizes["vocab"]) == (config.num_heads, config.vocab_size)
    assert sizes["seq"] == sizes["kv_seq"] == len(trace.tokens)


def test_only_residuals_are_kept_and_layers_share_one_program(gptj):
    trace = gptj.trace(PROMPT)
    layers, seq = gptj.config.num_layers, len(trace.tokens)
    assert trace.residuals.shape == (layers + 1, seq, gptj.config.d_model)
    assert not trace.values_kept and not trace._made
    trace["blocks.0.attn.pattern"]
    before = passes.inside._cache_size()
    assert trace.stacked("attn.pattern").shape == (layers, gptj.config.num_heads, seq, seq)
    for words in range(1, 6):  # other prompts of the same bucket too
        gptj.trace(" ".join(PROMPT.split()[:words]))["blocks.1.attn.pattern"]
    assert passes.inside._cache_size() == before


def test_what_was_made_is_let_go_of_before_it_fills_the_memory(gptj, monkeypatch):
    trace = gptj.trace(PROMPT)
    one = trace["blocks.0.attn.pattern"].nbytes
    monkeypatch.setattr("gptj_lab.lens.trace._KEPT_BYTES", 2 * one)
    for layer in range(3):
        trace[f"blocks.{layer}.attn.pattern"]
    assert list(trace._made) == ["blocks.1.attn.pattern", "blocks.2.attn.pattern"]
    monkeypatch.setattr("gptj_lab.lens.trace._STACK_BYTES", 2 * one)
    with pytest.raises(ValueError, match="attn.pattern of 3 layers .* one layer at a time"):
        trace.stacked("attn.pattern")


def test_stacked_residuals(model):
    trace = model.trace(PROMPT)
    assert (trace.stacked("resid_post") == trace.residuals[1:]).all()
    assert (trace.stacked("resid_pre") == trace.residuals[:-1]).all()


def test_a_fine_tuning_that_goes_on_does_not_change_what_is_read(gptj):
    model = changed(gptj, lambda network: None)
    trace, before = model.trace(PROMPT), model.logits([gptj.tokenizer.encode(PROMPT)])
    expected = gptj.trace(PROMPT)["blocks.2.mlp_out"]
    nnx.update(model.network, jax.tree.map(lambda leaf: 2 * leaf, nnx.state(model.network)))
    assert (trace["blocks.2.mlp_out"] == expected).all()
    np.testing.assert_allclose(trace.logits, before[0], atol=1e-4)
    assert abs(model.trace(PROMPT).logits - trace.logits).max() > 0.1


def test_a_text_as_long_as_the_context(gptj):
    ids = np.arange(gptj.config.context) % 250
    trace = gptj.trace(ids)
    np.testing.assert_allclose(trace["blocks.2.attn.pattern"].sum(-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="more than the context of 64"):
        gptj.trace(np.append(ids, 1))


def test_two_thousand_tokens_keep_residuals_only():
    model = small_model("gptj", context=2048, num_layers=1)
    trace = model.trace(np.arange(2048) % 300)
    assert trace.residuals.shape == (2, 2048, 32)
    assert trace["blocks.0.attn.pattern"].shape == (4, 2048, 2048)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.0.resid_mid", "GPT-J's blocks are parallel .* no resid_mid"),
        ("blocks.1.attn.patern", "nearest are blocks.1.attn.pattern"),
        ("blocks.3.ln", "no site is named 'blocks.3.ln'"),
        ("blocks.*.ln", "is a pattern"),
        ("foo", "no site is named 'foo': the nearest are [a-z]"),
    ],
)
def test_sites_that_are_not_there(gptj, name, words):
    trace = gptj.trace(PROMPT)
    for kind in (ValueError, KeyError):
        with pytest.raises(kind, match=words):
            trace[name]
    assert name not in trace and trace.get(name) is None
    if "*" not in name:
        with pytest.raises(ValueError, match=words):
            gptj.trace(PROMPT, sites=[name])
        with pytest.raises(ValueError, match=words):
            trace.axes(name)


def test_one_pattern_needs_no_list_and_no_prompt_is_a_sentence(gptj):
    assert [*gptj.trace(PROMPT, "blocks.*.ln")] == [f"blocks.{i}.ln" for i in range(3)]
    with pytest.raises(TypeError, match="the prompt is None: a text or token ids are needed"):
        gptj.trace(None)
    assert gptj.trace(jax.numpy.array([5, 6])).token_ids.tolist() == [5, 6]


@pytest.mark.parametrize("name", ["blocks.1.mlp_out", "blocks.0.ln", "embed", "final_ln"])
def test_the_first_nan_is_found(gptj, name):
    def spoil(network):
        layer = network.blocks[0 if "0" in name else 1]
        weight = {
            "mlp_out": layer.mlp.fc_out.bias, "ln": layer.ln.bias, "embed": network.embed,
            "final_ln": network.final_ln.bias,
        }[name.rsplit(".", 1)[-1]]  # fmt: skip
        weight[...] = weight[...] * np.float32(np.nan)

    assert changed(gptj, spoil).trace(PROMPT).first_nan() == name
    assert gptj.trace(PROMPT).first_nan() is None


# Files


def test_saved_and_loaded_is_the_same(model, tmp_path):
    trace = model.trace(PROMPT)
    trace.save(tmp_path / "it", ["blocks.*.attn.pattern", "logits"])
    for again in (Trace.load(tmp_path / "it"), Trace.load(tmp_path / "it", model)):
        assert again.tokens == trace.tokens and again.config == trace.config
        assert (again.token_ids == trace.token_ids).all()
        for name in ("blocks.1.attn.pattern", "logits", "blocks.0.resid_pre"):
            assert again[name].dtype == trace[name].dtype and (again[name] == trace[name]).all()
    assert (
        Trace.load(tmp_path / "it", model)["blocks.1.mlp.pre"] == trace["blocks.1.mlp.pre"]
    ).all()


def test_without_the_model_only_what_was_saved_is_there(gptj, tmp_path):
    gptj.trace(PROMPT).save(tmp_path / "it", ["blocks.1.attn.z"])
    alone = Trace.load(tmp_path / "it")
    assert set(alone) == {
        *(f"blocks.{i}.resid_{end}" for i in range(3) for end in ("pre", "post")),
        "blocks.1.attn.z",
    }
    assert "blocks.0.attn.z" not in alone and "blocks.1.attn.z" in alone
    with pytest.raises(
        ValueError, match=r"blocks.0.attn.z is not in the file.*Trace.load\(file, m"
    ):
        alone["blocks.0.attn.z"]


def test_bfloat16_comes_back(tmp_path):
    model = small_model("gptj", "bfloat16")
    trace = model.trace(PROMPT)
    trace.save(tmp_path / "it")
    again = Trace.load(tmp_path / "it", model)
    assert again.residuals.dtype == "bfloat16" and (again.residuals == trace.residuals).all()


def test_a_model_on_a_mesh_has_the_fingerprint_that_it_has_alone(tmp_path):
    small_model("gptj", "int8").trace(PROMPT).save(tmp_path / "it")
    assert Trace.load(tmp_path / "it", small_model("gptj", "int8", 2, 2))


def test_traces_of_other_models_are_refused(gptj, tmp_path):
    gptj.trace(PROMPT).save(tmp_path / "it")
    with pytest.raises(ValueError, match="belongs to other weights"):
        Trace.load(tmp_path / "it", small_model("gptj", seed=2))
    with pytest.raises(ValueError, match="belongs to other weights"):
        Trace.load(tmp_path / "it", small_model("gptj", "bfloat16"))
    with pytest.raises(ValueError, match="a network of another shape"):
        Trace.load(tmp_path / "it", small_model("codegen"))

    def trained(network):  # one step of one weight
        weight = network.blocks[1].mlp.fc_in.weight
        weight[...] = weight[...] + 1e-6

    with pytest.raises(ValueError, match="belongs to other weights"):
        Trace.load(tmp_path / "it", changed(gptj, trained))


def test_damaged_files_are_refused(gptj, tmp_path):
    file = tmp_path / "it"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Trace.load(file)
    gptj.trace(PROMPT).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="truncated"):
        Trace.load(file)
    ones = np.ones(3, np.float32)
    write_safetensors(file, [Entry("x", ones.shape, ones.dtype, lambda: ones)])
    with pytest.raises(ValueError, match="is not a gptj_lab.trace file"):
        Trace.load(file)
    trace = gptj.trace(PROMPT)
    trace.residuals = trace.residuals[:2]
    trace.save(file)
    with pytest.raises(ValueError, match=r"residuals have shape \(2, 10, 32\)"):
        Trace.load(file)


def test_a_disk_that_is_full_leaves_the_old_file_whole(gptj, tmp_path, monkeypatch):
    file = tmp_path / "it"
    gptj.trace(PROMPT).save(file)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptj_lab.lens.trace_files.write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        gptj.trace("the dog").save(file)
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]


def test_a_config_of_one_field_changed_is_another_shape(gptj, tmp_path):
    gptj.trace(PROMPT).save(tmp_path / "it")
    other = changed(gptj, lambda network: None)
    other.config = dataclasses.replace(other.config, layer_norm_eps=1e-4)
    with pytest.raises(ValueError, match="a network of another shape"):
        Trace.load(tmp_path / "it", other)
