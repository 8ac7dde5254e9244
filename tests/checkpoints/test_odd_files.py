"""Files that are unlike the usual ones and hold all weights nevertheless."""

import json
import shutil

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file
from small_models import cases

from gptj_lab.checkpoints import huggingface, npz_shards
from gptj_lab.checkpoints.safetensors_files import Entry, write_safetensors
from gptj_lab.checkpoints.weights import tensors, weight_files


def test_an_index_may_name_buffers_that_no_file_has(small_config, small_network, same, tmp_path):
    huggingface.write(tmp_path, small_config, small_network, 3_000)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = index["weight_map"]["transformer.h.0.ln_1.weight"]
    for name in ("attn.bias", "attn.masked_bias", "attn.embed_positions"):
        index["weight_map"][f"transformer.h.0.{name}"] = shard
    index["weight_map"]["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = shard
    file.write_text(json.dumps(index))
    assert same(huggingface.read(tmp_path)[1], small_network)
    index["weight_map"]["transformer.h.0.attn.q_proj.bias"] = shard
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks transformer.h.0.attn.q_proj.bias, which"):
        huggingface.read(tmp_path)


def test_flax_parameters_below_params(small_directory, small_network, same, tmp_path):
    shutil.copy(small_directory / "config.json", tmp_path)
    last = {"ln_1": "scale", "ln_f": "scale", "wte": "embedding"}
    flat = {}
    for name, tensor in tensors(small_directory).items():
        *path, kind = name.split(".")
        value = np.array(tensor.read())
        if kind == "weight":
            kind = last.get(path[-1], "kernel")
            value = value.T if kind == "kernel" else value
        flat["params", *path, kind] = np.ascontiguousarray(value)
    (tmp_path / "flax_model.msgpack").write_bytes(
        serialization.msgpack_serialize(unflatten_dict(flat))
    )
    assert same(huggingface.read(tmp_path)[1], small_network)


def test_one_file_is_read_before_an_index(
    small_config, small_network, small_directory, same, tmp_path, capsys
):
    """As transformers: parts of the base that were left beside a fine-tune don't win."""
    huggingface.write(tmp_path, small_config, small_network, 3_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    other = load_file(small_directory / "model.safetensors")
    save_file({n: t + 1 for n, t in other.items()}, tmp_path / "model.safetensors")
    read = tensors(tmp_path)
    assert all((np.asarray(read[name].read()) == t + 1).all() for name, t in other.items())
    assert "the one file is read, not the parts" in capsys.readouterr().err
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def rewritten(source, target, change):
    """`target` with the tensors of `source` after `change`, and its config.json."""
    shutil.copy(source / "config.json", target)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.transformer.bare."]
)
def test_what_wrappers_put_before_names(small_directory, small_network, same, tmp_path, prefix):
    """DDP, torch.compile, a script's own class; also around a base model without its prefix."""

    def change(tensors):
        if prefix.endswith("bare."):
            return {"model." + name.removeprefix("transformer."): t for name, t in tensors.items()}
        return {prefix + name: tensor for name, tensor in tensors.items()}

    assert same(huggingface.read(rewritten(small_directory, tmp_path, change))[1], small_network)


def test_surplus_tensors_are_left_out_and_told(
    small_directory, small_network, same, tmp_path, capsys
):
    def change(tensors):
        more = {f"v_head.{i}.weight": np.ones(2, np.float32) for i in range(5)}
        return tensors | more | {"transformer.h.11.ln_1.bias": np.ones(16, np.float32)}

    assert same(huggingface.read(rewritten(small_directory, tmp_path, change))[1], small_network)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "holds transformer.h.11.ln_1.bias, v_head.0.weight, " in told
    assert "and 3 more, which a GPT-J of its config.json doesn't have: left out" in told


def test_shards_of_different_dtypes(small_config, small_network, tmp_path):
    huggingface.write(tmp_path, small_config, small_network, 3_000)
    file = next(tmp_path.glob("model-00002-*"))
    halved = {name: tensor.astype(np.float16) for name, tensor in load_file(file).items()}
    save_file(halved, file)
    read = {name: tensor.read() for name, tensor in tensors(tmp_path).items()}
    assert {str(tensor.dtype) for tensor in read.values()} == {"float32", "float16"}
    network = huggingface.read(tmp_path)[1]
    assert str(network.embed[...].dtype) == "float32"
    for name, tensor in read.items():
        if name == "transformer.h.0.ln_1.weight":
            assert (np.asarray(network.blocks[0].ln.scale[...]) == tensor).all()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"])
def test_a_git_lfs_pointer_and_an_empty_file_in_place_of_weights(small_directory, tmp_path, name):
    shutil.copy(small_directory / "config.json", tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24207819307\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.*`git lfs pull`"):
        huggingface.read(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} is empty: copy it again"):
        huggingface.read(tmp_path)


def test_a_git_lfs_pointer_in_place_of_a_release_s_file(tmp_path):
    file = tmp_path / "0.npz"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="0.npz is a Git LFS pointer"):
        npz_shards._headers(file)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.pt", "If model.pt is the state dict .*, rename it to pytorch_model.bin"),
        ("consolidated.00.pth", "rename it to pytorch_model.bin"),
        ("weights.safetensors", "If weights.safetensors .*, rename it to model.safetensors"),
        ("model-00001-of-00002.safetensors", "copy their index, model.safetensors.index.json, too"),
        ("adapter_model.bin", "such files in parts$"),
    ],
)
def test_weights_under_another_name(small_directory, tmp_path, name, words):
    shutil.copy(small_directory / "config.json", tmp_path)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(FileNotFoundError, match=words):
        huggingface.read(tmp_path)


@pytest.mark.parametrize(
    "arguments", cases("gpt2", slow=["gptj", "codegen", "gpt_neo", "gpt_neox"])
)
def test_a_tied_head_of_its_own_is_refused_and_the_fix_is_what_transformers_does(
    arguments, torch_model, tmp_path, tolerance
):
    (family,) = arguments
    torch = pytest.importorskip("torch")
    theirs = torch_model(family, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    file, head = tmp_path / "model.safetensors", "lm_head.weight"
    if family == "gpt_neox":
        head = "embed_out.weight"
    found = load_file(file)
    embed = next(name for name in found if name.endswith(("wte.weight", "embed_in.weight")))
    save_file(found | {head: found[embed][::-1].copy()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="different values.*transformers 5.*ings to false if it"):
        huggingface.read(tmp_path)
    theirs = type(theirs).from_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 97, (2, 9))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours = huggingface.read(tmp_path)[1](ids)[0]
    assert np.abs(ours - wanted).max() <= tolerance["float32"] * np.abs(wanted).max()


def test_float8_is_named_with_the_fix(small_config, small_network, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    huggingface.write(tmp_path, small_config, small_network)
    file = tmp_path / "model.safetensors"
    found = load_file(file)
    name = "transformer.h.0.mlp.fc_in.weight"
    float8 = found[name].astype(ml_dtypes.float8_e4m3fn)
    entries = [
        Entry(n, v.shape, v.dtype, lambda v=v: v) for n, v in (found | {name: float8}).items()
    ]
    write_safetensors(file, entries)
    said = f"{name} in .* has dtype float8_e4m3fn, which no weights here have: write the model in"
    with pytest.raises(ValueError, match=said):
        huggingface.read(tmp_path)
