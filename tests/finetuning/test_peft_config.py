"""The table of PEFT's fields is the installed class's; its ways of naming modules are PEFT's."""

import dataclasses
import pprint

import pytest

from gptj_lab.finetuning import peft_config


def test_the_table_is_that_of_the_installed_class():
    peft = pytest.importorskip("peft")
    found = {}
    for field in dataclasses.fields(peft.LoraConfig):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        found[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    new = {
        name: value
        for name, value in found.items()
        if name not in peft_config.DEFAULTS or peft_config.DEFAULTS[name] != value
    }
    assert not new, f"say of each whether it is honoured: {pprint.pformat(new)}"


MODULES = [
    f"{before}.{i}.{name}"
    for before in ("transformer.h", "gpt_neox.layers")
    for i in (0, 1, 11)
    for name in ("attn.q_proj", "attn.c_proj", "mlp.c_proj", "attention.dense", "mlp.fc_in")
] + ["lm_head", "transformer.wte"]
WANTED = [
    {"target_modules": ["c_proj"]},
    {"target_modules": ["mlp.c_proj", "transformer.h.1.attn.q_proj"]},
    {"target_modules": r".*\.1\..*_proj"},
    {"target_modules": "c_proj"},
    {"target_modules": ["c_proj", "dense"], "exclude_modules": ["attn.c_proj"]},
    {"target_modules": ["c_proj", "dense"], "exclude_modules": r".*h\.1\..*"},
    {"target_modules": ["c_proj", "dense"], "layers_to_transform": [1]},
    {"target_modules": ["c_proj", "dense"], "layers_to_transform": 11, "layers_pattern": "h"},
    {"target_modules": ["c_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["x", "h"]},
    {"target_modules": ["c_proj", "wte"], "modules_to_save": ["mlp", "wte"]},
]


@pytest.mark.parametrize("fields", WANTED)
def test_modules_are_chosen_as_peft_chooses_them(fields):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    config = peft.LoraConfig(**fields)
    ours = peft_config.DEFAULTS | fields
    layers = ours["layers_to_transform"]
    ours["layers_to_transform"] = [layers] if isinstance(layers, int) else layers
    theirs = [bool(check_target_module_exists(config, module)) for module in MODULES]
    assert [peft_config.targeted(ours, module) for module in MODULES] == theirs
    assert any(theirs) != (fields["target_modules"] == "c_proj") and not all(theirs)


@pytest.mark.parametrize(
    "pattern", [{"q_proj": 3}, {"^h.1": 2, r"h\.1\.attn\.q_proj": 5}, {"proj": 1}]
)
def test_patterns_match_as_peft_s_do(pattern):
    pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key

    config = peft_config.DEFAULTS | {"rank_pattern": pattern}
    for module in MODULES:
        theirs = pattern.get(get_pattern_key(pattern.keys(), module), 8)
        assert peft_config.rank_and_strength(config, module)[0] == theirs


def test_patterns_that_are_written_say_what_they_were_made_of():
    values = {module: 3 if "attn" in module else 4 for module in MODULES[:15]}
    values["transformer.h.11.mlp.fc_in"] = 7
    common, pattern = peft_config.patterns(values)
    config = peft_config.DEFAULTS | {"r": common, "rank_pattern": pattern}
    assert all(peft_config.rank_and_strength(config, m)[0] == v for m, v in values.items())
    assert peft_config.target_names(MODULES[:2], MODULES) == sorted(MODULES[:2])
    both = [m for m in MODULES if m.endswith("c_proj")]
    assert peft_config.target_names(both, MODULES) == ["c_proj"]
