"""The original release, against files that a writer made from its description alone makes here."""

import io
import json
import os
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.checkpoints import mesh_transformer, npz_shards
from gptj_lab.config import ModelConfig

ROOT = "causal_transformer_shard/~/"


def write_release(folder, network, shards, dtype="float32", full=False, seed=0):
    """Writes a step folder from the description; gives what the embedding's bias sums to.

    Biases that are summed are cut into random parts, copies of LayerNorms drift apart after the
    first, the embedding has a bias.
    """
    random = np.random.default_rng(seed)
    bias = np.arange(network.embed[...].shape[1]).astype(np.float32) / 8

    def along(value, axis):
        return np.split(np.asarray(value), shards, axis)

    def summed(value):
        parts = random.integers(-4, 5, (shards, *value.shape)).astype(np.float32)
        parts[-1] = np.asarray(value) - parts[:-1].sum(0)
        return list(parts)

    def copies(value):
        return [np.asarray(value) + i for i in range(shards)]

    params = {
        f"{ROOT}embedding_shard/~/linear": {
            "w": along(network.embed[...] - bias[None], 0),
            "b": summed(bias),
        },
        f"{ROOT}projection_shard/~/linear": {
            "w": along(network.head.weight[...].T, 1),
            "b": along(network.head.bias[...], 0),
        },
        f"{ROOT}projection_shard/~/replicated_layer_norm": {
            "scale": copies(network.final_ln.scale[...]),
            "offset": copies(network.final_ln.bias[...]),
        },
    }
    for i, block in enumerate(network.blocks):
        here = f"{ROOT}layer_{i}/~/"
        for name, linear, axis in (
            ("linear", block.attn.q, 1), ("linear_1", block.attn.v, 1),
            ("linear_2", block.attn.k, 1), ("linear_3", block.attn.out, 0),
        ):  # fmt: skip
            params[here + name] = {"w": along(linear.weight[...].T, axis)}
        params[here + "linear_4"] = {
            "w": along(block.mlp.fc_in.weight[...].T, 1),
            "b": along(block.mlp.fc_in.bias[...], 0),
        }
        params[here + "linear_5"] = {
            "w": along(block.mlp.fc_out.weight[...].T, 0),
            "b": summed(block.mlp.fc_out.bias[...]),
        }
        params[here + "replicated_layer_norm"] = {
            "scale": copies(block.ln.scale[...]),
            "offset": copies(block.ln.bias[...]),
        }

    for shard in range(shards):
        weights = [
            params[module][leaf][shard].astype(jnp.dtype(dtype))
            for module in sorted(params)
            for leaf in sorted(params[module])
        ]
        moments = [random.normal(size=value.shape).astype(np.float32) for value in weights]
        optimiser = [np.int32(7), *moments, *moments, np.int32(7)] if full else []
        leaves = [*optimiser, *weights, np.int32(383500)]
        assert len(leaves) in (117, 351), "11 layers: 116 parameters"
        here = folder / f"shard_{shard}"
        here.mkdir(parents=True)
        for piece, run in enumerate(np.array_split(np.arange(len(leaves)), 16)):
            arrays = [np.asarray(leaves[i]) for i in run]
            raw = [a.view("V2") if a.dtype == jnp.bfloat16 else a for a in arrays]
            np.savez(here / f"{piece}.npz", *raw)


def write_json(folder, shards, **changes):
    fields = {
        "layers": 11, "d_model": 16, "n_heads": 4, "n_vocab": 104, "norm": "layernorm",
        "pe": "rotary", "pe_rotary_dims": 2, "seq": 32, "cores_per_replica": shards,
        "per_replica_batch": 1, "lr": 1e-4,
    } | changes  # fmt: skip
    (folder / "small.json").write_text(json.dumps(fields))


@pytest.fixture
def step(tmp_path, small_network):
    folder = tmp_path / "step_5"
    write_release(folder, small_network, 2)
    write_json(tmp_path, 2)
    return folder


def close(one, other, tolerance=1e-5):
    for a, b in zip(
        nnx.to_flat_state(nnx.state(one)), nnx.to_flat_state(nnx.state(other)), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(a[1][...], np.float32), np.asarray(b[1][...], np.float32),
            rtol=0, atol=tolerance, err_msg=str(a[0]),
        )  # fmt: skip


@pytest.mark.parametrize("full", [False, True], ids=["slim", "full"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_read_joins_what_was_cut(tmp_path, small_network, small_config, shards, full):
    write_release(tmp_path / "step_5", small_network, shards, full=full)
    write_json(tmp_path, shards)
    config, network = mesh_transformer.read(tmp_path / "step_5")
    assert config == small_config
    close(network, small_network)  # only sums of parts are rounded


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_releases(tmp_path, small_network, dtype):
    write_release(tmp_path / "step_5", small_network, 2, dtype)
    write_json(tmp_path, 2)
    with np.load(tmp_path / "step_5/shard_0/3.npz") as opened:
        assert opened["arr_0"].dtype == {"bfloat16": "V2", "float16": "float16"}[dtype]
    _, network = mesh_transformer.read(tmp_path / "step_5", dtype)
    assert str(network.embed[...].dtype) == dtype
    close(network, small_network, 0.1)  # parts of sums reach 12, where bfloat16 has 1/16
    exact = network.blocks[10].attn.v.weight[...]
    assert (exact == small_network.blocks[10].attn.v.weight[...].astype(dtype)).all()


def test_the_published_shape_has_the_published_leaves():
    leaves = mesh_transformer.parameters(mesh_transformer.GPT_J_6B)
    assert len(leaves) == 286
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    assert numbers == 6_050_886_880
    copied = sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.join in ("sum", "replicated"))
    assert numbers + 7 * copied == 6_053_381_344, "the published count has 8 copies of these"
    order = [leaf.module.split("/~/")[1] for leaf in leaves[2:-4:10]]
    assert order[:4] == ["layer_0", "layer_1", "layer_10", "layer_11"]
    assert [len(run) for run in npz_shards.cut(861)] == [54] * 13 + [53] * 3
    assert [len(run) for run in npz_shards.cut(287)] == [18] * 15 + [17]


def test_load_takes_a_release_with_gpt2s_tokenizer(tmp_path, small_network, random_network):
    write_release(tmp_path / "step_5", small_network, 2)
    write_json(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        gptj_lab.load(tmp_path / "step_5")  # 104 rows are not GPT-2's
    config = ModelConfig.of_family(
        "gptj",
        vocab_size=50400, context=32, d_model=4, num_layers=11, num_heads=2, d_rotary=2, d_ff=16,
        activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    network = random_network(config)
    write_release(tmp_path / "step_6", network, 2)
    model = gptj_lab.load(tmp_path / "step_6", config=config)
    assert model.config == config and model.tokenizer.encode("Hello world") == [15496, 995]
    with pytest.raises(ValueError, match="`config` is for original releases only"):
        gptj_lab.load("pocket", config=config)


def test_gpt_j_6b_is_assumed_where_no_json_is(step, small_config, small_network, monkeypatch):
    (step.parent / "small.json").unlink()
    with pytest.raises(ValueError, match="117 leaves.*no configuration json.*GPT-J-6B"):
        mesh_transformer.read(step)
    close(mesh_transformer.read(step, config=small_config)[1], small_network)
    monkeypatch.setattr(mesh_transformer, "GPT_J_6B", small_config)
    close(mesh_transformer.read(step)[1], small_network)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "layernorm-desync"}, "norm in .*small.json is 'layernorm-desync'"),
        ({"norm": "rmsnorm-bias"}, "norm in .* is 'rmsnorm-bias'"),
        ({"norm": "scalenorm"}, "norm in .* is 'scalenorm'"),
        ({"pe": "t5"}, "pe in .* is 't5'"),
        ({"pe": "fixed"}, "pe in .* is 'fixed'"),
        ({"pe_rotary_dims": 3}, "small.json: d_rotary is 3"),
        ({"seq": "2048"}, "seq in .* is '2048'"),
        ({"layers": 12}, "117 leaves: with 126 parameters a slim checkpoint has 127, a full.* 381"),
        ({"d_model": 32}, r"shape \(16,\): \(32,\) is needed"),
        ({"n_vocab": 105}, "2 shards don't divide"),
        ({"cores_per_replica": 4}, "shard_2 is not there"),
        ({"cores_per_replica": 1}, "has 2 shard folders, .* says cores_per_replica 1"),
    ],
)
def test_json_that_does_not_fit(step, changes, words):
    write_json(step.parent, 2, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        mesh_transformer.read(step)


def test_json_that_is_incomplete_or_not_alone(step):
    (step / "one.json").write_text('{"layers": 11, "cores_per_replica": 2}')
    with pytest.raises(ValueError, match="one.json lacks d_model, n_heads"):
        mesh_transformer.read(step)
    (step / "one.json").write_text("[" * 100_000)  # some other file: not looked at further
    assert mesh_transformer.read(step)
    text = (step.parent / "small.json").read_text()
    (step.parent / "other.json").write_text(text.replace('"seq": 32', '"seq": 64'))
    with pytest.raises(ValueError, match="other.json, .*small.json differ"):
        mesh_transformer.read(step)


def change_npz(file, edit):
    with np.load(file) as opened:
        arrays = [opened[f"arr_{i}"] for i in range(len(opened.files))]
    edit(arrays)
    np.savez(file, *arrays)


def test_damage_in_the_files_is_named(step):
    file = step / "shard_1" / "3.npz"
    good = file.read_bytes()

    change_npz(file, lambda arrays: arrays.pop())
    with pytest.raises(ValueError, match="shard_1 holds 116 leaves: .* slim checkpoint has 117"):
        mesh_transformer.read(step)
    change_npz(step / "shard_1" / "4.npz", lambda arrays: arrays.insert(0, np.zeros((8, 16))))
    with pytest.raises(ValueError, match="3.npz holds 6 leaves, not 8|3.npz holds 7 leaves, not 8"):
        mesh_transformer.read(step)
    change_npz(step / "shard_1" / "4.npz", lambda arrays: arrays.pop(0))

    file.write_bytes(good[:-100])
    with pytest.raises(ValueError, match="3.npz is truncated"):
        mesh_transformer.read(step)
    with np.load(io.BytesIO(good)) as opened:
        bits = opened["arr_0"].tobytes()[:16]
    where = good.index(bits)
    file.write_bytes(good[:where] + bytes([good[where] ^ 1]) + good[where + 1 :])
    with pytest.raises(ValueError, match="3.npz is .*CRC"):
        mesh_transformer.read(step)
    file.write_bytes(good)

    change_npz(file, lambda arrays: arrays[0].fill(np.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        mesh_transformer.read(step)
    file.write_bytes(good)
    change_npz(file, lambda arrays: arrays.__setitem__(0, arrays[0].astype(np.float16)))
    with pytest.raises(ValueError, match="as float16: .* the same in all shards"):
        mesh_transformer.read(step)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="3.npz is not there"):
        mesh_transformer.read(step)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_an_object_array_is_never_unpickled(step, tmp_path):
    payload = np.array([Payload(tmp_path / "mark")], dtype=object)
    change_npz(step / "shard_0" / "3.npz", lambda arrays: arrays.__setitem__(0, payload))
    with pytest.raises(ValueError, match="3.npz.*Python objects, which are never unpickled"):
        mesh_transformer.read(step)
    assert not (tmp_path / "mark").exists()


def test_a_header_that_lies_costs_nothing(step):
    file = step / "shard_0" / "3.npz"
    with np.load(file) as opened:
        count = len(opened.files)
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(file, "w") as out:
        for i in range(count):
            out.writestr(f"arr_{i}.npy", member.getvalue() + b"1234")
    with pytest.raises(ValueError, match=r"claims the shape \(1000000000000,\), 4 bytes are there"):
        mesh_transformer.read(step)


def test_a_shard_that_leads_out_is_not_followed(step, tmp_path):
    (step / "shard_1").rename(tmp_path / "elsewhere")
    (step / "shard_1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="shard_1 is a link to .*elsewhere, outside its folder"):
        mesh_transformer.read(step)


def test_a_missing_shard_folder_is_named(step):
    shutil.rmtree(step / "shard_1")
    with pytest.raises(FileNotFoundError, match="shard_1 is not there"):
        mesh_transformer.read(step)
