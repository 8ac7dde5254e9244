"""The MeshView's Python half, driven by a front end made of messages."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh.report import Collective
from gptj_lab.model.transformer import Transformer
from gptj_lab.plots import mesh as plots
from gptj_lab.widgets.meshview import MeshView

NAUGHTY = "blocks.0.<img src=x onerror=alert(1)>$x^2$"
WEIGHT = "blocks.0.mlp.fc_in.weight"


@pytest.fixture(scope="module")
def model(tiny_config, tiny_tokenizer):
    config = tiny_config()
    network = Transformer(config, key=jax.random.key(1))
    return LanguageModel(config, network, tiny_tokenizer, "tiny", gptj_lab.mesh(data=2, model=4))


@pytest.fixture(scope="module")
def report(model):
    return model.placement(batch=1, seq=16)


@pytest.fixture
def view(model, report, monkeypatch):
    monkeypatch.setattr(type(model), "placement", lambda self, batch, seq: report)
    return MeshView(model)


def ask(view, op, req, **more):
    """What the view would get for a message of meshview.js."""
    got = []
    view.send = lambda content, buffers=None: got.append((content, buffers or []))
    view._receive(view, {"op": op, "req": req, **more}, [])
    return got


def test_the_slices_that_are_sent_are_those_of_the_arrays(view, model):
    devices = [device for row in view.mesh["devices"] for device in row]
    for path, leaf in nnx.to_flat_state(nnx.state(model.network)):
        name, array = ".".join(map(str, path)), leaf[...]
        ((content, buffers),) = ask(view, "show", "a", weight=name)
        assert (content["name"], content["req"]) == (name, "a")
        assert tuple(content["shape"]) == array.shape and view.weight == name
        parts, numbers = (np.frombuffer(each, "<i4") for each in buffers)
        parts = parts.reshape(-1, array.ndim, 2)
        for shard in array.addressable_shards:
            bounds = parts[numbers[devices.index(shard.device.id)]]
            expected = np.asarray(array)[tuple(slice(*pair) for pair in bounds)]
            assert (np.asarray(shard.data) == expected).all(), name
        assert len(json.dumps(content)) + sum(map(len, buffers)) < 10_000


def test_the_sentences_have_the_numbers_of_the_arrays(view, model):
    ((content, _),) = ask(view, "show", "a", weight=WEIGHT)
    array = model.network.blocks[0].mlp.fc_in.weight[...]
    for shard in array.addressable_shards:
        said = content["tells"][shard.device.id]
        assert said == view.tell(shard.device.id)
        pattern = r"Device (\d+) holds rows (\d+)–(\d+) of (\d+) and all (\d+) columns: (\S+) kB\. "
        match = re.fullmatch(pattern + r"Device (\d+) holds the same\.", said)
        device, start, last, rows, columns, size, other = map(float, match.groups())
        assert (device, rows, columns) == (shard.device.id, *array.shape)
        assert shard.index[0] == slice(start, last + 1)
        assert size == pytest.approx(shard.data.nbytes / 1000, abs=0.05)
        assert other == (device + 4) % 8
    assert content["cut"] == (
        "float32, cut over model into 4 slices of rows, each held by 2 devices"
    )


def test_what_is_not_cut_is_said_to_be_a_copy(view):
    assert view.tell(3, "blocks.1.ln.scale") == (
        "Device 3 holds all 32 entries: 128 bytes. So does every other device."
    )
    view.weight = "blocks.1.ln.scale"
    assert "not cut: every device holds a copy of all of it" in view.summary()


def test_a_slice_that_one_device_has_alone(model, view, report, monkeypatch):
    alone = [
        dataclasses.replace(
            weight, slices={i: weight.slices[i] for i in range(4)}
        )
        for weight in report.weights
    ]  # fmt: skip
    one_team = dataclasses.replace(
        report, axes={"data": 1, "model": 4}, devices=[[0, 1, 2, 3]], weights=alone,
        bytes_per_device={i: report.bytes_per_device[i] for i in range(4)}, batch=1,
    )  # fmt: skip
    monkeypatch.setattr(type(model), "placement", lambda self, batch, seq: one_team)
    view = MeshView(model, WEIGHT)
    assert view.tell(1).endswith("No other device holds these.")
    assert "4 slices of rows. The forward pass of one block, for 1 x 16 tokens: 1" in view.summary()


def test_bytes_on_the_devices_are_the_reports(view, report):
    (held,) = set(report.bytes_per_device.values())
    assert view.report is report
    assert {text for row in view.mesh["held"] for text in row} == {f"{held / 1000:.1f} kB"}
    listed = [path for _, weights in view.mesh["groups"] for path, _, _ in weights]
    assert sorted(listed) == sorted(weight.name for weight in report.weights)
    assert [group for group, _ in view.mesh["groups"]] == [
        "blocks.0", "blocks.1", "outside the blocks",
    ]  # fmt: skip


def test_one_all_reduce_and_why(view, model):
    size = 16 * model.config.d_model * 4  # one row on each part of data
    assert view.exchange() == (
        "The forward pass of one block, for 2 x 16 tokens (1 row on each part of data): "
        f"1 all-reduce over model of {size / 1000:.1f} kB."
    )
    assert "one all-reduce sums them" in view.why()


@pytest.mark.parametrize(
    ("block", "said", "why"),
    [
        ([], "no exchange.", "Every device holds all weights"),
        (
            [Collective("all-reduce", ("model",), 5000)] * 2,
            "2 all-reduces over model of 5.0 kB.",
            "sequential block",
        ),
        (
            [Collective("all-gather", ("data", "model"), 7)],
            "1 all-gather over data and model of 7 bytes.",
            "",
        ),
        (
            [Collective("all-reduce", ("data",), 2_500_000)],
            "1 all-reduce over data of 2.5 MB.",
            "",
        ),
    ],
)
def test_other_exchanges_are_told_as_they_are(block, said, why, model, view, report, monkeypatch):
    other = dataclasses.replace(report, block=block)
    monkeypatch.setattr(type(model), "placement", lambda self, batch, seq: other)
    view = MeshView(model)
    assert view.exchange().endswith(said)
    assert view.why().startswith(why) if not why or not block else why in view.why()
    assert bool(view.why()) == bool(why)


def test_a_name_with_markup_is_text_everywhere(model, view, report, monkeypatch):
    weights = [
        dataclasses.replace(weight, name=NAUGHTY) if weight.name == WEIGHT else weight
        for weight in report.weights
    ]
    monkeypatch.setattr(
        type(model),
        "placement",
        lambda self, batch, seq: dataclasses.replace(report, weights=weights),
    )
    view = MeshView(model, NAUGHTY)
    ((content, _),) = ask(view, "show", "a", weight=NAUGHTY)
    assert content["name"] == NAUGHTY  # meshview.test.mjs: it is never markup there
    data, metadata = view._repr_mimebundle_()
    assert "text/html" not in data and NAUGHTY in metadata["image/png"]["alt"]
    assert data["image/png"].startswith(b"\x89PNG"), "$ is not mathematics"


def test_a_model_without_a_mesh_is_told_how_to_get_one(tiny_model):
    with pytest.raises(ValueError, match=r"doesn't lie on a mesh: load it with mesh=gptj_lab.mesh"):
        gptj_lab.widgets.MeshView(tiny_model)


def test_what_is_not_there_is_a_sentence(view, model):
    (answer,) = ask(view, "show", "a", weight="blocks.0.mlp.fc_out")
    assert answer[0]["op"] == "error" and answer[0]["req"] == "a"
    assert "no weight 'blocks.0.mlp.fc_out'" in answer[0]["text"]
    assert "blocks.0.mlp.fc_out.weight" in answer[0]["text"]
    before = view.weight
    for message in (None, 3, {}, {"op": "show"}, {"op": "show", "weight": []}):
        view._receive(view, message, [])
    assert view.weight == before
    with pytest.raises(ValueError, match="tiny has no weight 'q'"):
        view.weight = "q"
    with pytest.raises(
        ValueError, match="device is 8: the devices of this mesh are 0, 1, .* and 7"
    ):
        view.tell(8)
    for name, value in (("batch", 0), ("seq", -3), ("batch", True)):
        with pytest.raises(ValueError, match=f"{name} is {value}: a whole number of at least 1"):
            MeshView(model, **{name: value})


def test_the_still_picture_has_alt_text_and_the_slices_colours(view, monkeypatch):
    from PIL import Image

    data, metadata = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and len(data["image/png"]) < 80_000
    assert metadata["image/png"]["alt"] == data["text/plain"] == view.summary()
    pixels = np.asarray(Image.open(io.BytesIO(data["image/png"])).convert("RGB")).reshape(-1, 3)
    seen = {"#{:02x}{:02x}{:02x}".format(*colour) for colour in np.unique(pixels, axis=0)}
    colours = [colour for colour, _ in plots._SLICES]
    assert set(colours[:4]) <= seen and not set(colours[4:]) & seen
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
    view.pin()
    ((pinned,), options) = shown[0]
    assert pinned["image/png"] == data["image/png"]
    assert options["metadata"]["image/png"]["alt"] == view.summary()


def test_picture_and_view_have_the_same_colours():
    found = re.findall(r'light:\["(#\w+)","#\w+"\],dark', MeshView._esm)
    assert found == [colour for colour, _ in plots._SLICES]
    hatches = [hatch for _, hatch in plots._SLICES]
    assert len(set(hatches)) == len(hatches)


def test_the_front_end():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here; install it (Debian: apt-get install nodejs)")
    script = Path(__file__).parent / "meshview.test.mjs"
    run = subprocess.run([node, "--test", str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# pass 0" not in run.stdout
