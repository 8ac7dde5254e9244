"""Several processes are one: the same loss, the same tokens; when one dies, all end and say so."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gptj_lab
from gptj_lab.mesh import distributed

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(processes, devices, directory, do, ids=None, **more):
    """Starts worker.py in each process; the processes."""
    job = dict(
        port=free_port(), processes=processes, devices=devices, directory=str(directory), do=do,
        **{"mesh": [2, -1]} | more,
    )  # fmt: skip
    return [_process(job | {"process": i}) for i in (range(processes) if ids is None else ids)]


def _process(job):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if job.get("slurm"):  # what srun gives; JAX makes the port of the job's number
        environment |= dict(SLURM_JOB_ID=str(job["port"]), SLURM_STEP_NODELIST="localhost")
        environment |= dict(SLURM_NTASKS=str(job["processes"]), SLURM_LOCALID="0")
        environment |= dict(SLURM_PROCID=str(job["process"]))
    return subprocess.Popen(
        [sys.executable, "-u", WORKER, json.dumps(job)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(running, seconds):
    """(exit code, stdout, stderr) of each; none of them outlives the test."""
    end = time.monotonic() + seconds
    try:
        out = [one.communicate(timeout=max(end - time.monotonic(), 1)) for one in running]
    finally:
        for one in running:
            one.kill()
    return [(one.returncode, *said) for one, said in zip(running, out, strict=True)]


def results(finished):
    assert all(code == 0 for code, _, _ in finished), [said[-2000:] for _, _, said in finished]
    return [json.loads(out.splitlines()[-1]) for _, out, _ in finished]


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder)
    return folder


@pytest.fixture(scope="module")
def alone(directory):
    """A function: what one process with one device finds, with or without a step of training."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    before, sys.argv = sys.argv, ["worker.py", '{"devices": 8}']
    flags = os.environ["XLA_FLAGS"]
    try:
        spec.loader.exec_module(worker)
    finally:
        sys.argv, os.environ["XLA_FLAGS"] = before, flags
    model = gptj_lab.load(directory)
    return lambda train, out=None: (
        worker.finetuned(model, out) if out else worker.compare(model, train)
    )


def same(found, alone):
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["logits"], alone["logits"], rtol=1e-5)
    assert found["tokens"] == alone["tokens"]
    assert found["reasons"] == alone["reasons"]


def test_two_processes_find_what_one_finds(directory, alone):
    running = launch(2, 1, directory, "compare", mesh=[1, 2])
    expected = alone(train=False)
    both = results(finish(running, 240))
    assert [found["process"] for found in both] == [0, 1]
    for found in both:
        assert found["devices"] == 2
        same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_more_processes_and_devices_find_the_same(processes, devices, directory, alone):
    expected = alone(train=True)
    assert expected["losses"][1] < expected["losses"][0] - 0.01
    all_of_them = results(finish(launch(processes, devices, directory, "train"), 500))
    assert len(all_of_them) == processes
    for found in all_of_them:
        assert found["devices"] == processes * devices
        same(found, expected)


@pytest.mark.slow
def test_several_processes_save_one_model(directory, tiny_model, tmp_path):
    both = results(finish(launch(2, 1, directory, "save", mesh=[1, 2], to=str(tmp_path)), 240))
    assert all("model.safetensors" in found["files"] for found in both)
    again = gptj_lab.load(tmp_path)
    assert (again.logits([[1, 2, 3]]) == tiny_model.logits([[1, 2, 3]])).all()


@pytest.mark.slow
def test_several_processes_fine_tune_and_go_on_as_one_does(directory, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path / "corpora"))
    expected = alone(train=True, out=tmp_path / "alone")
    to = tmp_path / "together"
    both = results(finish(launch(2, 2, directory, "finetune", mesh=[2, 2], to=str(to)), 400))
    for found in both:
        assert found["status"] == "finished" and "resumed from step 4" in found["notes"][0]
        assert len(found["losses"]) == 6 and len(found["held_out"]) == 4
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(found["held_out"], expected["held_out"], rtol=1e-5)
    assert len((to / "history.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_slurm_is_asked_where_nothing_is_given(directory):
    running = launch(2, 1, directory, "save", mesh=[1, 2], slurm=True, to=str(directory))
    both = results(finish(running, 240))
    assert [(found["process"], found["devices"]) for found in both] == [(0, 2), (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_run_with_a_message(victim, directory):
    """One that waits for a lost one sees the connection end: no need to wait for heartbeats."""
    begun = time.monotonic()
    finished = finish(launch(2, 1, directory, "die", mesh=[1, 2], victim=victim), 240)
    assert finished[victim][0] == -9
    code, _, said = finished[1 - victim]
    assert code not in (0, None)
    assert "lost another process of the run" in said or "another task died" in said, said[-3000:]
    assert time.monotonic() - begun < 120  # the start, some compiling, 10 s of heartbeats


@pytest.mark.slow
def test_a_process_that_waits_for_nothing_ends_after_the_heartbeats(directory):
    finished = finish(launch(2, 1, directory, "idle", mesh=[1, 2]), 240)
    assert finished[1][0] == -9
    code, _, said = finished[0]
    assert code not in (0, None) and "another task died" in said, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, 1])
def test_processes_that_never_come_are_waited_for_so_long_and_no_longer(present, directory):
    begun = time.monotonic()
    (one,) = finish(launch(2, 1, directory, "compare", ids=[present], join=3), 60)
    assert one[0] == 1
    assert f"process {present} of 2 didn't find the others at 127.0.0.1:" in one[2]
    assert "within 3 s" in one[2]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("10.0.0.1", 2, 0), "coordinator is '10.0.0.1': 'host:port'"),
        ((None, 2, 0), "coordinator is None"),
        (("a:1", None, 0), "num_processes is None"),
        (("a:1", 2, None), "process_id is None"),
        (("a:1", 2, True), "process_id is True"),
        (("a:1", 2, 2), "process_id is 2 of num_processes 2: numbers from 0 to 1"),
    ],
)
def test_a_start_that_does_not_fit(given, words):
    with pytest.raises(ValueError, match=words):
        distributed.start(*given)


def test_a_start_after_the_first_computation_is_refused():
    np.asarray(gptj_lab.mesh(data=1, model=1).devices)
    with pytest.raises(RuntimeError, match="comes too late"):
        distributed.start("127.0.0.1:1", 2, 0)


def test_gather_of_an_array_of_one_process_is_the_array():
    array = np.arange(6).reshape(2, 3)
    assert (distributed.gather(array) == array).all()
    distributed.wait_for_all("nobody else is there")
