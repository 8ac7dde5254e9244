"""Saving over a model in another form, over an adapter, and where nothing can be written."""

import errno
import os
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_model

import gptj_lab
from gptj_lab import cli
from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.convert import convert
from gptj_lab.finetuning import export, lora

OLD_WEIGHTS = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin",
    "pytorch_model.fp16.bin", "tf_model.h5", "flax_model.msgpack", "flax_model.msgpack.index.json",
    "model.fp16.safetensors",
)  # fmt: skip


def names(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files)


@pytest.fixture
def adapted():
    """A model with a LoRA adapter that changes what it computes."""
    model = lora.adapted(small_model("gptj"), lora.LoRA(rank=1))
    for block in model.network.blocks:
        for linear in block.matrices().values():
            for adapter in linear.adapters.values():
                adapter.b = type(adapter.b)(jnp.ones_like(adapter.b[...]))
    return model


def test_weights_of_every_other_form_go_and_are_told(tmp_path, capsys):
    for name in (*OLD_WEIGHTS, "optimizer.pt", "training_args.bin"):
        (tmp_path / name).write_bytes(b"old")
    small_model("gptj").save(tmp_path)
    assert names(tmp_path) == [
        "config.json", "model.safetensors", "optimizer.pt", "tokenizer.json",
        "tokenizer_config.json", "training_args.bin",
    ]  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "pytorch_model.bin" in line and "tf_model.h5" in line


def test_an_adapter_is_put_by_and_can_still_be_loaded(tmp_path, capsys, adapted):
    export.save_adapter(adapted, tmp_path)
    model = small_model("gptj")
    model.save(tmp_path)
    told = capsys.readouterr().err
    assert str(tmp_path / "adapter.previous") in told and told.count("\n") == 1
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = gptj_lab.load(tmp_path)
    np.testing.assert_array_equal(loaded.logits([[1, 2, 3]]), model.logits([[1, 2, 3]]))
    again = export.load_adapter(loaded, tmp_path / "adapter.previous")
    np.testing.assert_allclose(
        again.logits([[1, 2, 3]]), adapted.logits([[1, 2, 3]]), rtol=1e-5, atol=1e-5
    )


def test_transformers_loads_the_model_alone_where_an_adapter_was(tmp_path, adapted):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    export.save_adapter(adapted, tmp_path)
    model = small_model("gptj")
    model.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor([[1, 2, 3]])).logits.numpy()
    np.testing.assert_allclose(model.logits([[1, 2, 3]]), logits, rtol=1e-5, atol=1e-5)


def test_a_stopped_save_leaves_old_weights_and_adapter(tmp_path, monkeypatch, adapted):
    export.save_adapter(adapted, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    before = names(tmp_path)
    monkeypatch.setattr(huggingface, "write_entries", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small_model("gptj").save(tmp_path)
    assert names(tmp_path) == before


def test_an_original_release_is_not_saved_over(tmp_path):
    (tmp_path / "shard_0").mkdir()
    with pytest.raises(FileExistsError, match="holds an original release .shard_0.*name another"):
        small_model("gptj").save(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("directory", ["", None, "a\0b", 3])
def test_what_is_no_path_is_refused_before_anything_is_written(tmp_path, monkeypatch, directory):
    monkeypatch.chdir(tmp_path)
    for write in (
        small_model("gptj").save,
        lambda target: convert(tmp_path, target, "huggingface"),
    ):
        with pytest.raises((TypeError, ValueError), match="directory is .*path of a folder"):
            write(directory)
    assert cli.main(["convert", "pocket", "", "--to", "huggingface"]) == 2
    assert names(tmp_path) == []


def test_a_full_disk_names_the_folder_the_bytes_and_the_fix(tmp_path, monkeypatch):
    model = small_model("gptj")
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    target = tmp_path / "some" / "model"
    says = r"needs \d+,\d{3} more bytes, 1,000 are free there.*free some space"
    with pytest.raises(OSError, match=says) as told:
        model.save(target)
    assert str(told.value).startswith(f"{target} can't be written")
    assert told.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == [], "no empty folder is left"


def refusing(monkeypatch, code):
    def refuse(self, *_, **__):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(type(sys.modules["pathlib"].Path()), "mkdir", refuse)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_the_users_path_is_named(tmp_path, monkeypatch, capsys, code):
    model = small_model("gptj")
    model.save(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    refusing(monkeypatch, code)
    with pytest.raises(OSError, match="^new can't be written.*name a folder that you may"):
        model.save("new")
    assert cli.main(["convert", "source", "new", "--to", "huggingface"]) == 2
    told = capsys.readouterr().err
    assert "new can't be written" in told and ".converting" not in told


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OSError, match="can't be written.*so name a"):
            small_model("gptj").save(target)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 300, "has 300 characters, more than a path can have"),
        ("", "can't be a path .it is empty"),
        ("a\0b", "can't be a path"),
        ("~nobody_of_this_name/x", "can't be a path"),
        ("gpt2", "did you mean 'openai-community/gpt2'"),
        ("GPT-J-6B", "did you mean 'EleutherAI/gpt-j-6b'"),
        ("no_such_thing", "a hub name is 'owner/name'"),
    ],
)
def test_a_name_that_is_nothing_is_one_sentence(name, says):
    with pytest.raises(FileNotFoundError, match=says):
        gptj_lab.load(name)


def test_a_file_of_a_checkpoint_names_its_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="config.json is a file: give its folder, '.*'"):
        gptj_lab.load(tmp_path / "config.json")
