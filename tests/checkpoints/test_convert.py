"""gptj-lab convert: among all forms, the same weights; resumed, and never half there."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx, serialization
from flax.traverse_util import unflatten_dict

import gptj_lab
from gptj_lab import cli
from gptj_lab.checkpoints import convert as converting
from gptj_lab.checkpoints import huggingface, mesh_transformer, npz_shards, safetensors_files
from gptj_lab.checkpoints.convert import convert
from gptj_lab.checkpoints.weights import tensors


@pytest.fixture(scope="module")
def source(small_directory, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "a"
    return shutil.copytree(small_directory, folder)


def files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_there_and_back_gives_the_same_bits(source, small_network, same, tmp_path, shards):
    convert(source, tmp_path / "b", "mesh-transformer", shards=shards)
    assert sorted(f.name for f in (tmp_path / "b").iterdir()) == [
        "mesh_transformer.json", *(f"shard_{i}" for i in range(shards))
    ]  # fmt: skip
    assert same(mesh_transformer.read(tmp_path / "b")[1], small_network)
    convert(tmp_path / "b", tmp_path / "c", "huggingface")
    assert same(huggingface.read(tmp_path / "c")[1], small_network)
    assert not list(tmp_path.glob(".*")), "the work folders are gone"


def test_what_is_written_is_what_the_original_code_would_read(source, small_network, tmp_path):
    """Stacked over shards and joined by hand, as its checkpoint.py does."""
    convert(source, tmp_path / "b", "mesh-transformer", dtype="bfloat16", shards=2)
    leaves = []
    for shard in range(2):
        leaves.append([])
        for piece in range(16):
            with np.load(tmp_path / f"b/shard_{shard}/{piece}.npz") as opened:
                leaves[-1] += [opened[name] for name in opened]
    assert [len(shard) for shard in leaves] == [117, 117]
    assert {str(leaf.dtype) for leaf in leaves[0][:-1]} == {"|V2"} and leaves[0][-1].shape == ()
    ninth = 2 + 10 * 10  # layers 0, 1, 10, 2, ...: layer 9 is the last of 11
    q = np.concatenate([shard[ninth].view("uint16") for shard in leaves], axis=1)
    expected = small_network.blocks[9].attn.q.weight[...].T.astype("bfloat16")
    np.testing.assert_array_equal(q, np.asarray(expected).view("uint16"))
    out = [shard[ninth + 6].view("uint16") for shard in leaves]  # linear_5 b: a sum
    bias = small_network.blocks[9].mlp.fc_out.bias[...].astype("bfloat16")
    np.testing.assert_array_equal(out[0], np.asarray(bias).view("uint16"))
    assert not out[1].any()


def test_from_bin_and_msgpack_in_another_dtype(source, tmp_path, same):
    torch = pytest.importorskip("torch")
    values = {name: np.array(t.read()) for name, t in tensors(source).items()}
    (tmp_path / "bin").mkdir()
    (tmp_path / "msgpack").mkdir()
    for folder in ("bin", "msgpack"):
        shutil.copy(source / "config.json", tmp_path / folder)
    torch.save(
        {name: torch.from_numpy(value) for name, value in values.items()}
        | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)},
        tmp_path / "bin/pytorch_model.bin",
    )
    last = {"ln_1": "scale", "ln_f": "scale", "wte": "embedding"}
    flat = {}
    for name, value in values.items():
        *parts, end = name.split(".")
        end = last.get(parts[-1], "kernel") if end == "weight" else end
        flat[(*parts, end)] = value.T if end == "kernel" else value
    (tmp_path / "msgpack/flax_model.msgpack").write_bytes(
        serialization.to_bytes(unflatten_dict(flat))
    )
    expected = huggingface.read(source, "float16")[1]
    for folder in ("bin", "msgpack"):
        convert(tmp_path / folder, tmp_path / f"{folder}2", "huggingface", dtype="float16")
        assert json.loads((tmp_path / f"{folder}2/config.json").read_text())["dtype"] == "float16"
        assert same(huggingface.read(tmp_path / f"{folder}2", "float16")[1], expected)


class Full:
    """Fails after so many files, as a full disk would."""

    def __init__(self, write, after):
        self.write, self.left, self.done = write, after, []

    def __call__(self, file, *more):
        if self.left == 0:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        self.left -= 1
        self.done.append(file.name)
        return self.write(file, *more)


@pytest.mark.parametrize("to", ["huggingface", "mesh-transformer"])
def test_a_full_disk_leaves_nothing_half_and_the_next_run_goes_on(
    source, tmp_path, monkeypatch, to
):
    options = dict(shards=2, max_shard_bytes=20_000)
    module, name = {
        "huggingface": (huggingface, "write_safetensors"),
        "mesh-transformer": (npz_shards.np, "savez"),
    }[to]
    before = files(source)
    convert(source, tmp_path / "whole", to, **options)
    target = tmp_path / "b"
    target.mkdir()

    write = getattr(module, name)
    full = Full(write, 3)
    if to == "mesh-transformer":
        monkeypatch.setattr(module, name, lambda out, *a: full_savez(full, write, out, a))
    else:
        monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="b is not finished .*No space left.*the same command goes"):
        convert(source, target, to, **options)
    assert not any(target.iterdir()) and files(source) == before
    kept = files(tmp_path / ".b.converting")
    assert len([n for n in kept if n.endswith((".safetensors", ".npz"))]) == 3

    monkeypatch.setattr(module, name, write)
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / ".b.converting").rglob("*.npz")}
    convert(source, target, to, **options)
    assert files(target) == files(tmp_path / "whole") and not list(tmp_path.glob(".*"))
    for file, time in times.items():
        new = target / file.relative_to(tmp_path / ".b.converting")
        assert new.stat().st_mtime_ns == time, "a whole file is not written again"


@pytest.mark.parametrize("stop", [4, 5])  # files, of a tensor each: once between matrix and scales
def test_int8_goes_on_between_a_matrix_and_its_scales(source, tmp_path, monkeypatch, stop):
    options = dict(dtype="int8", max_shard_bytes=1)
    convert(source, tmp_path / "whole", "huggingface", **options)
    with monkeypatch.context() as patched:
        full = Full(huggingface.write_safetensors, stop)
        patched.setattr(huggingface, "write_safetensors", full)
        with pytest.raises(OSError, match="is not finished"):
            convert(source, tmp_path / "b", "huggingface", **options)
    convert(source, tmp_path / "b", "huggingface", **options)
    assert files(tmp_path / "b") == files(tmp_path / "whole")


def full_savez(full, write, out, arrays):
    if full.left == 0:
        out.write(b"half")
        raise OSError(28, "No space left on device")
    full.left -= 1
    write(out, *arrays)


def test_a_killed_run_goes_on_and_another_plan_starts_afresh(source, tmp_path):
    code = (
        "import os, sys\n"
        "from gptj_lab.checkpoints import convert, huggingface\n"
        "write, done = huggingface.write_safetensors, []\n"
        "def dies(file, entries):\n"
        "    if len(done) == 2: file.write_bytes(b'half'); os._exit(9)\n"
        "    done.append(write(file, entries))\n"
        "huggingface.write_safetensors = dies\n"
        "convert.convert(sys.argv[1], sys.argv[2], 'huggingface', max_shard_bytes=20000)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "b")],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    work = tmp_path / ".b.converting"
    assert run.returncode == 9 and not (tmp_path / "b").exists()
    whole = sorted(work.glob("*.safetensors"))
    assert len(whole) == 2
    whole[0].write_bytes(b"kept as it is")  # shows that it is not written again
    convert(source, tmp_path / "b", "huggingface", max_shard_bytes=20_000)
    assert (tmp_path / "b" / whole[0].name).read_bytes() == b"kept as it is"

    work.mkdir()
    (work / "model.safetensors").write_bytes(b"of another conversion")
    (work / "converting.json").write_text("[]")
    shutil.rmtree(tmp_path / "b")
    convert(source, tmp_path / "b", "huggingface")
    assert huggingface.read(tmp_path / "b")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        converting.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 1000)
    )
    with pytest.raises(OSError, match="more bytes, 1,000 are free there"):
        convert(source, tmp_path / "b", "huggingface")
    assert not (tmp_path / "b").exists()


def test_files_that_are_there_stay(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        convert(source, tmp_path, "huggingface")
    assert files(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(FileExistsError, match="is there already"):
        convert(source, source, "huggingface")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "bin"}, "to is 'bin': one of huggingface, mesh-transformer .*only read"),
        ({"dtype": "int4"}, "weights is 'int4'.*int8 is needed"),
        ({"to": "mesh-transformer", "dtype": "int8"}, "weights is 'int8'"),
        ({"to": "mesh-transformer", "shards": 3}, "3 shards don't divide num_heads 4: 1, 2, 4"),
        ({"to": "mesh-transformer", "shards": 0}, "0 shards"),
        ({"max_shard_bytes": 0}, "max_shard_bytes is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(source, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / "b", **({"to": "huggingface"} | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gptj", "gpt2", "gpt_neox", "codegen"])
def test_to_int8_and_back(family, torch_model, same, tmp_path):
    a, b, c, d = (tmp_path / name for name in "abcd")
    torch_model(family).save_pretrained(a)
    convert(a, b, "huggingface", dtype="int8")
    config, quantised = huggingface.read(a, "int8")
    huggingface.write(tmp_path / "written", config, quantised)
    assert files(b)["model.safetensors"] == files(tmp_path / "written")["model.safetensors"]
    convert(b, c, "huggingface")
    assert files(c)["model.safetensors"] == files(b)["model.safetensors"], "int8 stays int8"
    convert(b, d, "huggingface", dtype="float32")
    assert same(huggingface.read(d)[1], huggingface.read(b, "float32")[1])


def test_an_original_release_from_int8(source, same, tmp_path):
    convert(source, tmp_path / "b", "huggingface", dtype="int8")
    convert(tmp_path / "b", tmp_path / "c", "mesh-transformer", shards=2)
    wide = huggingface.read(tmp_path / "b", "float32")[1]
    assert same(mesh_transformer.read(tmp_path / "c")[1], wide)


def test_incomplete_or_poisoned_weights_do_not_come_through(source, tmp_path):
    found = tensors(source)
    entries = [
        safetensors_files.Entry(n, t.shape, t.dtype, t.read) for n, t in list(found.items())[1:]
    ]
    bad = shutil.copytree(source, tmp_path / "bad")
    safetensors_files.write_safetensors(bad / "model.safetensors", entries)
    with pytest.raises(ValueError, match="bad lacks "):
        convert(bad, tmp_path / "b", "mesh-transformer")
    name, poisoned = next(iter(found.items()))
    values = np.full(poisoned.shape, np.nan, np.float32)
    entries.append(safetensors_files.Entry(name, poisoned.shape, poisoned.dtype, lambda: values))
    safetensors_files.write_safetensors(bad / "model.safetensors", entries)
    for to in converting.FORMS:
        with pytest.raises(ValueError, match=f"{name} in .* holds NaN"):
            convert(bad, tmp_path / "b", to, shards=2)
        assert [file.name for file in tmp_path.iterdir()] == ["bad"]


def test_the_command(tiny_model, tmp_path, capsys):
    tiny_model.save(tmp_path / "a")
    b, c = str(tmp_path / "b"), str(tmp_path / "c")
    command = ["convert", str(tmp_path / "a"), b, "--to", "mesh-transformer", "--shards", "4"]
    assert cli.main([*command, "--dtype", "bfloat16"]) == 2
    assert "d_ff is 64: mesh-transformer-jax has only 128" in capsys.readouterr().err
    again = ["convert", str(tmp_path / "a"), c, "--to", "huggingface", "--max-shard-bytes", "9000"]
    assert cli.main(again) == 0
    assert "c is whole" in capsys.readouterr().out
    ids = [[1, 2, 3]]
    np.testing.assert_array_equal(
        gptj_lab.load(c).logits(ids), gptj_lab.load(tmp_path / "a").logits(ids)
    )
    assert cli.main(again) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_tokenizer_goes_along(source, tiny_tokenizer, small_config, tmp_path, random_network):
    convert(source, tmp_path / "without", "mesh-transformer", shards=2)
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    gpt2 = converting.tokenizer_of(tmp_path / "without", small_config)
    assert gpt2 is None, "104 rows are not GPT-2's"
    with pytest.raises(ValueError, match="variant is 'fp16', but .*without is an original release"):
        convert(tmp_path / "without", tmp_path / "b", "huggingface", variant="fp16")
    import dataclasses

    for size in (50257, 50400):
        config = dataclasses.replace(small_config, vocab_size=size)
        assert converting.tokenizer_of(tmp_path / "without", config).vocab_size == size
        assert converting.tokenizer_of(source, config) is None, "that is no original release"


def test_saving_is_as_the_network_is(small_config, small_network, tmp_path, same):
    """Buffers' dtypes and shards of a saved network, read again."""
    huggingface.write(tmp_path, small_config, small_network, 3_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 20
    assert not list(tmp_path.glob("*.part"))
    assert same(huggingface.read(tmp_path)[1], small_network)
    assert len(nnx.to_flat_state(nnx.state(small_network))) == 115
