"""Weights in files with a variant in their names, as transformers itself writes them."""

import json
import shutil

import pytest

from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.convert import convert
from gptj_lab.checkpoints.weights import choose


@pytest.fixture(scope="module")
def model(small_directory):
    """The small network in transformers, in float16."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.GPTJForCausalLM.from_pretrained(small_directory, dtype=torch.float16)


def folder_of(model, small_directory, folder, shard_size="1GB", variant="fp16"):
    model.save_pretrained(folder, variant=variant, max_shard_size=shard_size)
    shutil.copy(small_directory / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def plain(model, small_directory, tmp_path_factory):
    """The same weights without a variant, as our network."""
    folder = folder_of(model, small_directory, tmp_path_factory.mktemp("plain"), variant=None)
    return huggingface.read(folder)[1]


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_the_only_variant_is_taken_and_told(
    model, plain, small_directory, same, tmp_path, capsys, shard_size
):
    folder = folder_of(model, small_directory, tmp_path, shard_size)
    shards = list(folder.glob("model.fp16-*-of-*.safetensors"))
    assert bool(shards) == (folder / "model.safetensors.index.fp16.json").is_file()
    assert bool(shards) == (shard_size == "20KB")
    assert same(huggingface.read(folder)[1], plain)
    assert "only in the variant 'fp16': taken" in capsys.readouterr().err
    assert same(huggingface.read(folder, variant="fp16")[1], plain)
    assert not capsys.readouterr().err


def test_a_variant_of_torch_and_one_that_is_converted(
    model, plain, small_directory, same, tmp_path
):
    torch = pytest.importorskip("torch")
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(small_directory / "config.json", source)
    torch.save(model.state_dict(), source / "pytorch_model.fp16.bin")
    assert same(huggingface.read(source)[1], plain)
    shutil.copy(small_directory / "model.safetensors", source)
    convert(source, tmp_path / "made", "huggingface", variant="fp16")
    assert same(huggingface.read(tmp_path / "made")[1], plain)
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "float16"


def test_which_of_several_is_chosen():
    several = ["model.fp16.safetensors", "pytorch_model.bf16.bin", "pytorch_model.fp16.bin"]
    assert choose(several[::2], "here").single == "model.fp16.safetensors"
    with pytest.raises(ValueError, match="here has .* variants 'fp16', 'bf16' only: .*variant='f"):
        choose(several, "here")
    assert choose(several, "here", "bf16").single == "pytorch_model.bf16.bin"
    assert choose([*several, "flax_model.msgpack"], "here").single == "flax_model.msgpack"
    with pytest.raises(
        FileNotFoundError, match="variant 'fp8': it has the variants 'fp16', 'bf16'"
    ):
        choose(several, "here", "fp8")
    with pytest.raises(FileNotFoundError, match="none of any variant, and weights without one"):
        choose(["model.safetensors"], "here", "fp16")
    only_shards = ["model.fp16-00001-of-00002.safetensors", "onnx/model.fp16.safetensors"]
    assert choose(only_shards, "here") is None
