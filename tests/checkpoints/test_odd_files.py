"""Files that are unlike the usual ones and hold all weights nevertheless."""

import json
import shutil

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.weights import tensors


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
