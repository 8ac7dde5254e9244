"""The Python that gives what the Explorer shows, with the lens library alone."""

from __future__ import annotations

from typing import Any

from gptj_lab.widgets.explorer_edits import Edit
from gptj_lab.widgets.explorer_session import DIFFERENCES, Session


def code(session: Session, selection: dict[str, Any], lens: str = "") -> str:
    """A script that makes `pattern` and `logits` of the selection from `model` (and `other`).

    Args:
        lens: "logit", "tuned" or "jacobian": also `lens` at the selected position.
    """
    of, layer, head = (selection[name] for name in ("of", "layer", "head"))
    runs = DIFFERENCES.get(of, (of,))
    pattern = f'"blocks.{layer}.attn.pattern"'
    lines = ["from gptj_lab.lens.interventions import Interventions, run", ""]
    lines += _tokens("ids", session.prompt, session.made, session.a.ids.tolist(), "model")
    if "b" in runs or _needs_b(session):
        model = "other" if session.two_models else "model"
        if session.two_models:
            lines += ["# other: the second model, of Explorer(compare=other)"]
        ids = "ids_b" if session.prompt_b else "ids"
        if session.prompt_b:
            lines += _tokens("ids_b", session.prompt_b, 0, [], "model")
    for name in runs:
        if name == "a":
            lines += [f"logits_a, values_a = run(model, ids, sites=[{pattern}])"]
        elif name == "b":
            lines += [f"logits_b, values_b = run({model}, {ids}, sites=[{pattern}])"]
        else:
            lines += _edits(session)
            lines += [f"logits_after, values_after = run(model, ids, edits, sites=[{pattern}])"]
    patterns = [f"values_{name}[{pattern}]" for name in runs]
    lines += [f"pattern = {' - '.join(patterns)}  # [heads, seq, kv_seq]"]
    query = -1 if selection["query"] is None else selection["query"]
    lines += [f"logits = logits_{runs[0]}[{query}]"]
    if lens:
        lines += _lens(session, runs[0], lens, query)
    lines += [f"pattern[{head}]"]
    return "\n".join(lines) + "\n"


def _needs_b(session: Session) -> bool:
    return any(edit["kind"].startswith("patch") for edit in session.edits)


def _tokens(name: str, prompt: str, made: int, ids: list[int], model: str) -> list[str]:
    lines = [f"{name} = {model}.tokenizer.encode({prompt!r})"]
    return [*lines, f"{name} += {ids[-made:]}  # what was generated"] if made else lines


def _lens(session: Session, name: str, kind: str, query: int) -> list[str]:
    model = "other" if name == "b" and session.two_models else "model"
    ids = "ids_b" if name == "b" and session.prompt_b else "ids"
    lines = [f"trace = {model}.trace({ids})"]
    if name == "after":  # a trace is a plain pass: residuals and logits are those of the edited one
        last = session.model.config.num_layers - 1
        lines = [
            f'streams = ["blocks.*.resid_pre", "blocks.{last}.resid_post"]',
            "logits_after, streams = run(model, ids, edits, sites=streams)",
            "from gptj_lab.lens.trace import Trace",
            "trace = Trace(model.config, np.array(ids), (), np.stack(list(streams.values())),",
            '              names=(), model=model, values={"logits": logits_after})',
        ]
        lines = ["import numpy as np", *lines]
    if kind == "tuned":
        lines += [f"lens = tuned_lens.read(trace, positions=[{query}])  # Explorer(tuned_lens=)"]
    else:
        lines += [f"from gptj_lab.lens.{kind}_lens import {kind}_lens"]
        lines += [f"lens = {kind}_lens(trace, positions=[{query}])"]
    return [*lines, "lens.ids[:, 0], lens.logprobs[:, 0]"]


def _edits(session: Session) -> list[str]:
    """The interventions, made by their methods; what they take from a run is read there."""
    lines, wanted, wanted_b = [], set(), set()
    for edit in session.edits:
        layer = edit["layer"]
        if edit["kind"].startswith("patch"):
            source = edit.get("source", [layer])[0]
            wanted_b.add(f"blocks.{source}.{edit.get('site', 'attn.z')}")
        elif edit.get("how") == "freeze":
            wanted.add(f"blocks.{layer}.attn.pattern")
        elif edit.get("how") == "mean":
            wanted.add(f"blocks.{layer}.{'mlp_out' if edit['kind'] == 'mlp' else 'attn.z'}")
    if wanted:
        lines += [f"clean = run(model, ids, sites={sorted(wanted)})[1]"]
    if wanted_b:
        model = "other" if session.two_models else "model"
        ids = "ids_b" if session.prompt_b else "ids"
        lines += [f"from_b = run({model}, {ids}, sites={sorted(wanted_b)})[1]"]
    lines += ["edits = Interventions.none(model, len(ids))"]
    return lines + [f"edits = edits.{_call(edit)}" for edit in session.edits]


def _call(edit: Edit) -> str:
    layer, head, where = edit["layer"], edit.get("head"), edit.get("positions")
    at = f", positions={where}" if where else ""
    match edit["kind"]:
        case "head" if edit["how"] == "freeze":
            return f'freeze_pattern({layer}, {head}, clean["blocks.{layer}.attn.pattern"][{head}])'
        case "head" if edit["how"] == "mean":
            mean = f'clean["blocks.{layer}.attn.z"][:, {head}].mean(0)'
            return f'ablate_head({layer}, {head}, "mean"{at}, value={mean})'
        case "head":
            return f"ablate_head({layer}, {head}{at})"
        case "mlp" if edit["how"] == "mean":
            mean = f'clean["blocks.{layer}.mlp_out"].mean(0)'
            return f'ablate_mlp({layer}, "mean"{at}, value={mean})'
        case "mlp":
            return f"ablate_mlp({layer}{at})"
        case "edge":
            return f"cut_edge({layer}, {head}, {edit['query']}, {edit['key']})"
        case "patch":
            site, at = edit["site"], edit["position"]
            source, row = edit.get("source", (layer, at))
            value = f'from_b["blocks.{source}.{site}"][{row}]'
            return f'patch("{site}", {layer}, {at}, {value})'
        case "patch_head":
            rows = f"[{where}]" if where else ""
            value = f'from_b["blocks.{layer}.attn.z"][:, {head}]{rows}'
            return f'patch("attn.z", {layer}, {where}, {value}, head={head})'
    return f'steer("resid_post", {layer}, vector, {edit["scale"]}{at})  # Explorer(steer=vector)'
