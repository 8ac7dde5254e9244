"""What PEFT writes is loaded, merged and saved again with the logits of PEFT's own reload."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import gptj_lab
from gptj_lab.finetuning import export, lora, soft_prompts
from gptj_lab.language_model import load

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))
Q, V, FC = "q_proj", "v_proj", "fc_in"


@pytest.fixture(scope="module")
def bases(torch_model, tiny_tokenizer, tmp_path_factory):
    """A function that gives the folder of a family's random model."""
    made = {}

    def base(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            torch_model(family, vocab_size=300).save_pretrained(made[family])
            tiny_tokenizer.save(made[family])
        return made[family]

    return base


def theirs(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def logits_of(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def reloaded(base, adapter):
    """The logits of PEFT's reload of an adapter."""
    import peft

    return logits_of(peft.PeftModel.from_pretrained(theirs(base), adapter).eval())


def made(base, folder, seed=0, **fields):
    """An adapter of PEFT's as training might leave it: drawn at std 0.2."""
    import peft
    import torch

    model = peft.get_peft_model(theirs(base), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    torch.manual_seed(seed)
    begun = isinstance(fields.get("init_lora_weights"), str)
    for name, value in model.named_parameters():
        if value.requires_grad:
            noise = 0.2 * torch.randn_like(value)
            begun_here = begun or value.ndim == 1 or "lora_" not in name
            value.data = value.data + 0.3 * noise if begun_here else noise
    model.save_pretrained(folder)
    return folder


def close(ours, expected, tolerance):
    return np.abs(np.asarray(ours) - expected).max() <= tolerance * np.abs(expected).max()


CASES = {
    "rank and alpha patterns": (
        "gptj",
        dict(
            r=2, lora_alpha=3, target_modules=[Q, V, FC], rank_pattern={r"h\.1\.attn\.q_proj": 5,
            "fc_in": 4}, alpha_pattern={r"h\.[02]\.attn\.v_proj": 9, "^nowhere": 7},
        ),
    ),
    "patterns with rslora": (
        "codegen",
        dict(
            r=2, lora_alpha=3, use_rslora=True, target_modules=["qkv_proj", "fc_out"],
            rank_pattern={"qkv_proj": 6}, alpha_pattern={"fc_out": 1},
        ),
    ),
    "all linear": ("gpt2", dict(r=3, target_modules="all-linear")),
    "an expression": ("gpt_neo", dict(r=3, target_modules=r".*h\.[12]\..*(q_proj|c_fc)")),
    "some layers": (
        "gpt_neox",
        dict(
            r=3, target_modules=["query_key_value", "dense"], layers_to_transform=[0, 2],
            layers_pattern="layers", exclude_modules=["layers.2.attention.dense"],
        ),
    ),
    "dora": ("gptj", dict(r=3, lora_alpha=5, use_dora=True, target_modules=[Q, "out_proj", FC])),
    "dora, fused": ("gpt2", dict(r=3, use_dora=True, target_modules=["c_attn", "c_proj"])),
    "dora, fused in turn": (
        "gpt_neox", dict(r=2, use_dora=True, target_modules=["query_key_value"])
    ),
    "biases of the adapted": ("gptj", dict(r=2, target_modules=[Q, FC], bias="lora_only")),
    "all biases": ("gpt_neox", dict(r=2, target_modules=["query_key_value"], bias="all")),
    "biases of lora_B": ("gpt2", dict(r=2, target_modules=["c_attn", "c_fc"], lora_bias=True)),
    "embedding and head": (
        "gptj", dict(r=2, target_modules=[Q], modules_to_save=["wte", "lm_head"])
    ),
    "a tied head": ("gpt2", dict(r=2, target_modules=["c_fc"], modules_to_save=["lm_head"])),
    "a tied embedding": ("gpt_neo", dict(r=2, target_modules=["c_fc"], modules_to_save=["wte"])),
    "both tied": ("gpt2", dict(r=2, target_modules=["c_fc"], modules_to_save=["wte", "lm_head"])),
    "norms": (
        "gpt_neox", dict(r=2, target_modules=["dense"], modules_to_save=["final_layer_norm"])
    ),
    "pissa": ("gptj", dict(r=3, lora_alpha=5, init_lora_weights="pissa", target_modules=[Q, FC])),
    "pissa, fused": ("gpt2", dict(r=3, init_lora_weights="pissa", target_modules=["c_attn"])),
    "pissa, dora": (
        "gpt_neox",
        dict(r=3, init_lora_weights="pissa", use_dora=True, target_modules=["query_key_value"]),
    ),
    "olora": ("gptj", dict(r=3, lora_alpha=5, init_lora_weights="olora", target_modules=[V, FC])),
    "olora, fused": (
        "codegen", dict(r=3, init_lora_weights="olora", target_modules=["qkv_proj"])
    ),
    "olora, turned": ("gpt2", dict(r=3, init_lora_weights="olora", target_modules=["attn.c_proj"])),
    "orthogonal": ("gptj", dict(r=4, init_lora_weights="orthogonal", target_modules=[Q])),
    "gaussian": ("gptj", dict(r=4, init_lora_weights="gaussian", target_modules=[Q])),
}  # fmt: skip


# Each has a neighbour that runs by default: the same method in another family or without a part.
IN_THE_SLOW_SUITE = {
    "patterns with rslora", "an expression", "dora, fused in turn", "biases of the adapted",
    "a tied head", "a tied embedding", "pissa, dora", "olora, turned", "orthogonal", "gaussian",
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (c in IN_THE_SLOW_SUITE)) for c in CASES],
)
def test_an_adapter_is_peft_s_reload(case, bases, tmp_path, tolerance):
    pytest.importorskip("peft")
    family, fields = CASES[case]
    base, near = bases(family), 5 * tolerance["float32"]
    adapter = made(base, tmp_path / "adapter", **fields)
    expected, plain = reloaded(base, adapter), logits_of(theirs(base))
    assert not close(plain, expected, 1e-2)
    model = load(base)
    ours = export.load_adapter(model, adapter)
    assert close(ours.logits(IDS), expected, near)
    if case != "biases of lora_B":
        assert close(lora.merged(ours).logits(IDS), expected, near)
    assert (lora.without(ours).logits(IDS) == model.logits(IDS)).all()
    export.save_adapter(ours, tmp_path / "again")
    assert close(reloaded(base, tmp_path / "again"), expected, near)
    again = export.load_adapter(model, tmp_path / "again")
    assert close(again.logits(IDS), expected, near)


def rewritten(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_several_adapters_add_up_and_are_saved_as_one(bases, tmp_path, tolerance):
    peft = pytest.importorskip("peft")
    base, near = bases("gpt_neox"), 5 * tolerance["float32"]
    first = dict(r=2, lora_alpha=7, target_modules=["query_key_value", "dense"])
    made(base, tmp_path / "one", **first)
    second = dict(r=3, target_modules=["dense", "dense_h_to_4h"], bias="lora_only")
    made(base, tmp_path / "two", 1, **second)
    model = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "one", "one")
    model.load_adapter(tmp_path / "two", "two")
    model.base_model.set_adapter(["one", "two"])
    expected = logits_of(model.eval())
    ours = export.load_adapter(load(base), tmp_path / "one", "one")
    ours = export.load_adapter(ours, tmp_path / "two", "two")
    assert lora.names(ours) == ["one", "two"]
    assert close(ours.logits(IDS), expected, near)
    export.save_adapter(ours, tmp_path / "both", ["one", "two"])
    assert close(reloaded(base, tmp_path / "both"), expected, near)


@pytest.mark.parametrize("order", [("dora", "plain"), ("plain", "dora"), ("dora", "other")])
def test_dora_is_joined_with_others_exactly(order, bases, tmp_path, tolerance):
    pytest.importorskip("peft")
    base, near = bases("gpt_neox"), 5 * tolerance["float32"]
    of = {
        "dora": dict(r=2, use_dora=True, target_modules=["query_key_value"]),
        "plain": dict(r=3, target_modules=["query_key_value", "dense"]),
        "other": dict(r=3, use_dora=True, target_modules=["query_key_value", "dense"]),
    }
    ours = load(base)
    for number, name in enumerate(order):
        made(base, tmp_path / name, number, **of[name])
        ours = export.load_adapter(ours, tmp_path / name, name)
    ours = lora.weighed(ours, **{order[0]: 0.5})
    expected = np.asarray(ours.logits(IDS))
    assert close(lora.merged(ours).logits(IDS), expected, near)
    export.save_adapter(ours, tmp_path / "both", order)
    assert close(reloaded(base, tmp_path / "both"), expected, near)
    off = lora.weighed(ours, **dict.fromkeys(order, 0.0))
    assert close(off.logits(IDS), logits_of(theirs(base)), near)


@pytest.mark.parametrize("weights", ["int8", "mesh"])
def test_int8_and_meshes_hold_what_one_float32_device_does(weights, bases, tmp_path, tolerance):
    pytest.importorskip("peft")
    base, near = bases("gpt_neox"), 5 * tolerance["float32"]
    fields = dict(
        r=3, use_dora=True, init_lora_weights="pissa", bias="all", rank_pattern={"dense": 2},
        target_modules=["query_key_value", "dense"], modules_to_save=["embed_out"],
    )  # fmt: skip
    made(base, tmp_path / "adapter", **fields)
    if weights == "mesh":
        many = load(base, mesh=gptj_lab.mesh(data=2, model=4))
        one = load(base)
    else:
        many = load(base, weights="int8")
        one = load(base)
        for (_, ours), (_, small) in zip(
            lora.matrices(one.network), lora.matrices(many.network), strict=True
        ):
            weight = small.weight[...]
            ours.weight = nnx.Param(weight.values.astype(jnp.float32) * weight.scale[:, None])
    many, one = (export.load_adapter(model, tmp_path / "adapter") for model in (many, one))
    assert close(many.logits(IDS), np.asarray(one.logits(IDS)), near)
    assert close(lora.merged(many).logits(IDS), np.asarray(one.logits(IDS)), near)
    export.save_adapter(many, tmp_path / "again")
    export.save_adapter(one, tmp_path / "too")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "too")]
    assert files[0].keys() == files[1].keys()
    assert all(close(files[0][key], files[1][key], near) for key in files[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_old_bin_is_read_without_unpickling(dtype, bases, tmp_path, tolerance):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from safetensors.torch import load_file as load_torch

    base = bases("gptj")
    made(base, tmp_path, r=2, target_modules=[Q], bias="lora_only")
    file = tmp_path / "adapter_model.safetensors"
    state = {key: value.to(getattr(torch, dtype)) for key, value in load_torch(file).items()}
    torch.save(state, tmp_path / "adapter_model.bin")
    file.unlink()
    ours = export.load_adapter(load(base), tmp_path)
    assert close(ours.logits(IDS), reloaded(base, tmp_path), 5 * tolerance["float32"])


def test_names_that_versions_of_peft_gave_are_read(bases, tmp_path):
    pytest.importorskip("peft")
    base = bases("gptj")
    made(base, tmp_path, r=2, target_modules=[Q], modules_to_save=["lm_head"])
    expected = np.asarray(export.load_adapter(load(base), tmp_path).logits(IDS))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    old = {
        key.replace("lm_head.", "lm_head.modules_to_save.default."): value
        for key, value in tensors.items()
    }
    old["base_model.model.lm_head.original_module.weight"] = np.ones((2, 2), np.float32)
    save_file(old, file)
    assert (export.load_adapter(load(base), tmp_path).logits(IDS) == expected).all()


def test_a_folder_of_several_adapters_names_them(tiny_model, tmp_path):
    for number, name in enumerate(("one", "two")):
        new = lora.adapted(tiny_model, lora.LoRA(rank=2, name=name), number)
        export.save_adapter(new, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=re.escape("holds the adapters one, two")):
        export.load_adapter(tiny_model, tmp_path)
    assert lora.names(export.load_adapter(tiny_model, tmp_path, "two")) == ["two"]
    assert lora.names(soft_prompts.load_trained(tiny_model, tmp_path, "one")) == ["one"]
    shutil.copy(tmp_path / "one" / "adapter_config.json", tmp_path)
    shutil.copy(tmp_path / "one" / "adapter_model.safetensors", tmp_path)
    assert lora.names(export.load_adapter(tiny_model, tmp_path, "two")) == ["two"]


REFUSED = [
    ({"alora_invocation_tokens": [5, 7]}, "alora_invocation_tokens [5, 7], which isn't honoured"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication [[0, 2], [1, 2]]"),
    ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices [3]"),
    ({"use_qalora": True}, "use_qalora True"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"kasa_config": {"rank": 2}}, "kasa_config"),
    ({"megatron_config": {"a": 1}}, "megatron_config"),
    ({"of_tomorrow": 3}, "of_tomorrow 3, which isn't honoured"),
    ({"init_lora_weights": "pissa_niter_16"}, "drawn at random: convert it once"),
    ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "lora_ga"}, "from the training text"),
    ({"init_lora_weights": "loftq"}, "few bits"),
    ({"init_lora_weights": "of_tomorrow"}, "init_lora_weights 'of_tomorrow'"),
    ({"bias": "some"}, "bias 'some': none, all or lora_only"),
    ({"rank_pattern": {"q": -1}}, "rank_pattern['q'] -1: a whole number of at least 1"),
    ({"rank_pattern": {"(": 1}}, "which names no module"),
    ({"alpha_pattern": 3}, "alpha_pattern 3: a dict"),
    ({"modules_to_save": [3]}, "names of modules"),
    ({"layers_to_transform": ["a"]}, "numbers are needed"),
    ({"target_modules": ["v_proj"]}, "holds an adapter of transformer.h.0.attn.q_proj, which its"),
    ({"exclude_modules": r".*q_proj"}, "leave out"),
    ({"layers_to_transform": [1]}, "leave out"),
    ({"target_modules": r".*\.v_proj"}, "leave out"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_not_honoured_is_refused_by_name(tiny_model, tmp_path, fields, message):
    export.save_adapter(lora.adapted(tiny_model, lora.LoRA(rank=2)), tmp_path)
    rewritten(tmp_path, **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        export.load_adapter(tiny_model, tmp_path)


def test_what_changes_nothing_passes(tiny_model, tmp_path):
    new = lora.adapted(tiny_model, lora.LoRA(rank=2))
    export.save_adapter(new, tmp_path)
    rewritten(
        tmp_path, revision="main", lora_dropout=0.3, inference_mode=False, auto_mapping={"a": 1},
        peft_version="9.1", eva_config={"rho": 2.0}, init_lora_weights="eva", qalora_group_size=32,
        velora_config={"num_groups": 3}, of_tomorrow=None, also={}, megatron_core="megatron.core",
        fan_in_fan_out=True, task_type=None, loftq_config={"a": 1}, layers_to_transform=[0, 1],
    )  # fmt: skip
    assert (export.load_adapter(tiny_model, tmp_path).logits(IDS) == new.logits(IDS)).all()


def test_tying_that_versions_of_peft_do_differently_is_refused(bases, tmp_path):
    pytest.importorskip("peft")
    made(bases("gpt2"), tmp_path, r=2, target_modules=["c_fc"], modules_to_save=["wte"])
    rewritten(tmp_path, ensure_weight_tying=True)
    with pytest.raises(ValueError, match="ensure_weight_tying True"):
        export.load_adapter(load(bases("gpt2")), tmp_path)


def test_whole_weights_that_do_not_fit_are_refused(bases, tmp_path):
    pytest.importorskip("peft")
    base = bases("gptj")
    made(base, tmp_path, r=2, target_modules=[Q], modules_to_save=["lm_head", "mlp.fc_out"])
    model = load(base)
    one = export.load_adapter(model, tmp_path, "one")
    with pytest.raises(ValueError, match=r"brings .* whole, and so does the adapter one"):
        export.load_adapter(one, tmp_path, "two")
    with pytest.raises(ValueError, match="which the model holds in int8: load the model with"):
        export.load_adapter(load(base, weights="int8"), tmp_path)
    half = np.asarray(lora.weighed(one, one=0.5).network.head.weight[...])
    ends = [np.asarray(each.network.head.weight[...]) for each in (model, one)]
    assert np.allclose(half, (ends[0] + ends[1]) / 2, atol=1e-6)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    head = "base_model.model.lm_head.weight"
    save_file(tensors | {head: np.ones((301, 48), np.float32)}, file)
    with pytest.raises(ValueError, match=r"shape \(301, 48\), \(300, 48\) is needed"):
        export.load_adapter(model, tmp_path)
    save_file(tensors | {head: np.full((300, 48), np.nan, np.float32)}, file)
    with pytest.raises(ValueError, match="NaN"):
        export.load_adapter(model, tmp_path)


@pytest.mark.parametrize("factor", [-0.5, 0.0])
def test_an_adapter_weighed_below_nothing_is_saved_and_loaded(tiny_model, tmp_path, factor):
    new = lora.adapted(tiny_model, lora.LoRA(rank=2, name="one"))
    for _, linear in lora.matrices(new.network):
        for adapter in linear.adapters.values():
            adapter.b[...] = jnp.full_like(adapter.b[...], 0.2)
    new = lora.weighed(new, one=factor)
    export.save_adapter(new, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert np.isclose(config["lora_alpha"], 16 * factor)
    expected = np.asarray(new.logits(IDS))
    assert close(export.load_adapter(tiny_model, tmp_path).logits(IDS), expected, 1e-5)


@pytest.mark.parametrize(
    "fields", [{"lora_alpha": -5}, {"lora_alpha": 0}, {"alpha_pattern": {Q: 0}}]
)
def test_any_finite_alpha_is_peft_s(fields, bases, tmp_path, tolerance):
    pytest.importorskip("peft")
    base = bases("gptj")
    made(base, tmp_path, r=2, target_modules=[Q, V])
    rewritten(tmp_path, **fields)
    ours = export.load_adapter(load(base), tmp_path)
    assert close(ours.logits(IDS), reloaded(base, tmp_path), 5 * tolerance["float32"])


def kept(folder, change):
    """The adapter of a folder, its file's tensors changed."""
    file = folder / "adapter_model.safetensors"
    tensors = change(load_file(file))
    save_file(tensors, file)


def test_an_adapter_that_lacks_tensors_is_told_or_refused(tiny_model, tmp_path, capsys):
    export.save_adapter(lora.adapted(tiny_model, lora.LoRA(rank=2)), tmp_path)
    kept(tmp_path, lambda all: {k: v for k, v in all.items() if "h.0.attn.q_proj" not in k})
    export.load_adapter(tiny_model, tmp_path)
    told = capsys.readouterr().err
    assert re.search(r"no tensors for 1 of .*first transformer.h.0.attn.q_proj", told)
    rewritten(tmp_path, modules_to_save=["ln_f"])
    with pytest.raises(ValueError, match=r"lacks transformer.ln_f.\w+, which modules_to_save"):
        export.load_adapter(tiny_model, tmp_path)
    kept(tmp_path, lambda all: {})
    with pytest.raises(ValueError, match="without any tensors"):
        export.load_adapter(tiny_model, tmp_path)


NAMES = "base_model.model.transformer.h.{}.attn.q_proj.lora_A.{}weight"
WRONG_TENSORS = [
    (lambda all: {k.removeprefix("base_model.model."): v for k, v in all.items()}, "doesn't begin"),
    (lambda all: all | {NAMES.format(0, "default."): all[NAMES.format(0, "")] + 1}, "other number"),
    (lambda all: all | {NAMES.format(9, ""): all[NAMES.format(0, "")]}, "of block 9, but the last"),
    (
        lambda all: {k: v[:1] if "lora_A" in k else v[:, :1] for k, v in all.items()},
        "by the rank 2 in adapter_config.json",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS)
def test_tensors_that_peft_would_not_use_are_refused(tiny_model, tmp_path, change, message):
    export.save_adapter(lora.adapted(tiny_model, lora.LoRA(rank=2)), tmp_path)
    kept(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        export.load_adapter(tiny_model, tmp_path)


def test_whole_weights_alone_are_saved_as_peft_loads_them(bases, tmp_path, tolerance):
    pytest.importorskip("peft")
    base = bases("gptj")
    made(base, tmp_path / "a", r=2, target_modules=[Q], modules_to_save=["lm_head"])
    kept(tmp_path / "a", lambda all: {k: v for k, v in all.items() if "lora_" not in k})
    ours = export.load_adapter(load(base), tmp_path / "a")
    export.save_adapter(ours, tmp_path / "b")
    expected = np.asarray(ours.logits(IDS))
    assert close(reloaded(base, tmp_path / "b"), expected, 5 * tolerance["float32"])


def test_what_is_no_folder_of_an_adapter_is_refused_with_the_fix(tiny_model, tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is a file: name the folder"):
        export.load_adapter(tiny_model, file)
    with pytest.raises(FileNotFoundError, match="no folder someone: .*the hub as owner/name"):
        export.load_adapter(tiny_model, "someone")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds a model"):
        export.load_adapter(tiny_model, tmp_path)
    with pytest.raises(ValueError, match="meaning of its own"):
        export.load_adapter(tiny_model, tmp_path, "keys")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ValueError, match="merge_and_unload"):
        export.load_adapter(tiny_model, tmp_path)


@pytest.mark.parametrize("alpha", [0, -4])
def test_pissa_without_a_root_is_refused(alpha, tiny_model, tmp_path):
    export.save_adapter(lora.adapted(tiny_model, lora.LoRA(rank=2)), tmp_path)
    rewritten(tmp_path, init_lora_weights="pissa", lora_alpha=alpha)
    with pytest.raises(ValueError, match="pissa with lora_alpha 0 or below, which has no square"):
        export.load_adapter(tiny_model, tmp_path)
