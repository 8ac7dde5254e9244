"""What ModelConfig refuses, and the parameter count of the real GPT-J."""

import json

import pytest

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
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"n_head": 15}, "num_heads is 15"),
        ({"rotary_dim": 63}, "d_rotary is 63"),
        ({"rotary_dim": 512}, "d_rotary is 512"),
        ({"n_layer": 0}, "num_layers is 0"),
        ({"n_embd": "4096"}, "d_model is '4096'"),
        ({"activation_function": "swish_glu"}, "activation"),
        ({"layer_norm_epsilon": -1}, "layer_norm_eps"),
        ({"eos_token_id": "end"}, "eos_token_id"),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(change, words, wrong_types):
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_hugging_face(GPTJ_6B | change)


def test_missing_field_is_named():
    fields = {name: value for name, value in GPTJ_6B.items() if name != "n_layer"}
    with pytest.raises(ValueError, match="lacks n_layer"):
        ModelConfig.from_hugging_face(fields)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_file_that_is_no_config(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        ModelConfig.from_file(path)
    path.write_text(json.dumps(GPTJ_6B))
    assert ModelConfig.from_file(path).num_layers == 28
