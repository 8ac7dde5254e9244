"""config.json beside transformers: what it reads, what changes its numbers, what we make of it."""

import json

import numpy as np
import pytest

from gptj_lab import hugging_face_config, transformers_fields
from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ACTIVATIONS, ModelConfig
from gptj_lab.model import activations

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
import public_configurations as public  # noqa: E402
import transformers_classes as installed  # noqa: E402

TABLE = json.loads(installed.PATH.read_text(encoding="utf-8"))
TINY = {family: {"model_type": family, **fields} for family, fields in public.TINY.items()}
TINY["gpt_neo"]["attention_types"] = [[["global", "local"], 1]]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("family", installed.MODELS)
def test_the_table_is_what_the_installed_classes_say(family):
    """`python tests/transformers_classes.py` makes it anew."""
    told = TABLE["families"][family]
    kind = getattr(transformers, installed.MODELS[family]).config_class
    config, honoured = kind(), set(hugging_face_config.honoured(family))
    assert told["aliases"] == kind.attribute_map
    for name in (set(told["changes"]) | honoured) & told["defaults"].keys():
        assert getattr(config, name) == told["defaults"][name], name
    if transformers.__version__ == TABLE["transformers"]:  # another may know more fields
        now = installed.described_by_class(family)
        assert json.loads(json.dumps(now)) == {name: told[name] for name in now}
        assert installed.asked_for(family) == set(told["reads"])


@pytest.mark.slow
@pytest.mark.parametrize("family", installed.MODELS)
def test_what_changes_the_numbers_is_in_the_table(family):
    names = installed.asked_for(family)
    assert installed.changing(family, names) <= set(TABLE["families"][family]["changes"])


@pytest.mark.parametrize("family", installed.MODELS)
def test_what_changes_the_numbers_is_honoured_or_refused(family):
    """At its default a field passes, whatever it would do at another value."""
    known = transformers_fields.of(family)
    refused = known.changes - hugging_face_config.honoured(family)
    assert {"quantization_config", "sliding_window"} <= refused
    for name in refused:
        default = known.defaults.get(name)
        plain = ModelConfig.from_hugging_face(TINY[family])
        assert ModelConfig.from_hugging_face(TINY[family] | {name: default}) == plain
        other = (not default) if isinstance(default, bool) else 3
        with pytest.raises(ValueError, match=f"{name} in .*doesn't honour"):
            ModelConfig.from_hugging_face(TINY[family] | {name: other})


@pytest.mark.parametrize("row", public.ROWS, ids=lambda row: row["name"])
def test_a_public_configuration_has_transformers_logits(row, tmp_path, tolerance):
    """Or is refused as transformers refuses it; and the table in docs/ says so."""
    words, off = public.outcome(row, tmp_path)
    assert off is None or off < tolerance["float32"]
    assert public.line(row, words) in public.DOCS.read_text(encoding="utf-8")


def test_the_table_in_docs_has_every_configuration():
    assert len(public.ROWS) >= 40
    lines = public.DOCS.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(public.ROWS) + 2


NEVER_READ = {
    "n_special": 0, "predict_special_tokens": True, "_num_labels": 1,
    "gradient_checkpointing": True, "odd": [[1, {"deep": [None]}]], "not_a_number": float("nan"),
    "rotary_dims": "64",
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
LOCAL = {"attention_layers": ["local", "local"]}
# What a file says; and what it says to transformers, where that refuses the first.
SAME = [
    *((family, NEVER_READ, None) for family in TINY),
    ("gptj", {"tie_word_embeddings": True}, None),
    ("codegen", {"tie_word_embeddings": True}, None),
    ("gpt_neox", {"tie_word_embeddings": True}, None),
    ("gpt2", {"tie_word_embeddings": False}, None),
    ("gpt2", {"tie_word_embeddings": None, "layer_norm_epsilon": None}, {}),
    ("gptj", {"tie_word_embeddings": None, "activation_function": None}, {}),
    ("gpt_neox", {"attention_bias": None, "rotary_pct": None, "rotary_emb_base": None}, {}),
    ("gpt_neo", {"window_size": None}, {"window_size": 256}),
    ("gpt2", {"hidden_size": 16}, None),
    ("gptj", {"num_hidden_layers": 1, "num_attention_heads": 2}, None),
    ("gpt_neo", {"num_attention_heads": 2}, None),
    ("gpt2", {"max_position_embeddings": 16}, None),
    ("gpt2", {"n_inner": 40, "eos_token_id": [3, 4]}, None),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, None),
    ("gpt2", {"scale_attn_weights": False}, None),
    ("gpt2", {"is_causal": True, "sliding_window": None, "is_decoder": True}, None),
    ("gpt_neo", LOCAL, None),
    ("gpt_neo", LOCAL | {"attention_types": None}, LOCAL),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}, None),
    ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 20000}, None),
    ("gpt_neox", {"rope_theta": 5.0, "partial_rotary_factor": 0.5}, None),  # not read
    ("gpt_neox", {"rope_parameters": ROPE, "rotary_pct": 1.0, "rotary_emb_base": 7}, None),
    ("gpt_neox", {"rope_parameters": {"rope_theta": 500.0, "factor": 3}, "rotary_pct": 1.0}, None),
    ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.5}, "rotary_pct": 1.0}, None),
    ("gpt_neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rotary_pct": 1.0}, None),
    (
        "gpt_neox",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": ROPE},
        None,
    ),
    ("gpt_neox", {"head_dim": 8, "rotary_pct": 0.5}, None),
]


@pytest.mark.parametrize(("family", "said", "instead"), SAME, ids=lambda value: str(value)[:60])
def test_a_field_means_what_it_means_to_transformers(family, said, instead, tmp_path, tolerance):
    fields = TINY[family] | said
    reference = None if instead is None else TINY[family] | instead
    assert public.difference(fields, tmp_path, reference) < tolerance["float32"]


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", {"n_embd": "32"}),
        ("gpt2", {"n_embd": 32.0}),
        ("gptj", {"eos_token_id": "end"}),
        ("gptj", {"bos_token_id": [1]}),
        ("gpt_neo", {"attention_types": [["global", 2]]}),
        ("gpt_neo", {"attention_layers": ["global"]}),
        ("gpt_neox", {"rope_scaling": {"type": "linear"}}),
        ("gpt_neox", {"rope_parameters": [1]}),
        ("gpt2", {"activation_function": "no_such_thing"}),
        ("gptj", {"per_layer_config": {"0": {"n_inner": 16}}}),
    ],
)
def test_what_transformers_refuses_we_refuse(family, change, tmp_path):
    with pytest.raises(public.Refused):
        public.theirs(TINY[family] | change, tmp_path)
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        ModelConfig.from_hugging_face(TINY[family] | change)


@pytest.mark.parametrize("family", ("gpt_neox",))
@pytest.mark.parametrize("kind", ("yarn", "llama3", "longrope"))
def test_positions_that_we_lack_are_refused(family, kind):
    with pytest.raises(ValueError, match=f"rope_type of rope_scaling.*'{kind}'"):
        ModelConfig.from_hugging_face(TINY[family] | {"rope_scaling": {"type": kind, "factor": 2}})


def test_activations_are_transformers():
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    assert activations.FUNCTIONS.keys() == set(ACTIVATIONS)
    assert {"gelu_python", "swish", "quick_gelu", "relu6"} <= set(ACTIVATIONS)
    for name, ours in activations.FUNCTIONS.items():
        expected = ACT2FN[name](torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(np.asarray(ours(x)), expected, atol=1e-5, err_msg=name)


def test_what_is_passed_over_is_told_in_one_line(tmp_path, capsys):
    fields = TINY["gpt2"] | NEVER_READ | {"\x1b[31m": 1} | {f"more_{i:02}": 1 for i in range(20)}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    huggingface.read_config(tmp_path)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "\x1b" not in told and len(told) < 600
    assert "_num_labels" in told and "more_00" in told and "n_special" not in told
    (tmp_path / "config.json").write_text(json.dumps(TINY["gpt2"] | {"n_ctx": 32}))
    huggingface.read_config(tmp_path)
    assert capsys.readouterr().err == ""


def test_spellings_of_json(tmp_path):
    """A byte order mark, and a name that is there twice, of which the last counts."""
    path = tmp_path / "config.json"
    text = json.dumps(TINY["gpt2"])
    path.write_text(text, encoding="utf-8-sig")
    plain = ModelConfig.from_file(path)
    path.write_text(text[:-1] + ', "n_layer": 3, "n_layer": 1}')
    assert ModelConfig.from_file(path).num_layers == 1 != plain.num_layers
