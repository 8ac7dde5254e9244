"""Hugging Face directories both ways, and every kind of damage that users meet."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

CONFIG = ModelConfig.of_family(
    "gptj",
    vocab_size=97,
    context=32,
    d_model=48,
    num_layers=2,
    num_heads=4,
    d_rotary=6,
    d_ff=80,
    activation="gelu_new",
    layer_norm_eps=1e-5,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=0,
)
NAME = "transformer.h.1.mlp.fc_in.weight"


@pytest.fixture(scope="module")
def network():
    return Transformer(CONFIG, key=jax.random.key(3))


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gptj")
    huggingface.write(directory, CONFIG, network)
    return directory


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def leaves(network):
    return jax.tree.leaves(nnx.state(network))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000])
def test_saved_and_loaded_is_the_same_bits(network, tmp_path, max_shard_bytes):
    huggingface.write(tmp_path, CONFIG, network, max_shard_bytes)
    config, again = huggingface.read(tmp_path)
    assert config == CONFIG
    assert all((a == b).all() for a, b in zip(leaves(network), leaves(again), strict=True))
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_bytes < 10**9)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000])
def test_transformers_loads_what_is_saved(network, tmp_path, tolerance, max_shard_bytes):
    torch = pytest.importorskip("torch")
    import transformers

    huggingface.write(tmp_path, CONFIG, network, max_shard_bytes)
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(0).integers(0, 97, (2, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(
        network(jnp.asarray(ids))[0],
        expected,
        rtol=0,
        atol=tolerance["float32"] * np.abs(expected).max(),
    )


def test_weights_in_bfloat16_are_kept_so(copy, tmp_path):
    _, network = huggingface.read(copy, "bfloat16")
    huggingface.write(tmp_path / "narrow", CONFIG, network)
    _, again = huggingface.read(tmp_path / "narrow", "bfloat16")
    assert all((a == b).all() for a, b in zip(leaves(network), leaves(again), strict=True))


def change(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def poison(tensors):
    tensors[NAME][0, 0] = np.nan


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(NAME), f"lacks {NAME}"),
        (lambda t: t.update(surplus=t.pop(NAME)), f"lacks {NAME}: .* it has surplus instead"),
        (lambda t: t.update({NAME: t[NAME][1:].copy()}), f"{NAME}.*shape"),
        (poison, f"{NAME}.*NaN"),
    ],
)
def test_damaged_tensor_is_named(copy, edit, words):
    change(copy, edit)
    with pytest.raises(ValueError, match=words):
        huggingface.read(copy)


def test_truncated_file_is_named(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors is truncated"):
        huggingface.read(copy)


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "..", "a/b"])
def test_index_that_points_outside_is_refused(copy, outside):
    index = {"weight_map": {NAME: outside}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()  # which would be read instead
    with pytest.raises(ValueError, match="outside its folder"):
        huggingface.read(copy)


def test_missing_pieces_are_named(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a directory"):
        huggingface.read(tmp_path / "nowhere")
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        huggingface.read(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        huggingface.read(copy)


def test_full_disk_leaves_the_old_files_whole(copy, network, monkeypatch):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}

    def full(path, entries):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        huggingface.write(copy, CONFIG, network)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
