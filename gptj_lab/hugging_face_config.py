"""The fields of config.json in five families, to the fields of ModelConfig and back.

Plain dictionaries on both sides. A field is refused, by name, if transformers' class of the family
reads it, it changes what the network computes, and we don't honour it at its value. What the class
doesn't read passes, as it does there (`passed_over` names it); see transformers_fields.py.
"""

import copy
import math
import re
from collections.abc import Mapping, Set
from typing import Any

from gptj_lab import transformers_fields
from gptj_lab.hugging_face_families import FAMILIES

TITLES = {model_type: family.title for model_type, family in FAMILIES.items()}

# How config.json says that the matrices are int8, each with its `_scale` beside it.
_INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            # Said here too, as compressed-tensors from 0.15 on would otherwise take the matrices of
            # a model whose activations stay float for packed ones.
            "format": "int-quantized",
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head", "embed_out"],
    "kv_cache_scheme": None,
}  # fmt: skip
# transformers has no int8 for GPT-2's Conv1D. Without a quant_method it refuses to load the model;
# with one that it doesn't know it takes the whole numbers for weights, as it did of older folders.
_INT8_GPT_2 = {"gptj_lab": "int8", "bits": 8, "symmetric": True, "per": "output channel"}
_INT8_BEFORE = {
    "quant_method": "gptj_lab_int8", "bits": 8, "symmetric": True, "per": "output channel"
}  # fmt: skip
# What means the default beside the default itself, or is honoured.
_ALSO: dict[str, tuple[Any, ...]] = {
    "quantization_config": (_INT8, _INT8_GPT_2, _INT8_BEFORE), "is_causal": (True,)
}  # fmt: skip
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
_SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "d_rotary")
# What a GPT-NeoX's file has for fields of ours that are no field of its own there.
_EXPRESSED = {
    "d_rotary": "rotary_pct of a head", "rotary_base": "rotary_emb_base",
    "rotary_scaling": "factor of rope_scaling",
}  # fmt: skip
_MOST_LAYERS = 10_000  # of an attention_types that is written out layer by layer
_WINDOW = 256  # tokens; GPT-Neo's own, written where no layer has one


def published(family: str) -> dict[str, Any]:
    """Our fields as the family's published models have them, without the sizes.

    Raises:
        ValueError: a family that we don't know.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}: one of {', '.join(FAMILIES)} is needed")
    return {"family": family, **FAMILIES[family].published}


def honoured(family: str) -> frozenset[str]:
    """The fields of the family's config.json that decide fields of ModelConfig."""
    return frozenset(FAMILIES[family].honoured) | FAMILIES[family].special


def int8_in_file(family: str) -> dict[str, Any]:
    """The quantization_config of a family's config.json whose blocks' matrices are int8.

    It is that of compressed-tensors, which transformers reads where it is installed; GPT-2's has no
    quant_method, so that transformers refuses it.
    """
    return copy.deepcopy(_INT8_GPT_2 if family == "gpt2" else _INT8)


def to_ours(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of ModelConfig that a config.json describes, their values not yet checked.

    What the file leaves out is the default of transformers' class.

    Raises:
        ValueError: an unknown architecture, a value of the wrong kind, or a field that the network
            would not honour; the message names it.
    """
    kind = _kind(fields, where)
    family, known = FAMILIES[kind], transformers_fields.of(kind)
    _check_sizes(kind, fields, where)
    fields = transformers_fields.settled(kind, fields)
    for name in sorted(known.changes & fields.keys() - family.honoured.keys() - family.special):
        _check_default(name, fields[name], known.defaults.get(name), where, family.title)
    ours = published(kind)
    for theirs, name in family.honoured.items():
        ours[name] = fields.get(theirs, known.defaults[theirs])
        _check_kind(theirs, ours[name], known.defaults[theirs], where)
    if ours["d_ff"] is None:  # NeoX always says it
        ours["d_ff"] = 4 * ours["d_model"]
    ours["bos_token_id"] = _token(ours["bos_token_id"])
    ends = ours["eos_token_id"]
    if isinstance(ends, list):  # one that the vocabulary can't have never comes up
        ends = tuple(end for end in map(_token, ends) if end is not None) or None
    ours["eos_token_id"] = _token(ends)
    if kind == "gpt_neox":
        ours |= _rotary(fields, where, ours)
        bias = fields.get("attention_bias", True)
        _check_kind("attention_bias", bias, True, where)
        ours["qkv_bias"] = ours["attn_out_bias"] = bias
    if kind == "gpt_neo":
        ours["local_windows"] = _windows(fields, where, ours["num_layers"])
    return ours


def passed_over(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a config.json that neither transformers nor we read, sorted.

    Fields without a value, what is another family's default, and what says what is so anyway
    (GPT-J's `rotary`, GPT-2's `n_ctx`) aren't among them.
    """
    kind = _kind(fields, "config.json")
    told = transformers_fields.passed_over(kind, fields, FAMILIES[kind].special)
    so = {"n_ctx": fields.get("n_positions")}
    if FAMILIES[kind].published["positions"] != "learned":
        so["rotary"] = True
    told = [name for name in told if name not in so or fields[name] != so[name]]
    if kind == "gpt_neox":  # its class reads the older names
        used = _rope(fields, "config.json")
        used = {"rope_theta": used[0], "partial_rotary_factor": used[1]}
        told += [name for name, value in used.items() if fields.get(name, value) != value]
    return sorted(told)


def _kind(fields: Mapping[str, Any], where: str) -> str:
    """The family that model_type names, or where there is none, architectures."""
    kind = fields.get("model_type")
    if kind is None:
        named = fields.get("architectures")
        kinds = [
            model_type
            for model_type, family in FAMILIES.items()
            if isinstance(named, list) and family.architecture in named
        ]
        kind = kinds[0] if kinds else None
    known = ", ".join(map(repr, FAMILIES))
    if kind is None:
        raise ValueError(
            f"{where} lacks model_type, and its architectures name none that we know: add "
            f'"model_type", which is one of {known}'
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"model_type in {where} is {kind!r}: this version reads {known} only")
    return kind


def _check_sizes(kind: str, fields: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a size that is null, as transformers 5 does; 4 took a default."""
    known, honoured = transformers_fields.of(kind), FAMILIES[kind].honoured
    learned = FAMILIES[kind].published["positions"] == "learned"  # a row for each position
    sizes = (*_SIZES, "context") if learned else _SIZES
    for name, value in fields.items():
        theirs = known.aliases.get(name, name)
        size = honoured.get(theirs) in sizes and theirs not in known.nullable
        if value is None and size:
            raise ValueError(f"{name} in {where} is null: a whole number is needed")


def in_file_words(sentence: str, family: str, where: str) -> str:
    """A sentence about fields of ModelConfig, with the names that a config.json has for them."""
    names = {ours: theirs for theirs, ours in FAMILIES[family].honoured.items()}
    names |= _EXPRESSED if family == "gpt_neox" else {"local_windows": "attention_types"}
    theirs = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), sentence)
    return f"{where}: {theirs}"


def _check_default(name: str, value: Any, default: Any, where: str, title: str) -> None:
    same = any(transformers_fields.same(value, one) for one in (default, *_ALSO.get(name, ())))
    if not same:
        raise ValueError(
            f"{name} in {where} is {value!r:.200}, which changes what a {title} computes and this "
            f"network doesn't honour: only {default!r:.200} is supported"
        )


def _check_kind(name: str, value: Any, default: Any, where: str) -> None:
    """Raises ValueError for a value of another kind than the default, such as "12" for 12."""
    if value is None or default is None or name.endswith("token_id"):
        return
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"{name} in {where} is {value!r:.200}: {_KINDS[type(default)]} is needed")


def _token(value: Any) -> Any:
    """A token id, None for a negative one, which files have for "none"; others unchanged."""
    return None if isinstance(value, int) and value < 0 else value


def to_file(ours: Mapping[str, Any], windows: tuple[int | None, ...]) -> dict[str, Any]:
    """The config.json of a network with our fields, and `windows` for each of its layers.

    Raises:
        ValueError: a field whose value a config.json of the family can't say.
    """
    kind = ours["family"]
    family = FAMILIES[kind]
    said = set(family.honoured.values()) | family.expressed
    for name, value in family.published.items():
        if name not in said and ours[name] != value:
            raise ValueError(
                f"{name} is {ours[name]!r}, which a {family.title} config.json can't say "
                f"(it means {value!r}): set it to that, or keep this network in memory"
            )
    fields = {
        "model_type": kind,
        "architectures": [family.architecture],
        **{theirs: ours[name] for theirs, name in family.honoured.items()},
    }
    if isinstance(ours["eos_token_id"], tuple):
        fields["eos_token_id"] = list(ours["eos_token_id"])
    if kind == "gpt_neox":
        if ours["qkv_bias"] != ours["attn_out_bias"]:
            raise ValueError(
                f"qkv_bias is {ours['qkv_bias']} and attn_out_bias {ours['attn_out_bias']}: a "
                "GPT-NeoX config.json has one attention_bias for both, so make them equal"
            )
        # The older names: transformers 4 and 5 both read them.
        fields["rotary_pct"] = _fraction(ours["d_rotary"], ours["d_model"] // ours["num_heads"])
        fields["rotary_emb_base"] = ours["rotary_base"]
        fields["attention_bias"] = ours["qkv_bias"]
        if ours["rotary_scaling"] != 1:
            fields["rope_scaling"] = {"rope_type": "linear", "factor": ours["rotary_scaling"]}
    if kind == "gpt_neo":
        sizes = {window for window in windows if window is not None} or {_WINDOW}
        if len(sizes) > 1:
            raise ValueError(
                f"local_windows has the sizes {sorted(sizes)}: a GPT-Neo config.json has one "
                "window_size, so make them equal"
            )
        types = ["global" if window is None else "local" for window in windows]
        fields |= {"attention_types": [[types, 1]], "window_size": sizes.pop()}
    return fields | dict.fromkeys(family.dropout, 0.0)


def updated(
    before: Mapping[str, Any], now: Mapping[str, Any], kind: str, changed: Set[str]
) -> dict[str, Any]:
    """A config.json with the fields of another for what changed, and everything else as it was.

    Nulls that transformers refuses are left out.

    Args:
        before, now: both of the family `kind`, and such that `to_ours` reads them.
        changed: our fields that `now` says otherwise.
    """
    family = FAMILIES[kind]
    # Older ones have architectures only.
    fields = transformers_fields.without_nulls(kind, before) | {"model_type": kind}
    if changed & family.expressed:  # they have several spellings, of which one is written
        fields = {name: value for name, value in fields.items() if name not in family.special}
        fields |= {name: now[name] for name in family.special if name in now}
    theirs = {name for name, ours in family.honoured.items() if ours in changed}
    aliases = transformers_fields.of(kind).aliases  # which would win
    fields = {name: value for name, value in fields.items() if aliases.get(name) not in theirs}
    return fields | {name: now[name] for name in theirs if name in now}


def _rotary(fields: Mapping[str, Any], where: str, ours: dict[str, Any]) -> dict[str, Any]:
    """What a GPT-NeoX's config says of its rotary positions."""
    base, fraction, scaling = _rope(fields, where)
    d_head = ours["d_model"] // ours["num_heads"] if ours["num_heads"] else 0
    if fields.get("head_dim") not in (None, d_head):
        raise ValueError(
            f"head_dim in {where} is {fields['head_dim']!r}: hidden_size / num_attention_heads, "
            f"{d_head}, is needed"
        )
    return {
        "d_rotary": int(d_head * fraction), "rotary_base": base, "rotary_scaling": scaling,
    }  # fmt: skip


def _rope(fields: Mapping[str, Any], where: str) -> tuple[float, float, float]:
    """Base, rotated fraction of a head, and the divisor of the positions, of a GPT-NeoX.

    As transformers' class: rope_scaling takes the place of rope_parameters, and what those leave
    out the older rotary_emb_base and rotary_pct say. `dynamic` positions differ from plain ones
    only beyond the context, where this network doesn't go.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = fields.get(name) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{name} in {where} is {rope!r:.200}: a JSON object is needed")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "dynamic"):
        raise ValueError(
            f"rope_type of {name} in {where} is {kind!r:.200}, which this network doesn't honour: "
            "only 'default', 'linear' and 'dynamic' are supported"
        )
    base = _first(where, 10000.0, {
        f"rope_theta of {name}": rope.get("rope_theta"),
        "rotary_emb_base": fields.get("rotary_emb_base"),
    })  # fmt: skip
    fraction = _first(where, 0.25, {
        f"partial_rotary_factor of {name}": rope.get("partial_rotary_factor"),
        "rotary_pct": fields.get("rotary_pct"),
    })  # fmt: skip
    if not 0 < fraction <= 1:
        raise ValueError(
            f"rotary_pct in {where} is {fraction!r}: more than 0 and up to 1 is needed"
        )
    if kind != "linear":
        return base, fraction, 1.0
    if "factor" not in rope:
        raise ValueError(f"{name} in {where} lacks factor: 'linear' positions need one")
    return base, fraction, _first(where, 1.0, {f"factor of {name}": rope["factor"]})


def _first(where: str, default: float, named: dict[str, Any]) -> float:
    """The first number that is there."""
    for name, value in named.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} in {where} is {value!r:.200}: a number is needed")
        return float(value)
    return default


def _fraction(part: int, whole: int) -> float:
    """A fraction of which transformers' int(whole * fraction) makes `part` again."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, 1)


def _windows(fields: Mapping[str, Any], where: str, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer of a GPT-Neo: attention_layers says it, else attention_types."""
    known = transformers_fields.of("gpt_neo").defaults
    types = fields.get("attention_types", known["attention_types"])
    types = known["attention_types"] if types is None else types
    window = fields.get("window_size", known["window_size"])
    layers = fields.get("attention_layers")
    described = _written_out(types, where, num_layers if layers is None else None)
    if layers is None:
        layers = described
    elif (
        not isinstance(layers, list)
        or len(layers) != num_layers
        or not all(kind in ("global", "local") for kind in layers)
    ):
        raise ValueError(
            f"attention_layers in {where} is {layers!r:.200}: a list of {num_layers} times "
            "'global' or 'local' is needed"
        )
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window_size in {where} is {window!r:.200}: a number of tokens is needed")
    return tuple(window if kind == "local" else None for kind in layers)


def _written_out(types: Any, where: str, num_layers: int | None) -> list[str]:
    """The kind of each layer, from an attention_types like [[["global", "local"], 6]].

    Args:
        num_layers: that it has to describe; None if any number will do.
    """
    try:
        runs = [(list(kinds), count) for kinds, count in types]
        known = all(kind in ("global", "local") for kinds, _ in runs for kind in kinds)
        total = sum(len(kinds) * count for kinds, count in runs)
    except (TypeError, ValueError):
        runs, known, total = [], False, 0
    if not known or num_layers not in (None, total) or not 0 < total <= _MOST_LAYERS:
        together = "" if num_layers is None else f", which describe {num_layers} layers together"
        raise ValueError(
            f"attention_types in {where} is {types!r:.200}: pairs like [['global', 'local'], 6] "
            f"are needed{together}"
        )
    return [kind for kinds, count in runs for _ in range(count) for kind in kinds]
