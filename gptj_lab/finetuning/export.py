"""Adapters in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gptj_lab.checkpoints import families, huggingface
from gptj_lab.checkpoints.filling import parameter_shapes
from gptj_lab.finetuning import lora as adapters
from gptj_lab.finetuning.lora import LoRA
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import distributed
from gptj_lab.model.linear import Adapter, Strength

_PREFIX = "base_model.model."
# What PEFT may write into adapter_config.json that changes the numbers, and the values of it that
# mean nothing.
_UNHONOURED = {
    "use_dora": (False, None), "modules_to_save": (None, []), "bias": ("none", None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layer_replication": (None,),
    "trainable_token_indices": (None,), "lora_bias": (False, None), "use_qalora": (False, None),
    "target_parameters": (None, []), "megatron_config": (None,), "arrow_config": (None,),
}  # fmt: skip


def save_adapter(model: LanguageModel, directory: Path | str, name: str | None = None) -> None:
    """Writes one adapter as a folder that `peft` loads onto the same base model.

    Where Hugging Face fuses q, k and v into one matrix (CodeGen, GPT-NeoX, GPT-2), the three
    adapters become one of three times the rank, which computes the same.

    Args:
        name: of the adapter; needed only where there are several.

    Raises:
        ValueError: the model has no such adapter, or several and none is named.
        OSError: it can't be written; files that were there stay whole.
    """
    there = adapters.names(model)
    if name is None and len(there) != 1:
        has = f"the adapters {', '.join(there)}: name one" if there else "no adapters to save"
        raise ValueError(f"the model has {has}")
    name = name or there[0]
    if name not in there:
        raise ValueError(f"the model has no adapter named {name!r}, only {', '.join(there)}")
    tensors, ranks, strengths = _tensors(model, name)
    if len(ranks) > 1:
        raise ValueError(
            f"the matrices of {name} have ranks {', '.join(map(str, sorted(ranks)))} in PEFT's "
            "fused layout, one is needed: adapt all of q, k and v alike, and nothing beside them"
        )
    rank, strength = ranks.pop(), strengths.pop()
    modules = sorted({key.removeprefix(_PREFIX).split(".lora_")[0] for key in tensors})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": strength * rank,
        "lora_dropout": 0.0, "use_rslora": False, "bias": "none", "inference_mode": True,
        "fan_in_fan_out": model.config.family == "gpt2", "base_model_name_or_path": model.name,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
    }  # fmt: skip
    with huggingface.replacing(directory, whole=False) as aside:
        save_file(tensors, aside / "adapter_model.safetensors", {"format": "pt"})
        (aside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def load_adapter(
    model: LanguageModel, directory: Path | str, name: str = "default"
) -> LanguageModel:
    """The model with the adapter of a PEFT folder beside its others; `model` stays as it is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is no LoRA adapter, uses what we don't honour, or doesn't fit the model; the
            message names the field or tensor.
    """
    directory = Path(directory)
    config = _read_config(directory / "adapter_config.json")
    stored = read_tensors(directory / "adapter_model.safetensors")
    rank = config["r"]
    strength = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    places = _places(model)
    found: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]] = {}
    for key in sorted(stored):
        module, _, kind = key.removeprefix(_PREFIX).partition(".lora_")
        if kind not in ("A.weight", "B.weight") or module not in places:
            raise ValueError(
                f"{directory} holds {key}: LoRA adapts the matrices of a "
                f"{model.config.family_title}'s blocks here, and nothing else"
            )
        if kind == "B.weight":
            continue
        tensor, a = places[module], stored[key]
        b = stored.get(f"{key[: -len(kind)]}B.weight")
        if b is None:
            raise ValueError(f"{directory} has lora_A of {module} without lora_B: copy it again")
        _check(module, directory, rank, a, b, tensor)
        for i, path in enumerate(tensor.paths):
            found[path[:-1]] = (a, tensor.take(i, b))
    return _with(model, found, rank, strength, name)


def _with(model: LanguageModel, found: Any, rank: int, strength: float, name: str) -> LanguageModel:
    targets = {path[-1] for path in found}
    wanted = tuple(target for target in adapters.TARGETS if target in targets)
    new = adapters.adapted(model, LoRA(rank=rank, alpha=rank, targets=wanted, name=name))
    for path, linear in adapters.matrices(new.network):
        if path not in found:  # a layer that the folder leaves out
            if name in linear.adapters:
                del linear.adapters[name]
            continue
        adapter = linear.adapters[name]
        for part, values in zip(("a", "b"), found[path], strict=True):
            values = jnp.asarray(np.ascontiguousarray(values), jnp.float32)
            onto = getattr(adapter, part)[...].sharding
            setattr(adapter, part, Adapter(jax.device_put(values, onto)))
        adapter.strength = Strength(jnp.full_like(adapter.strength[...], strength))
    return new


def _places(model: LanguageModel) -> dict[str, families.Tensor]:
    """Hugging Face's modules that may be adapted, by name; B's rows as [out, in] lies."""
    found = {}
    for tensor in families.tensors(model.config, parameter_shapes(model.config)).values():
        path = tensor.paths[0]
        if path[0] == "blocks" and path[-1] == "weight" and path[2] in ("attn", "mlp"):
            shape = tensor.shape[::-1] if tensor.conv1d else tensor.shape
            module = tensor.name.removesuffix(".weight")
            found[module] = dataclasses.replace(tensor, conv1d=False, shape=shape)
    return found


def _tensors(model: LanguageModel, name: str) -> tuple[dict[str, np.ndarray], set[int], set[float]]:
    """PEFT's tensors of an adapter, and the ranks and strengths that they have."""
    linears = dict(adapters.matrices(model.network))
    tensors: dict[str, np.ndarray] = {}
    ranks, strengths = set(), set()
    for module, tensor in _places(model).items():
        pairs = [linears[path[:-1]].adapters.get(name) for path in tensor.paths]
        there = [pair for pair in pairs if pair is not None]
        if not there:
            continue
        strengths |= {float(distributed.gather(pair.strength[...])) for pair in there}
        a = [np.asarray(distributed.gather(pair.a[...])) for pair in there]
        width = sum(len(rows) for rows in a)
        parts, begun = [], 0
        for pair, path in zip(pairs, tensor.paths, strict=True):
            d_out = linears[path[:-1]].weight[...].shape[0]
            part = np.zeros((d_out, width), np.float32)
            if pair is not None:
                b = np.asarray(distributed.gather(pair.b[...]))
                part[:, begun : begun + b.shape[1]] = b
                begun += b.shape[1]
            parts.append(part)
        ranks.add(width)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.concatenate(a)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = tensor.join(parts)
    return tensors, ranks, strengths


def _read_config(file: Path) -> dict[str, Any]:
    config = read_config(file, "LORA")
    for field, harmless in _UNHONOURED.items():
        if field in config and config[field] not in harmless:
            raise ValueError(f"{file} has {field} {config[field]!r}, which isn't honoured here")
    for field, kinds in (("r", int), ("lora_alpha", (int, float))):
        value = config.get(field)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**20:
            raise ValueError(f"{file} has {field} {value!r}: a positive number is needed")
    return config


def read_config(file: Path, kind: str) -> dict[str, Any]:
    """PEFT's adapter_config.json of an adapter of that kind ("LORA").

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no json, or of another kind.
    """
    config = _json(file)
    if not isinstance(config, dict) or config.get("peft_type") != kind:
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{file} has peft_type {found!r}: only {kind} is read")
    return config


def kind_of(file: Path) -> str | None:
    """The peft_type of an adapter_config.json ("LORA"), None where it has none; raises as above."""
    config = _json(file)
    return config.get("peft_type") if isinstance(config, dict) else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: PEFT writes it beside the weights") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no json ({error}): copy it again") from None


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of PEFT's adapter_model.safetensors.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: save the adapter as safetensors (an adapter_model.bin isn't read)"
        )
    try:
        with safe_open(file, "flax") as opened:
            return {key: np.asarray(opened.get_tensor(key), np.float32) for key in opened.keys()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): copy it again") from None


def _check(module: str, where: Path, rank: int, a: np.ndarray, b: np.ndarray, tensor: Any) -> None:
    d_out, d_in = tensor.shape
    for name, found, wanted in (("A", a, (rank, d_in)), ("B", b, (d_out, rank))):
        if found.shape != wanted:
            raise ValueError(
                f"lora_{name} of {module} in {where} has shape {found.shape}, {wanted} is needed: "
                "the adapter belongs to another model"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"lora_{name} of {module} in {where} holds NaN or infinite values")
