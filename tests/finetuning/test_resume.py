"""A run that is killed at any moment and resumed = the run uninterrupted, bit for bit."""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import gptj_lab
from gptj_lab.finetuning import corpus, pipeline
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer

WORKER = Path(__file__).with_name("resume_worker.py")
ROOT = Path(__file__).parents[2]
STEPS = 32
PLACES = ("begin", "writing", "seal", "hashing", "sealed", "rename", "prune", "removing")


class Runs:
    """Processes that fine-tune one small model on one text, each in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "GPTJ_LAB_CACHE": str(folder / "corpora"),
        }

    def start(self, out: Path, hold=None, save_every=4) -> subprocess.Popen:
        job = dict(model=str(self.folder / "model"), text=str(self.folder / "text.jsonl"),
                   out=str(out), steps=STEPS, save_every=save_every, hold=hold)  # fmt: skip
        return subprocess.Popen(
            [sys.executable, WORKER, json.dumps(job)],
            stdout=subprocess.PIPE, stderr=(self.folder / "stderr").open("w"), text=True,
            env=self.environment,
        )  # fmt: skip

    def finish(self, out: Path) -> dict:
        """Runs to the end: what came out, and the batches that this process took."""
        process = self.start(out)
        said = process.communicate(timeout=300)[0].splitlines()
        assert process.returncode == 0, (self.folder / "stderr").read_text()[-3000:]
        result = json.loads(next(line for line in said if line.startswith("done "))[5:])
        assert result["status"] == "finished" and result["step"] == STEPS
        for name in ("history", "evaluations"):
            rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
            result[name] = [{k: row.get(k) for k in SAME} for row in rows]
        return result | {"batches": [line for line in said if line.startswith("batch ")]}

    def interrupt(self, out: Path, step: int) -> dict:
        """Starts, and sends what Ctrl-C sends when the batch of a step is taken; what came out."""
        process = self.start(out)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("batch "):
                step -= 1
                if step == 0:
                    process.send_signal(signal.SIGINT)
            if line.startswith("done "):
                break
        process.communicate(timeout=60)
        assert process.returncode == 0, (self.folder / "stderr").read_text()[-3000:]
        return json.loads(line[5:])

    def kill(self, out: Path, moment: tuple) -> None:
        """Starts, and kills with SIGKILL at ("step", number, delay) or (place, save, delay)."""
        kind, number, delay = moment
        hold = None if kind == "step" else [kind, number]
        # Here a save takes as long as several steps; every other run is killed between saves too.
        process = self.start(out, hold, 12 if kind == "step" and number % 2 else 4)
        wanted = "batch " if kind == "step" else "inside "
        assert process.stdout is not None
        try:
            for line in process.stdout:
                number -= line.startswith(wanted) if kind == "step" else 0
                if line.startswith(wanted) and (kind != "step" or number == 0):
                    break
                assert not line.startswith("done "), f"it was over before {moment}"
            else:
                raise AssertionError((self.folder / "stderr").read_text()[-3000:])
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()


SAME = ("step", "loss", "gradient_norm", "rate", "held_out_loss", "best")


@pytest.fixture(scope="module")
def runs(tiny_config, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    config = tiny_config(num_layers=1)
    network = Transformer(config, key=jax.random.key(1))
    LanguageModel(config, network, tiny_tokenizer, "tiny").save(folder / "model")
    rng = random.Random(5)
    words = "the cat dog sat on a mat log and".split()
    rows = [json.dumps({"text": " ".join(rng.choices(words, k=12))}) for _ in range(90)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    return Runs(folder)


@pytest.fixture(scope="module")
def untouched(runs):
    """The run that nobody interrupts."""
    result = runs.finish(runs.folder / "untouched")
    assert [row["step"] for row in result["history"]] == list(range(1, STEPS + 1))
    assert len(set(row["loss"] for row in result["history"])) == STEPS
    assert all(row["held_out_loss"] for row in result["evaluations"])
    return result


def states(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "states").glob("step_*"))


def resumed_is_the_same(runs, out, untouched) -> None:
    there = max(states(out), default=0)
    result = runs.finish(out)
    for name in ("weights", "history", "evaluations"):
        assert result[name] == untouched[name], name
    order = untouched["batches"][there:]
    assert result["batches"][: len(order)] == order[: len(result["batches"])]
    assert not list((out / "states").glob(".*-*"))


def moments() -> list[tuple]:
    """30 of them, seeded: at a step and a little later, and inside of each place of a save."""
    rng = random.Random(2024)
    steps = [("step", rng.randint(1, STEPS - 1), rng.uniform(0, 0.03)) for _ in range(14)]
    inside = [
        (place, rng.randint(4 if place == "removing" else 1, STEPS // 4 - 1),
         rng.uniform(0, 0.05) if place == "writing" else 0)
        for place in PLACES * 2
    ]  # fmt: skip
    return steps + inside


def test_killed_truncated_and_interrupted_it_ends_as_if_nothing_had_been(runs, untouched):
    out = runs.folder / "thrice"
    runs.kill(out, ("hashing", 3, 0))
    assert states(out) == [4, 8] and list((out / "states").glob(".saving-12"))
    truncate(out / "states" / "step_8")

    result = runs.interrupt(out, 3)
    assert result["status"] == "stopped" and 6 <= result["step"] <= 8
    assert f"resumed from step 4 in {out}" in result["notes"]
    said = " ".join(result["notes"])
    assert re.search(r"state of step 8 in .* is truncated: .* went on from step 4 instead", said)
    assert states(out) == [4, result["step"]]
    resumed_is_the_same(runs, out, untouched)


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(), ids=lambda m: f"{m[0]}-{m[1]}-{1000 * m[2]:.0f}ms")
def test_killed_at_30_moments(runs, untouched, moment, tmp_path):
    out = tmp_path / "out"
    runs.kill(out, moment)
    print(moment, "states", states(out), [p.name for p in (out / "states").glob(".*-*")])
    resumed_is_the_same(runs, out, untouched)


def truncate(state: Path) -> None:
    data = max((state / "arrays").rglob("ocdbt*/d/*"), key=os.path.getsize)
    os.truncate(data, data.stat().st_size // 2)


def train(model, out: Path, folder: Path):
    """The same run in this process."""
    found = corpus.prepare(
        folder / "text.jsonl", model.tokenizer, context=16, held_out=0.1, cache=folder / "cache"
    )
    return gptj_lab.finetune(
        model, found, method=gptj_lab.LoRA(rank=2, dropout=0.2), steps=STEPS, batch=2,
        save_every=4, evaluate_every=8, out=out, seed=3, say=lambda line: None,
    )  # fmt: skip


def test_it_goes_on_on_another_mesh(runs, untouched, quick_compiles, tmp_path):
    out, mesh = tmp_path / "out", gptj_lab.mesh(data=2, model=1)
    shutil.copytree(runs.folder / "untouched", out)
    shutil.rmtree(out / "states" / "step_32")
    run = train(gptj_lab.load(runs.folder / "model", mesh=mesh), out, runs.folder)
    assert f"resumed from step 28 in {out}" in run.notes and run.status == "finished"
    losses = [told["loss"] for told in run.history]
    wanted = [told["loss"] for told in untouched["history"]]
    # One CPU multiplies in bfloat16, a mesh in float32: bfloat16's rounding lies between them.
    assert losses[:28] == wanted[:28] and losses == pytest.approx(wanted, rel=2e-3)


def test_a_second_process_on_the_folder_is_refused(runs, untouched):
    hold = (
        "import sys, pathlib, time\nfrom gptj_lab.checkpoints import folder_lock\n"
        "lock = folder_lock.take(pathlib.Path(sys.argv[1]))\nprint(flush=True)\ntime.sleep(600)"
    )
    out = runs.folder / "untouched"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(out / "states")],
        stdout=subprocess.PIPE, env=runs.environment,
    )  # fmt: skip
    try:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} has the run in .* open"):
            train(gptj_lab.load(runs.folder / "model"), out, runs.folder)
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_a_full_disk_is_told_and_room_lets_the_run_go_on(
    runs, untouched, quick_compiles, small_disk, monkeypatch
):
    out, ballast = small_disk / "out", small_disk / "ballast"
    take, taken = pipeline.Batches.__next__, itertools.count(1)

    def watched(self):
        if next(taken) == 6:
            while not (out / "states" / "step_4").exists():
                time.sleep(0.01)
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return take(self)

    model = gptj_lab.load(runs.folder / "model")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.Batches, "__next__", watched)
        run = train(model, out, runs.folder)
    assert run.status == "failed" and run.error is not None
    assert "history.jsonl could not be written (No space left" in run.error
    assert states(out) == [4]
    ballast.unlink()
    resumed_is_the_same(runs, out, untouched)
