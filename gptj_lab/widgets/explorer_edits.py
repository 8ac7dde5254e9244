"""What the Explorer's clicks change: dictionaries of the view, checked, and made interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.interventions import Interventions
from gptj_lab.lens.prompts import check_same_length
from gptj_lab.widgets.explorer_reading import Reading

if TYPE_CHECKING:
    from gptj_lab.config import ModelConfig

Edit = dict[str, Any]

# The numbers that each kind names, and its words with what they may be.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "head": ("layer", "head"),
    "mlp": ("layer",),
    "edge": ("layer", "head", "query", "key"),
    "patch": ("layer", "position"),
    "patch_head": ("layer", "head"),
    "steer": ("layer",),
}
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "head": {"how": ("zero", "mean", "freeze")},
    "mlp": {"how": ("zero", "mean")},
    "patch": {"site": ("resid_pre", "attn_out", "mlp_out")},
}
_DONE = {"zero": "zeroed", "mean": "set to its mean", "freeze": "pattern frozen"}
MOST = 256  # edits at once: more is a mistake of a script, not a click


def checked(edits: Any, config: ModelConfig, tokens: int) -> list[Edit]:
    """The edits with their known fields only; a head or MLP that is named twice counts once.

    Raises:
        ValueError: a kind or a field that isn't known, or a number out of range.
    """
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise ValueError(f"interventions are {edits!r}: a list of dictionaries is needed")
    if len(edits) > MOST:
        raise ValueError(f"{len(edits)} interventions: at most {MOST} at once are applied")
    found: dict[tuple, Edit] = {}
    for raw in edits:
        edit = _checked(raw, config, tokens)
        place = _place(edit)
        found.pop(place, None)  # the later one, in its later place
        found[place] = edit
    return list(found.values())


def _checked(raw: Any, config: ModelConfig, tokens: int) -> Edit:
    kind = raw.get("kind") if isinstance(raw, Mapping) else None
    if kind not in _NUMBERS:
        raise ValueError(
            f"an intervention is {raw!r}: its kind has to be one of {', '.join(_NUMBERS)}"
        )
    tops = {"layer": config.num_layers, "head": config.num_heads}
    edit: Edit = {"kind": kind}
    for name in _NUMBERS[kind]:
        edit[name] = index(name, raw.get(name), tops.get(name, tokens))
    for name, known in _WORDS.get(kind, {}).items():
        edit[name] = raw.get(name, known[0])
        if edit[name] not in known:
            raise ValueError(f"{name} is {edit[name]!r}: one of {', '.join(known)} is needed")
    if kind == "edge" and edit["key"] > edit["query"]:
        raise ValueError(
            f"key {edit['key']} comes after query {edit['query']}: a token reads itself and those "
            "before it"
        )
    if kind == "patch" and raw.get("source") is not None:
        source = _source(raw["source"], config.num_layers, tokens)
        if source != [edit["layer"], edit["position"]]:
            edit["source"] = source
    if kind == "steer":
        edit["scale"] = _number("scale", raw.get("scale", 1.0))
    if kind in ("head", "mlp", "steer", "patch_head") and raw.get("positions") is not None:
        where = raw["positions"]
        if not isinstance(where, Sequence) or isinstance(where, str) or not where:
            raise ValueError(f"positions are {where!r}: a list of whole numbers is needed")
        if edit.get("how") == "freeze":
            raise ValueError("a pattern is frozen as a whole: leave positions out")
        edit["positions"] = sorted({index("positions", each, tokens) for each in where})
    return edit


def index(name: str, value: Any, count: int) -> int:
    """A whole number from 0 to count - 1; a ValueError says what is wrong with another."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 <= value < count:
        raise ValueError(f"{name} is {value!r}: a whole number from 0 to {count - 1} is needed")
    return int(value)


def _source(value: Any, layers: int, tokens: int) -> list[int]:
    """The layer and position of B that a patch takes its value from."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"source is {value!r}: [layer, position] is needed")
    return [index("source's layer", value[0], layers), index("source's position", value[1], tokens)]


def _number(name: str, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not np.isfinite(value):
        raise ValueError(f"{name} is {value!r}: a finite number is needed")
    return float(value)


def _place(edit: Edit) -> tuple:
    """What an edit is an edit of: two of the same place replace each other."""
    kind = "freeze" if edit.get("how") == "freeze" else edit["kind"]
    return (
        kind,
        *(edit.get(name) for name in ("layer", "head", "query", "key", "position", "site")),
    )


def fits(edit: Edit, tokens: int) -> bool:
    """Whether an edit of an earlier text makes sense in one of so many tokens."""
    named = [edit[name] for name in ("query", "key", "position") if name in edit]
    named += edit.get("source", [])[1:]
    return all(position < tokens for position in [*named, *edit.get("positions", [])])


def label(edit: Edit) -> str:
    """What an edit does, in a few words."""
    layer, head = edit["layer"], edit.get("head")
    where = f", at {', '.join(map(str, edit['positions']))}" if "positions" in edit else ""
    match edit["kind"]:
        case "head":
            return f"L{layer}H{head} {_DONE[edit['how']]}{where}"
        case "mlp":
            return f"MLP {layer} {_DONE[edit['how']]}{where}"
        case "edge":
            return f"L{layer}H{head}: {edit['query']} no longer reads {edit['key']}"
        case "patch":
            from_ = "'s layer {} at {}".format(*edit["source"]) if "source" in edit else ""
            return f"{edit['site']} {layer} at {edit['position']} from B{from_}"
        case "patch_head":
            return f"L{layer}H{head} from B{where}"
    return f"steered after block {layer}, {edit['scale']:g} times{where}"


def interventions(
    edits: Sequence[Edit],
    clean: Reading,
    other: Reading | None,
    vector: Float[np.ndarray, "d_model"] | None,
) -> Interventions:
    """Checked edits as data for a run of `clean`'s text.

    Args:
        clean: the run without edits: means and frozen patterns are its own.
        other: the run that patches are taken from.
        vector: the direction of steering.

    Raises:
        ValueError: patches without another run of as many tokens, steering without a vector.
    """
    made = Interventions.none(clean.model, len(clean))
    for edit in edits:
        layer, where = edit["layer"], edit.get("positions")
        match edit["kind"]:
            case "head" if edit["how"] == "freeze":
                pattern = clean.pattern(layer)[edit["head"]]
                made = made.freeze_pattern(layer, edit["head"], pattern)
            case "head":
                made = made.ablate_head(layer, edit["head"], edit["how"], where, _mean(clean, edit))
            case "mlp":
                made = made.ablate_mlp(layer, edit["how"], where, _mean(clean, edit))
            case "edge":
                made = made.cut_edge(layer, edit["head"], edit["query"], edit["key"])
            case "steer":
                if vector is None:
                    raise ValueError("there is no direction to steer along: pass Explorer steer=")
                made = made.steer("resid_post", layer, vector, edit["scale"], where)
            case "patch":
                source, position = edit.get("source", (layer, edit["position"]))
                value = _of(other, clean, source, edit["site"])[position]
                made = made.patch(edit["site"], layer, edit["position"], value)
            case "patch_head":
                value = _of(other, clean, layer, "attn.z")[:, edit["head"]]
                value = value if where is None else value[where]
                made = made.patch("attn.z", layer, where, value, edit["head"])
    return made


def _mean(clean: Reading, edit: Edit) -> np.ndarray | None:
    """The mean over this text's tokens of what is ablated; None where zeros take its place."""
    if edit["how"] == "zero":
        return None
    if edit["kind"] == "mlp":
        return clean.inside(edit["layer"], "mlp_out").mean(0)
    return clean.inside(edit["layer"], "attn.z")[:, edit["head"]].mean(0)


def _of(other: Reading | None, clean: Reading, layer: int, site: str) -> np.ndarray:
    if other is None:
        raise ValueError("a patch takes its value from B: give a second prompt, or compare=")
    check_same_length(clean.model, clean.ids.tolist(), other.ids.tolist(), ("A", "B"))
    return other.inside(layer, site)
