"""What to change so that a job fits: every change is planned again before it is said."""

import itertools
from collections.abc import Iterator
from typing import Any

from gptj_lab.mesh import hardware as machines
from gptj_lab.mesh.planner import Advice, Plan, gigabytes, on_paper

_MOST = 4  # sentences


def advise(failed: Plan) -> tuple[Advice, ...]:
    """Changes that make a plan fit: single ones, else pairs, else that none was found."""
    singles = list(_changes(failed))
    found: dict[tuple[str, ...], Advice] = {}  # the first that fits of every kind of change
    for size in (1, 2):
        for changes in itertools.combinations(singles, size):
            kind = tuple(key for _, change in changes for key in change)
            if not found.get(kind) and len(found) < _MOST and (said := _tried(failed, changes)):
                found[kind] = said
        if found:
            return tuple(found.values())
    return (
        Advice("Nothing that was tried makes it fit: take a smaller model or a larger chip.", {}),
    )


def _changes(failed: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Words and arguments of every change that could help, the gentlest first."""
    setting = failed.setting
    if setting.job != "generate" and not setting.remat:
        yield "recompute blocks (remat=True)", {"remat": True}
    if setting.weights == "float32":
        yield f"{failed.hardware.half} weights", {"weights": failed.hardware.half}
    if setting.job in ("generate", "lora") and setting.weights != "int8":
        yield "int8 weights", {"weights": "int8"}
    if setting.job in ("finetune", "pretrain"):
        yield (
            "LoRA instead of training every weight",
            {"job": "lora", "weights": failed.hardware.half},
        )
        yield "LoRA on int8 weights", {"job": "lora", "weights": "int8"}
    for batch in _halved(setting.batch, setting.data):
        yield f"a smaller batch of {batch}", {"batch": batch}
    for context in _halved(setting.context, 128):
        yield f"a shorter context of {context} tokens", {"context": context}
    if setting.data > 1:
        for width in range(setting.model + 1, failed.hardware.devices + 1):
            if failed.hardware.devices % width == 0:
                mesh = {"data": failed.hardware.devices // width, "model": width}
                yield f"more devices along model ({width})", mesh
    for machine in machines.larger(failed.hardware):
        yield f"more chips ({machine.name})", {"hardware": machine.name}


def _halved(value: int, least: int) -> Iterator[int]:
    """Half of the value, a quarter, ...: multiples of `least`, largest first."""
    while value % 2 == 0 and (value := value // 2) >= least and value % least == 0:
        yield value


def _tried(failed: Plan, changes: tuple[tuple[str, dict[str, Any]], ...]) -> Advice | None:
    """The advice to make these changes, if the plan then fits."""
    arguments = {key: value for _, change in changes for key, value in change.items()}
    if len(arguments) < sum(len(change) for _, change in changes):
        return None  # two changes of the same thing
    try:
        new = replan(failed, **arguments)
    except ValueError:
        return None  # the mesh doesn't divide the network, ...
    if not new.fits:
        return None
    words = " and ".join(words for words, _ in changes)
    return Advice(
        f"It would fit with {words}: {gigabytes(new.total)} of {gigabytes(new.memory)}.", arguments
    )


def replan(failed: Plan, **change: Any) -> Plan:
    """The plan with other arguments of `plan`; a new machine gets its own mesh.

    Raises:
        ValueError: the change is not sound.
    """
    setting = failed.setting
    arguments: dict[str, Any] = {
        name: getattr(setting, name)
        for name in ("job", "weights", "batch", "context", "data", "model", "rank", "remat")
    }
    if {"hardware", "data", "model"} & set(change):
        arguments |= {"data": None, "model": None}
        if setting.batch == setting.data:  # one sequence a replica, however many there are
            arguments["batch"] = None
    arguments = {"hardware": failed.hardware.name} | arguments | change
    return on_paper(failed.name, setting.config, **arguments)
