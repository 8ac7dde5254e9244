"""Tensors are read one at a time, cast on the way, and placed by whoever wants to."""

import dataclasses
import importlib.util
import io
import json
import shutil
import sys
import types
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from flax.traverse_util import unflatten_dict

from gptj_lab.checkpoints import huggingface, progress
from gptj_lab.checkpoints.convert import convert
from gptj_lab.checkpoints.safetensors_files import Entry, read_safetensors, write_safetensors
from gptj_lab.checkpoints.stored import converted
from gptj_lab.checkpoints.weights import FORMS, choose, tensors


def test_no_tensor_outlives_its_placing(small_directory):
    alive: list[weakref.ref] = []
    most = 0

    def place(path, values):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(values))
        return jax.device_put(np.zeros(values.shape, np.int8))

    _, network = huggingface.read(small_directory, place=place)
    assert most == 0 and len(alive) == 115
    assert network.embed[...].dtype == jnp.int8, "what place gives is what the network holds"


def test_place_puts_parameters_onto_a_mesh(small_directory, small_network, same):
    mesh = jax.make_mesh((8,), ("model",))

    def place(path, values):
        axes = (None, "model") if path[-1] == "weight" and path[0] == "blocks" else ()
        return jax.device_put(
            values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        )

    _, network = huggingface.read(small_directory, place=place)
    weight = network.blocks[3].attn.q.weight[...]
    assert len(weight.sharding.device_set) == 8
    assert weight.addressable_shards[0].data.shape == (16, 2)
    assert same(network, small_network)


def test_the_device_array_is_the_copy_itself(small_directory):
    """On the CPU the values are cast into memory that JAX takes as it is: no second copy."""
    where = {}

    def place(path, values):
        where[path] = values.ctypes.data
        return jax.device_put(values, jax.devices("cpu")[0])

    _, network = huggingface.read(small_directory, place=place)
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        assert leaf[...].unsafe_buffer_pointer() == where[path], path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16", "float64"])
def test_casting_is_that_of_jax(dtype, source):
    values = np.random.default_rng(0).normal(size=(70, 130)).astype(jnp.dtype(source))
    for view in (values, values.T, values[:, 3], values[1:, ::2]):
        got = converted(view, dtype, "a", "here")
        assert got.flags.c_contiguous and got.ctypes.data % 64 == 0 and got.base is not view
        np.testing.assert_array_equal(got, view.astype(jnp.dtype(dtype)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
def test_not_a_number_is_found_wherever_it_is(bad, source):
    for place in (0, 4_999_999):
        values = np.zeros(5_000_000, jnp.dtype(source))
        values[place] = bad
        for dtype in ("float32", "bfloat16", "float16"):
            with pytest.raises(
                ValueError,
                match="a in here holds NaN .*the training that wrote it",
            ):
                converted(values, dtype, "a", "here")


def test_numbers_that_a_dtype_cannot_hold():
    with pytest.raises(ValueError, match="too large for float16: load it as bfloat16"):
        converted(np.full((2, 2), 1e5, np.float32), "float16", "a", "here")
    with pytest.raises(ValueError, match="a in here has dtype int8: float32, bfloat16 or float16"):
        converted(np.ones((2, 2), np.int8), "float32", "a", "here")


def test_the_wrong_shape_is_found_before_anything_is_read(small_directory, tmp_path):
    found = tensors(small_directory)
    last = list(found)[-1]
    entries = [
        Entry(
            n, t.shape if n != last else (3,), t.dtype, t.read if n != last else lambda: np.ones(3)
        )
        for n, t in found.items()
    ]
    write_safetensors(tmp_path / "model.safetensors", entries)
    shutil.copy(small_directory / "config.json", tmp_path)
    with pytest.raises(ValueError, match=f"{last} in .* has shape"):
        huggingface.read(tmp_path, place=lambda path, values: pytest.fail("it was read"))


def test_a_tensor_under_two_names_is_refused_where_they_differ(small_directory, tmp_path):
    found = tensors(small_directory)
    embed = found["transformer.wte.weight"]
    other = dataclasses.replace(embed, read=lambda: embed.read() + 1)
    twice = found | {"wte.weight": other}
    write_safetensors(
        tmp_path / "model.safetensors",
        [Entry(n, t.shape, t.dtype, t.read) for n, t in twice.items()],
    )
    shutil.copy(small_directory / "config.json", tmp_path)
    with pytest.raises(ValueError, match="and wte.weight with different values, which are two"):
        huggingface.read(tmp_path)


def test_what_we_write_is_what_the_library_reads(tmp_path):
    from safetensors.numpy import load_file

    random = np.random.default_rng(0)
    values = {
        "a": random.normal(size=(3, 5)).astype(np.float32),
        "ö": random.normal(size=(7,)).astype(jnp.bfloat16),
        "empty": np.zeros((0, 4), np.float16),
    }
    write_safetensors(
        tmp_path / "x.safetensors",
        [Entry(n, v.shape, v.dtype, lambda v=v: v) for n, v in values.items()],
    )
    theirs, ours = (
        load_file(tmp_path / "x.safetensors"),
        read_safetensors(tmp_path / "x.safetensors"),
    )
    for name, value in values.items():
        np.testing.assert_array_equal(theirs[name], value)
        np.testing.assert_array_equal(ours[name].read(), value)


def test_safetensors_come_first_then_bin_then_msgpack(small_directory, tmp_path):
    every = ["flax_model.msgpack", "pytorch_model.bin", "model.safetensors"]
    order = []
    while form := choose(every, "here"):
        order.append(form)
        every = [name for name in every if name not in (form.single, form.index)]
    assert tuple(order) == FORMS
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    (copy / "flax_model.msgpack").write_bytes(b"never opened")
    assert huggingface.read(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin is truncated or no torch"):
        huggingface.read(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="flax_model.msgpack is truncated or no weight"):
        huggingface.read(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(small_directory, tmp_path, name):
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link to .*elsewhere, outside its folder"):
        huggingface.read(copy)


def test_links_of_the_hubs_cache_are_followed(small_directory, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/1234"
    shutil.copytree(small_directory, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert huggingface.read(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="outside its folder"):
        huggingface.read(snapshot)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_bytes_and_time_in_a_terminal_only(monkeypatch):
    def shown(stream, total):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.progress(total, "Loading") as advance:
            advance(total // 4)
            advance(total - total // 4)
        return stream.getvalue()

    assert shown(io.StringIO(), 12_000_000_000) == "", "a file or a pipe stays clean"
    assert shown(Terminal(), 100_000_000) == "", "a small model is there before one reads it"
    text = shown(Terminal(), 12_000_000_000)
    assert "Loading" in text and "12.0G/12.0G" in text and "B/s" in text and "<" in text


def test_the_bar_knows_a_notebook(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    fake = types.SimpleNamespace(get_ipython=lambda: shell)
    assert not progress._in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", fake)
    assert progress._in_notebook() and progress.watched()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert not progress.watched()


def test_an_index_that_is_none_is_refused(small_directory, tmp_path):
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    for text in (
        "[]",
        "{",
        '{"weight_map": 5}',
        "[" * 100_000,
        json.dumps({"weight_map": {"a": 5}}),
    ):
        (copy / "model.safetensors.index.json").write_text(text)
        (copy / "model.safetensors").unlink(missing_ok=True)  # which would be read instead
        with pytest.raises(ValueError, match="weight_map|JSON|that is no model"):
            huggingface.read(copy)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "bin", "msgpack", "mesh-transformer"])
def test_peak_memory_is_what_stays_and_one_tensor(tmp_path, form):
    """The promise of streamed loading, measured in a process of its own at 257 MB of weights."""
    source = Path(__file__).parents[2] / "benchmarks" / "load.py"
    spec = importlib.util.spec_from_file_location("load_benchmark", source)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    made, folder = tmp_path / "made", tmp_path / "folder"
    config = benchmark.make(made, d_model=1024, layers=2, heads=8, vocab=50400, dtype="bfloat16")
    if form == "mesh-transformer":
        convert(made, folder, form)
    else:
        folder.mkdir()
        for file in made.glob("*.json"):
            shutil.copy(file, folder)
        write_form(folder, form, tensors(made))
    for weights in ("bfloat16", "float32"):
        measured = benchmark.measure(folder, weights)
        assert measured["weights"] == config.num_parameters * (4 if weights == "float32" else 2)
        stored = "float32" if form == "bin" else "bfloat16"
        assert measured["peak"] <= benchmark.bound(measured, weights, stored), measured


def write_form(folder, form, found):
    if form == "safetensors":
        entries = [Entry(n, t.shape, t.dtype, t.read) for n, t in found.items()]
        write_safetensors(folder / "model.safetensors", entries)
    elif form == "bin":
        torch = pytest.importorskip("torch")
        values = {n: torch.tensor(np.asarray(t.read(), np.float32)) for n, t in found.items()}
        torch.save(values, folder / "pytorch_model.bin")
    else:
        last = {"ln_1": "scale", "ln_f": "scale", "wte": "embedding"}
        flat = {}
        for name, tensor in found.items():
            *parts, end = name.split(".")
            end = last.get(parts[-1], "kernel") if end == "weight" else end
            value = np.asarray(tensor.read())
            flat[(*parts, end)] = value.T if end == "kernel" else value
        data = serialization.to_bytes(unflatten_dict(flat))
        (folder / "flax_model.msgpack").write_bytes(data)
