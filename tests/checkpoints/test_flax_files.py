"""Flax's msgpack files, written by flax.serialization itself."""

import json
import shutil

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.flax_files import read_flax
from gptj_lab.checkpoints.weights import tensors

LAST = {"ln_1": "scale", "ln_f": "scale", "wte": "embedding"}


def flax_tree(directory, dtype):
    """The weights of a directory as FlaxGPTJForCausalLM keeps them: kernels as [in, out]."""
    flat = {}
    for name, tensor in tensors(directory).items():
        *parts, last = name.split(".")
        value = np.array(tensor.read())
        if last == "weight":
            last = LAST.get(parts[-1], "kernel")
        flat[(*parts, last)] = (value.T if last == "kernel" else value).astype(dtype)
    return unflatten_dict(flat)


@pytest.fixture(scope="module")
def tree(small_directory):
    return flax_tree(small_directory, np.float32)


@pytest.fixture
def folder(small_directory, tmp_path):
    shutil.copy(small_directory / "config.json", tmp_path)
    return tmp_path


def save(folder, tree):
    (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(tree))


def test_the_same_network_comes_back(folder, tree, small_network, same):
    save(folder, tree)
    assert same(huggingface.read(folder)[1], small_network)


def test_arrays_in_chunks(folder, tree, small_network, same, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 300)
    save(folder, tree)
    assert (folder / "flax_model.msgpack").read_bytes().count(b"__msgpack_chunked_array__") > 50
    assert same(huggingface.read(folder)[1], small_network)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(folder, small_directory, small_network, same, dtype):
    save(folder, flax_tree(small_directory, jnp.dtype(dtype)))
    assert same(huggingface.read(folder, dtype)[1], huggingface.read(small_directory, dtype)[1])


def test_several_files_with_an_index(folder, tree, small_network, same):
    flat = flatten_dict(tree, sep="/")
    files = ["flax_model-00001-of-00002.msgpack", "flax_model-00002-of-00002.msgpack"]
    weight_map = {name: files[i % 2] for i, name in enumerate(flat)}
    for file in files:
        part = {name: value for name, value in flat.items() if weight_map[name] == file}
        (folder / file).write_bytes(serialization.to_bytes(unflatten_dict(part, sep="/")))
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(huggingface.read(folder)[1], small_network)


def array(shape, name, data):
    return msgpack.ExtType(1, msgpack.packb((shape, name, data), use_bin_type=True))


GOOD = array([2, 1], "float32", b"\0" * 8)
NESTED = {"a": GOOD}
for _ in range(40):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": array([2, 2], "float32", b"\0" * 8)}, "don't fit its shape"),
        ({"a": array([-1], "float32", b"\0" * 8)}, "no list of whole numbers"),
        ({"a": array([1], "object", b"\0" * 8)}, "dtype 'object'"),
        ({"a": array([1] * 40, "float32", b"\0" * 4)}, "too many axes"),
        ({"a": msgpack.ExtType(9, b"x")}, "extension 9"),
        ({"a": 5}, "a is a int"),
        ({1: GOOD}, "a key is no text"),
        ([GOOD], "isn't one map"),
        (NESTED, "nested too deep"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": GOOD}}},
         "chunks of a don't fit"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}}, "chunks"),
        ({"a": {"__msgpack_chunked_array__": True}}, "KeyError|chunks"),
    ],
)  # fmt: skip
def test_what_is_no_weight_file_is_refused(tmp_path, tree, words):
    file = tmp_path / "x.msgpack"
    file.write_bytes(msgpack.packb(tree))
    with pytest.raises(ValueError, match=f"x.msgpack is truncated or no weight file.*({words})"):
        read_flax(file)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff\x01", b"\xc6\xff\xff\xff\xffa",
        b"\xc1", b"\xdb\xff\xff\xff\xff", b"\x81\xa1\xff\x01", b"\x82\xa1a\x80\xa1a\x80",
    ],
)  # fmt: skip
def test_lengths_that_lie_cost_nothing(tmp_path, data):
    (tmp_path / "x.msgpack").write_bytes(data)
    with pytest.raises(ValueError, match="truncated or no weight file"):
        read_flax(tmp_path / "x.msgpack")


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "x.msgpack").write_bytes(b"")
    with pytest.raises(ValueError, match="x.msgpack is empty: copy it again"):
        read_flax(tmp_path / "x.msgpack")


def test_a_truncated_file_is_named(folder, tree):
    save(folder, tree)
    file = folder / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="flax_model.msgpack is truncated"):
        huggingface.read(folder)
