"""Saved = restored, bit for bit, on any mesh; newest and best stay; damaged ones are passed by."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptj_lab.checkpoints import folder_lock, seals, training_state
from gptj_lab.checkpoints.training_state import TrainingStates
from gptj_lab.mesh.sharding import make_mesh


def tree(seed: int = 0):
    weights = {"q": jax.random.normal(jax.random.key(seed), (8, 4)), "b": jnp.arange(3.0)}
    return {"trained": weights, "moments": optax.adamw(1e-3).init(weights)}


def like(arrays):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)


def bits(array) -> tuple[str, bytes]:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return str(array.dtype), np.asarray(jax.random.key_data(array)).tobytes()
    return str(array.dtype), np.asarray(array).tobytes()


def same(left, right) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        bits(a) == bits(b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def fill(folder: Path, measures: dict[int, float | None], keep: int = 2) -> None:
    with TrainingStates(folder, keep=keep) as states:
        for step, measure in measures.items():
            states.save(step, tree(step), {"step": step}, measure=measure)


def data_file(state: Path) -> Path:
    return max((state / "arrays").rglob("ocdbt*/d/*"), key=os.path.getsize)


def truncate(state: Path) -> None:
    file = data_file(state)
    os.truncate(file, file.stat().st_size // 2)


def test_every_kind_of_array_comes_back_bit_for_bit(tmp_path):
    odd = np.array([np.nan, -0.0, 1e-42, np.inf, -1.5], np.float32)
    odd[0:1].view(np.uint32)[0] |= 0x1234  # a NaN of its own
    arrays = {
        "odd": jnp.asarray(odd),
        "bfloat16": jnp.asarray(odd, jnp.bfloat16),
        "int8": jnp.arange(-4, 4, dtype=jnp.int8),
        "bool": jnp.asarray([True, False]),
        "scalar": jnp.asarray(7, jnp.uint32),
        "empty": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(5), (2, 2)),
        "hardware key": jax.random.key(3, impl="rbg"),
        "optimiser": tree()["moments"],
    }
    record = {"data": {"grain": {"next": 12}}, "rate": 0.1 + 0.2, "text": "naïve 🙂", "none": None}
    with TrainingStates(tmp_path) as states:
        assert states.restore(like(arrays)) is None
        states.save(3, arrays, record, measure=2.5)
        state = states.restore(like(arrays))
        assert state is not None and same(state.arrays, arrays)
        assert (state.step, state.record, state.measure, state.notes) == (3, record, 2.5, [])


def test_the_newest_and_the_best_stay(tmp_path):
    nan = float("nan")
    with TrainingStates(tmp_path, keep=2) as states:
        kept = []
        for step, measure in enumerate([None, 3.0, 1.0, 2.0, nan, 1.0, None, None], 1):
            states.save(step, tree(step), {}, measure=measure)
            states.wait()
            kept.append(states.steps)
        # Of 3 and 6, which are as good, the newer one.
        assert kept == [
            [1], [1, 2], [2, 3], [3, 4], [3, 4, 5], [5, 6], [6, 7], [6, 7, 8],
        ]  # fmt: skip
        best, newest = states.restore_best(tree()), states.restore(tree())
        assert best is not None and best.step == 6 and same(best.arrays, tree(6))
        assert newest is not None and newest.step == 8 and same(newest.arrays, tree(8))
    assert {path.name for path in tmp_path.iterdir()} == {
        "lock", "holder", "step_6", "step_7", "step_8",
    }  # fmt: skip


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    with TrainingStates(tmp_path) as states:
        states.save(1, tree(1), {"first": True}, measure=1.0)
        states.save(1, tree(2), {"first": False})
        state = states.restore(tree())
        assert state is not None and state.record == {"first": True} and same(state.arrays, tree(1))


def test_restores_onto_another_mesh(tmp_path):
    def placed(data: int, model: int):
        mesh = make_mesh(data=data, model=model, devices=jax.devices()[: data * model])
        cut = NamedSharding(mesh, PartitionSpec("model", None))
        whole = NamedSharding(mesh, PartitionSpec())
        return {"w": cut, "key": whole}

    arrays = {"w": tree()["trained"]["q"], "key": jax.random.key(7)}
    with TrainingStates(tmp_path) as states:
        states.save(1, jax.device_put(arrays, placed(2, 4)), {})
        for onto in (placed(1, 8), placed(4, 2), placed(1, 1)):
            wanted = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), arrays, onto
            )
            state = states.restore(wanted)
            assert state is not None and same(state.arrays, arrays)
            assert state.arrays["w"].sharding == onto["w"]


def test_saves_while_the_run_goes_on_and_its_arrays_are_donated(tmp_path, monkeypatch):
    may_write, real = threading.Event(), seals.seal
    monkeypatch.setattr(seals, "seal", lambda folder: may_write.wait(60) and real(folder))
    step = jax.jit(lambda x: x * 2, donate_argnums=0)
    value = jnp.arange(1 << 16, dtype=jnp.float32)
    before = np.array(value)
    with TrainingStates(tmp_path) as states:
        states.save(1, {"x": value}, {})
        assert states.steps == []  # not there yet, and we are
        for _ in range(3):
            value = step(value)
        may_write.set()
        state = states.restore({"x": value})
        assert state is not None and np.array_equal(state.arrays["x"], before)
        assert not np.array_equal(value, before)


def flip(state: Path) -> None:
    file = data_file(state)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "other bytes": flip,
    "lacks arrays/manifest.ocdbt": lambda state: (state / "arrays" / "manifest.ocdbt").unlink(),
    "record.json has 5 of": lambda state: os.truncate(state / "record.json", 5),
    "no seal.json": lambda state: (state / seals.SEAL).unlink(),
    "damaged seal.json": lambda state: os.truncate(state / seals.SEAL, 40),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_newest_state_is_passed_by_and_told(tmp_path, said):
    fill(tmp_path, {1: None, 2: None})
    DAMAGES[said](tmp_path / "step_2")
    with TrainingStates(tmp_path) as states:
        state = states.restore(tree())
        assert state is not None and state.step == 1 and same(state.arrays, tree(1))
        (note,) = state.notes
        assert "the state of step 2 " in note and said in note
        assert note.endswith("went on from step 1 instead")
        states.save(2, tree(22), {})  # the run comes to step 2 again
        states.wait()
        assert states.steps == [1, 2] and not list(tmp_path.glob(".*"))
        again = states.restore(tree())
        assert again is not None and again.notes == [] and same(again.arrays, tree(22))


def test_a_damaged_best_state_is_passed_by_too(tmp_path):
    fill(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0}, keep=3)
    truncate(tmp_path / "step_1")
    with TrainingStates(tmp_path) as states:
        best = states.restore_best(tree())
        assert best is not None and best.step == 2 and "step 1 " in best.notes[0]


def test_never_begins_anew_where_all_is_damaged(tmp_path):
    fill(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        truncate(tmp_path / f"step_{step}")
    with TrainingStates(tmp_path) as states:
        with pytest.raises(ValueError, match="no saved state is whole: .*step 2 .*step 1 .*anew"):
            states.restore(tree())
        assert states.steps == [1, 2]


def test_a_state_of_another_run_is_refused_and_stays(tmp_path):
    fill(tmp_path, {1: None})
    other = tree()
    other["trained"]["q"] = jnp.zeros((8, 5))
    with TrainingStates(tmp_path) as states:
        with pytest.raises(ValueError, match=r"has trained.q as float32\[8, 4\].*float32\[8, 5\]"):
            states.restore(other)
        with pytest.raises(ValueError, match=r"has moments\..*, this run as nothing"):
            states.restore({"trained": tree()["trained"]})
        assert states.steps == [1]


def test_what_cannot_be_saved_is_refused_by_name(tmp_path):
    with TrainingStates(tmp_path) as states:
        with pytest.raises(ValueError, match="a.b is a int, no array"):
            states.save(1, {"a": {"b": 3}}, {})
        with pytest.raises(ValueError, match="record of step 1 is no JSON"):
            states.save(1, tree(), {"rate": jnp.ones(())})
        with pytest.raises(ValueError, match="two arrays of the state have one name"):
            states.save(1, {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, {})
        assert states.steps == []
    with pytest.raises(ValueError, match="keep is 0"):
        TrainingStates(tmp_path, keep=0)


class Killed(SystemExit):
    """Ends the thread that writes as a kill would: nothing after it runs."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("module", "function", "there"),
    [(seals, "seal", [1, 2]), (os, "rename", [1, 2]), (shutil, "rmtree", [2, 3])],
)
def test_a_save_that_is_killed_leaves_whole_states_only(
    tmp_path, monkeypatch, module, function, there
):
    fill(tmp_path, {1: None, 2: None})
    states = TrainingStates(tmp_path)

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, function, kill)
        states.save(3, tree(3), {})
        states.wait()
    assert list(tmp_path.glob(".*-*"))  # what a killed process leaves behind
    states.close()
    with TrainingStates(tmp_path) as again:
        assert again.steps == there and not list(tmp_path.glob(".*"))
        state = again.restore(tree())
        assert state is not None and state.notes == []
        assert state.step == there[-1] and same(state.arrays, tree(there[-1]))


def test_a_failed_write_is_told_and_the_states_before_are_whole(tmp_path, monkeypatch):
    fill(tmp_path, {1: 0.5, 2: None})

    def full(_):
        raise OSError(28, "No space left on device")

    with TrainingStates(tmp_path) as states:
        with monkeypatch.context() as patched:
            patched.setattr(training_state.seals, "seal", full)
            states.save(3, tree(3), {})
            with pytest.raises(OSError, match="step 3 .*the disk is full .*step 1, 2 are whole"):
                states.wait()
        assert states.steps == [1, 2] and not list(tmp_path.glob(".*"))
        states.save(4, tree(4), {})  # room was made
        states.wait()
        assert states.steps == [1, 2, 4]


def test_a_full_disk_is_told_and_the_states_before_are_whole(small_disk):
    arrays = {"w": jnp.arange(1e5)}  # 0.4 MB
    with TrainingStates(small_disk / "run") as states:
        for step in (1, 2):
            states.save(step, arrays, {})
        with pytest.raises(OSError, match="step 9 .*the disk is full .*step 1, 2 are whole"):
            states.save(9, {"w": jnp.arange(3e5)}, {})
            states.wait()
        state = states.restore(arrays)
        assert state is not None and state.step == 2 and same(state.arrays, arrays)
        states.save(3, arrays, {})
        states.wait()
        assert states.steps == [2, 3]


HOLD = """
import sys, time
from pathlib import Path
from gptj_lab.checkpoints import folder_lock
lock = folder_lock.take(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(600)
"""


def test_the_folder_belongs_to_one_process_until_it_dies(tmp_path):
    package = Path(folder_lock.__file__).parents[2]
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "taken\n"
        with pytest.raises(BlockingIOError, match=rf"process {other.pid} has the run in .* open"):
            TrainingStates(tmp_path)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with TrainingStates(tmp_path):
        with pytest.raises(BlockingIOError, match="this very process has the run in"):
            TrainingStates(tmp_path)
    TrainingStates(tmp_path).close()


SHARED = """
import json, os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import gptj_lab
from gptj_lab.checkpoints.training_state import TrainingStates
from gptj_lab.mesh import distributed, sharding

port, process, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
distributed.start(f"127.0.0.1:{port}", 2, process, join_seconds=60)
cut = NamedSharding(gptj_lab.mesh(data=2, model=2), PartitionSpec("data", "model"))
value = np.arange(32, dtype=np.float32).reshape(8, 4)
with TrainingStates(folder, keep=2) as states:
    for step in (1, 2, 2, 3):
        states.save(step, {"w": sharding.put(value * step, cut)}, {"step": step})
    states.wait()
    if process == 0:
        os.truncate(os.path.join(folder, "step_3", "record.json"), 9)
    multihost_utils.sync_global_devices("damaged")
    state = states.restore({"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=cut)})
    same = bool((distributed.gather(state.arrays["w"]) == value * 2).all())
    print(json.dumps([state.step, len(state.notes), same, states.steps]), flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_their_shards_together(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(port), str(process), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(Path(folder_lock.__file__).parents[2])}
            | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        )
        for process in range(2)
    ]
    try:
        said = [one.communicate(timeout=120)[0].splitlines()[-1] for one in both]
    finally:
        for one in both:
            one.kill()
    assert said == ["[2, 1, true, [2]]"] * 2
