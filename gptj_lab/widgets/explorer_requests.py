"""The requests of the Explorer's view that change something, or belong to no run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gptj_lab.widgets import explorer_answers
from gptj_lab.widgets.explorer_answers import Answer, Message, f4, names
from gptj_lab.widgets.explorer_edits import index
from gptj_lab.widgets.explorer_sweeps import ABLATED, Sweep

if TYPE_CHECKING:
    from gptj_lab.widgets.explorer import Explorer

SESSION = secrets.token_hex(8)  # of this kernel: a view from before a restart knows another
_MOST_NEW = 512  # tokens that the view may ask for at once
_COMPILED = [0]


def compiled() -> int:
    """How many programs XLA has compiled in this process since the Explorer was imported."""
    return _COMPILED[0]


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    _COMPILED[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def _hello(explorer: Explorer, _: Message) -> Answer:
    content, buffers = explorer_answers.ran(explorer._session)
    return content | {"seconds": explorer._seconds, "compiled": explorer._compiled}, buffers


def _run(explorer: Explorer, asked: Message) -> Answer:
    prompt_b = asked.get("prompt_b")
    explorer._run(asked["prompt"], explorer.prompt_b if prompt_b is None else prompt_b)
    return _hello(explorer, asked)


def _ping(_: Explorer, __: Message) -> Answer:
    return {"op": "pong", "session": SESSION}, []


def _code(explorer: Explorer, _: Message) -> Answer:
    return {"op": "code", "text": explorer.code()}, []


def _pin(explorer: Explorer, _: Message) -> Answer:
    picture, alt, below = explorer._pin()
    return {"op": "pinned", "alt": alt, "name": "explorer.png", "below": below}, [picture]


def _state(explorer: Explorer, _: Message) -> Answer:
    return {"op": "state", "state": explorer.state}, []


def _restore(explorer: Explorer, asked: Message) -> Answer:
    if not isinstance(asked["state"], dict):
        raise ValueError(f"the state is a {type(asked['state']).__name__}: a dictionary is needed")
    explorer._restore(asked["state"])
    return _hello(explorer, asked)


def _intervene(explorer: Explorer, asked: Message) -> Answer:
    position = _position(explorer, asked)
    return _edited(explorer, position, lambda: explorer._edit(asked["interventions"]))


def _undo(explorer: Explorer, asked: Message) -> Answer:
    return _edited(explorer, _position(explorer, asked), explorer._undo)


def _edited(explorer: Explorer, position: int, change: Callable[[], Any]) -> Answer:
    before, begun = compiled(), time.perf_counter()
    change()
    content, buffers = explorer_answers.follows(explorer._session, position)
    seconds = time.perf_counter() - begun
    return content | {"compiled": compiled() - before, "seconds": seconds}, buffers


def _sweep(explorer: Explorer, asked: Message) -> Answer:
    explorer._sweep = sweep = Sweep(
        explorer._session, asked["what"], asked.get("token"), asked.get("minus"),
        asked.get("position"),
    )  # fmt: skip
    explorer._sweep_number += 1
    asked_of = [sweep.token] if sweep.minus is None else [sweep.token, sweep.minus]
    tokens = " over ".join(f"'{explorer._session.model.tokenizer.display(t)}'" for t in asked_of)
    said = f"The change of the logit of {tokens} without each of them."
    if sweep.what not in ABLATED:
        said = (
            f"How much of A's lead of {tokens}, in logits, each value of A brings back in B's run: "
            "0 none, 1 all."
        )
    content = {
        "op": "sweep", "sweep": explorer._sweep_number, "what": sweep.what, "rows": "layer",
        "columns": sweep.columns, "shape": list(sweep.grid.shape), "token": sweep.token,
        "minus": sweep.minus, "position": sweep.position,
        "names": names(explorer._session, asked_of), "sentence": said,
        **_progress(sweep, 0),
    }  # fmt: skip
    return content, [b""]


def _sweep_next(explorer: Explorer, asked: Message) -> Answer:
    sweep = explorer._sweep
    if sweep is None or asked.get("sweep") != explorer._sweep_number:
        return {"op": "outdated"}, []
    begun, cells = sweep.advance()
    return {"op": "sweep", "sweep": explorer._sweep_number, **_progress(sweep, begun)}, [f4(cells)]


def _progress(sweep: Sweep, begun: int) -> Message:
    return {"done": sweep.done, "total": sweep.grid.size, "from": begun}


def _generate(explorer: Explorer, asked: Message) -> Answer:
    count = index("max_new_tokens", asked.get("max_new_tokens", 16), _MOST_NEW + 1)
    explorer._begin(count, asked.get("temperature", 0.0), asked.get("seed", 0))
    return {"op": "generated", "ids": [], "names": {}, "last": False}, [b""]


def _generate_next(explorer: Explorer, _: Message) -> Answer:
    decoding = explorer._decoding
    if decoding is None:
        return {"op": "outdated"}, []
    row = decoding.rows[0]
    made = len(row.tokens)
    last = not decoding.advance()
    new = row.tokens[made:]
    if last:
        explorer._take_over()
    ids = [token.id for token in new]
    content = {
        "op": "generated", "ids": ids, "names": names(explorer._session, ids), "last": last,
    }  # fmt: skip
    return content, [f4(np.array([token.logprob for token in new]))]


def _generate_stop(explorer: Explorer, _: Message) -> Answer:
    decoding = explorer._decoding
    if decoding is None:
        return {"op": "outdated"}, []
    decoding.cancel()
    if decoding.rows[0].tokens:
        explorer._take_over()
    explorer._decoding = None
    return {"op": "generated", "ids": [], "names": {}, "last": True}, [b""]


def _position(explorer: Explorer, asked: Message) -> int:
    seq = len(explorer._session.a)
    position = asked.get("position")
    return seq - 1 if position is None else index("position", position, seq)


FREE: dict[str, Callable[[Explorer, Message], Answer]] = {
    "hello": _hello, "run": _run, "ping": _ping, "code": _code, "pin": _pin, "state": _state,
    "restore": _restore,
}  # fmt: skip
CHANGING: dict[str, Callable[[Explorer, Message], Answer]] = {
    "intervene": _intervene, "undo": _undo, "sweep": _sweep, "sweep_next": _sweep_next,
    "generate": _generate, "generate_next": _generate_next, "generate_stop": _generate_stop,
}  # fmt: skip
