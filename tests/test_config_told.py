"""config.json that holds null, isn't JSON, or is wrong: what is said of it, what is saved of it."""

import codecs
import json
import re

import pytest
from small_models import FAMILIES, small_model

from gptj_lab import json_files, transformers_fields
from gptj_lab.checkpoints.companions import CONFIG, Companions
from gptj_lab.checkpoints.huggingface import _config
from gptj_lab.config import ModelConfig

_GPT_J = ("vocab_size", "n_embd", "n_layer", "n_head")
_OTHERS = ("vocab_size", "hidden_size")
SIZES = {
    "gptj": (*_GPT_J, "rotary_dim", "hidden_size"),  # the last by its other name
    "codegen": (*_GPT_J, "rotary_dim"),
    "gpt2": (*_GPT_J, "n_positions"),
    "gpt_neo": (*_OTHERS, "num_layers", "num_heads", "max_position_embeddings"),
    "gpt_neox": (*_OTHERS, "num_hidden_layers", "num_attention_heads", "intermediate_size"),
}


def nulls(family):
    """The fields whose null is no value of its own, and that load all the same."""
    config = small_model(family).config
    known = transformers_fields.of(family)
    for name, default in sorted(known.defaults.items()):
        if default is None or name in known.nullable:
            continue
        try:
            yield name, ModelConfig.from_hugging_face(config.to_hugging_face() | {name: None})
        except ValueError:
            continue


@pytest.mark.parametrize("family", FAMILIES)
def test_a_null_that_stands_for_the_default_is_not_saved(family):
    found = dict(nulls(family))
    assert len(found) > 5 and "initializer_range" in found
    for name, config in found.items():
        before = small_model(family).config.to_hugging_face() | {name: None, "prefix": "> "}
        after = config.to_hugging_face(before)
        assert name not in after and after["prefix"] == "> "
        assert ModelConfig.from_hugging_face(after) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_takes_what_is_saved_of_nulls(family):
    transformers = pytest.importorskip("transformers")
    for name, config in nulls(family):
        before = small_model(family).config.to_hugging_face() | {name: None}
        fields = config.to_hugging_face(before)
        fields.pop("model_type")
        theirs = transformers.AutoConfig.for_model(family, **fields)
        assert ModelConfig.from_hugging_face(json.loads(theirs.to_json_string())) == config


def test_a_null_that_means_something_is_kept():
    before = small_model("gptj").config.to_hugging_face() | {"n_inner": None, "bos_token_id": None}
    config = ModelConfig.from_hugging_face(before)
    after = config.to_hugging_face(before)
    assert after["n_inner"] is None and after["bos_token_id"] is None


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in SIZES.items() for name in names]
)
def test_a_size_that_is_null_is_named(family, name):
    """transformers 5 refuses each too."""
    fields = small_model(family).config.to_hugging_face() | {name: None}
    with pytest.raises(ValueError, match=f"^{name} in my.json is null: a whole number is needed"):
        ModelConfig.from_hugging_face(fields, "my.json")


@pytest.mark.parametrize(
    ("family", "wrong", "says"),
    [
        ("gptj", {"n_head": 3}, "my.json: n_head is 3, which doesn't divide n_embd 32"),
        ("gpt_neox", {"num_attention_heads": 3}, "num_attention_heads is 3, .* hidden_size 32"),
        ("gptj", {"rotary_dim": 3}, "my.json: rotary_dim is 3"),
        ("gpt2", {"n_positions": 0}, "my.json: n_positions is 0"),
        ("gpt_neo", {"layer_norm_epsilon": 2.0}, "my.json: layer_norm_epsilon is 2.0"),
        ("codegen", {"activation_function": "odd"}, "my.json: activation_function is 'odd'"),
    ],
)
def test_a_wrong_value_is_named_as_in_the_file(family, wrong, says):
    fields = small_model(family).config.to_hugging_face() | wrong
    with pytest.raises(ValueError, match=says):
        ModelConfig.from_hugging_face(fields, "my.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}'.encode("utf-16"), "in UTF-8 .it is in UTF-16.: save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16.*: save it as UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16.*: save it as UTF-8"),
        (b'{"a": "\xe9"}', "byte 7 is none of it.: save it as UTF-8"),
        (b'{\n"a": 1,\n}', r"at line \d, column \d.*no comma after the last"),
        (b"\n ", "it is empty"),
    ],
)
def test_what_is_no_json_is_told_with_the_place_and_the_fix(content, says, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}.*{says}") as told:
        ModelConfig.from_file(tmp_path / "config.json")
    assert told.value.args[0].count("\n") == 0
    with pytest.raises(ValueError, match=says):
        Companions({"generation_config.json": content}).json("generation_config.json")


def test_a_byte_order_mark_is_read_and_not_written():
    fields = small_model("gptj").config.to_hugging_face() | {"dtype": "float32"}
    content = codecs.BOM_UTF8 + json.dumps(fields).encode()
    assert json_files.parsed(content, "here") == fields
    config = ModelConfig.from_hugging_face(fields)
    saved = _config(config, "float32", False, Companions({CONFIG: content}))
    assert json.loads(saved.decode("utf-8")) == fields
