"""Several processes or hosts as one mesh: JAX's own multi-controller runtime, and clear ends."""

import os
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_seconds: int = 300,
    heartbeat_seconds: int = 30,
) -> None:
    """Makes this process one of several that run the same program; before JAX touches a device.

    On a TPU pod, under SLURM and under Open MPI nothing has to be given: JAX asks the cluster
    (docs/mesh.md has the lines to start with). Afterwards `gptj_lab.mesh` reaches over the devices
    of all processes. A process that ends by an error, or is killed, ends all others: at once those
    that wait for it on a CPU, after `heartbeat_seconds` those that don't.

    Args:
        coordinator: "host:port" of process 0, which every process can reach.
        num_processes, process_id: how many there are, and which one this is, from 0.
        join_seconds: how long to wait for the others at the start.
        heartbeat_seconds: after so long without a sign of life a process counts as dead.

    Raises:
        ValueError: some of the three are given and some not, or they don't fit.
        RuntimeError: JAX has touched a device before, or finds no cluster to ask.
        SystemExit: the processes don't find each other in time; with a sentence, at once.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        _check(*given)
    # Does nothing where the devices are not CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX itself would abort with a stack trace of C++, so ours comes first.
    patience = threading.Timer(join_seconds, _give_up, (given, join_seconds))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=join_seconds + 60,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=join_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(_why(error)) from error
    finally:
        patience.cancel()
    if jax.process_count() > 1:
        sys.excepthook = _end


def gather(array: Any) -> np.ndarray:
    """The whole of an array on every process, also where other processes' devices hold parts.

    Every process has to ask for the same array at the same place of the program.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this place of the program, named `where`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _check(coordinator: Any, num_processes: Any, process_id: Any) -> None:
    if not isinstance(coordinator, str) or not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(
            f"coordinator is {coordinator!r}: 'host:port' of process 0 is needed, such as "
            "'10.0.0.1:12345'"
        )
    for name, value in (("num_processes", num_processes), ("process_id", process_id)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}: with a coordinator a whole number is needed")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id is {process_id} of num_processes {num_processes}: numbers from 0 to "
            f"{num_processes - 1} are there"
        )


def _why(error: Exception) -> str:
    said = str(error)
    if "before any JAX" in said or "only be called once" in said:
        return (
            "gptj_lab.mesh.distributed.start comes too late: call it once, first of all, before "
            "anything touches a device"
        )
    return (
        "JAX found no cluster to ask (TPU pod, SLURM, Open MPI): give coordinator='host:port', "
        f"num_processes and process_id. It said: {said}"
    )


def _give_up(given: tuple, join_seconds: int) -> None:
    coordinator, num_processes, process_id = given
    who = "this process" if process_id is None else f"process {process_id} of {num_processes}"
    _say(
        f"{who} didn't find the others at {coordinator or 'the cluster'} within {join_seconds} s: "
        "check that process 0 runs there, that its port can be reached, and that all were started"
    )
    os._exit(1)


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends this process at once: JAX's own way out would wait for processes that are gone."""
    traceback.print_exception(kind, error, trace)
    lost = "it lost another process of the run" if _is_loss(error) else "of the error above"
    _say(
        f"process {jax.process_index()} of {jax.process_count()} ends because {lost}; the others "
        "end too. Start all of them again: a run that was saved goes on from there"
    )
    os._exit(1)


def _say(sentence: str) -> None:
    sys.stdout.flush()
    print(f"gptj_lab: {sentence}", file=sys.stderr, flush=True)


def _is_loss(error: BaseException) -> bool:
    words = ("gloo", "connection", "heartbeat", "unavailable", "coordination", "deadline")
    said = str(error).lower()
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in said for word in words)
