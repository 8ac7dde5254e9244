"""The TuneBoard's Python half with real tiny runs, driven by a front end made of messages."""

import io
import json
import random
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import gptj_lab
from gptj_lab.finetuning import corpus as corpora
from gptj_lab.finetuning import export, lora, methods
from gptj_lab.model.transformer import Transformer
from gptj_lab.widgets import tuneboard_curves, tuneboard_form, tuneboard_runs
from gptj_lab.widgets.tuneboard import TuneBoard
from gptj_lab.widgets.tuneboard_curves import COLUMNS, MOST, Curves
from gptj_lab.widgets.tuneboard_data import UPLOAD_BYTES, source_of
from gptj_lab.widgets.tuneboard_result import Result
from gptj_lab.widgets.tuneboard_samples import pieces

NAUGHTY = "<img src=x onerror=alert(1)>"
SMALL = {"batch": 2, "context": 16, "held_out": 0.2}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GPTJ_LAB_CACHE", str(tmp_path_factory.mktemp("corpora")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tiny_model(tiny_config, tiny_tokenizer):
    config = tiny_config(num_layers=1)
    network = Transformer(config, key=jax.random.key(0))
    return gptj_lab.LanguageModel(config, network, tiny_tokenizer, "tiny")


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    words = "the cat sat on the mat and a dog on the log naïve cats do 🙂".split()
    return [" ".join(draw.choices(words, k=draw.randint(8, 40))) for _ in range(40)]


class FrontEnd:
    """Sends what tuneboard.js sends, and keeps what it would get."""

    def __init__(self, board):
        self.board, self.got = board, []
        board.send = lambda content, buffers=None: self.got.append((content, buffers or []))

    def ask(self, op, buffers=(), **more):
        before = len(self.got)
        message = {"op": op, "req": f"r{before}", **more}
        self.board._receive(self.board, message, [memoryview(each) for each in buffers])
        answers = self.got[before:]
        assert answers and all(content["req"] == message["req"] for content, _ in answers)
        assert all(len(json.dumps(c)) + sum(map(len, b)) < 1e6 for c, b in answers)
        return answers

    def one(self, op, buffers=(), **more):
        (answer,) = self.ask(op, buffers, **more)
        return answer

    def poll_until(self, condition):
        deadline = time.monotonic() + 60
        while not condition(answer := self.one("poll")):
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        return answer


@pytest.fixture(scope="module")
def finished(tiny_model, texts):
    """A board whose run of 12 LoRA steps has ended, as a view began it."""
    board = TuneBoard(
        tiny_model,
        texts,
        steps=12,
        evaluate_every=4,
        prompts=("the cat",),
        sample_tokens=4,
        **SMALL,
    )
    board.wait_for_data()
    front = FrontEnd(board)
    form = front.one("hello")[0]["form"]
    state, _ = front.one("start", form=form | {"learning_rate": "0.01", "rank": "2"})
    assert state["active"] and state["run"] == 0 and state["steps"] == 12
    front.poll_until(lambda answer: answer[0]["status"] == "finished")
    return front


def test_before_a_run_the_text_and_its_cost_are_told(tiny_model, texts):
    board = TuneBoard(tiny_model, texts, **SMALL)
    corpus = board.wait_for_data()
    front = FrontEnd(board)
    hello, _ = front.one("hello")
    estimate = methods.estimate(tiny_model, lora.LoRA(), batch=2, context=16)
    assert hello["plan"]["sentence"].split(" of ")[0] == str(estimate).split(" of ")[0]
    assert hello["plan"]["trainable"] == estimate.trainable and hello["plan"]["fits"] is True
    assert hello["plan"]["rate"] == board.rate > 0
    state, buffers = front.one("poll")
    assert state["has_data"] and not buffers and state["status"] == "none"
    data, _ = front.one("data")
    assert data["sentences"] == corpus.doctor(steps=200, batch=2).sentences
    assert sum(data["counts"]) == data["documents"] == 40
    window, _ = front.one("window", number=1)
    expected = corpus.preview(1)
    assert [each["text"] for each in window["stretches"]] == [each.text for each in expected]
    refused, _ = front.one("window", number=10**9)
    assert refused["op"] == "error" and "the windows are 0 to" in refused["text"]
    changed, _ = front.one("change", form=hello["form"] | {"context": "8", "method": "full"})
    assert changed["plan"]["trainable"] == tiny_model.config.num_parameters
    assert board.wait_for_data().train.context == 8
    # What finetune would choose by itself is what is told.
    free = TuneBoard(tiny_model, texts)
    assert free.wait_for_data().train.context == free.context == tiny_model.config.context


def test_a_dropped_file_is_read_from_its_parts_and_bad_ones_are_refused(tiny_model, texts):
    front = FrontEnd(TuneBoard(tiny_model, **SMALL))
    refused, _ = front.one("start", form=front.one("hello")[0]["form"])
    assert "there is no text yet" in refused["text"]
    data = "\n\n".join(texts).encode()
    half = len(data) // 2
    about = {"name": "../../etc/my <b> text.txt", "size": len(data), "parts": 2}
    answer, _ = front.one("upload", [data[:half]], part=0, **about)
    assert (answer["next"], answer["done"]) == (1, False)
    (wrong, _) = front.one("upload", [b"x"], part=0, **(about | {"name": "b.png"}))
    assert "b.png is of a kind that isn't read" in wrong["text"]
    (wrong, _) = front.one("upload", [b"x"], part=5, **about)
    assert "out of order" in wrong["text"]
    (wrong, _) = front.one("upload", [b"x"], part=0, **(about | {"size": UPLOAD_BYTES + 1}))
    assert "larger than 64 MB" in wrong["text"]
    front.one("upload", [data[:half]], part=0, **about)
    answer, _ = front.one("upload", [data[half:]], part=1, **about)
    assert answer["done"]
    corpus = front.board.wait_for_data()
    source = front.board.source
    assert source.read_bytes() == data and source.name == "my__b__text.txt"
    assert source.parent.name.startswith("gptj_lab_upload_")
    assert corpus.doctor().documents == 1
    assert front.one("data")[0]["name"] == source.name


def test_a_path_that_leads_nowhere_is_a_sentence_and_the_board_lives_on(tiny_model, tmp_path):
    front = FrontEnd(TuneBoard(tiny_model, **SMALL))
    front.one("read", path=str(tmp_path / "none.txt"))
    front.board._preparation.wait()
    state, _ = front.one("poll")
    assert "none.txt is no file" in state["data_error"] and not state["has_data"]
    with pytest.raises(ValueError, match=r"none\.txt is no file"):
        front.board.start()
    (tmp_path / "some.txt").write_text("the cat sat on the mat. " * 40)
    front.one("read", path=f"  {tmp_path / 'some.txt'} ")
    assert front.board.wait_for_data().train
    assert source_of("owner/data-set") == corpora.HubDataset(name="owner/data-set")
    assert source_of(str(tmp_path)) == tmp_path


def test_the_field_that_holds_the_text_is_named(tiny_model):
    board = TuneBoard(tiny_model, [{"body": "the cat sat"}], text_field="body", **SMALL)
    assert board.wait_for_data().doctor().documents == 1
    assert "text_field='body'" in board.code()


def test_columns_and_me_are_lines_of_the_form():
    settings = {"prompt_field": "Frage", "me": "Ben", "encoding": "cp1251"}
    form = tuneboard_form.form_of(settings)
    assert (form["prompt_field"], form["answer_field"], form["me"]) == ("Frage", None, "Ben")
    back = tuneboard_form.settings_of(form | {"answer_field": "Antwort", "me": " "}, settings)
    assert (back["prompt_field"], back["answer_field"], back["me"]) == ("Frage", "Antwort", None)
    assert back["encoding"] == "cp1251"  # what has no line stays


def test_a_template_is_a_line_of_the_form_whose_line_ends_are_written():
    settings = {"template": "### {question}\n{answer}", "loss_on": "all"}
    form = tuneboard_form.form_of(settings)
    assert (form["template"], form["loss_on"]) == ("### {question}\\n{answer}", "all")
    assert tuneboard_form.settings_of(form, {})["template"] == settings["template"]
    empty = tuneboard_form.settings_of(tuneboard_form.form_of({}), {})
    assert (empty["template"], empty["loss_on"]) == (None, "answers")


def test_the_curves_are_the_history(finished):
    run = finished.board.run
    state, (curves, evaluations) = finished.one("poll")
    told = np.frombuffer(curves, "<f4").reshape(len(COLUMNS), -1)
    for name, row in zip(COLUMNS, told, strict=True):
        np.testing.assert_allclose(row, [each[name] for each in run.history], rtol=1e-6)
    held = np.frombuffer(evaluations, "<f4").reshape(3, -1)
    assert held[0].tolist() == [0, 4, 8, 12]
    np.testing.assert_allclose(held[1], [e["held_out_loss"] for e in run.evaluations], rtol=1e-6)
    assert state["base_loss"] == run.evaluations[0]["held_out_loss"]
    assert state["flags"][0]["text"].startswith(f"The loss should start near {run.base_loss:.2f}")
    assert held[1, -1] < held[1, 0], "it learns"
    data = finished.board.data
    assert data["loss"].tolist() == [each["loss"] for each in run.history]
    assert data["evaluations"]["step"].tolist() == [0, 4, 8, 12]


def test_samples_mark_what_is_new_since_the_evaluation_before(finished):
    evaluations = finished.board.run.evaluations
    first, _ = finished.one("samples", index=0)
    assert first["items"][0]["pieces"] == [(evaluations[0]["samples"][0]["text"], False)]
    last, _ = finished.one("samples", index=3)
    text = "".join(piece for piece, _ in last["items"][0]["pieces"])
    assert text == evaluations[3]["samples"][0]["text"] and last["step"] == 12
    assert "there are 4" in finished.one("samples", index=4)[0]["text"]
    assert pieces("a b c", "a b c") == [("a b c", False)]
    assert pieces("a b c", "x y") == [("x", True), (" ", False), ("y", True)]


def test_the_code_repeats_the_run_without_the_board(finished, texts):
    code = finished.board.code()
    assert "gptj_lab.LoRA(rank=2)" in code and f"{texts!r}" not in code
    model = finished.board.model
    lines = [line for line in code.splitlines() if not line.startswith("model = ")]
    names = {"model": model, "data": texts}
    exec("\n".join(lines), names)
    losses = [each["loss"] for each in names["run"].history]
    assert losses == [each["loss"] for each in finished.board.run.history], "bit for bit"


def test_files_and_pictures_of_a_run(finished, monkeypatch):
    ((content, (data,)),) = finished.ask("export", kind="csv")
    head, *rows = bytes(data).decode().splitlines()
    assert content["name"] == "run.csv" and len(rows) == 12
    assert head.split(",")[:2] == ["step", "loss"] and rows[3].split(",")[-1]
    ((_, (data,)),) = finished.ask("export", kind="json")
    (told,) = json.loads(data)
    assert told["settings"]["method"]["rank"] == 2 and len(told["history"]) == 12
    answers = finished.ask("export", kind="result")
    archive = zipfile.ZipFile(io.BytesIO(b"".join(bytes(b[0]) for _, b in answers)))
    assert "tuned/adapter_model.safetensors" in archive.namelist()
    pinned, (png,) = finished.one("pin")
    bundle, metadata = finished.board._repr_mimebundle_()
    assert png[:4] == b"\x89PNG" and len(png) <= 60_000 and "text/html" not in bundle
    assert metadata["image/png"]["alt"] == pinned["alt"] == bundle["text/plain"]
    assert "12 steps" in pinned["alt"] and "held-out loss goes from" in pinned["alt"]
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    finished.board.pin()
    assert shown[0].alt == pinned["alt"]


def test_held_out_losses_of_other_runs_are_drawn_beside(finished):
    board = TuneBoard(finished.board.run)
    board.runs.append(finished.board.run)
    front = FrontEnd(board)
    state, _ = front.one("poll", run=0)
    (other,) = state["others"]
    assert other["run"] == 1 and len(state["table"]) == state["runs"] == 2
    expected = [[e["step"], e["held_out_loss"]] for e in finished.board.run.evaluations]
    np.testing.assert_allclose(other["points"], expected, rtol=1e-6)


def test_base_and_tuned_side_by_side_and_weighed_live(finished, tmp_path):
    board, ids = finished.board, [[1, 2, 3, 4]]
    opened, _ = finished.one("open", what="playground", prompt=NAUGHTY)
    play = board._opened["playground"]
    assert play.model_id == opened["model"] and play.prompt == NAUGHTY
    assert play.model_b_name == "base" and play.model_name == "tuned, 12 steps"
    finished.one("open", what="explorer", prompt="the cat")
    explorer = board._opened["explorer"]
    assert explorer.about["compare"] == "model" and explorer.prompt == "the cat"
    tuned, base = board.run.model.logits(ids), board.model.logits(ids)
    assert np.abs(np.asarray(tuned - base)).max() > 1e-3
    np.testing.assert_array_equal(play._model.logits(ids), tuned)
    assert finished.one("scale", scale=0)[0]["scale"] == 0
    np.testing.assert_array_equal(play._model.logits(ids), base)
    assert not explorer._session.stale()
    finished.one("scale", scale=1)
    np.testing.assert_array_equal(play._model.logits(ids), tuned)
    saved, _ = finished.one("save", directory=str(tmp_path / "whole"), merged=True)
    assert "with 1.00 of what was learnt" in saved["text"]
    whole = gptj_lab.load(tmp_path / "whole")
    np.testing.assert_allclose(whole.logits(ids), tuned, atol=1e-5)
    assert "the folder is empty" in finished.one("save", directory=" ")[0]["text"]
    assert "scale is 'much'" in finished.one("scale", scale="much")[0]["text"]
    assert "playground or explorer" in finished.one("open", what="shell")[0]["text"]


@pytest.fixture
def turned(tiny_model, texts, lowest_after):
    """A board whose run has ended after its held-out loss had turned."""
    settings = SMALL | {"optimiser": gptj_lab.Optimiser(learning_rate=0.1)}
    board = TuneBoard(tiny_model, texts, steps=6, evaluate_every=1, **settings)
    lowest_after(3)
    board.start()
    board.wait()
    return FrontEnd(board)


def test_the_best_model_is_offered_shown_and_taken_home(turned, tmp_path):
    board, ids = turned.board, [[1, 2, 3, 4]]
    lowest = min(board.run.evaluations, key=lambda each: each["held_out_loss"])
    assert 0 < lowest["step"] < board.run.step
    state, _ = turned.one("poll")
    assert state["best"] is False and state["table"][0]["best_step"] == lowest["step"]
    turned.one("open", what="playground", prompt="the cat")
    play = board._opened["playground"]
    last, best = board.run.model.logits(ids), board.run.best().logits(ids)
    assert np.abs(np.asarray(best - last)).max() > 1e-3
    np.testing.assert_array_equal(play._model.logits(ids), last)
    told, _ = turned.one("weights", best=True)
    assert told["step"] == lowest["step"] and f"by step {lowest['step']}." in told["text"]
    np.testing.assert_array_equal(play._model.logits(ids), best)
    assert turned.one("poll")[0]["best"] is True
    assert turned.one("open", what="playground")[0]["step"] == lowest["step"]
    assert board._opened["playground"].model_name == f"tuned, {lowest['step']} steps, the best"
    turned.one("save", directory=str(tmp_path / "adapter"))
    saved = export.load_adapter(board.model, tmp_path / "adapter")
    np.testing.assert_array_equal(saved.logits(ids), best)
    archive = b"".join(bytes(b[0]) for _, b in turned.ask("export", kind="result"))
    data = zipfile.ZipFile(io.BytesIO(archive)).read("tuned/adapter_model.safetensors")
    assert data == (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    turned.one("weights", best=False)
    np.testing.assert_array_equal(play._model.logits(ids), last)


def test_a_soft_prompt_is_weighed_from_its_first_vectors(tiny_model, texts):
    board = TuneBoard(tiny_model, texts, steps=3, method=methods.SoftPrompt(length=3), **SMALL)
    board.start()
    board.wait()
    front, ids = FrontEnd(board), [[1, 2, 3, 4]]
    first = board.run.first().network.soft_prompt[...]
    tuned = board.run.model.network.soft_prompt[...]
    assert np.abs(np.asarray(tuned - first)).max() > 1e-3
    for scale in (0.5, 2.0, 1.0):
        told, _ = front.one("scale", scale=scale)
        assert f"{scale:.2f} of " in told["text"]
        shown = board.result.model.network.soft_prompt[...]
        np.testing.assert_allclose(shown, first + scale * (tuned - first), rtol=1e-5, atol=1e-6)
    assert "no soft prompt" in front.one("scale", scale=0)[0]["text"]
    np.testing.assert_array_equal(board.result.model.logits(ids), tiny_model.logits(ids))
    assert "after the new soft prompt" in front.one("poll")[0]["flags"][0]["text"]


def test_before_a_run_the_picture_is_of_its_cost_and_its_text(tiny_model, texts):
    empty, _ = TuneBoard(tiny_model)._repr_mimebundle_()
    assert empty["image/png"][:4] == b"\x89PNG" and "no text yet" in empty["text/plain"]
    board = TuneBoard(tiny_model, texts, **SMALL)
    bundle, metadata = board._repr_mimebundle_()
    alt = metadata["image/png"]["alt"]
    assert bundle["text/plain"] == alt and len(bundle["image/png"]) <= 60_000
    assert "ready to start" in alt and "LoRA trains" in alt and "40 documents" in alt
    board.change(method=methods.LastBlocks(count=9))  # the model has one
    assert "image/png" not in board._repr_mimebundle_()[0]


def test_a_run_is_paused_left_found_again_and_stopped(tiny_model, texts, tmp_path):
    board = TuneBoard(tiny_model, texts, steps=100_000, out=tmp_path / "run", **SMALL)
    run = board.start()
    front = FrontEnd(board)
    front.poll_until(lambda answer: answer[0]["step"] > 2)
    with pytest.raises(ValueError, match=r"a run is running: stop it before another run"):
        board.start()
    assert "stop it before another text" in front.one("read", path=".")[0]["text"]
    front.one("pause")
    state, _ = front.poll_until(lambda answer: answer[0]["status"] == "paused")
    time.sleep(0.1)
    assert run.step == state["step"]
    # The tab is closed, the cell is run again; or another cell shows the run.
    loaded_again = tiny_model.twin()
    for again in (TuneBoard(loaded_again, texts, **SMALL), TuneBoard(run)):
        assert again.run is run and again.settings["batch"] == 2
        assert again.settings["method"] == board.settings["method"]
        assert again.wait_for_data().name == run.corpus.name
    other = FrontEnd(again)
    assert "began before it" in other.one("poll")[0]["note"]
    other.one("resume")
    front.poll_until(lambda answer: answer[0]["step"] > state["step"])
    other.one("checkpoint")
    front.one("stop")
    front.poll_until(lambda answer: answer[0]["status"] == "stopped")
    ended = run.step
    front.one("resume")
    front.poll_until(lambda answer: answer[0]["step"] > ended)
    board.stop()
    board.wait()
    assert front.one("poll")[0]["status"] == "stopped"
    assert sorted((tmp_path / "run" / "states").glob("*")), "Start goes on from there"
    assert not [t for t in threading.enumerate() if t.name == "finetune"]


@pytest.mark.parametrize(
    "method",
    [
        lora.LoRA(rank=3, alpha=5.0, targets=("q", "fc_out"), rslora=True, dropout=0.1),
        methods.Full(),
        methods.LastBlocks(count=1, head=True),
        methods.SoftPrompt(length=4, text="the"),
    ],
)
def test_settings_become_a_form_and_come_back(method):
    optimiser = gptj_lab.Optimiser(name="lion", learning_rate=1e-3, clip=None, b1=0.8)
    settings = {"method": method, "optimiser": optimiser, "steps": 7, "keep": 5, "remat": None}
    form = json.loads(json.dumps(tuneboard_form.form_of(settings)))
    back = tuneboard_form.settings_of(form, settings)
    assert back["method"] == method and back["optimiser"] == optimiser
    assert (back["steps"], back["keep"], back["remat"]) == (7, 5, None)
    assert eval(tuneboard_form.written(method), {"gptj_lab": gptj_lab}) == method
    assert tuneboard_form.form_of(back) == form


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"rank": "0"}, "rank is 0"),
        ({"rank": "many"}, "rank is 'many': a whole number"),
        ({"steps": ""}, "steps is empty"),
        ({"alpha": "inf"}, "alpha is inf"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"targets": ["w"]}, "targets names 'w'"),
        ({"learning_rate": "-1"}, "learning_rate is -1"),
    ],
)
def test_a_line_that_means_nothing_is_a_sentence(finished, line, message):
    before = dict(finished.board.settings)
    form = finished.one("hello")[0]["form"]
    answer, _ = finished.one("change", form=form | line)
    assert answer["op"] == "error" and message in answer["text"]
    assert finished.board.settings == before
    with pytest.raises(TypeError, match="no setting 'warmth'"):
        TuneBoard(finished.board.model, warmth=3)


def test_malformed_messages_do_not_raise(finished):
    for message in (None, 3, {}, {"op": "change"}, {"op": "start", "form": []}, {"op": "open"},
                    {"op": "poll", "run": 7}, {"op": "upload"}, {"op": []}):  # fmt: skip
        before = len(finished.got)
        finished.board._receive(finished.board, message, [])
        (answer,) = finished.got[before:]
        assert answer[0]["op"] == "error" and answer[0]["text"]


def test_curves_stay_small_and_keep_means_and_largest():
    history = [
        {
            "step": i + 1,
            "loss": float(i % 7),
            "rate": 1.0,
            "gradient_norm": 9.0 if i == 777 else 1.0,
        }
        for i in range(3000)
    ]
    curves = Curves()
    for end in (10, 600, 1500, 3000):
        values = curves.read(history[:end])
        assert values.shape[1] <= 2 * MOST
        assert values[0, -1] == end
    np.testing.assert_array_equal(values, Curves().read(history))
    steps = 3000 // (values.shape[1] - 1)
    groups = [history[i : i + 8] for i in range(0, 3000, 8)]
    assert steps == 8 and values.shape[1] == len(groups)
    np.testing.assert_allclose(values[1], [np.mean([e["loss"] for e in g]) for g in groups])
    assert values[3].max() == 9 and np.isnan(values[4]).all()
    assert curves.read(history[:5]).shape[1] == 5, "a run that went back is read anew"
    assert curves.read([]).shape == (len(COLUMNS), 0)


def evaluated(*losses):
    return [
        {"step": 10 * i, "held_out_loss": value, "loss": 3 - i / 10, "samples": [], "best": False}
        for i, value in enumerate(losses)
    ]


def test_a_held_out_loss_that_has_turned_is_told():
    overfit = tuneboard_curves._overfit
    assert overfit(evaluated(3.0, 2.0, 2.01)) is None
    assert overfit(evaluated(3.0, 2.0, 2.001, 2.002)) is None, "less than a percent"
    kind, said = overfit(evaluated(3.0, 2.0, 2.2, 2.5))
    assert kind == "warning" and "lowest at step 10 (2.000) and has risen to 2.500" in said
    assert "while the training loss fell: the text is being learnt by heart" in said
    assert "Before and after has the model of then" in said
    assert overfit([]) is None
    many = evaluated(*np.linspace(3, 2, 400), 1.0, *np.linspace(2, 3, 400))
    shown = tuneboard_curves.held_out(many)
    assert shown.shape[1] <= MOST and shown[1].min() == 1


class Told:
    """As much of a Run as its flags and its table read."""

    def first(self):
        raise AssertionError("only a soft prompt begins elsewhere than at the base")

    def __init__(self, **fields):
        self.base_loss, self.history, self.evaluations, self.notes = 3.0, [], [], []
        self.status, self.steps, self.settings = "finished", 8, {}
        self.step = self.weights_step = 8
        vars(self).update(fields)


def test_where_the_loss_should_start_and_whether_it_did():
    (flag,) = tuneboard_curves.flags(Told(), 50257)
    assert flag["kind"] == "note" and "near 3.00 nats" in flag["text"] and "10.82" in flag["text"]
    high = [{"step": i + 1, "loss": 4.5} for i in range(8)]
    (flag,) = tuneboard_curves.flags(Told(history=high), 50257)
    assert flag["kind"] == "warning" and "first 8 steps have 4.50" in flag["text"]
    growing = Told(base_loss=None, notes=["step 5: the loss is 9: the learning rate is too high"])
    assert tuneboard_curves.flags(growing, 9)[0]["kind"] == "warning"
    (flag,) = tuneboard_curves.flags(Told(base_loss=10.8), 50257)
    assert "are its weights loaded?" in flag["text"]
    broken = Told(base_loss=None, notes=["step 120: the loss became NaN; the run stopped"])
    assert tuneboard_curves.flags(broken, 9) == [{"kind": "warning", "text": broken.notes[0]}]


def test_the_table_tells_in_which_settings_runs_differ():
    one = Told(settings={"method": {"kind": "LoRA", "rank": 2}, "seed": 0, "out": "a"})
    two = Told(
        settings={"method": {"kind": "LoRA", "rank": 8}, "seed": 0, "out": "b"},
        evaluations=evaluated(3.0, 2.0, 2.5),
        history=[{"loss": 2.5, "seconds": 3.0}],
    )
    rows = tuneboard_runs.rows([one, two])
    assert [row["differs"] for row in rows] == [
        {"method": "LoRA 2", "rank": "2"},
        {"method": "LoRA 8", "rank": "8"},
    ]
    full = Told(settings={"method": {"kind": "Full"}, "optimiser": {"clip": 1.0}})
    assert tuneboard_runs.differences([one, full]) == {
        "method": ["LoRA 2", "Full"],
        "seed": ["0", "–"],
        "clip": ["–", "1.0"],
    }
    assert (rows[1]["held_out"], rows[1]["best_step"], rows[1]["seconds"]) == (2.0, 10, 3.0)
    assert rows[0]["loss"] is None
    nan = Told(history=[{"step": 1, "loss": float("nan")}], error=None)
    assert json.loads(tuneboard_runs.json_of([nan]))[0]["history"][0]["loss"] is None


def test_weights_without_adapters_are_weighed_along_the_line(tiny_model):
    tuned = tiny_model.twin()
    head = tuned.network.head.weight
    before = head[...]
    head[...] = before + 2
    result = Result(Told(base=tiny_model, model=tuned))
    shown = result.model
    for scale, more in ((0.5, 1), (2, 4), (1, 2), (0, 0)):
        result.scale = scale
        np.testing.assert_allclose(shown.network.head.weight[...], before + more, rtol=1e-6)
    np.testing.assert_array_equal(shown.logits([[1, 2]]), tiny_model.logits([[1, 2]]))


def test_weights_that_were_put_back_are_shown_with_their_own_step(tiny_model):
    run = Told(base=tiny_model, model=tiny_model.twin())
    result = Result(run)
    assert result.step == 8
    run.status, run.weights_step, run.model = "failed", 3, tiny_model.twin()
    head = run.model.network.head.weight
    head[...] = head[...] + 1
    np.testing.assert_array_equal(result.refresh().logits([[1, 2]]), run.model.logits([[1, 2]]))
    assert result.step == 3 and "by step 3." in result.words()


def test_the_front_end():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here; install it (Debian: apt-get install nodejs)")
    script = Path(__file__).parent / "tuneboard.test.mjs"
    run = subprocess.run([node, "--test", str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# pass 0" not in run.stdout


def test_what_becomes_of_an_adapter_that_is_there_is_told_before_it_trains(
    tiny_model, texts, tmp_path
):
    start = lora.adapted(tiny_model, lora.LoRA(rank=2))
    front = FrontEnd(TuneBoard(start, texts, steps=2))
    plan = front.one("hello")[0]["plan"]
    assert "default2 is trained on top of default: what is saved is all" in plan["told"][0]
    board = TuneBoard(start, texts, steps=2, adapter="default")
    assert "the adapter default is trained further: rank 2 of q, v" in board.told[0]
    assert board.estimate.trainable == lora.trainable(start) and "adapter='default'" in board.code()
    board = TuneBoard(start, texts, adapter=str(tmp_path / "gone"))
    gone = FrontEnd(board).one("hello")[0]["plan"]
    assert "adapter_config.json is missing" in gone["error"]
    record = {"method": {"kind": "Continued", "name": "x", "targets": ["q"], "dropout": 0.1}}
    record |= {"optimiser": {}, "prompts": []}
    found = tuneboard_form.settings_of_run(record)
    assert found["adapter"] == "x" and found["method"].dropout == 0.1
