"""Bytes changed, cut, swapped and made to lie, in every form: our own error, or the same weights.

Seeded; 600 cases. Forms with checksums (.bin, npz) must never give other weights. safetensors and
msgpack have none, so a change in the numbers can't be seen by anyone: of safetensors only the
header is changed, of msgpack, whose headers lie between the numbers, everything.
"""

import shutil
import time

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from gptj_lab.checkpoints import huggingface, mesh_transformer
from gptj_lab.checkpoints.convert import convert
from gptj_lab.checkpoints.filling import checked
from gptj_lab.checkpoints.stored import converted
from gptj_lab.checkpoints.weights import tensors
from gptj_lab.config import ModelConfig

CASES = 150  # of each form


@pytest.fixture(scope="module")
def config():
    return ModelConfig.of_family(
        "gptj",
        vocab_size=8, context=8, d_model=4, num_layers=1, num_heads=2, d_rotary=2, d_ff=16,
        activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(config, random_network, tmp_path_factory):
    """The same weights in every form, with the file to damage."""
    root = tmp_path_factory.mktemp("damage")
    network = random_network(config)
    plain = root / "safetensors"
    huggingface.write(plain, config, network)
    values = {name: np.array(t.read()) for name, t in tensors(plain).items()}
    for form in ("bin", "msgpack"):
        (root / form).mkdir()
        shutil.copy(plain / "config.json", root / form)
    torch = pytest.importorskip("torch")
    torch.save({n: torch.from_numpy(v) for n, v in values.items()}, root / "bin/pytorch_model.bin")
    last = {"ln_1": "scale", "ln_f": "scale", "wte": "embedding"}
    flat = {}
    for name, value in values.items():
        *parts, end = name.split(".")
        end = last.get(parts[-1], "kernel") if end == "weight" else end
        flat[(*parts, end)] = value.T if end == "kernel" else value
    data = serialization.to_bytes(unflatten_dict(flat))
    (root / "msgpack/flax_model.msgpack").write_bytes(data)
    convert(plain, root / "npz", "mesh-transformer", shards=2)
    return {
        "safetensors": plain / "model.safetensors",
        "bin": root / "bin/pytorch_model.bin",
        "msgpack": root / "msgpack/flax_model.msgpack",
        "npz": root / "npz/shard_1/0.npz",
    }


def read(folder, config):
    """Every weight by name, after all checks of loading."""
    if mesh_transformer.is_release(folder):
        _, found = mesh_transformer.tensors(folder)
    else:
        found = tensors(folder)
    found = checked(config, found, str(folder))
    return {name: converted(t.read(), "float32", name, t.where) for name, t in found.items()}


def damaged(data, random, end):
    """The bytes with one kind of damage before `end`."""
    data = bytearray(data)
    kind = random.integers(6)
    at = int(random.integers(end))
    length = int(random.integers(1, 9))
    if kind == 0:
        data[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        data[at : at + length] = random.bytes(length)
    elif kind == 2:
        del data[int(random.integers(len(data))) :]
    elif kind == 3:
        other = int(random.integers(end))
        data[at : at + length], data[other : other + length] = (
            data[other : other + length], data[at : at + length],
        )  # fmt: skip
    elif kind == 4:
        data[at : at + length] = b"\xff" * length  # lengths and offsets that lie
    else:
        del data[at : at + length]
    return bytes(data)


@pytest.mark.parametrize("form", ["safetensors", "bin", "msgpack", "npz"])
def test_damage_ends_in_our_error_or_changes_nothing(made, config, form):
    file = made[form]
    folder = file.parent.parent if form == "npz" else file.parent
    good = file.read_bytes()
    expected = read(folder, config)
    checked = form in ("bin", "npz")
    end = int.from_bytes(good[:8], "little") + 8 if form == "safetensors" else len(good)
    random = np.random.default_rng(3)
    refused = 0
    begun = time.process_time()
    try:
        for case in range(CASES):
            file.write_bytes(damaged(good, random, end))
            try:
                got = read(folder, config)
            except (ValueError, FileNotFoundError) as error:
                assert str(folder) in str(error), (case, error)
                refused += 1
                continue
            assert got.keys() == expected.keys()
            if checked:
                for name, values in expected.items():
                    np.testing.assert_array_equal(got[name], values, err_msg=f"{case} {name}")
    finally:
        file.write_bytes(good)
    assert refused > CASES / 3
    assert time.process_time() - begun < 60
