"""What the TuneBoard answers to its view; docs/tuneboard_protocol.md tells it in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.finetuning.control import ACTIVE
from gptj_lab.finetuning.corpus import Corpus
from gptj_lab.finetuning.run import Run
from gptj_lab.widgets import tuneboard_data, tuneboard_form, tuneboard_runs
from gptj_lab.widgets.explorer import Explorer
from gptj_lab.widgets.explorer_requests import SESSION
from gptj_lab.widgets.tuneboard_curves import flags, held_out
from gptj_lab.widgets.tuneboard_result import Result
from gptj_lab.widgets.tuneboard_samples import samples

if TYPE_CHECKING:
    from gptj_lab.widgets.tuneboard import TuneBoard

Message = dict[str, Any]
Answer = tuple[Message, list[Any]]
_OTHERS = 6  # runs whose held-out losses are drawn beside those of the one that is shown


def about(board: TuneBoard) -> Message:
    """The trait `about`: what stays as it is."""
    model, config = board.model, board.model.config
    layers = f"{config.num_layers} layer{'s' * (config.num_layers > 1)}"
    return {
        "version": 1, "session": SESSION, "name": model.name or "the model",
        "title": f"{config.family_title}, {layers}, d_model {config.d_model}, "
        f"{config.num_parameters:,} parameters, {model.weights}",
        "context": config.context, "upload_bytes": tuneboard_data.UPLOAD_BYTES,
        "part_bytes": tuneboard_data.PART_BYTES,
        "fields": [dataclasses.asdict(field) for field in tuneboard_form.FIELDS],
    }  # fmt: skip


def summary(board: TuneBoard) -> str:
    """The board in a sentence, for who can't see it."""
    if board.run is None:
        return f"TuneBoard for {board.model.name or 'a model'}: no run yet"
    return f"TuneBoard: {tuneboard_runs.title(board.run)}"


def answers(board: TuneBoard, message: Any, buffers: list[Any]) -> Iterator[Answer]:
    """The answers to one message.

    Raises:
        ValueError: no such request, or one that can't be granted; the view shows it.
    """
    if not isinstance(message, dict) or message.get("op") not in _ANSWERS:
        raise ValueError(f"a request is a dictionary with an op: {', '.join(_ANSWERS)}")
    if message["op"] == "upload":
        yield _upload(board, message, buffers)
    else:
        yield from _parts(*_ANSWERS[message["op"]](board, message))


def _parts(content: Message, buffers: list[Any]) -> Iterator[Answer]:
    """An answer with a file as several messages, none so large that it ends a connection."""
    if content["op"] != "file":
        yield content, buffers
        return
    (data,) = buffers
    size = tuneboard_data.PART_BYTES
    parts = max(1, -(-len(data) // size))
    for part in range(parts):
        piece = data[part * size : (part + 1) * size]
        yield content | {"part": part, "parts": parts}, [piece]


def _hello(board: TuneBoard, _: Message) -> Answer:
    return {"op": "board", "form": board._form, "plan": plan(board)}, []


def _change(board: TuneBoard, message: Message) -> Answer:
    board._change(message["form"], board.settings)
    return {"op": "board", "form": board._form, "plan": plan(board)}, []


def plan(board: TuneBoard) -> Message:
    """What the next run needs: sentences and numbers, or why it can't be told."""
    try:
        estimate = board.estimate
    except (OSError, ValueError) as error:
        return {"error": str(error)}
    return {
        "told": board.told, "sentence": str(estimate),
        "fits": bool(estimate.fits), "needed": estimate.needed,
        "device": estimate.device, "trainable": estimate.trainable, "total": estimate.total,
        "flops": estimate.flops_per_token, "bytes": [list(each) for each in estimate.bytes.items()],
        "rate": board.rate, "tokens": board.settings["batch"] * board.context,
        "context": board.context,
    }  # fmt: skip


def _poll(board: TuneBoard, message: Message) -> Answer:
    preparation = board._preparation
    content: Message = {
        "op": "state", "data": preparation.number, "preparing": preparation.is_busy,
        "data_error": preparation.error, "has_data": preparation.corpus is not None,
        "runs": len(board.runs), "run": None, "status": "none", "table": [], "others": [],
        "flags": [], "evaluations": 0, "note": board.note,
    }  # fmt: skip
    if not board.runs:
        return content, []
    number = _number(board, message)
    run = board.runs[number]
    curves = board._curves_of(run).read(list(run.history))
    content |= {
        "run": number, "status": run.status, "step": run.step, "steps": run.steps,
        "seconds_left": _finite(run.seconds_left), "base_loss": _finite(run.base_loss),
        "tokens_per_second": _finite(run.tokens_per_second), "error": run.error or "",
        "title": tuneboard_runs.title(run), "can_save": bool(run.settings.get("out")),
        "flags": flags(run, run.base.config.vocab_size), "table": tuneboard_runs.rows(board.runs),
        "evaluations": len(run.evaluations), "others": _others(board, number),
        "best": board._result is not None and board._result.run is run and board._result.best,
        "active": any(each.status in ACTIVE for each in board.runs),
    }  # fmt: skip
    evaluations = held_out(list(run.evaluations))
    return content, [np.ascontiguousarray(each).tobytes() for each in (curves, evaluations)]


def _others(board: TuneBoard, shown: int) -> list[Message]:
    """Held-out losses of other runs, so that they are drawn beside those of the one shown."""
    found = []
    for number, run in list(enumerate(board.runs))[-_OTHERS - 1 :]:
        if number != shown and run.evaluations:
            step, loss, _ = held_out(list(run.evaluations))[:, -64:]
            known = np.isfinite(loss)
            points = np.stack([step[known], loss[known]], 1).tolist()
            found.append({"run": number, "points": points})
    return found


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _number(board: TuneBoard, message: Message) -> int:
    """The run that a message means; by default the newest."""
    number = message.get("run")
    if number is None:
        number = len(board.runs) - 1
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(board.runs):
        raise ValueError(f"run is {number!r}: there are {len(board.runs)}, counted from 0")
    return number


def _run(board: TuneBoard, message: Message) -> Run:
    return board.runs[_number(board, message)]


def _data(board: TuneBoard, _: Message) -> Answer:
    corpus, settings = board._preparation.corpus, board.settings
    if corpus is None:
        return {"op": "data", "name": "", "sentences": [], "windows": []}, []
    return tuneboard_data.told(
        corpus, tuneboard_data.name_of(board.source), settings["steps"], settings["batch"]
    ), []


def _read(board: TuneBoard, message: Message) -> Answer:
    board._read(tuneboard_data.source_of(str(message["path"])))
    return _poll(board, {})


def _upload(board: TuneBoard, message: Message, buffers: list[Any]) -> Answer:
    board._idle("another text")
    path = board._upload.take(message, b"".join(bytes(each) for each in buffers))
    if path is not None:
        board._read(path)
    return {"op": "uploaded", "next": message["part"] + 1, "done": path is not None}, []


def _window(board: TuneBoard, message: Message) -> Answer:
    corpus = board._preparation.corpus
    if not isinstance(corpus, Corpus):
        raise ValueError("there is no text yet: drop a file, or give its path")
    return tuneboard_data.window(corpus, message["number"]), []


def _start(board: TuneBoard, message: Message) -> Answer:
    board._change(message["form"], board.settings)
    preparation = board._preparation
    if preparation.is_busy:
        raise ValueError("the text is being read: wait a moment")
    if preparation.corpus is None:
        raise ValueError(preparation.error or "there is no text yet: drop a file, or give its path")
    board._begin(preparation.corpus)
    return _poll(board, {})


def _steer(board: TuneBoard, message: Message) -> Answer:
    """Pause, resume, stop, checkpoint."""
    getattr(_run(board, message), message["op"])()
    return _poll(board, message)


def _samples(board: TuneBoard, message: Message) -> Answer:
    return samples(list(_run(board, message).evaluations), message["index"]), []


def _open(board: TuneBoard, message: Message) -> Answer:
    """A view of base and tuned model, which this one shows below itself."""
    if message["what"] not in ("playground", "explorer"):
        raise ValueError(f"what is {message['what']!r}: playground or explorer")
    run, prompt = _run(board, message), str(message.get("prompt") or "") or None
    opened = board._playground if message["what"] == "playground" else board._explorer
    view = board._opened[message["what"]] = opened(run, prompt)
    told = {"op": "opened", "what": message["what"], "model": view.model_id}
    result = board._result_of(run)
    return told | {"scale": result.scale, "step": result.step}, []


def _scale(board: TuneBoard, message: Message) -> Answer:
    result = board._result_of(_run(board, message))
    result.scale = message["scale"]
    return _scaled(board, result)


def _weights(board: TuneBoard, message: Message) -> Answer:
    """Those of the lowest held-out loss, or the last ones."""
    result = board._result_of(_run(board, message))
    result.best = bool(message["best"])
    return _scaled(board, result)


def _scaled(board: TuneBoard, result: Result) -> Answer:
    explorer = board._opened.get("explorer")
    if isinstance(explorer, Explorer):
        explorer.run()  # else it would say that its weights are of yesterday
    told = {"op": "scaled", "scale": result.scale, "best": result.best, "step": result.step}
    return told | {"text": result.words()}, []


def _export(board: TuneBoard, message: Message) -> Answer:
    run = _run(board, message)
    match message["kind"]:
        case "csv":
            data, name = tuneboard_runs.csv(run).encode(), "run.csv"
        case "json":
            data, name = tuneboard_runs.json_of(board.runs).encode(), "runs.json"
        case "result":
            best = board._result_of(run).best
            data, name = tuneboard_data.packed(lambda to: run.save(to, best=best)), "tuned.zip"
        case kind:
            raise ValueError(f"kind is {kind!r}: csv, json or result")
    return {"op": "file", "name": name}, [data]


def _save(board: TuneBoard, message: Message) -> Answer:
    directory = str(message["directory"]).strip()
    if not directory:
        raise ValueError("the folder is empty: name one to save into")
    run = _run(board, message)
    result = board._result_of(run)
    by = f"by step {result.step:,}"
    if not message.get("merged"):
        run.save(directory, best=result.best)
        return {"op": "saved", "text": f"Saved what was trained {by} into {directory}."}, []
    result.merged().save(directory)
    text = f"Saved a whole model into {directory}, with {result.scale:.2f} of what was learnt {by}."
    return {"op": "saved", "text": text}, []


def _code(board: TuneBoard, _: Message) -> Answer:
    return {"op": "code", "text": board.code()}, []


def _pin(board: TuneBoard, message: Message) -> Answer:
    run = _run(board, message)
    picture = tuneboard_runs.picture(run, board._curves_of(run))
    return {"op": "pinned", "alt": picture.alt, "name": "run.png"}, [picture.png(60_000)]


def _ping(_: TuneBoard, __: Message) -> Answer:
    return {"op": "pong", "session": SESSION}, []


_ANSWERS = {
    "hello": _hello, "change": _change, "poll": _poll, "data": _data, "read": _read,
    "upload": None, "window": _window, "start": _start, "pause": _steer, "resume": _steer,
    "stop": _steer, "checkpoint": _steer, "samples": _samples, "open": _open, "scale": _scale,
    "weights": _weights,
    "export": _export, "save": _save, "code": _code, "pin": _pin, "ping": _ping,
}  # fmt: skip
