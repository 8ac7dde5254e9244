"""A run resumed = the run uninterrupted, bit for bit; it stops where it should, with a sentence."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import signal
import threading
import time

import jax
import numpy as np
import pytest

import gptj_lab
from gptj_lab.checkpoints.training_state import TrainingStates
from gptj_lab.finetuning import corpus, lora, measuring, recording, trainer
from gptj_lab.finetuning.control import Control
from gptj_lab.finetuning.pace import Pace
from gptj_lab.finetuning.packing import Batch
from gptj_lab.finetuning.run import Run
from gptj_lab.finetuning.trainer import Trainer
from gptj_lab.language_model import LanguageModel, load
from gptj_lab.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("quick_compiles", "corpora")

WORDS = "the cat dog sat on a mat log and".split()
TEXT = [{"text": " ".join(random.Random(i).choices(WORDS, k=24))} for i in range(40)]
# Its program doesn't depend on the number of steps: it is compiled once.
STEADY = gptj_lab.Optimiser(learning_rate=3e-3, schedule="constant", warmup_steps=0)
SAME = ("step", "loss", "rate", "gradient_norm", "held_out_loss", "samples", "best")


@pytest.fixture
def tune(model):
    """A function that fine-tunes a tiny model; `said` has what it said."""

    def run(data=TEXT, **settings):
        settings = dict(
            method=gptj_lab.LoRA(rank=2, dropout=0.2), steps=8, batch=2, context=16, seed=3,
            evaluate_every=4, held_out=0.2, say=said.append, optimiser=STEADY,
        ) | settings  # fmt: skip
        start = settings.pop("model", model)
        data = [{"text": data}] if isinstance(data, str) else data
        return gptj_lab.finetune(start, data, **settings)

    said: list[str] = []
    run.said = said
    return run


def bits(run):
    """Everything of a run that has to be the same: weights, history, evaluations."""
    weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run._loop.trainer.arrays())]
    told = [{name: row.get(name) for name in SAME} for row in (*run.history, *run.evaluations)]
    return weights, told


def until(wanted, seconds=60.0):
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def test_a_run_learns_tells_and_leaves_its_record(tune, model, tmp_path):
    run = tune(steps=12, out=tmp_path / "out", prompts="the cat", sample_tokens=4)
    assert run.status == "finished" and run.step == run.steps == 12 and run.error is None
    assert [row["step"] for row in run.history] == list(range(1, 13))
    assert [row["step"] for row in run.evaluations] == [0, 4, 8, 12]
    first, *_, last = run.evaluations
    assert run.base_loss == first["held_out_loss"] > last["held_out_loss"]
    mean = np.mean([row["loss"] for row in run.history[8:]])
    assert last["loss"] == pytest.approx(mean) and first["loss"] is None and last["best"]
    assert set(run.history[0]) == {
        "step", "loss", "rate", "gradient_norm", "tokens_per_second", "seconds", "memory_bytes",
    }  # fmt: skip
    assert run.tokens_per_second > 0 and run.seconds_left == 0
    assert run.history[-1]["memory_bytes"] > 1e7 and run.history[-1]["seconds"] > 0
    (sample,) = last["samples"]
    (again,) = run.model.generate("the cat", max_new_tokens=4, seed=3, temperature=0.8, top_p=0.95)
    assert sample == {"prompt": "the cat", "text": again.text}
    for name, rows in (("history", run.history), ("evaluations", run.evaluations)):
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == run.settings
    assert run.settings["method"]["kind"] == "LoRA" and run.settings["base"]["name"] == "tiny"
    told = [line for line in tune.said if line.startswith("step ")]
    assert len(told) == 4 and f"held-out loss {last['held_out_loss']:.3f}" in told[-1]
    assert any(f"should start near {run.base_loss:.2f}" in line for line in tune.said)
    assert any("windows of 16 to train on" in line for line in tune.said)
    assert any(line.startswith("LoRA trains") for line in tune.said)
    run.save(tmp_path / "adapter")
    logits = run.model.logits([[1, 2, 3]])
    from gptj_lab.finetuning import export

    assert (export.load_adapter(model, tmp_path / "adapter").logits([[1, 2, 3]]) == logits).all()


def test_interrupted_and_called_again_it_is_the_run_uninterrupted(tune, tmp_path):
    falling = gptj_lab.Optimiser(warmup_steps=3)  # cosine
    settings = dict(prompts="the cat", sample_tokens=4, optimiser=falling)
    whole = tune(**settings)

    def interrupt(line):
        if line.startswith("step 4"):
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    settings |= dict(out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt, match=r"saved in .*: the same call goes on") as caught:
        tune(**settings, say=interrupt)
    stopped = caught.value.run
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.status == "stopped" and 4 <= stopped.step < 8
    states = tmp_path / "out" / "states"
    assert (states / f"step_{stopped.step}").is_dir()
    with (tmp_path / "out" / "history.jsonl").open("a") as file:  # as a kill would leave it
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    resumed = tune(**settings)
    assert resumed.status == "finished"
    assert f"resumed from step {stopped.step}" in " ".join(resumed.notes)
    assert bits(resumed) == bits(whole)
    lines = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    # Called once more, there is nothing to do; with more steps it goes on.
    assert bits(tune(**settings)) == bits(whole)
    longer = tune(**settings, steps=10)
    assert longer.step == 10 and any("8 steps and has 10 now" in note for note in longer.notes)
    shorter = tune(**settings, steps=5)
    assert shorter.step == 10 and "more steps than the 5 that it is to have" in shorter.notes[-1]


@pytest.mark.parametrize(
    ("number", "status", "out", "ends", "sentence"),
    [
        (signal.SIGINT, "stopped", "here", KeyboardInterrupt, "saved in here: the same call goes"),
        (signal.SIGINT, "stopped", None, KeyboardInterrupt, "in memory only.*sys.last_value.run"),
        (signal.SIGINT, "finished", "here", KeyboardInterrupt, "finished after step 3 of 8"),
        (signal.SIGINT, "failed", None, KeyboardInterrupt, "failed after step 3 of 8: full"),
        (signal.SIGTERM, "stopped", None, SystemExit, "in run.model; run.train"),
        (None, "stopped", None, None, "in run.model; run.train"),
    ],
)
def test_an_interrupt_ends_the_caller_whatever_the_run_came_to(number, status, out, ends, sentence):
    class Stopped(Run):
        """A run that a signal reaches and that ends in some status."""

        step, steps, error = 3, 8, "full"
        status = property(lambda self: status_then if self.worked else "ready")
        worked = False

        def __init__(self):
            self._control, self._thread, self._crash = Control(), None, None
            self._chosen = type("Settings", (), {"out": out})

        def _beginning(self):
            return iter(())

        def _work(self, teller):
            self.worked = True
            if number is not None:
                os.kill(os.getpid(), number)

    status_then, said = status, []
    with pytest.raises(ends) if ends else contextlib.nullcontext() as caught:
        Stopped().train(said.append)
    if ends is KeyboardInterrupt:
        assert caught.value.run.steps == 8 and said == []
        said = [str(caught.value)]
    elif ends:
        assert caught.value.code == 128 + number
    assert re.search(sentence, *said)


def test_a_run_in_the_background_is_paused_resumed_stopped_and_gone_on_with(tune, tmp_path):
    whole = tune(steps=40)
    run = tune(steps=40, wait=False, out=tmp_path / "out", save_every=1000)
    until(lambda: run.step >= 2)
    run.pause()
    run.pause()
    until(lambda: run.status == "paused")
    at = run.step
    assert 2 <= at < 40
    run.checkpoint()
    until(lambda: (tmp_path / "out" / "states" / f"step_{at}").is_dir())
    assert run.step == at and run.status == "paused" and not run.wait(0.01)
    with pytest.raises(BlockingIOError, match="this very process"):
        tune(steps=40, out=tmp_path / "out")
    logits = np.asarray(run.model.logits([[1, 2, 3]]))
    run.resume()
    until(lambda: run.step > at)
    assert not (np.asarray(run.model.logits([[1, 2, 3]])) == logits).all()
    run.stop()
    run.stop()
    assert run.wait(60) and run.status == "stopped"
    assert (tmp_path / "out" / "states" / f"step_{run.step}").is_dir()
    run.pause()  # nothing is there to pause
    assert run.status == "stopped"
    run.start()
    run.start()
    assert run.wait(60) and run.status == "finished" and bits(run) == bits(whole)
    run.start()
    assert run.status == "finished" and not [
        thread for thread in threading.enumerate() if thread.name == "finetune"
    ]


def poisoned(monkeypatch, number):
    """Makes the loss of a step NaN, by the text of its batch."""
    put, taken = Trainer.put, []

    def broken(self, batch):
        if batch.segments.any() and batch.weights.any():
            taken.append(1)
        if len(taken) == number:
            batch = Batch(batch.tokens, batch.segments, batch.positions, batch.weights * np.nan)
        return put(self, batch)

    monkeypatch.setattr(Trainer, "put", broken)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    tune, monkeypatch, tmp_path
):
    settings = dict(held_out=0.0, evaluate_every=100)
    good = tune(**settings, steps=5)
    poisoned(monkeypatch, 6)
    run = tune(**settings, steps=20, out=tmp_path / "out")
    assert good.status == "finished" and run.status == "failed" and run.step == 5
    assert "step 6: the loss became NaN" in run.error and "those after step 5" in run.error
    assert run.error in run.notes and run.error in tune.said
    assert bits(run)[0] == bits(good)[0]
    assert [row["loss"] for row in run.history] == [row["loss"] for row in good.history]
    assert (tmp_path / "out" / "states" / "step_5").is_dir()
    monkeypatch.undo()  # a fault of the machine, say: the run goes on where it was good
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path / "corpora"))
    again = tune(**settings, steps=20, out=tmp_path / "out")
    assert again.status == "finished" and bits(again) == bits(tune(**settings, steps=20))


@pytest.mark.parametrize("out", [None, "out"])
def test_an_absurd_learning_rate_leaves_weights_that_work(tune, model, tmp_path, out):
    optimiser = gptj_lab.Optimiser(learning_rate=1e30, schedule="constant", warmup_steps=3)
    run = tune(
        method=gptj_lab.Full(), optimiser=optimiser, steps=12, evaluate_every=2,
        out=out and tmp_path / out,
    )  # fmt: skip
    assert run.status == "failed" and "Lower the learning rate" in run.error
    assert np.isfinite(np.asarray(run.model.logits([[1, 2, 3]]))).all()
    saved = run.save(tmp_path / "saved")
    assert saved < run.step and f"its weights are those after step {saved}." in run.error
    assert run.weights_step == saved


def test_a_step_is_computed_as_the_run_was_told(tune, monkeypatch):
    asked, real = {}, trainer.loss_and_gradients

    def watched(*given, **settings):
        asked.update(settings)
        return real(*given, **settings)

    monkeypatch.setattr(trainer, "loss_and_gradients", watched)
    parts = dataclasses.replace(STEADY, accumulate=2)
    tune(steps=1, batch=4, dtype="bfloat16", remat="nothing kept", optimiser=parts)
    assert (asked["accumulate"], asked["remat"]) == (2, "nothing kept")
    assert (asked["dtype"], asked["products"]) == ("bfloat16", "float32")


def test_the_text_is_read_as_the_run_was_told(tune, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in TEXT) + "no json\n")
    with pytest.raises(ValueError, match="rows.jsonl line 41 'no json'"):
        tune([rows], strict=True)
    run = tune([rows], steps=1, packing="plain")
    assert run.corpus.train.packing == run.settings["packing"] == "plain"
    assert any("1 x a line left out, not JSON: rows.jsonl line 41" in line for line in tune.said)


def test_of_a_long_held_out_text_windows_all_over_it_are_measured(tune, monkeypatch):
    run = tune(steps=1)
    there = len(run.corpus.held_out)
    monkeypatch.setattr(measuring, "HELD_OUT_TOKENS", 16 * 5)
    some = measuring.Measuring(run._loop.trainer, run.corpus, run._chosen)
    assert some.sentence() == f"Each evaluation reads 5 of {there} held-out windows."
    assert some.windows[0] == 0 and some.windows[-1] == there - 1 and there > 8
    assert set(np.diff(some.windows)) <= {(there - 1) // 4, (there - 1) // 4 + 1}
    windows = (run.corpus.held_out.batch(some.windows[i : i + 2]) for i in (0, 2, 4))
    assert some.loss() == pytest.approx(run._loop.trainer.loss(windows), rel=1e-6)
    assert some.loss() != run._loop.measuring.loss()


def test_a_loss_that_grows_is_noted(tune):
    optimiser = gptj_lab.Optimiser(learning_rate=3.0, schedule="constant", warmup_steps=0)
    run = tune(method=gptj_lab.Full(), optimiser=optimiser, steps=8)
    (note,) = [note for note in run.notes if "it grows" in note]
    assert "the learning rate of 3 is too high" in note


def test_patience_ends_a_run_that_learns_nothing_new(tune, tmp_path, lowest_after):
    lowest_after(4)
    settings = dict(steps=40, evaluate_every=2, patience=2)
    run = tune(**settings, out=tmp_path / "out")
    assert run.status == "finished" and run.step == 8
    assert "stopped early at step 8" in run.notes[-1]
    assert [row["step"] for row in run.evaluations if row["best"]] == [0, 2, 4]
    again = tune(**settings, out=tmp_path / "out")
    assert again.status == "finished" and again.step == run.step
    with pytest.raises(ValueError, match="patience is 2, but nothing is held out"):
        tune(patience=2, held_out=0.0)


@pytest.mark.parametrize("out", [None, "out"])
def test_the_best_model_is_that_of_the_lowest_held_out_loss(
    tune, model, tmp_path, out, lowest_after
):
    lowest_after(4)
    run = tune(steps=8, evaluate_every=2, out=out and tmp_path / out)
    step, best = run.best_state()
    assert step == 4 and run.step == 8
    ids = [[1, 2, 3]]
    then = tune(steps=step, evaluate_every=2).model.logits(ids)
    np.testing.assert_array_equal(best.logits(ids), then)
    assert run.save(tmp_path / "best", best=True) == step
    assert (
        f"The weights are those after step {step}: "
        in run.push("me/cats", best=True, dry_run=True).card
    )
    assert run.save(tmp_path / "last") == run.step
    from gptj_lab.finetuning import soft_prompts

    found = soft_prompts.load_trained(model, tmp_path / "best")
    np.testing.assert_array_equal(found.logits(ids), then)
    assert not np.array_equal(run.model.logits(ids), then)


@pytest.mark.parametrize("out", [None, "out"])
def test_where_nothing_was_better_the_best_model_is_the_base(tune, model, tmp_path, out):
    optimiser = gptj_lab.Optimiser(learning_rate=3.0, schedule="constant", warmup_steps=0)
    run = tune(
        method=gptj_lab.Full(), optimiser=optimiser, steps=2, evaluate_every=1,
        out=out and tmp_path / out,
    )  # fmt: skip
    step, best = run.best_state()
    assert step == 0
    np.testing.assert_array_equal(best.logits([[1, 2]]), model.logits([[1, 2]]))
    with pytest.raises(ValueError, match="no evaluation is there|no state was measured"):
        tune(steps=2, held_out=0.0, out=out and tmp_path / "none").best()


def test_a_run_of_other_settings_is_refused_in_its_folder(tune, model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tune(steps=1, out=out)
    other = LanguageModel(
        model.config, Transformer(model.config, key=jax.random.key(2)), model.tokenizer, "tiny"
    )
    for changed, sentence in (
        (dict(batch=1), "batch is 1, but the run in .*out was begun with 2"),
        (dict(method=gptj_lab.LoRA(rank=4, dropout=0.2)), "method.rank is 4, .* begun with 2"),
        (
            dict(method=gptj_lab.Full()),
            "^method.kind is 'Full', but the run in .* was begun with 'LoRA'",
        ),
        (dict(optimiser=gptj_lab.Optimiser(name="lion")), "^optimiser.name is 'lion'"),
        (dict(seed=4), "seed is 4"),
        (dict(context=8), "context is 8"),
        (
            dict(optimiser=dataclasses.replace(STEADY, weight_decay=0.5)),
            "optimiser.weight_decay is 0.5",
        ),
        (dict(data=TEXT[:-1]), "the text is another .* or another version .* begin anew in"),
        (dict(model=other), "the model is another"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tune(**(dict(steps=1, out=out) | changed))
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="version of gptj_lab"):
        patched.setattr(corpus.splitting, "VERSION", 0)
        tune(steps=1, out=out)
    assert tune(steps=1, out=out, evaluate_every=1, keep=1).status == "finished"
    (out / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is no json"):
        tune(steps=1, out=out)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(steps=0), "steps is 0: a whole number of at least 1"),
        (dict(seed=2**63), "seed is 9223372036854775808: .* below 2\\*\\*63"),
        (dict(context="16"), "context is '16': a whole number of at least 1"),
        (dict(batch=3, optimiser=gptj_lab.Optimiser(accumulate=2)), "accumulate 2 doesn't divide"),
        (dict(dtype="int8"), "dtype is 'int8'"),
        (dict(remat="all"), "remat is 'all'"),
        (dict(prompts=[""]), "prompt is empty"),
        (dict(out=__file__), "out is .*test_run.py, but .*test_run.py is a file: name a folder"),
        (dict(out=f"{__file__}/run"), "is a file: name a folder"),
        (dict(context=100), "context is 100, .* 64"),
        (dict(method=gptj_lab.SoftPrompt(length=64)), "length is 64, .* context is 64: give fewer"),
        (dict(text_field="body"), "it has no field 'body': its fields are 'text'"),
        (dict(data=[{"text": ""}]), "no text|no window|holds no"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tune, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tune(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(model="pocket"), r"model is 'pocket': gptj_lab.load\(\.\.\.\) gives one"),
        (dict(method="lora"), r"method is 'lora': gptj_lab.LoRA\(\), Full\(\), "),
        (dict(method=gptj_lab.LoRA), r"method is <class .*LoRA'>: gptj_lab.LoRA\(\), Full"),
        (dict(optimiser="lion"), r"optimiser is 'lion': gptj_lab.Optimiser\(name=\.\.\.\)"),
        (dict(prompts=None), "prompts is None: a text or a list of texts"),
        (dict(held_out=None), "held_out is None: a share, or sources of text, is"),
    ],
)
def test_what_is_of_another_kind_is_named_with_what_is_needed(tune, settings, sentence):
    with pytest.raises(TypeError, match=sentence):
        tune(**settings)


def test_a_text_shorter_than_a_window_trains_and_nothing_is_held_out(
    tune, model, monkeypatch, tmp_path
):
    step, counted = Pace.step, []
    monkeypatch.setattr(Pace, "step", lambda self, n: (counted.append(n), step(self, n)))
    run = tune("the cat sat", steps=6)
    tokens = len(model.tokenizer.encode("the cat sat")) + 1
    assert counted == [2 * tokens] * 6, "padding is no speed"
    assert run.status == "finished" and run.base_loss is None
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert [row["held_out_loss"] for row in run.evaluations] == [None, None, None]
    assert any("Nothing is held out, so" in line for line in tune.said)
    assert not list(tmp_path.glob("*.json*"))  # without `out` nothing is written
    with pytest.raises(ValueError, match="give finetune out="):
        run.checkpoint()


def test_a_corpus_may_be_given_and_has_to_fit(tune, model, tmp_path):
    found = corpus.prepare(TEXT, model.tokenizer, context=16, held_out=0.2, cache=tmp_path / "c")
    same = tune(found, steps=2, context=None)
    assert bits(same)[0] == bits(tune(steps=2))[0] and same.corpus is found
    with pytest.raises(ValueError, match="context is 8, but the corpus has windows of 16"):
        tune(found, context=8)
    from gptj_lab.tokenizer import train_bpe

    other = corpus.prepare(TEXT, train_bpe(["a b"], 270), context=16, cache=tmp_path / "c")
    with pytest.raises(ValueError, match="another tokenizer"):
        tune(other, context=None)


def test_a_full_disk_is_noted_and_the_run_goes_on(tune, tmp_path, monkeypatch):
    save, refused = TrainingStates.save, []

    def full(self, step, *given, **more):
        if step in (4, 8) and step not in refused:
            refused.append(step)
            raise OSError(f"the state of step {step} could not be saved, the disk is full")
        save(self, step, *given, **more)

    monkeypatch.setattr(TrainingStates, "save", full)
    run = tune(out=tmp_path / "out")
    assert run.step == 8 and refused == [4, 8]
    assert any("step 4 could not be saved" in note for note in run.notes)
    # The last one is tried again at the end, and was saved then.
    assert run.status == "finished" and (tmp_path / "out" / "states" / "step_8").is_dir()


def test_a_broken_folder_of_records_reads_as_far_as_it_goes(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\nnonsense\n[1]\n{"step": 2, "loss": 1.0}\n{"step"')
    found = recording.Recording(tmp_path)
    assert [row["step"] for row in found.history] == [1, 2] and found.evaluations == []


def test_int8_weights_train_as_they_lie(tune, model, tmp_path):
    model.save(tmp_path / "tiny")
    settings = dict(steps=3, out=tmp_path / "out")
    run = tune(model=load(tmp_path / "tiny", weights="int8"), **settings)
    assert run.status == "finished" and run.model.weights == "int8"
    assert lora.names(run.model) == ["default"] and math.isfinite(run.history[-1]["loss"])
    with pytest.raises(ValueError, match="Full can't train"):
        tune(model=load(tmp_path / "tiny", weights="int8"), method=gptj_lab.Full())


@pytest.mark.slow
def test_a_run_on_a_mesh_is_that_of_one_device(tune, model, tmp_path):
    model.save(tmp_path / "tiny")
    mesh = gptj_lab.mesh(data=2, model=2)
    cut = tune(model=load(tmp_path / "tiny", mesh=mesh), steps=3, dtype="float32")
    alone = tune(model=load(tmp_path / "tiny"), steps=3, dtype="float32")
    for ours, theirs in zip(cut.history, alone.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
    assert cut.base_loss == pytest.approx(alone.base_loss, rel=2e-5)
