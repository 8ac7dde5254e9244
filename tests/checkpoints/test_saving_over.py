"""Saving where something lies already; what has changed since it was read, or was never read."""

import dataclasses
import json

import pytest
from small_models import FAMILIES, small_model

import gptj_lab
from gptj_lab.checkpoints import companions, huggingface
from gptj_lab.checkpoints.companions import Companions
from gptj_lab.config import ModelConfig
from gptj_lab.finetuning import lora
from gptj_lab.language_model import LanguageModel
from gptj_lab.tokenizer import train_bpe

OTHERS = {
    "generation_config.json": '{"eos_token_id": 7}',
    "chat_template.jinja": "{{ other }}",
    "additional_chat_templates/tool.jinja": "{{ other }}",
    "special_tokens_map.json": "{}",
    "vocab.json": '{"other": 0}',
    "merges.txt": "",
    "README.md": "# Of the other",
    "LICENSE": "Of the other",
    "notes.txt": "my own",
    "modeling_mine.py": "my own",
}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def names(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files)


@pytest.fixture
def kept(tmp_path):
    """A model loaded from a folder with a card, a template and unknown fields."""
    folder = tmp_path / "kept"
    small_model("gptj").save(folder)
    fields = json.loads((folder / "config.json").read_text()) | {"prefix": "> ", "n_ctx": 64}
    fill(folder, {"chat_template.jinja": "{{ mine }}", "README.md": "# Mine"})
    (folder / "config.json").write_text(json.dumps(fields))
    return gptj_lab.load(folder)


def test_another_models_files_go_but_texts_and_strangers_stay(kept, tmp_path):
    fill(tmp_path / "there", {} if (tmp_path / "there").mkdir() else OTHERS)
    kept.save(tmp_path / "there")
    assert names(tmp_path / "there") == [
        "LICENSE", "README.md", "README.previous.md", "chat_template.jinja", "config.json",
        "model.safetensors", "modeling_mine.py", "notes.txt", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert (tmp_path / "there/README.md").read_text() == "# Mine"
    assert (tmp_path / "there/README.previous.md").read_text() == "# Of the other"
    assert (tmp_path / "there/chat_template.jinja").read_text() == "{{ mine }}"
    again = gptj_lab.load(tmp_path / "there").companions.without(["README.previous.md", "LICENSE"])
    assert again.without(["modeling_mine.py"]) == kept.companions


def test_a_model_made_in_memory_takes_nothing_from_the_folder(tmp_path):
    fill(tmp_path, OTHERS)
    model = small_model("gpt2")
    model.save(tmp_path)
    assert names(tmp_path) == [
        "LICENSE", "README.md", "config.json", "model.safetensors", "modeling_mine.py", "notes.txt",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert gptj_lab.load(tmp_path).config == model.config
    assert (tmp_path / "README.md").read_text() == "# Of the other", "a person wrote it"


def test_weights_made_of_these_have_no_card_yet_also_in_place(kept, tmp_path):
    folder = tmp_path / "kept"
    tuned = lora.merged(lora.adapted(kept, lora.LoRA(rank=1)))
    tuned.save(folder)
    assert "README.md" not in names(folder)
    assert (folder / "README.base.md").read_text() == "# Mine"
    fill(folder, {"README.md": "# Of the tuned"})
    lora.merged(lora.adapted(gptj_lab.load(folder), lora.LoRA(rank=1))).save(tmp_path / "twice")
    assert (tmp_path / "twice/README.base.md").read_text() == "# Mine"
    assert (tmp_path / "twice/README.base.base.md").read_text() == "# Of the tuned"


def test_another_tokenizer_brings_its_own_files(kept, tmp_path):
    other = train_bpe(["other words are other tokens " * 9], 270)
    model = LanguageModel(kept.config, kept.network, other, companions=kept.companions)
    model.save(tmp_path / "other")
    assert "chat_template.jinja" not in names(tmp_path / "other")
    assert gptj_lab.load(tmp_path / "other").tokenizer.fingerprint() == other.fingerprint()
    assert json.loads((tmp_path / "other/config.json").read_text())["prefix"] == "> "


@pytest.mark.parametrize("stop", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_save_that_fails_leaves_all_as_it_was(kept, tmp_path, monkeypatch, stop):
    folder = tmp_path / "kept"
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def full(*_):
        raise OSError(28, "No space left on device")

    where = {
        "config.json": (huggingface, "_config"),
        "model.safetensors": (huggingface, "write_safetensors"),
        "tokenizer.json": (companions, "carry"),
    }[stop]
    if stop == "tokenizer.json":
        monkeypatch.setattr(Companions, "write", full)
    else:
        monkeypatch.setattr(*where, full)
    with pytest.raises(OSError, match="No space left"):
        lora.merged(lora.adapted(kept, lora.LoRA(rank=1))).save(folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_a_folder_of_a_files_name_is_told_before_anything_moves(kept, tmp_path):
    (tmp_path / "odd/tokenizer.json").mkdir(parents=True)
    with pytest.raises(OSError, match="tokenizer.json is a folder"):
        kept.save(tmp_path / "odd")
    assert names(tmp_path / "odd") == []


CHANGES = {
    "gptj": dict(n_positions=64, bos_token_id=None, eos_token_id=5),
    "codegen": dict(activation_function="gelu"),
    "gpt_neox": dict(rotary_pct=0.5, rotary_emb_base=500.0),
    "gpt_neo": dict(attention_types=[[["global", "global", "local"], 1]], window_size=5),
    "gpt2": dict(layer_norm_epsilon=1e-3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_config_only_what_means_something_else_is_changed(family):
    old = small_model(family).config
    before = old.to_hugging_face() | {"task_specific_params": {"a": 1}, "resid_pdrop": 0.1}
    before["architectures"] = ["Mine"]
    if family == "gpt_neox":
        before["rope_parameters"] = {
            "rope_theta": before.pop("rotary_emb_base"), "rope_type": "default",
            "partial_rotary_factor": before.pop("rotary_pct"),
        }  # fmt: skip
        del before["resid_pdrop"]
    assert old.to_hugging_face(before) == before
    fresh = old.to_hugging_face()
    new = ModelConfig.from_hugging_face(fresh | CHANGES[family])
    after = new.to_hugging_face(before)
    assert ModelConfig.from_hugging_face(after) == new != old
    expected = before | {k: v for k, v in CHANGES[family].items() if fresh[k] != v}
    if family == "gpt_neox":
        del expected["rope_parameters"]
    if family == "gpt_neo":
        after["attention_types"] = [[["global", "global", "local"], 1]]
    assert after == expected


def test_a_config_of_another_network_is_not_built_on():
    config, other = small_model("gptj").config, small_model("gpt2").config
    assert config.to_hugging_face(other.to_hugging_face()) == config.to_hugging_face()
    damaged = {"model_type": "gptj", "n_layer": 0}
    assert config.to_hugging_face(damaged) == config.to_hugging_face()
    wide = dataclasses.replace(config, num_layers=2)
    assert wide.to_hugging_face(config.to_hugging_face() | {"prefix": "a"}) == (
        wide.to_hugging_face() | {"prefix": "a"}
    )


def test_a_config_of_2019_is_built_on_too():
    """It names its architecture, but no model_type; an alias gives way to what changed."""
    old = small_model("gpt2").config
    before = old.to_hugging_face() | {"n_special": 0, "num_hidden_layers": old.num_layers}
    del before["model_type"]
    assert old.to_hugging_face(before) == before | {"model_type": "gpt2"}
    wide = dataclasses.replace(old, num_layers=2)
    after = wide.to_hugging_face(before)
    assert ModelConfig.from_hugging_face(after) == wide and after["n_special"] == 0
