"""PEFT's adapter_config.json: what of it we honour, what changes nothing, what is refused."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptj_lab import json_files

FILE = "adapter_config.json"
# Every field of peft.LoraConfig (0.21) and its default, from the class itself: the test
# tests/finetuning/test_peft_config.py prints the table anew where the installed class differs.
DEFAULTS: dict[str, Any] = {
    "task_type": None, "peft_type": None, "auto_mapping": None, "peft_version": None,
    "base_model_name_or_path": None, "revision": None, "inference_mode": False, "r": 8,
    "target_modules": None, "exclude_modules": None, "lora_alpha": 8, "lora_dropout": 0.0,
    "fan_in_fan_out": False, "bias": "none", "use_rslora": False, "modules_to_save": None,
    "init_lora_weights": True, "layers_to_transform": None, "layers_pattern": None,
    "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None,
    "megatron_core": "megatron.core", "trainable_token_indices": None, "loftq_config": {},
    "eva_config": None, "corda_config": None, "lora_ga_config": None, "use_dora": False,
    "velora_config": None, "alora_invocation_tokens": None, "use_qalora": False,
    "qalora_group_size": 16, "monteclora_config": None, "layer_replication": None,
    "runtime_config": {"ephemeral_gpu_offload": False}, "lora_bias": False,
    "target_parameters": None, "use_bdlora": None, "arrow_config": None, "kasa_config": None,
    "ensure_weight_tying": False,
}  # fmt: skip
# Read here at whatever value.
_HONOURED = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias",
    "bias", "modules_to_save", "init_lora_weights", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "ensure_weight_tying",
}  # fmt: skip
# Of training, of the machine, of how the file came to be, or read only where another field, which
# is refused or honoured, says so (fan_in_fan_out: PEFT sets it from the kind of the layer;
# velora_config: another backward pass).
_NO_MATTER = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size",
    "runtime_config",
}  # fmt: skip
# Kinds of adapters that PEFT itself can merge into the model.
_MERGED = (
    "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "FOURIERFT", "LN_TUNING",
    "BONE", "MISS", "RANDLORA", "SHIRA", "C3A", "ROAD", "WAVEFT", "DELORA", "POLY", "VBLORA",
)  # fmt: skip
_NOTHING = (None, False, [], {}, "", 0)  # what a field that we don't know may say
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_CONVERT = (
    "convert it once where it was trained, with peft: model.save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=folder_of_the_untrained_adapter)"
)


def read(file: Path) -> dict[str, Any]:
    """The fields of a LoRA adapter's config, those that are missing at PEFT's default.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it isn't JSON, of another kind of adapter, or says what we don't honour; the
            message names the field.
    """
    config = of_kind(file, "LORA")
    for field, value in config.items():
        if field in _HONOURED or field in _NO_MATTER:
            continue
        default = DEFAULTS.get(field)
        if value != default and value not in _NOTHING:
            raise ValueError(
                f"{file} has {field} {_short(value)}, which isn't honoured here: merge the "
                "adapter in peft (merge_and_unload), or train it without"
            )
    config = DEFAULTS | config
    _rank(file, "r", config["r"])
    _finite(file, "lora_alpha", config["lora_alpha"])
    for pattern, check in (("rank_pattern", _rank), ("alpha_pattern", _finite)):
        config[pattern] = config[pattern] or {}
        if not isinstance(config[pattern], dict):
            raise ValueError(f"{file} has {pattern} {_short(config[pattern])}: a dict is needed")
        for key, value in config[pattern].items():
            check(file, f"{pattern}[{key!r}]", value)
            _expression(file, pattern, f"(.*\\.)?({key})$")
    _check_values(file, config)
    _check_start(file, config)
    return config


def of_kind(file: Path, kind: str) -> dict[str, Any]:
    """PEFT's adapter_config.json of an adapter of that kind ("LORA").

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it isn't JSON, or of another kind.
    """
    config = _fields(file)
    if (found := config.get("peft_type")) != kind:
        fix = (
            ": merge it where it was trained, with peft (model = model.merge_and_unload(); "
            "model.save_pretrained(folder)), and load that folder as the model"
            if kind == "LORA" and found in _MERGED
            else ""
        )
        raise ValueError(f"{file} has peft_type {_short(found)}: only {kind} is read here{fix}")
    return config


def kind(file: Path) -> str | None:
    """The peft_type of an adapter_config.json ("LORA"), None where it has none; raises as above."""
    return _fields(file).get("peft_type")


def rank_and_strength(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank of a module's adapter, and what its product is multiplied by."""
    rank = config["rank_pattern"].get(_key(config["rank_pattern"], module), config["r"])
    alpha = config["alpha_pattern"].get(_key(config["alpha_pattern"], module), config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


def targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT, by this config, gives the module an adapter (its check_target_module_exists).

    Unknown (None, PEFT's own list of each family) and "all-linear" count as True.
    """
    exclude, wanted = config["exclude_modules"], config["target_modules"]
    if isinstance(exclude, str) and exclude and re.fullmatch(exclude, module):
        return False
    if isinstance(exclude, list) and _ends(module, exclude):
        return False
    if any(re.match(rf"(^|.*\.){m}($|\..*)", module) for m in config["modules_to_save"] or ()):
        return False
    if wanted is None or isinstance(wanted, str):
        if wanted is None or wanted.lower() == "all-linear":
            return True
        return re.fullmatch(wanted, module) is not None
    if module in wanted:
        return True
    return _ends(module, wanted) and _layer_wanted(config, module)


def saved_module(config: Mapping[str, Any], module: str) -> bool:
    """Whether the module is one of modules_to_save."""
    return any(module.endswith(name) for name in config["modules_to_save"] or ())


def patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The commonest value, and PEFT's pattern for the modules that have another."""
    common = Counter(values.values()).most_common(1)[0][0]
    by_kind: dict[str, set[float]] = {}
    for module, value in values.items():
        by_kind.setdefault(_kind_of(module), set()).add(value)
    found: dict[str, float] = {}
    for module, value in values.items():
        if value != common:
            alone = len(by_kind[_kind_of(module)]) == 1
            found[re.escape(_kind_of(module) if alone else module)] = value
    return common, found


def target_names(modules: Iterable[str], all_modules: Iterable[str]) -> list[str]:
    """target_modules that name just these: by their last word, or whole where that says more."""
    wanted = set(modules)
    words = {module.rpartition(".")[2] for module in wanted}
    if {module for module in all_modules if module.rpartition(".")[2] in words} == wanted:
        return sorted(words)
    return sorted(wanted)


def _check_values(file: Path, config: dict[str, Any]) -> None:
    for field in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config[field]
        words = [value] if isinstance(value, str) else value or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{file} has {field} {_short(value)}: names of modules are needed")
        for word in words:
            _expression(file, field, word)
    if isinstance(config["modules_to_save"], str):
        config["modules_to_save"] = [config["modules_to_save"]]
    layers = config["layers_to_transform"]
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"{file} has layers_to_transform {_short(layers)}: numbers are needed")
    config["layers_to_transform"] = layers
    if config["bias"] not in ("none", "all", "lora_only", None):
        raise ValueError(f"{file} has bias {_short(config['bias'])}: none, all or lora_only")


def _check_start(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses an adapter that was begun in a way that changes the base and can't be repeated."""
    start = config["init_lora_weights"]
    if start in _PLAIN_STARTS or start == "pissa" or str(start).lower() == "olora":
        return
    if isinstance(start, str) and start.startswith("pissa_niter_"):
        why = "changes the base by a decomposition that is drawn at random"
    elif start in ("corda", "lora_ga"):
        why = "changes the base by what it computed from the training text, which isn't in the file"
    elif start == "loftq":
        why = "changes the base into one of few bits"
    else:
        raise ValueError(f"{file} has init_lora_weights {_short(start)}, which isn't honoured here")
    raise ValueError(f"{file} has init_lora_weights {start!r}, which {why}: {_CONVERT}")


def _rank(file: Path, field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**20:
        raise ValueError(
            f"{file} has {field} {_short(value)}: a whole number of at least 1 is needed"
        )


def _finite(file: Path, field: str, value: Any) -> None:
    """Refuses what is no number; 0 and negative ones are some: adapters that were weighed so."""
    largest = float(np.finfo(np.float32).max)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -largest <= value <= largest
    ):
        raise ValueError(f"{file} has {field} {_short(value)}: a finite number is needed")


def _expression(file: Path, field: str, word: str) -> None:
    try:
        re.compile(word)
    except re.error as error:
        raise ValueError(f"{file} has {field} {word!r}, which names no module: {error}") from None


def _key(pattern: Mapping[str, Any], module: str) -> str:
    for key in pattern:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return module


def _ends(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_wanted(config: Mapping[str, Any], module: str) -> bool:
    layers, patterns = config["layers_to_transform"], config["layers_pattern"]
    if not layers:
        return True
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
    tries = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or ()]
    for one in tries or [r".*?\.[^.]*\.(\d+)\."]:
        if found := re.match(one, module):
            return int(found[1]) in layers
    return False


def _kind_of(module: str) -> str:
    """A module's name inside its block: attn.q_proj of transformer.h.3.attn.q_proj."""
    return re.split(r"\.\d+\.", module, maxsplit=1)[-1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields(file: Path) -> dict[str, Any]:
    try:
        return json_files.read_file(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: PEFT writes it beside the weights") from None
