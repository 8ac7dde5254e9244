"""A run that is killed at any moment and resumed = the run uninterrupted, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "GPTJ_LAB_CACHE": str(folder / "corpora"),
        }

    def start(self, out: Path, hold=None) -> subprocess.Popen:
        job = dict(model=str(self.folder / "model"), text=str(self.folder / "text.txt"),
                   out=str(out), steps=STEPS, hold=hold)  # fmt: skip
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

    def kill(self, out: Path, moment: tuple) -> None:
        """Starts, and kills with SIGKILL at ("step", number, delay) or (place, save, delay)."""
        kind, number, delay = moment
        process = self.start(out, None if kind == "step" else [kind, number])
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


SAME = ("step", "loss", "gradient_norm", "rate", "held_out_loss", "samples", "best")


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    tiny_model.save(folder / "model")
    rng = random.Random(5)
    lines = [
        " ".join(rng.choices("the cat dog sat on a mat log and".split(), k=12)) for _ in range(90)
    ]
    (folder / "text.txt").write_text("\n".join(lines))
    return Runs(folder)


@pytest.fixture(scope="module")
def untouched(runs):
    """The run that nobody interrupts."""
    result = runs.finish(runs.folder / "untouched")
    assert [row["step"] for row in result["history"]] == list(range(1, STEPS + 1))
    assert len(set(row["loss"] for row in result["history"])) == STEPS
    return result


def states(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "states").glob("step_*"))


def resumed_is_the_same(runs, out, untouched) -> None:
    there = max(states(out), default=0)
    result = runs.finish(out)
    for name in ("adapters", "history", "evaluations"):
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


def test_killed_inside_a_save_and_at_a_step_it_ends_as_if_nothing_had_been(runs, untouched):
    out = runs.folder / "killed twice"
    runs.kill(out, ("hashing", 3, 0))
    assert states(out) == [4, 8] and list((out / "states").glob(".saving-*"))
    runs.kill(out, ("step", 5, 0.01))
    resumed_is_the_same(runs, out, untouched)


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(), ids=lambda m: f"{m[0]}-{m[1]}-{1000 * m[2]:.0f}ms")
def test_killed_at_30_moments(runs, untouched, moment, tmp_path):
    out = tmp_path / "out"
    runs.kill(out, moment)
    print(moment, "states", states(out), [p.name for p in (out / "states").glob(".*-*")])
    resumed_is_the_same(runs, out, untouched)
