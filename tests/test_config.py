"""config.json of five families, what ModelConfig refuses, and what a family can't say."""

import dataclasses
import json

import pytest

from gptj_lab import presets
from gptj_lab.config import ModelConfig

GPTJ_6B = {
    "model_type": "gptj",
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
}


def test_gptj_6b_has_its_published_shape():
    config = ModelConfig.from_hugging_face(GPTJ_6B)
    assert config.num_parameters == 6_050_882_784
    assert (config.d_head, config.d_ff, config.activation) == (256, 16384, "gelu_new")


def test_round_trip():
    config = ModelConfig.from_hugging_face(GPTJ_6B)
    assert ModelConfig.from_hugging_face(config.to_hugging_face()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type.*'llama'"),
        ({"model_type": None}, "model_type"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*'yes'.*true or false"),
        ({"is_causal": False}, "is_causal.*False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"n_head": 15}, "n_head is 15"),
        ({"rotary_dim": 63}, "rotary_dim is 63"),
        ({"rotary_dim": 512}, "rotary_dim is 512"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_embd": "4096"}, "n_embd in the config is '4096': a whole number"),
        ({"n_embd": True}, "n_embd in the config is True: a whole number"),
        ({"hidden_size": "4096"}, "n_embd in the config is '4096': a whole number"),
        ({"n_layer": 10**9}, "n_layer is 1000000000: at most 10000"),
        ({"n_positions": 10**30}, "n_positions is 1000.*: at most 2147483647"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon.*'1e-5': a number"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        ({"activation_function": ["gelu"]}, "activation_function.*: a name is needed"),
        ({"activation_function": "swish_glu"}, "activation"),
        ({"layer_norm_epsilon": -1}, "layer_norm_eps"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"eos_token_id": [1, "end"]}, "eos_token_id.*'end'"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"bos_token_id": [1]}, "bos_token_id"),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hugging_face(GPTJ_6B | change)


def test_several_end_tokens_come_and_go_as_a_list():
    config = ModelConfig.from_hugging_face(GPTJ_6B | {"eos_token_id": [50256, 7]})
    assert config.eos_token_id == (50256, 7) and hash(config)
    assert config.to_hugging_face()["eos_token_id"] == [50256, 7]


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000, '{"n_embd": 1' + "0" * 5000])
def test_file_that_is_no_config(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        ModelConfig.from_file(path)
    path.write_text(json.dumps(GPTJ_6B))
    assert ModelConfig.from_file(path).num_layers == 28


# What the hub's own config.json files hold, as far as it concerns the network.
HUB = {
    "gpt-j-6b": GPTJ_6B
    | {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "initializer_range": 0.02,
        "rotary": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "task_specific_params": {"text-generation": {"do_sample": True}},
    },
    "codegen-350m-mono": {
        "model_type": "codegen",
        "vocab_size": 51200,
        "n_ctx": 2048,
        "n_positions": 2048,
        "n_embd": 1024,
        "n_layer": 20,
        "n_head": 16,
        "n_inner": None,
        "rotary_dim": 32,
        "bos_token_id": 1,
        "eos_token_id": 50256,
        "scale_attn_weights": True,
    },
    "pythia-70m": {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float16",
    },
    "gpt-neo-125m": {
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": None,
        "activation_function": "gelu_new",
        "attention_layers": ["global", "local"] * 6,
        "attention_types": [[["global", "local"], 6]],
        "window_size": 256,
        "attention_dropout": 0,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_ctx": 1024,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "summary_type": "cls_index",
    },
}
NEOX, NEO, GPT2 = HUB["pythia-70m"], HUB["gpt-neo-125m"], HUB["gpt2"]


@pytest.mark.parametrize("name", HUB)
def test_config_of_the_hub_is_the_preset(name):
    config = ModelConfig.from_hugging_face(HUB[name])
    assert config == presets.named(name)
    assert ModelConfig.from_hugging_face(config.to_hugging_face()) == config


def test_fields_that_are_left_out_hold_the_family_s_own_value():
    bare = {"rotary_pct", "rotary_emb_base", "use_parallel_residual", "tie_word_embeddings"}
    fields = {name: value for name, value in NEOX.items() if name not in bare}
    assert ModelConfig.from_hugging_face(fields) == presets.named("pythia-70m")
    assert ModelConfig.from_hugging_face(GPT2 | {"tie_word_embeddings": False}).num_parameters == (
        presets.named("gpt2").num_parameters + 50257 * 768
    )


def test_rope_parameters_of_transformers_5():
    rope = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    old = {name: v for name, v in NEOX.items() if name not in ("rotary_pct", "rotary_emb_base")}
    config = ModelConfig.from_hugging_face(old | {"rope_parameters": rope})
    assert (config.d_rotary, config.rotary_base) == (32, 5e5)


@pytest.mark.parametrize("width", range(2, 130, 2))
def test_rotary_fraction_survives_the_file(width):
    """int(d_head * (d_rotary / d_head)) is one too few for some."""
    for rotary in range(2, width + 1, 2):
        config = ModelConfig.of_family(
            "gpt_neox", vocab_size=8, context=8, d_model=width, num_layers=1, num_heads=1, d_ff=8,
            d_rotary=rotary,
        )  # fmt: skip
        assert ModelConfig.from_hugging_face(config.to_hugging_face()) == config


@pytest.mark.parametrize(
    ("fields", "change", "words"),
    [
        (NEOX, {"rope_scaling": {"type": "linear"}}, "rope_scaling.*lacks factor"),
        (NEOX, {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of rope_scaling.*'2'"),
        (NEOX, {"rope_scaling": {"type": "linear", "factor": -2}}, "factor of rope_scaling is -2"),
        (NEOX, {"rope_scaling": "linear"}, "rope_scaling.*'linear': a JSON object"),
        (NEOX, {"head_dim": 32}, "head_dim.*32.*64, is needed"),
        (NEOX, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type.*'yarn'"),
        (NEOX, {"rope_parameters": [1]}, "rope_parameters"),
        (NEOX, {"rotary_pct": 1.5}, "rotary_pct.*1.5"),
        (NEOX, {"rotary_pct": "all"}, "rotary_pct.*'all'"),
        (NEOX, {"rotary_pct": float("nan")}, "rotary_pct.*nan"),
        (NEOX, {"rotary_pct": 0.02}, "rotary_pct of a head is 1"),
        (NEOX, {"rotary_emb_base": float("inf")}, "rotary_emb_base is inf"),
        (NEOX, {"rotary_emb_base": 0}, "rotary_emb_base is 0"),
        (NEOX, {"hidden_act": "prelu"}, "hidden_act is 'prelu'"),
        (NEOX, {"use_parallel_residual": "no"}, "use_parallel_residual.*'no': true or false"),
        (NEOX, {"attention_bias": 1}, "attention_bias.* 1: true or false"),
        (NEOX, {"num_attention_heads": 0}, "num_attention_heads is 0"),
        (NEOX, {"sliding_window": 256}, "sliding_window.*256.*only None"),
        (NEO, {"attention_types": [[["global", "local"], 5]]}, "attention_types.*12 layers"),
        (NEO, {"attention_types": [[["global", "sparse"], 6]]}, "attention_types.*sparse"),
        (NEO, {"attention_types": "global"}, "attention_types"),
        (NEO, {"attention_types": [[["global"], 10**15]], "num_layers": 10**15}, "attention_types"),
        (NEO, {"attention_layers": ["global"] * 11}, "attention_layers.*12 times"),
        (NEO, {"attention_layers": "global"}, "attention_layers.*'global'"),
        (NEO, {"window_size": 0}, "window_size.*is 0"),
        (NEO, {"window_size": "8"}, "window_size.*is '8'"),
        (NEO, {"num_layers": 24}, "attention_types.*24 layers"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        (GPT2, {"scale_attn_weights": 2}, "scale_attn_weights.*is 2: true or false"),
    ],
)
def test_what_a_family_would_not_honour_is_refused_by_name(fields, change, words):
    if "attention_layers" not in change:
        fields = {name: value for name, value in fields.items() if name != "attention_layers"}
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hugging_face(fields | change)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gpt-j-6b", {"positions": "sinusoidal"}, "positions is 'sinusoidal'"),
        ("gpt-j-6b", {"positions": "learned"}, "d_rotary is 64.*set both to 0"),
        ("gpt2", {"positions": "rotary_half"}, "d_rotary is 0"),
        ("gpt-j-6b", {"parallel": False}, "shared_layer_norm is True in sequential"),
        ("gpt-j-6b", {"family": "llama"}, "family is 'llama'"),
        ("gpt-j-6b", {"local_windows": ()}, "local_windows"),
        ("gpt-j-6b", {"local_windows": (0,)}, "local_windows"),
        ("gpt-j-6b", {"local_windows": (True,)}, "local_windows"),
    ],
)
def test_combinations_that_make_no_network(name, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(presets.named(name), **change)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gpt-j-6b", {"parallel": False, "shared_layer_norm": False}, "parallel is False"),
        ("gpt-j-6b", {"rotary_base": 500.0}, "rotary_base is 500.0"),
        ("gpt-j-6b", {"rotary_scaling": 2.0}, "rotary_scaling is 2.0"),
        ("pythia-70m", {"layer_scaled_attention": True}, "layer_scaled_attention is True"),
        ("pythia-70m", {"attn_out_bias": False}, "attn_out_bias False.*equal"),
        ("pythia-70m", {"scaled_attention": False}, "scaled_attention is False"),
        ("gpt-neo-125m", {"local_windows": (4, 8)}, r"sizes \[4, 8\]"),
        ("gpt2", {"local_windows": (4,)}, "local_windows is .4,."),
    ],
)
def test_what_a_file_of_the_family_can_not_say(name, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(presets.named(name), **change).to_hugging_face()


def test_windows_are_a_pattern_in_its_shortest_form():
    config = presets.named("gpt-neo-125m")
    written_out = dataclasses.replace(config, local_windows=(None, 256) * 6)
    assert written_out == config and hash(written_out) == hash(config)
    assert [config.local_window(i) for i in range(4)] == [None, 256, None, 256]
    uneven = dataclasses.replace(config, local_windows=(None, 256, 256, None, 7), num_layers=4)
    assert uneven.local_windows == (None, 256, 256)
    assert ModelConfig.from_hugging_face(uneven.to_hugging_face()) == uneven


def test_a_missing_size_of_a_family_is_named():
    with pytest.raises(ValueError, match="'gptj' needs .*num_layers.*d_rotary"):
        ModelConfig.of_family("gptj", vocab_size=8, context=8, d_model=8)
