"""What transformers' own classes say about the fields of config.json, as gptj_lab keeps it.

`python tests/transformers_classes.py` writes gptj_lab/transformers_fields.json anew, from the
installed transformers; tests/test_configurations.py holds that file against it.

For each family: the class's fields with their defaults, its aliases (attribute_map), which fields
may be null, which names the modelling code asks a config for, and which of those change what a
network computes. The last two are measured: a tiny model is built, saved, loaded and run while the
names it asks for are noted; then each name is set to other values, and its logits, those of a
cached decode, and the names and shapes of its weights are compared.
"""

import contextlib
import dataclasses
import inspect
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation import GenerationConfig

PATH = Path(__file__).parents[1] / "gptj_lab" / "transformers_fields.json"
MODELS = {
    "gptj": "GPTJForCausalLM",
    "codegen": "CodeGenForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_GPT2_SIZES = dict(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=64)
SIZES: dict[str, dict[str, Any]] = {
    "gptj": _GPT2_SIZES | dict(rotary_dim=4),
    "codegen": _GPT2_SIZES | dict(rotary_dim=4),
    "gpt2": _GPT2_SIZES,
    "gpt_neox": dict(
        vocab_size=96, max_position_embeddings=32, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
    ),
    "gpt_neo": dict(
        vocab_size=96, max_position_embeddings=32, hidden_size=32, num_layers=2, num_heads=4,
        intermediate_size=64, attention_types=[[["global", "local"], 1]], window_size=3,
    ),
}  # fmt: skip
_TOKENS = torch.arange(0, 18).reshape(2, 9) * 5 % 96
_SPECIAL = dict(bos_token_id=95, eos_token_id=95)
_EXTRA = {  # other values, where the kind of the default doesn't say enough
    "activation_function": ["relu"],
    "hidden_act": ["relu"],
    "attention_types": [[[["local"], 2]]],
    "attention_layers": [["local", "local"]],
    "rope_parameters": [
        dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5),
        dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0),
    ],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_8bit": True}],
    "per_layer_config": [{"0": {"n_inner": 32}}, {"0": {"intermediate_size": 32}}],
}
# Asked for, but said by no config.json: properties of the class and its inner state.
_INNER = ("_", "base_model_", "sub_configs", "attribute_map", "is_heterogeneous", "base_config_key")
# Precision and the form of an answer, which the caller of gptj_lab chooses.
FORM = {"dtype", "torch_dtype", "use_cache", "return_dict", "output_attentions",
        "output_hidden_states", "use_return_dict"}  # fmt: skip


def table() -> dict[str, Any]:
    """What the installed transformers says, family by family."""
    return {
        "transformers": transformers.__version__,
        "generation": sorted(GenerationConfig._get_default_generation_params()),
        "families": {family: _family(family) for family in MODELS},
    }


def _family(family: str) -> dict[str, Any]:
    described = described_by_class(family)
    reads = asked_for(family)
    return described | {"reads": sorted(reads), "changes": sorted(changing(family, reads))}


def described_by_class(family: str) -> dict[str, Any]:
    """A family's aliases, defaults and nullable fields, from its config class alone."""
    kind = getattr(transformers, MODELS[family]).config_class
    config = kind()
    fields = {
        name: getattr(config, name)
        for name in (field.name for field in dataclasses.fields(kind))
        if name not in ("transformers_version", "architectures", "rope_parameters")
    }
    return {
        "class": kind.__name__,
        "aliases": dict(sorted(kind.attribute_map.items())),
        "defaults": dict(sorted(fields.items())),
        "nullable": sorted(name for name in fields if _takes(kind, **{name: None})),
    }


def _takes(kind: type, **fields: Any) -> bool:
    try:
        kind(**fields)
    except Exception:
        return False
    return True


def asked_for(family: str) -> set[str]:
    """The names that building, loading, running and decoding a model asks its config for."""
    model = _model(family)
    with tempfile.TemporaryDirectory() as folder, _noting() as names:
        made = type(model)(type(model.config)(**SIZES[family], **_SPECIAL))
        made.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder, attn_implementation="eager").eval()
        _answers(loaded)
    generation = GenerationConfig._get_default_generation_params()
    mapped = {model.config.attribute_map.get(name, name) for name in names}
    attributes = {
        name
        for name, value in inspect.getmembers(type(model.config))
        if callable(value) or (isinstance(value, property) and name not in FORM)
    }
    said = {name for name in mapped - attributes - set(generation) if not name.startswith(_INNER)}
    return said | ({"per_layer_config"} & names)  # a property, but a file may say it


@contextlib.contextmanager
def _noting() -> Iterator[set[str]]:
    """The names that any config is asked for inside the block, whether it has them or not."""
    kind, names = transformers.PreTrainedConfig, set()
    plain = kind.__getattribute__

    def noting(self, name):
        if name != "attribute_map":
            names.add(name)
        return plain(self, name)

    kind.__getattribute__ = noting
    try:
        yield names
    finally:
        kind.__getattribute__ = plain


def changing(family: str, names: set[str]) -> set[str]:
    """Those of the names with which other logits come out, or other weights are needed."""
    base = _model(family)
    expected = _answers(base)
    found = {"quantization_config"}  # read before there is a model to compare
    for name in names - FORM - found:
        for value in _others(name, getattr(base.config, name, None)):
            if _differs(base, expected, family, {name: value}):
                found.add(name)
                break
    return found & names


def _others(name: str, value: Any) -> list[Any]:
    if name in _EXTRA:
        return _EXTRA[name]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, value // 2]
    if isinstance(value, float):
        return [value + 0.3, 0.5]
    return [True, False, 2, 0.5] if value is None else []


def _differs(base, expected: list[torch.Tensor], family: str, change: dict[str, Any]) -> bool:
    """Whether the changed model needs other weights, or answers otherwise with the same."""
    try:
        config = type(base.config)(**(SIZES[family] | _SPECIAL | change))
    except Exception:
        return False  # a value that the class refuses says nothing
    try:
        model = type(base)(config).eval()
    except Exception:
        return bool(change.keys() & _EXTRA.keys())  # else a value that was guessed
    model.config._attn_implementation = "eager"
    ours, theirs = base.state_dict(), model.state_dict()
    if {n: v.shape for n, v in ours.items()} != {n: v.shape for n, v in theirs.items()}:
        return True
    if base.config.tie_word_embeddings != model.config.tie_word_embeddings:
        return True
    model.load_state_dict(ours)
    try:
        answers = _answers(model)
    except Exception:
        return False
    return any(
        a.shape != b.shape or not torch.allclose(a, b, atol=1e-4)
        for a, b in zip(expected, answers, strict=True)
    )


def _model(family: str):
    """A tiny random model of the family, std 0.2, no parameter at a round value."""
    kind = getattr(transformers, MODELS[family])
    torch.manual_seed(0)
    model = kind(kind.config_class(**SIZES[family], **_SPECIAL)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.config._attn_implementation = "eager"
    return model


@torch.no_grad()
def _answers(model) -> list[torch.Tensor]:
    """Logits of a batch at once, and of its last tokens from the cache."""
    whole = model(_TOKENS, use_cache=False, return_dict=True).logits
    first = model(_TOKENS[:, :5], use_cache=True, return_dict=True)
    cache = first.past_key_values
    rest = model(_TOKENS[:, 5:], past_key_values=cache, use_cache=True, return_dict=True)
    return [whole, first.logits, rest.logits]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # of networks this small, more are slower
    PATH.write_text(json.dumps(table(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {PATH}")
