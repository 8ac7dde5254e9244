"""The Playground's Python half, driven by a front end made of messages."""

import io
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import gptj_lab
from gptj_lab.widgets.tokens import token_name

NAUGHTY = "<img src=x onerror=alert(1)><script>alert(1)</script> $x^2$"


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


CONTROLS = {
    "temperature": "0.8",
    "top_p": "0.95",
    "top_k": "0",
    "max_new_tokens": "12",
    "seed": "0",
}


class FrontEnd:
    """Sends what playground.js sends, and keeps what it would get."""

    def __init__(self, play):
        self.play, self.got = play, []
        play.send = lambda content, buffers=None: self.got.append((content, buffers or []))

    def send(self, op, req, **more):
        before = len(self.got)
        self.play._receive(self.play, {"op": op, "req": req, **more}, [])
        return self.got[before:]

    def start(self, req, prompt, **controls):
        return self.send("start", req, prompt=prompt, settings=CONTROLS | controls)

    def pull(self, req):
        """Asks on to the end: all token messages."""
        messages = []
        while not messages or messages[-1][0]["finish_reason"] is None:
            new = self.send("next", req)
            assert new, "a running request is always answered"
            messages += new
        return messages


@pytest.fixture
def front(model):
    return FrontEnd(gptj_lab.widgets.Playground(model, ban=[0]))


def arrays(buffers):
    ids, logprobs, other_ids, other_logprobs = (
        np.frombuffer(b, kind) for b, kind in zip(buffers, ["<i4", "<f4"] * 2, strict=True)
    )
    return ids, logprobs, other_ids.reshape(-1, 10), other_logprobs.reshape(-1, 10)


def test_pulling_gives_the_tokens_of_generate(front, model):
    (started,) = front.start("a", "the cat")
    assert started[0] == {"op": "started", "req": "a", "notes": []}
    messages = front.pull("a")
    expected = model.generate(
        "the cat", temperature=0.8, top_p=0.95, max_new_tokens=12, seed=0, ban=[0]
    )[0]
    own = [arrays(buffers) for content, buffers in messages if content["where"] == "output"]
    assert np.concatenate([a[0] for a in own]).tolist() == expected.token_ids
    np.testing.assert_allclose(np.concatenate([a[1] for a in own]), expected.logprobs, atol=1e-5)
    assert np.concatenate([a[2] for a in own])[0].tolist() == [
        i for i, _ in expected.alternatives[0]
    ]
    prompt = [arrays(buffers) for content, buffers in messages if content["where"] == "prompt"]
    assert np.concatenate([a[0] for a in prompt]).tolist() == model.tokenizer.encode("the cat")
    assert math.isnan(prompt[0][1][0])
    names = {k: v for content, _ in messages for k, v in content["names"].items()}
    for i in expected.token_ids:
        assert names[str(i)][0] == model.tokenizer.display(i)
    assert all(len(json.dumps(content)) + sum(map(len, b)) < 1e6 for content, b in messages)
    assert front.send("next", "a") == [], "a finished request is not answered"
    assert front.play.completion.text == expected.text
    assert eval(front.play.code(), {"model": model}) == expected.text


def test_stale_and_cancelled_requests_are_silent(front):
    front.start("old", "the cat")
    front.start("new", "the dog")
    assert front.send("next", "old") == []
    assert front.send("next", "new")
    front.send("cancel", "old")
    assert front.send("next", "new"), "only its own request cancels a run"
    front.send("cancel", "new")
    assert front.send("next", "new") == []
    assert front.play.completion.finish_reason == "cancelled"
    assert front.start("again", "the cat")[0][0]["op"] == "started"


@pytest.mark.parametrize(
    ("prompt", "controls", "message"),
    [
        ("", {}, "prompt is empty"),
        ("a\ud800", {}, "surrogate"),
        ("the cat sat " * 9000, {}, "too many for a context of 64"),
        (None, {}, "NoneType"),
        ("a", {"temperature": "-1"}, "temperature is -1"),
        ("a", {"temperature": "warm"}, "temperature is 'warm': a number"),
        ("a", {"top_k": ""}, "top_k is '': a whole number"),
        ("a", {"top_p": "0"}, "top_p is 0"),
        ("a", {"seed": None}, "seed is None"),
    ],
)
def test_bad_input_becomes_a_sentence_and_the_view_lives_on(front, prompt, controls, message):
    (answer,) = front.start("a", prompt, **controls)
    assert answer[0]["op"] == "error" and message in answer[0]["text"]
    assert front.send("next", "a") == []
    assert front.start("b", "the cat")[0][0]["op"] == "started"


def test_a_control_beyond_the_usual_ones_counts_where_its_setting_is_set(model):
    front = FrontEnd(gptj_lab.widgets.Playground(model, repetition_penalty=1.5))
    front.start("a", "the cat", repetition_penalty="1.2", min_p="0.5")
    assert front.play.settings["repetition_penalty"] == 1.2 and "min_p" not in front.play.settings
    (answer,) = front.start("b", "the cat", repetition_penalty="much")
    assert "repetition_penalty is 'much': a number" in answer[0]["text"]


def test_an_error_loses_nothing_of_the_run_before(front):
    front.start("a", "the cat")
    front.pull("a")
    before = front.play.completion
    assert front.start("b", "")[0][0]["op"] == "error"
    assert front.play.completion == before and front.play._repr_mimebundle_()[0]["image/png"]


def test_malformed_messages_do_not_raise(front):
    for message in (None, 3, {}, {"op": "start"}, {"op": "start", "prompt": "a", "settings": []}):
        front.play._receive(front.play, message, [])
    assert all(content["op"] == "error" for content, _ in front.got)


@pytest.mark.parametrize("raw", ["\x08", "a\u202eb", "\xe2\x80".encode("latin-1")])
def test_text_without_ink_is_shown_as_its_mark(model, monkeypatch, raw):
    data = raw if isinstance(raw, bytes) else raw.encode()
    monkeypatch.setitem(model.tokenizer._raw, 5, data)
    shown, text = token_name(model.tokenizer, 5)
    assert text is None and shown.isprintable() and shown != data.decode(errors="replace")
    monkeypatch.setitem(model.tokenizer._raw, 5, " é\n".encode())
    assert token_name(model.tokenizer, 5) == ("␣é↵", " é\n")


def test_a_failure_of_the_device_is_told(front, monkeypatch):
    front.start("a", "the cat")

    def fail(self):
        raise MemoryError("no room")

    monkeypatch.setattr("gptj_lab.generation.decoding.Decoding.advance", fail)
    ((content, _),) = front.send("next", "a")
    assert content["op"] == "error" and "MemoryError: no room" in content["text"]


def test_notes_on_a_space_at_the_end_and_a_full_context(front, model):
    (started,) = front.start("a", "the cat ")
    assert "ends with a space" in started[0]["notes"][0]
    (started,) = front.start("b", "the cat", max_new_tokens="500")
    used = len(model.tokenizer.encode("the cat"))
    assert (
        f"takes {used} of the context's 64 tokens: {64 - used} can be made"
        in started[0]["notes"][0]
    )
    long = "the cat sat on the mat " * 30
    front.play.settings = front.play.settings | {"keep_end": True}
    (started,) = front.send("start", "c", prompt=long, settings=CONTROLS | {"keep_end": True})
    left_out = len(model.tokenizer.encode(long)) - 52
    assert f"first {left_out} tokens of the prompt were left out" in started[0]["notes"][-1]


def test_a_view_shown_later_gets_the_last_run(model):
    front = FrontEnd(gptj_lab.widgets.Playground(model, "the cat", autorun=True, max_new_tokens=30))
    messages = front.send("hello", "v")
    own = [arrays(b)[0] for content, b in messages if content["where"] == "output"]
    assert np.concatenate(own).tolist() == front.play.completion.token_ids
    assert all(content["old"] and content["req"] == "v" for content, _ in messages)
    assert FrontEnd(gptj_lab.widgets.Playground(model)).send("hello", "v") == []


def test_two_models_continue_the_same_prompt(model):
    other = model.twin()
    head = other.network.head.weight
    head[...] = head[...][::-1]
    play = gptj_lab.widgets.Playground(
        model, "the cat", compare=other, names=("A", "the other"), max_new_tokens=8
    )
    play.run()
    assert play.completion.text == model.generate("the cat", **play.settings)[0].text
    assert play.completion_b.text == other.generate("the cat", **play.settings)[0].text
    assert play.completion.token_ids != play.completion_b.token_ids
    data, metadata = play._repr_mimebundle_()
    assert "The text of the other:" in metadata["image/png"]["alt"]
    front = FrontEnd(play)
    sent = front.send("hello", "v")
    assert [content["of"] for content, _ in sent] == ["a", "a", "b", "b"]
    front.start("c", "the dog", max_new_tokens="3")
    assert {content["of"] for content, _ in front.pull("c")} == {"a"}
    (started,) = front.send("start", "d", prompt="the dog", settings=CONTROLS, of="b")
    assert started[0]["op"] == "started"
    assert {content["of"] for content, _ in front.pull("d")} == {"b"}
    (refused,) = front.send("start", "e", prompt="the dog", settings=CONTROLS, of="c")
    assert "of is 'c'" in refused[0]["text"]


def test_the_still_picture_has_alt_text_and_no_html(model):
    from PIL import Image

    play = gptj_lab.widgets.Playground(model, NAUGHTY, max_new_tokens=20)
    data, metadata = play._repr_mimebundle_()
    assert "image/png" not in data, "nothing to show yet"
    play.run()
    data, metadata = play._repr_mimebundle_()
    assert "text/html" not in data and "application/vnd.jupyter.widget-view+json" in data
    assert NAUGHTY in metadata["image/png"]["alt"]
    assert len(data["image/png"]) < 60_000
    pixels = np.asarray(Image.open(io.BytesIO(data["image/png"])).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5, "coloured tokens"


def test_pin_leaves_a_picture(model, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
    play = gptj_lab.widgets.Playground(model, "the cat", max_new_tokens=5)
    with pytest.raises(ValueError, match="nothing to pin"):
        play.pin()
    play.run()
    play.pin()
    ((data,), options) = shown[0]
    assert data["image/png"].startswith(b"\x89PNG") and options["raw"]
    assert "the cat" in options["metadata"]["image/png"]["alt"]


def test_settings_are_checked_when_it_is_made(model):
    with pytest.raises(ValueError, match="top_p is 7"):
        gptj_lab.widgets.Playground(model, top_p=7)
    with pytest.raises(TypeError, match="samples"):
        gptj_lab.widgets.Playground(model, samples=2)
    with pytest.raises(TypeError, match="warmth"):
        gptj_lab.widgets.Playground(model, warmth=2)


def test_the_front_end(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here; install it (Debian: apt-get install nodejs)")
    script = Path(__file__).parent / "playground.test.mjs"
    run = subprocess.run([node, "--test", str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# pass 0" not in run.stdout
