"""Runs side by side: their table, what their settings differ in, and them as files."""

from __future__ import annotations

import csv as csv_files
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab import plots
from gptj_lab.mesh.planner import gigabytes
from gptj_lab.widgets.tuneboard_curves import COLUMNS, Curves, best, held_out, number

if TYPE_CHECKING:
    from gptj_lab.finetuning.doctor import Report
    from gptj_lab.finetuning.methods import Estimate
    from gptj_lab.finetuning.run import Run
    from gptj_lab.plots.picture import Picture

_MOST_DIFFERENT = 8  # settings that the table tells
_NOT_TOLD = (
    "out",
    "save_every",
    "keep",
    "evaluate_every",
    "prompts",
    "sample_tokens",
    "method.name",
    "method.kind",
)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row of numbers for each run, and the settings in which the runs differ."""
    differing = differences(runs)
    return [
        {
            "run": i, "status": run.status, "step": run.step, "steps": run.steps,
            "loss": _finite(run.history[-1].get("loss")) if run.history else None,
            "held_out": _finite((best(run.evaluations) or {}).get("held_out_loss")),
            "best_step": (best(run.evaluations) or {}).get("step"),
            "seconds": _finite(run.history[-1].get("seconds")) if run.history else None,
            "differs": {name: values[i] for name, values in differing.items()},
        }
        for i, run in enumerate(runs)
    ]  # fmt: skip


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that aren't the same in all runs: each one's value, run by run, as text."""
    flat = [{"method": _method(run.settings)} | _flat(run.settings) for run in runs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    found = {name: [_text(each.get(name)) for each in flat] for name in names}
    different = {
        name.rpartition(".")[2]: values
        for name, values in found.items()
        if len(set(values)) > 1
        and name not in _NOT_TOLD
        and not (name.startswith("method.") and any(name not in each for each in flat))
    }
    return dict(list(different.items())[:_MOST_DIFFERENT])


def _method(settings: dict[str, Any]) -> str:
    method = settings.get("method") or {}
    size = next((method[name] for name in ("rank", "count", "length") if name in method), "")
    return f"{method.get('kind', '–')} {size}".rstrip()


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))[:60] or "–"
    return "–" if value is None else str(value)[:60]


def _finite(value: Any) -> float | None:
    value = number(value)
    return value if math.isfinite(value) else None


def arrays(run: Run) -> dict[str, Any]:
    """A run's measures: float64 [steps] by name, and those of its evaluations under that name."""
    names = list(dict.fromkeys([*COLUMNS, *(name for each in run.history[-1:] for name in each)]))
    measured: dict[str, Any] = {
        name: np.array([number(each.get(name)) for each in run.history], np.float64)
        for name in names
    }
    return measured | {
        "evaluations": {
            name: np.array([number(each.get(name)) for each in run.evaluations], np.float64)
            for name in ("step", "held_out_loss", "loss")
        }
    }


def csv(run: Run) -> str:
    """The history, a line a step; held-out losses stand at their steps."""
    columns = arrays(run)
    losses = {each["step"]: each.get("held_out_loss") for each in run.evaluations}
    names = [name for name in columns if name != "evaluations"]
    out = io.StringIO()
    writer = csv_files.writer(out, lineterminator="\n")
    writer.writerow([*names, "held_out_loss"])
    for i, entry in enumerate(run.history):
        values = [columns[name][i] for name in names]
        cells = ["" if math.isnan(value) else f"{value:.10g}" for value in values]
        held = losses.get(entry["step"])
        writer.writerow([*cells, "" if held is None else f"{held:.10g}"])
    return out.getvalue()


def json_of(runs: Sequence[Run]) -> str:
    """Everything that the runs tell; what isn't a finite number is null."""
    told = [
        {
            "settings": run.settings, "status": run.status, "step": run.step, "steps": run.steps,
            "base_loss": run.base_loss, "error": run.error, "notes": list(run.notes),
            "history": list(run.history), "evaluations": list(run.evaluations),
        }
        for run in runs
    ]  # fmt: skip
    return json.dumps(_sound(told), indent=1, ensure_ascii=False, default=str)


def _sound(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _sound(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture(run: Run, curves: Curves) -> Picture:
    """A run's curves for a page, with alt text.

    Raises:
        ValueError: the run has made no step.
    """
    values = dict(zip(COLUMNS, curves.read(run.history), strict=True))
    small = {
        "learning rate": values["rate"], "gradient norm": values["gradient_norm"],
        "tokens a second": values["tokens_per_second"],
    }  # fmt: skip
    return plots.training_curves(
        values["step"], values["loss"], held_out(run.evaluations)[:2], title=title(run),
        base_loss=run.base_loss, below=small,
    )  # fmt: skip


def picture_before(name: str, estimate: Estimate, report: Report | None) -> Picture:
    """What a run will need, and the text that it will train on, for a page, with alt text."""
    kinds = [(kind, size, gigabytes(size)) for kind, size in estimate.bytes.items()]
    lengths = None if report is None else (report.length_edges, report.length_counts)
    said = ["There is no text yet."] if report is None else report.sentences[:1]
    room = "" if estimate.device is None else f" of {gigabytes(estimate.device)}"
    return plots.training_plan(
        kinds, lengths, title=f"{name}, {estimate.method}: ready to start",
        memory=f"memory of one device: about {gigabytes(estimate.needed)}{room}",
        said=[str(estimate), *said],
    )  # fmt: skip


def title(run: Run) -> str:
    """A run in a few words: the model, the method, how far it is."""
    name, method = run.base.name or "a model", run.settings["method"]["kind"]
    return f"{name}, {method}: {run.status} at step {run.step:,} of {run.steps:,}"
