"""What the Explorer answers to each request of its view: dictionaries and buffers.

The messages are described in docs/explorer_protocol.md. Whatever a request names is checked here;
what is wrong becomes a sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptj_lab.lens import attribution, circuits, gradients
from gptj_lab.widgets import explorer_encoding as encoding
from gptj_lab.widgets.explorer_edits import index, label
from gptj_lab.widgets.explorer_lens import TOP, lens, lens_of
from gptj_lab.widgets.explorer_scores import ABLATION, MOVED, SCORES
from gptj_lab.widgets.explorer_session import DIFFERENCES, Session
from gptj_lab.widgets.explorer_specials import ledger, rotary_parts
from gptj_lab.widgets.tokens import token_names

Message = dict[str, Any]
Answer = tuple[Message, list[bytes]]
_WINDOW, _PINNED = 128, 8  # positions of a lens, and tokens followed over the layers, a message
f4 = functools.partial(encoding.packed, kind="f4")
i4 = functools.partial(encoding.packed, kind="i4")
u8 = functools.partial(encoding.packed, kind="u1")


def answers(session: Session, message: Message) -> Iterator[Answer]:
    """The answers to a request that only looks at the session.

    Raises:
        ValueError, KeyError: what the request names isn't there; the message says what is.
    """
    op = message["op"]
    if op not in _ANSWERS:
        raise ValueError(f"the Explorer doesn't know the request {op!r}")
    for content, buffers in _ANSWERS[op](session, message):
        yield {"op": op} | content, buffers


def names(session: Session, *ids: Any) -> dict[str, Any]:
    """The names of all the tokens in some arrays."""
    flat = [np.asarray(each, np.int64).reshape(-1) for each in ids]
    return token_names(session.model.tokenizer, np.concatenate(flat).tolist())


def ran(session: Session) -> Answer:
    """What a view needs of a new run to be drawn; it asks for the scores after that."""
    small = session.thumbnails("a")
    follow = session.next_tokens(len(session.a) - 1)
    compare = None
    if session.b is not None:
        compare = {
            "kind": "model" if session.two_models else "prompt",
            "ids": session.b.ids.tolist(),
            "tokens": _tokens(session, session.b.ids),
            "aligned": session.aligned,
        }
    content = {
        "op": "ran", "run": session.number, "prompt": session.prompt,
        "prompt_b": session.prompt_b, "ids": session.a.ids.tolist(),
        "tokens": _tokens(session, session.a.ids), "prompt_tokens": len(session.a) - session.made,
        "notes": session.notes, "mode": encoding.mode(len(session.a)), "pool": encoding.POOL,
        "thumb": small.shape[-1], "compare": compare,
        "names": names(session, follow["ids"]), "interventions": session.edits,
        "chips": [label(edit) for edit in session.edits], "undoable": bool(session.past),
        "position": len(session.a) - 1,
    }  # fmt: skip
    likeliest = follow["ids"][:10]
    return content, [
        u8(encoding.triangle(encoding.compand(small))), f4(session.a.token_logprobs),
        i4(likeliest), f4(follow["logprobs"]["a"][:10]),
    ]  # fmt: skip


def follows(session: Session, position: int) -> Answer:
    """The likeliest next tokens after a position, in each run."""
    told = session.next_tokens(position)
    missing = np.full(len(told["ids"]), np.nan, np.float32)

    def of(what: str, run: str) -> bytes:
        return f4(told[what].get(run, missing))

    content = {
        "op": "next", "position": position, "names": names(session, told["ids"]),
        "kl": {"after": None, "b": None} | told["kl"],
        "sums": {"after": None, "b": None} | told["sums"],
        "interventions": session.edits, "chips": [label(edit) for edit in session.edits],
        "undoable": bool(session.past),
    }  # fmt: skip
    logprobs = [of("logprobs", run) for run in ("a", "after", "b")]
    return content, [i4(told["ids"]), *logprobs, of("logits", "a"), of("logits", "after")]


def _next(session: Session, asked: Message) -> Iterator[Answer]:
    tokens = max(len(session.a), 0 if session.b is None else len(session.b))
    yield follows(session, index("position", asked.get("position"), tokens))


def _thumbs(session: Session, asked: Message) -> Iterator[Answer]:
    of = asked.get("of", "a")
    packed, signed = _packed(session.thumbnails(of), of)
    yield {"of": of, **signed, "thumb": session.thumbnails(of).shape[-1]}, [packed]


def _told_scores(session: Session, asked: Message) -> Iterator[Answer]:
    of = asked.get("of", "a")
    grids, told = scores(session, of)
    yield {"of": of, "scores": told}, [f4(grids)]


def _token(session: Session, asked: Message) -> Iterator[Answer]:
    text = asked.get("text")
    ids = session.tokens(text, "the text").tolist()
    note = ""
    if len(ids) > 1:
        shown = " ".join(map(session.model.tokenizer.display, ids))
        note = f"That is {len(ids)} tokens ({shown}): the first is meant."
    yield {"ids": ids, "names": names(session, ids), "whole": len(ids) == 1, "note": note}, []


def _pattern(session: Session, asked: Message) -> Iterator[Answer]:
    of, mode = asked.get("of", "a"), encoding.mode(len(session.a))
    if of == "b":
        mode = encoding.mode(len(session.reading("b")))
    whole = mode == "layer" and asked.get("head") is None
    layer, head = session.check(asked.get("layer"), 0 if whole else asked.get("head") or 0)
    matrix = session.matrix(layer, of)
    matrix = matrix if whole else matrix[head : head + 1]
    if mode == "pooled":
        matrix = encoding.pool(matrix, encoding.POOL)
    size, first = matrix.shape[-1], 0 if whole else head
    packed, signed = _packed(matrix, of)
    each = size * (size + 1) // 2
    pieces = encoding.parts(len(matrix), size)
    for part, (start, heads) in enumerate(pieces):
        content = {
            "layer": layer, "of": of, "first": first + start, "heads": heads, "mode": mode,
            "size": size, **signed, "part": part, "parts": len(pieces),
        }  # fmt: skip
        yield content, [packed[start * each : (start + heads) * each]]


def _exact(session: Session, asked: Message) -> Iterator[Answer]:
    of = asked.get("of", "a")
    layer, head = session.check(asked.get("layer"), asked.get("head"))
    values = session.matrix(layer, of)[head]
    content = {"layer": layer, "head": head, "of": of}
    if asked.get("key") is not None:
        key = index("key", asked["key"], len(values))
        column = values[key:, key]
        said = sentence(session, of, layer, head, key + int(np.abs(column).argmax()), key)
        yield content | {"key": key, "sentence": said}, [f4(column)]
        return
    query = index("query", asked.get("query"), len(values))
    row = values[query, : query + 1]
    said = sentence(session, of, layer, head, query, int(np.abs(row).argmax()))
    yield content | {"query": query, "sentence": said}, [f4(row)]


def sentence(session: Session, of: str, layer: int, head: int, query: int, key: int) -> str:
    """What a head reads, for a screen reader: layer 5 head 3: '␣cat' reads 62 % from 'The'."""
    value = 100 * float(session.matrix(layer, of)[head, query, key])
    ids = session.reading("b" if of == "b" else "a").ids
    reads, read = (session.model.tokenizer.display(int(ids[at])) for at in (query, key))
    amount = f"{value:+.1f} points" if of in DIFFERENCES else f"{value:.0f} %"
    if 0 < value < 0.5 and of not in DIFFERENCES:
        amount = "less than 1 %"
    return f"Layer {layer} head {head}: '{reads}' ({query}) reads {amount} from '{read}' ({key})"


def _lens(session: Session, asked: Message) -> Iterator[Answer]:
    reading = session.reading(asked.get("of", "a"))
    start = index("start", asked.get("start", 0), len(reading))
    stop = min(asked.get("stop") or len(reading), start + _WINDOW, len(reading))
    kind, stop = asked.get("kind", "logit"), index("stop", stop - 1, len(reading)) + 1
    found = lens(reading, range(start, stop), kind, session.tuned)
    content = {
        "of": asked.get("of", "a"), "kind": kind, "start": start, "stop": stop, "top": TOP,
        "rows": _rows(session), "names": names(session, found.ids),
    }  # fmt: skip
    yield content, [i4(found.ids), f4(found.logprobs), f4(found.entropy), f4(found.kl)]


def _lens_of(session: Session, asked: Message) -> Iterator[Answer]:
    reading = session.reading(asked.get("of", "a"))
    position = index("position", asked.get("position"), len(reading))
    ids = [index("token", each, session.model.config.vocab_size) for each in asked["ids"]]
    if not 0 < len(ids) <= _PINNED:
        raise ValueError(f"{len(ids)} tokens: 1 to {_PINNED} can be followed over the layers")
    kind = asked.get("kind", "logit")
    logprobs, ranks = lens_of(reading, position, ids, kind, session.tuned)
    content = {
        "of": asked.get("of", "a"), "kind": kind, "position": position, "ids": ids,
        "names": names(session, ids), "rows": _rows(session),
    }  # fmt: skip
    yield content, [f4(logprobs), i4(ranks)]


def _attribution(session: Session, asked: Message) -> Iterator[Answer]:
    reading, position, token, minus = _question(session, asked)
    found = attribution.attribute(
        reading.model, reading.ids, token, minus, position, reading.interventions
    )
    others = {"embed": found.embed}
    others |= {name: value for name, value in found.parts.items() if name.endswith("bias")}
    if found.position_embed:
        others["position_embed"] = found.position_embed
    said = (
        f"The parts sum to {found.total:+.4f}, the model's own is {found.logit:+.4f}: "
        f"{abs(found.total - found.logit):.1e} apart."
    )
    content = {
        "op": "attribution", "of": asked.get("of", "a"), "position": position, "token": token,
        "minus": minus, "names": _named(session, token, minus), "others": list(others),
        "total": found.total, "logit": found.logit, "gap": abs(found.total - found.logit),
        "sentence": said,
    }  # fmt: skip
    yield content, [f4(found.heads), f4(found.mlps), f4(np.array(list(others.values())))]


def _gradient(session: Session, asked: Message) -> Iterator[Answer]:
    if asked.get("of") == "after":
        raise ValueError("gradients are of a run without interventions: choose A or B")
    reading, position, token, minus = _question(session, asked)
    method = asked.get("method", "gradient_x_input")
    if method not in ("gradient_x_input", "integrated"):
        raise ValueError(f"method is {method!r}: 'gradient_x_input' or 'integrated' is needed")
    integrated = method == "integrated"
    follow = gradients.integrated_gradients if integrated else gradients.gradient_x_input
    found = follow(reading.model, reading.ids, token, minus, position)
    expected = None if found.baseline is None else found.value - found.baseline
    said = f"The shares sum to {found.total:+.4f}"
    said += (
        "; gradient x input promises no sum." if expected is None else
        f", the logit rises by {expected:+.4f} over the baseline."
    )  # fmt: skip
    content = {
        "method": method, "of": asked.get("of", "a"), "position": position, "token": token,
        "minus": minus, "names": _named(session, token, minus), "sum": found.total,
        "expected": expected, "sentence": said,
    }  # fmt: skip
    yield content, [f4(found.scores)]


def _compare(session: Session, asked: Message) -> Iterator[Answer]:
    other = session.reading("b")
    nothing = np.full(len(session.a), np.nan, np.float32)
    config = session.model.config
    moved, apart = np.full((config.num_layers, config.num_heads), np.nan, np.float32), nothing
    top: list[tuple[int, int, float]] = []
    said = f"A has {len(session.a)} tokens, B {len(other)}: heads can't be compared."
    if session.aligned:
        moved, apart = session.moved(), session.divergence()
        order = np.argsort(-moved, axis=None, kind="stable")[:10].tolist()
        places = [divmod(cell, config.num_heads) for cell in order]
        top = [(layer, head, float(moved[layer, head])) for layer, head in places]
        layer, head, far = top[0]
        said = f"Head {head} of layer {layer} moved most ({far:.3f} of 1)"
        if not far:
            said, top = "No head moved: all of B's read as A's do", []
        said += f"; the predictions differ by {float(apart.mean()):.3f} nats a token."
    content = {
        "op": "compared", "kind": "model" if session.two_models else "prompt",
        "aligned": session.aligned, "names": {}, "sentence": said, "top": top,
    }  # fmt: skip
    yield content, [f4(moved), f4(session.a.token_logprobs), f4(other.token_logprobs), f4(apart)]


def _rotary(session: Session, asked: Message) -> Iterator[Answer]:
    layer, head = session.check(asked.get("layer"), asked.get("head"))
    query = index("query", asked.get("query"), len(session.a))
    key = index("key", asked.get("key") or 0, len(session.a))
    found = rotary_parts(session.a, layer, head, query, key)
    still = float(np.abs(found.scores[-1]).sum() / np.abs(found.scores).sum())
    config = session.model.config
    key = min(key, query)
    reads, read = (session.model.tokenizer.display(int(session.a.ids[at])) for at in (query, key))
    said = (
        f"How '{reads}' ({query}) would read '{read}' ({key}) from other distances. "
        f"{config.d_rotary} of the head's {config.d_head} dimensions turn with the position, in "
        f"{len(found.wavelengths)} pairs; the others make {100 * still:.0f} % of the scores' size."
    )
    content = {
        "layer": layer, "head": head, "query": query, "key": key,
        "distances": found.curve.shape[1], "sentence": said,
    }  # fmt: skip
    yield content, [f4(found.wavelengths), f4(found.scores), f4(found.curve)]


def _ledger(session: Session, asked: Message) -> Iterator[Answer]:
    reading = session.reading(asked.get("of", "a"))
    position = index("position", asked.get("position"), len(reading))
    found = ledger(reading, position)
    parallel = session.model.config.parallel
    content = {
        "of": asked.get("of", "a"), "position": position, "parallel": parallel,
        "names": names(session, found.ids),
        "columns": ["resid_pre", "attn_out", "mlp_out", "cos_attn_mlp"],
        "sentence": "Attention and MLP read the same residual stream and both add to it."
        if parallel
        else "The MLP reads what attention has written.",
    }  # fmt: skip
    yield content, [f4(found.norms), i4(found.ids), f4(found.logits)]


def _circuit(session: Session, asked: Message) -> Iterator[Answer]:
    layer, head = session.check(asked.get("layer"), asked.get("head"))
    token = index("token", asked.get("token"), session.model.config.vocab_size)
    kind = asked.get("kind", "ov")
    if kind not in circuits.KINDS:
        raise ValueError(f"kind is {kind!r}: one of {', '.join(circuits.KINDS)} is needed")
    table = circuits.qk_table if kind == "qk" else circuits.ov_table
    found = table(session.model, layer, head, [token])
    name, best = session.model.tokenizer.display(token), found.tokens[0][0]
    content = {
        "layer": layer, "head": head, "kind": kind, "token": token,
        "names": names(session, [token], found.ids, found.lowest_ids),
        "sentence": f"By its content alone, '{name}' would read most from '{best}'."
        if kind == "qk"
        else f"Reading '{name}' promotes '{best}' most.",
    }  # fmt: skip
    yield content, [
        i4(found.ids[0]), f4(found.values[0]), i4(found.lowest_ids[0]), f4(found.lowest_values[0]),
    ]  # fmt: skip


def _question(session: Session, asked: Message):
    """The run, the position, the token asked about and the one that is subtracted."""
    of, vocab = asked.get("of", "a"), session.model.config.vocab_size
    reading = session.reading(of)
    position = index("position", asked.get("position"), len(reading))
    token, minus = asked.get("token"), asked.get("minus")
    token = (
        int(reading.logits[position].argmax()) if token is None else index("token", token, vocab)
    )
    minus = None if minus is None else index("minus", minus, vocab)
    return reading, position, token, minus


def _named(session: Session, *ids: int | None) -> dict[str, Any]:
    return names(session, [each for each in ids if each is not None])


def _rows(session: Session) -> list[str]:
    return [*map(str, range(session.model.config.num_layers)), "output"]


def _tokens(session: Session, ids: np.ndarray) -> list[Any]:
    known = names(session, ids)
    return [known[str(token)] for token in ids.tolist()]


def _packed(values: np.ndarray, of: str) -> tuple[bytes, Message]:
    """Lower triangles as bytes, and how to read them."""
    if of in DIFFERENCES:
        data, scale = encoding.sign(encoding.triangle(values))
        return u8(data), {"signed": True, "scale": scale}
    return u8(encoding.triangle(encoding.compand(values))), {"signed": False, "scale": 1.0}


def scores(session: Session, of: str) -> tuple[np.ndarray, list[Message]]:
    """All scores of a run's heads [scores, layers, heads], and what they are called."""
    known = list(zip(SCORES, session.scores(of), strict=True))
    extra = {"ablation": ABLATION, "moved": MOVED}
    known += [(extra[name], grid) for name, grid in session.effects.items()]
    told = []
    for score, grid in known:
        there = grid[np.isfinite(grid)]
        low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
        told.append(score._asdict() | {"low": low, "high": high})
    return np.stack([grid for _, grid in known]), told


_ANSWERS: dict[str, Callable[[Session, Message], Iterator[Answer]]] = {
    "next": _next, "thumbs": _thumbs, "scores": _told_scores, "token": _token,
    "pattern": _pattern, "exact": _exact, "lens": _lens, "lens_of": _lens_of,
    "attribute": _attribution, "gradient": _gradient, "compare": _compare, "rotary": _rotary,
    "ledger": _ledger, "circuit": _circuit,
}  # fmt: skip
