"""Adapters at the start change nothing, merged change the same, and PEFT computes the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import gptj_lab
from gptj_lab.finetuning import export, lora
from gptj_lab.finetuning.lora import LoRA
from gptj_lab.language_model import load
from gptj_lab.model.linear import Adapter, DropoutKey

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))
ALL = tuple(lora.TARGETS)


def trained(model, chosen, seed=0):
    """The model with adapters as training might leave them: b is not zero any more."""
    new = lora.adapted(model, chosen, seed)
    rng = np.random.default_rng(seed)
    for _, linear in lora.matrices(new.network):
        if chosen.name in linear.adapters:
            b = linear.adapters[chosen.name].b
            values = jnp.asarray(rng.normal(0, 0.1, b[...].shape), jnp.float32)
            b[...] = jax.device_put(values, b[...].sharding)
    return new


def close(ours, theirs, tolerance):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_new_adapters_change_nothing(tiny_model):
    new = lora.adapted(tiny_model, LoRA(targets=ALL))
    assert (new.logits(IDS) == tiny_model.logits(IDS)).all()
    assert lora.names(new) == ["default"] and lora.names(tiny_model) == []
    assert lora.trainable(new) == 2 * 8 * (4 * (32 + 32) + 2 * (32 + 64))


def test_merged_is_unmerged(tiny_model, tolerance):
    new = trained(tiny_model, LoRA(rank=4, targets=ALL))
    assert not close(new.logits(IDS), tiny_model.logits(IDS), 0.01)
    merged = lora.merged(new)
    assert lora.names(merged) == [] and lora.names(new) == ["default"]
    assert close(new.logits(IDS), merged.logits(IDS), tolerance["float32"])


def test_merged_int8_is_float32(tiny_model, tmp_path, tolerance):
    tiny_model.save(tmp_path)
    base = load(tmp_path, weights="int8")
    new = trained(base, LoRA(targets=ALL))
    merged = lora.merged(new)
    assert base.weights == "int8" and merged.weights == "float32"
    assert close(new.logits(IDS), merged.logits(IDS), tolerance["float32"])


def test_adapters_are_stacked_weighed_and_taken_off(tiny_model, tolerance):
    one = trained(tiny_model, LoRA(name="one"))
    both = trained(one, LoRA(name="two", targets=("fc_in",)), seed=1)
    assert lora.names(both) == ["one", "two"]
    off = lora.weighed(both, two=0.0)
    assert close(off.logits(IDS), one.logits(IDS), tolerance["float32"])
    alone = lora.without(both, "two")
    assert (alone.logits(IDS) == one.logits(IDS)).all()
    assert (lora.without(both).logits(IDS) == tiny_model.logits(IDS)).all()


def test_weighing_compiles_nothing(tiny_model):
    from gptj_lab.language_model import _forward

    new = trained(tiny_model, LoRA())
    new.logits(IDS)
    before = _forward._cache_size()
    lora.weighed(new, default=0.5).logits(IDS)
    assert _forward._cache_size() == before


def test_dropout_only_where_a_key_is(tiny_model):
    new = trained(tiny_model, LoRA(dropout=0.5))
    plain = new.logits(IDS)
    adapter = new.network.blocks[0].attn.q.adapters["default"]
    x = jnp.ones((1, 4000, 32))
    adapter.key = DropoutKey(jax.random.key(1))
    dropped = adapter._dropped(x)
    assert abs(float((dropped == 0).mean()) - 0.5) < 0.02 and float(dropped.max()) == 2.0
    assert not (new.logits(IDS) == plain).all()


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_mesh_is_one_device(tiny_model, tmp_path, weights, tolerance):
    tiny_model.save(tmp_path)
    one = trained(load(tmp_path, weights=weights), LoRA(targets=ALL))
    mesh = gptj_lab.mesh(data=2, model=4)
    many = trained(load(tmp_path, weights=weights, mesh=mesh), LoRA(targets=ALL))
    assert close(many.logits(IDS), one.logits(IDS), tolerance["float32"])
    spec = many.network.blocks[0].mlp.fc_out.adapters["default"].a[...].sharding.spec
    assert spec == jax.sharding.PartitionSpec(None, "model")


def test_int8_gradients_are_those_of_the_matrices_it_stands_for(tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    quantised = trained(load(tmp_path, weights="int8"), LoRA(targets=ALL))

    def gradients(model):
        graph, trained_, rest = nnx.split(model.network, Adapter, ...)

        def loss(part):
            return nnx.merge(graph, part, rest)(IDS)[0].var()

        return jax.tree.leaves(jax.grad(loss)(trained_))

    float_base = lora.without(quantised)
    for _, linear in lora.matrices(float_base.network):
        weight = linear.weight[...]
        linear.weight = nnx.Param(weight.values.astype(jnp.float32) * weight.scale[:, None])
    float_base = trained(float_base, LoRA(targets=ALL))
    for ours, theirs in zip(gradients(quantised), gradients(float_base), strict=True):
        assert close(ours, theirs, 1e-4)


FAMILIES = [
    ("gptj", ("q", "v")),
    ("gptj", ALL),
    ("gpt2", ("q", "k", "v")),
    ("gpt_neox", ("q", "v")),
    ("gpt_neo", ("q", "out", "fc_in")),
    ("codegen", ("k", "v")),
]


@pytest.mark.parametrize(("family", "targets"), FAMILIES)
def test_peft_computes_the_same(family, targets, torch_model, tmp_path, tiny_tokenizer, tolerance):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    theirs = torch_model(family, vocab_size=300)
    theirs.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save(tmp_path / "base")
    model = load(tmp_path / "base")
    ours = trained(model, LoRA(rank=3, alpha=5.0, targets=targets))
    export.save_adapter(ours, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    with torch.no_grad():
        expected = loaded(torch.tensor(IDS)).logits.numpy()
    assert close(ours.logits(IDS), expected, 5 * tolerance["float32"])
    again = export.load_adapter(model, tmp_path / "adapter")
    assert close(again.logits(IDS), expected, 5 * tolerance["float32"])


def test_adapters_of_peft_are_read(torch_model, tmp_path, tiny_tokenizer, tolerance):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    theirs = torch_model("gptj", vocab_size=300)
    theirs.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save(tmp_path / "base")
    made = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "fc_in"]),
    )
    scales = {m.scaling["default"] for m in made.modules() if hasattr(m, "lora_A")}
    chosen = LoRA(rank=4, alpha=6, rslora=True, targets=("q",))
    new = lora.adapted(load(tmp_path / "base"), chosen).network.blocks[0].attn.q
    assert scales == {chosen.strength} == {float(new.adapters["default"].strength[...])}
    torch.manual_seed(0)
    for name, value in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    made.save_pretrained(tmp_path / "adapter")
    ours = export.load_adapter(load(tmp_path / "base"), tmp_path / "adapter")
    with torch.no_grad():
        expected = made(torch.tensor(IDS)).logits.numpy()
    assert close(ours.logits(IDS), expected, 5 * tolerance["float32"])


def test_saving_a_model_with_adapters_says_what_to_do(tiny_model, tmp_path):
    new = trained(tiny_model, LoRA())
    with pytest.raises(ValueError, match="merged"):
        new.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_beside_a_model_leaves_it_whole(tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    export.save_adapter(trained(tiny_model, LoRA()), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ("q_proj",)}, "choose of q, k, v"),
        ({"targets": ()}, "targets is empty"),
        ({"name": "a.b"}, "letters, digits"),
    ],
)
def test_bad_settings_are_sentences(fields, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**fields)


def test_bad_names_are_sentences(tiny_model):
    new = lora.adapted(tiny_model, LoRA())
    with pytest.raises(ValueError, match="already"):
        lora.adapted(new, LoRA())
    with pytest.raises(ValueError, match="no adapter named 'other', only default"):
        lora.weighed(new, other=0.0)
    with pytest.raises(ValueError, match="no adapters to merge"):
        lora.merged(tiny_model)
    with pytest.raises(ValueError, match="no adapters to save"):
        export.save_adapter(tiny_model, "nowhere")


DAMAGE = [
    ({"peft_type": "IA3"}, None, "peft_type 'IA3'"),
    ({"use_dora": True}, None, "use_dora is True"),
    ({"r": -1}, None, "r -1"),
    ({"r": 3}, None, r"shape \(8, 32\), \(3, 32\) is needed"),
    ({}, lambda t: t.pop("base_model.model.transformer.h.0.attn.q_proj.lora_B.weight"), "lora_B"),
    ({}, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.ones(3)}), "lm_head"),
    ({}, lambda t: next(iter(t.values())).fill(np.nan), "NaN"),
]


@pytest.mark.parametrize(("fields", "harm", "message"), DAMAGE)
def test_damaged_adapters_are_refused(tiny_model, tmp_path, fields, harm, message):
    export.save_adapter(trained(tiny_model, LoRA()), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    if harm:
        tensors = {
            k: v.copy() for k, v in load_file(tmp_path / "adapter_model.safetensors").items()
        }
        harm(tensors)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        export.load_adapter(tiny_model, tmp_path)


def test_cut_files_are_refused(tiny_model, tmp_path):
    export.save_adapter(trained(tiny_model, LoRA()), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        export.load_adapter(tiny_model, tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
        export.load_adapter(tiny_model, tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"name": "items"}, ValueError, "meaning of its own"),
        ({"name": "__class__"}, ValueError, "meaning of its own"),
        ({"name": "model"}, ValueError, "meaning of its own"),
        ({"name": ""}, ValueError, "letters"),
        ({"name": "a/b"}, ValueError, "letters"),
        ({"name": 5}, TypeError, "name is 5"),
        ({"alpha": "16"}, TypeError, "alpha is '16': a number"),
        ({"dropout": "0.1"}, TypeError, "dropout is '0.1': a number"),
        ({"targets": None}, TypeError, "targets is None: a tuple"),
        ({"targets": 5}, TypeError, "targets is 5: a tuple"),
        ({"targets": {"q"}}, TypeError, "a tuple"),
        ({"targets": "all-linear"}, TypeError, r"\(q, k, v, out, fc_in, fc_out here\)"),
        ({"targets": ("c_attn",)}, ValueError, "which is q, k, v here"),
    ],
)
def test_fields_of_the_wrong_kind_are_refused_by_name(fields, error, message):
    with pytest.raises(error, match=message):
        lora.LoRA(**fields)
