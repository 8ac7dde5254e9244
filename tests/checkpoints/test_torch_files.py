"""torch's .bin files, read without torch: the same values, and nothing of them is ever run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.torch_files import read_torch

torch = pytest.importorskip("torch")


def numbers(tensor):
    """A torch tensor's values, bfloat16 as its bits."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "int64", "int8", "uint8", "bool"]
)
def test_values_are_those_that_torch_saved(tmp_path, dtype):
    base = (torch.randn(6, 4) * 9).to(getattr(torch, dtype))
    state = {
        "plain": base,
        "turned": base.T,
        "column": base[:, 1],
        "behind": base[2:],
        "scalar": base[1, 1],
        "empty": base[:0],
        "spread": base[:1].expand(3, 4),
    }
    torch.save(state, tmp_path / "x.bin")
    found = read_torch(tmp_path / "x.bin")
    assert list(found) == list(state)
    for name, expected in state.items():
        got, wanted = found[name].read(), numbers(expected)
        assert found[name].shape == tuple(expected.shape) and str(found[name].dtype) == dtype
        assert got.shape == wanted.shape
        np.testing.assert_array_equal(got.view(wanted.dtype), wanted)


def test_parameters_ordered_dicts_and_metadata(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "state.bin")
    torch.save(dict(module.named_parameters()), tmp_path / "parameters.bin")
    for name in ("state.bin", "parameters.bin"):
        found = read_torch(tmp_path / name)
        for key, value in module.state_dict().items():
            np.testing.assert_array_equal(found[key].read(), value.numpy())


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    """The same archive with entries changed by `change(name, bytes)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_a_file_from_a_machine_of_the_other_byte_order(tmp_path):
    state = {"a": torch.randn(5, 3), "b": torch.randn(4).to(torch.bfloat16)}
    torch.save(state, tmp_path / "little.bin")
    widths = {"0": 4, "1": 2}

    def swap(name, data):
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name:
            return np.frombuffer(data, f"u{widths[name[-1]]}").byteswap().tobytes()
        return data

    rewritten(tmp_path / "little.bin", tmp_path / "big.bin", swap)
    found = read_torch(tmp_path / "big.bin")
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].read().view(numbers(value).dtype), numbers(value))


@pytest.fixture(scope="module")
def reference(torch_gptj):
    return torch_gptj(vocab_size=300)


@pytest.fixture(scope="module", params=["one file", "several files"])
def directory(request, reference, tmp_path_factory):
    """A directory as transformers wrote them in the .bin era, with the buffers of that time."""
    folder = tmp_path_factory.mktemp("bin")
    reference.config.save_pretrained(folder)
    state = dict(reference.state_dict())
    for i in range(3):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e9)
    if request.param == "one file":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(state)}
    for file in files:
        torch.save({n: t for n, t in state.items() if weight_map[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_logits_are_those_of_the_model_that_was_saved(directory, reference, tolerance):
    _, network = huggingface.read(directory)
    ids = np.random.default_rng(0).integers(0, 300, (2, 20))
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(
        network(jnp.asarray(ids))[0], expected, rtol=0,
        atol=tolerance["float32"] * np.abs(expected).max(),
    )  # fmt: skip


def test_it_is_read_where_torch_is_not_installed(directory):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # importing it fails
        "from gptj_lab.checkpoints import huggingface\n"
        "print(huggingface.read(sys.argv[1], 'bfloat16')[1].embed[...].dtype)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert run.stdout == "bfloat16\n", run.stderr


class Payload:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["value", "alone", "nested"])
def test_a_payload_is_refused_by_name_and_never_run(tmp_path, place):
    payload = Payload(tmp_path / "mark")
    state = {"a": torch.ones(2)}
    torch.save(
        {"value": state | {"b": payload}, "alone": payload, "nested": {"b": [(payload,)]}}[place],
        tmp_path / "x.bin",
    )
    with pytest.raises(ValueError, match=r"posix.system.*never needs.*as safetensors"):
        read_torch(tmp_path / "x.bin")
    assert not (tmp_path / "mark").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.bin", weights_only=True)
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "mark").exists(), "the payload works where pickles are trusted"


GLOBALS = b"\x80\x02c%s\n%s\n."
BOMB = b"\x80\x02}(" + b")" + b"\x86".join([b"q\x00h\x00"] * 60) + b"\x86K\x01u."


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GLOBALS % (b"builtins", b"eval"), "builtins.eval"),
        (GLOBALS % (b"torch.hub", b"load"), "torch.hub.load"),
        (GLOBALS % (b"torch._utils", b"_rebuild_tensor_v2.__globals__"), "__globals__"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02ccollections\nOrderedDict\n(X\x01\x00\x00\x00aK\x01\x86tR.", "of its own"),
        (b"\x80\x02K\x05)R.", "it calls a int"),
        (b"\x80\x02(i__main__\nX\n.", "operation INST"),
        (b"\x80\x02}K\x01\x81.", "operation NEWOBJ"),
        (BOMB, "a key is a tuple"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "no plain|state dict|tensors"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
        (b"\x80\x02", "damaged"),
        (b".", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02]q\x00.", "no state dict"),
        (b"\x80\x02K\x07Q.", "damaged"),
    ],
)
def test_every_other_pickle_ends_in_a_sentence(tmp_path, data, words):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    rewritten(
        tmp_path / "x.bin", tmp_path / "y.bin",
        lambda name, old: data if name.endswith("data.pkl") else old,
    )  # fmt: skip
    if b"\x7f." in data:
        assert read_torch(tmp_path / "y.bin") == {}, "a large memo index costs nothing"
        return
    with pytest.raises(ValueError, match=words):
        read_torch(tmp_path / "y.bin")


def test_the_format_before_torch_1_6_is_refused_with_its_remedy(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before torch 1.6.*torch.save\(torch.load\('old.bin'"):
        read_torch(tmp_path / "old.bin")


@pytest.mark.parametrize("state", [{"state_dict": {}}, {"step": 5}, [1], {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_named(tmp_path, state):
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="state dict"):
        read_torch(tmp_path / "x.bin")


def test_damage_in_the_file_is_named(tmp_path):
    torch.save({"a": torch.ones(500), "b": torch.zeros(5)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    bad = tmp_path / "bad.bin"

    bad.write_bytes(data[:-200])
    with pytest.raises(ValueError, match="bad.bin is truncated"):
        read_torch(bad)
    bad.write_bytes(b"")
    with pytest.raises(ValueError, match="bad.bin is empty: copy it again"):
        read_torch(bad)
    ones = data.index(np.ones(9, np.float32).tobytes())
    bad.write_bytes(data[: ones + 8] + b"\x07" + data[ones + 9 :])
    found = read_torch(bad)
    found["b"].read()
    with pytest.raises(ValueError, match="checksum of .*data/0 doesn't fit"):
        found["a"].read()

    rewritten(tmp_path / "x.bin", bad, lambda _, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="a in .*bad.bin is compressed"):
        read_torch(bad)
    rewritten(tmp_path / "x.bin", bad, lambda name, old: old[:-4] if "data/" in name else old)
    with pytest.raises(ValueError, match="1,996 bytes for a storage of 2,000"):
        read_torch(bad)["a"].read()


def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.arange(6.0)[2:].view(2, 2)}, tmp_path / "x.bin")
    # BININT1 2 is the offset, the tuple of two 2s the shape: stretch it.
    rewritten(
        tmp_path / "x.bin", tmp_path / "y.bin",
        lambda name, old: old.replace(b"K\x02K\x02K\x02\x86", b"K\x02K\x03K\x02\x86"),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="a in .*y.bin lies in a part of the file that isn't there"
    ):
        read_torch(tmp_path / "y.bin")


def test_truncated_part_and_index_outside(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    index = copy / "pytorch_model.bin.index.json"
    last = sorted(copy.glob("*.bin"))[-1]
    last.write_bytes(last.read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"{last.name} is truncated"):
        huggingface.read(copy)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=last.name if index.exists() else "no weights"):
        huggingface.read(copy)
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../x.bin"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        huggingface.read(copy)
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": "config.json"}}))
    with pytest.raises(ValueError, match="that is no pytorch_model.bin"):
        huggingface.read(copy)
