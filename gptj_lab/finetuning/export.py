"""Adapters in PEFT's format, both ways: adapter_config.json and the tensors beside it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gptj_lab import chat_templates, notices
from gptj_lab.checkpoints import companions, families, hub, huggingface
from gptj_lab.checkpoints.filling import parameter_shapes
from gptj_lab.checkpoints.torch_files import read_torch
from gptj_lab.finetuning import begun, joining, peft_config, replaced
from gptj_lab.finetuning import lora as adapters
from gptj_lab.finetuning.lora import Pair
from gptj_lab.language_model import LanguageModel

_PREFIX = "base_model.model."
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
# base_model.model.transformer.h.0.attn.q_proj.lora_A.weight, some with the adapter's name in it.
_LOW = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(\.default)?(?P<kind>\.weight|\.bias)?"
)
_PARTS = {
    ("A", ".weight"): "a", ("B", ".weight"): "b", ("B", ".bias"): "bias",
    ("magnitude_vector", ".weight"): "magnitude", ("magnitude_vector", None): "magnitude",
}  # fmt: skip


def save_adapter(
    model: LanguageModel, directory: Path | str, name: str | Sequence[str] | None = None
) -> None:
    """Writes an adapter as a folder that `peft` loads onto the same base model.

    Where Hugging Face fuses q, k and v into one matrix (CodeGen, GPT-NeoX, GPT-2), their adapters
    become one that computes the same. Several adapters become one of all their ranks together.

    Args:
        name: of the adapter, or of several; needed only where there are several.

    Raises:
        ValueError: the model has no such adapter, or several and none is named.
        OSError: it can't be written; files that were there stay whole.
    """
    there = adapters.names(model)
    if name is None and len(there) != 1:
        has = f"the adapters {', '.join(there)}: name one" if there else "no adapters to save"
        raise ValueError(f"the model has {has}")
    chosen = there if name is None else [name] if isinstance(name, str) else list(name)
    for one in chosen:
        if one not in there:
            raise ValueError(f"the model has no adapter named {one!r}, only {', '.join(there)}")
    check_savable(model, chosen)
    tensors, config = _written(model, chosen)
    with huggingface.replacing(directory, whole=False) as aside:
        # By Python's own write: safetensors' says of a full disk no OSError.
        (aside / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        (aside / peft_config.FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        save_template(model, aside)


def save_template(model: LanguageModel, folder: Path) -> None:
    """Writes the chat template, if the model has one, and the tokenizer that it is for.

    Beside an adapter they lie as transformers' trainers leave them.
    """
    if model.chat_template is not None:
        companions.carry(model.companions.tokenizer(), model.tokenizer, folder)
        chat_templates.write(model.chat_template, folder)


def load_template(model: LanguageModel, directory: Path) -> None:
    """Gives a model the chat template of an adapter's folder, if there is one."""
    found = companions.chat_template(directory, model.tokenizer)
    model.chat_template = found or model.chat_template


def check_savable(model: LanguageModel, names: Sequence[str], dora: bool = False) -> None:
    """Nothing, if these adapters of the model can be saved as one.

    Args:
        dora: one of DoRA is to come beside them.

    Raises:
        ValueError: PEFT has no form for them.
    """
    there = [
        linear.adapters[name]
        for _, linear in adapters.matrices(model.network)
        for name in names
        if linear.has_adapter(name)
    ]
    dora = dora or any(adapter.magnitude is not None for adapter in there)
    if dora and any(adapter.bias is not None for adapter in there):
        raise ValueError(
            "the model has an adapter with biases (lora_bias) and one with magnitudes (DoRA), "
            "which PEFT can't hold in one: take one of them off, or merge it into the model"
        )


def load_adapter(
    model: LanguageModel, directory: Path | str, name: str = "default"
) -> LanguageModel:
    """The model with the adapter of a PEFT folder beside its others; `model` stays as it is.

    An adapter begun with PiSSA or OLoRA becomes one of twice the rank, on the base as it is: what
    PEFT takes out of the base is its second half.

    Args:
        directory: its adapter_config.json, and adapter_model.safetensors or .bin; or "owner/name"
            on the hub.
        name: what to call it. Of a folder that holds several in folders of their own, the one of
            that name.

    Raises:
        FileNotFoundError: a file is missing, or the hub doesn't have it or can't be reached.
        ValueError: it is no LoRA adapter, uses what we don't honour, or doesn't fit the model; the
            message names the field or tensor.
    """
    adapters.check_name(name)
    directory = folder_of(Path(directory), name)
    config = peft_config.read(directory / peft_config.FILE)
    own_ends = any(peft_config.saved_module(config, module) for module in _ends_of(model))
    if config["ensure_weight_tying"] and own_ends and model.config.tied_embeddings:
        raise ValueError(
            f"{directory / peft_config.FILE} has ensure_weight_tying True, by which versions of "
            "peft tie the new embedding to the head or don't: merge it where it was trained"
        )
    stored = read_tensors(directory)
    if not stored:
        raise ValueError(
            f"{directory} holds an adapter without any tensors: save it again where it was trained"
        )
    low, whole = _sorted(model, config, stored, directory)
    _check_complete(model, config, low, whole, directory)
    pairs: dict[tuple[Any, ...], Pair] = {}
    lies, named = _places(model), _files_tensors(model)
    for module, parts in low.items():
        tensor = lies[module]
        pair = _pair(module, parts, config, tensor, directory)
        start = str(config["init_lora_weights"]).lower()
        if start in ("pissa", "olora"):
            pair = _whole_base(model, pair, start, tensor, named[f"{module}.weight"])
        for i, path in enumerate(tensor.paths):
            cut = {
                part: tensor.take(i, values)
                for part in ("b", "magnitude", "bias")
                if (values := getattr(pair, part)) is not None
            }
            pairs[path[:-1]] = pair._replace(**cut)
    new = adapters.with_pairs(model, pairs, name)
    modules = config["modules_to_save"] or ()
    replaced.put(new, name, whole, modules, str(directory), untie=own_ends)
    load_template(new, directory)
    return new


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of PEFT's adapter_model.safetensors, or of its .bin, as float32.

    Nothing of a .bin is unpickled: checkpoints/torch_files.py reads it.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged.
    """
    file, old = directory / "adapter_model.safetensors", directory / "adapter_model.bin"
    if not file.is_file() and old.is_file():
        stored = read_torch(old)
        return {key: np.array(tensor.read(), np.float32) for key, tensor in stored.items()}
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, and {old.name} too: copy the adapter again")
    try:
        with safe_open(file, "flax") as opened:
            return {key: np.asarray(opened.get_tensor(key), np.float32) for key in opened.keys()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): copy it again") from None


def folder_of(directory: Path, name: str) -> Path:
    """The folder of an adapter: itself, or where it holds several the one of that name.

    One of the hub ("owner/name"), where there is no folder of that name, is fetched first.

    Raises:
        FileNotFoundError: there is none, or the hub can't be reached.
        ValueError: it is a file.
    """
    if directory.is_file():
        raise ValueError(f"{directory} is a file: name the folder that it lies in")
    if not directory.is_dir() and _HUB_NAME.fullmatch(str(directory)):
        directory = hub.fetch_adapter(str(directory))
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory / peft_config.FILE} is missing, as there is no folder {directory}: name "
            "one that holds an adapter, or one of the hub as owner/name"
        )
    if (directory / peft_config.FILE).is_file():
        return directory
    inside = sorted(file.parent.name for file in directory.glob(f"*/{peft_config.FILE}"))
    if name in inside:
        return directory / name
    if inside:
        raise FileNotFoundError(
            f"{directory} holds the adapters {', '.join(inside)} in folders of their own: load "
            f"one of them, such as {directory / inside[0]}"
        )
    if (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory / peft_config.FILE} is missing: {directory} holds a model, which is "
            "loaded by gptj_lab.load(...), not as an adapter"
        )
    return directory


def _sorted(
    model: LanguageModel, config: Mapping[str, Any], stored: Mapping[str, np.ndarray], where: Path
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The parts of each module's adapter, and the base's tensors that the file replaces."""
    places, named = _places(model), _files_tensors(model)
    low: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, np.ndarray] = {}
    for key in sorted(stored):
        if not key.startswith(_PREFIX):
            raise ValueError(
                f"{where} holds {key}, whose name doesn't begin with {_PREFIX}, so that PEFT "
                "wouldn't use it: rename the tensors, or save the adapter anew with PEFT"
            )
        inner = key.removeprefix(_PREFIX)
        found = _LOW.fullmatch(inner)
        part = _PARTS.get((found["part"], found["kind"])) if found else None
        if found is not None and part is not None and found["module"] in places:
            if not peft_config.targeted(config, found["module"]):
                raise ValueError(
                    f"{where} holds an adapter of {found['module']}, which its target_modules, "
                    "exclude_modules or layers_to_transform leave out, so that PEFT wouldn't use "
                    f"it: correct them in {peft_config.FILE}"
                )
            _put_once(low.setdefault(found["module"], {}), part, stored[key], key, where)
            continue
        plain = _base_name(inner)
        if plain in named or _is_head(model, plain):
            _put_once(whole, plain, stored[key], key, where)
        elif ".original_module." not in key:
            block = re.search(r"\.(\d+)\.", inner)
            layers = model.config.num_layers
            if block is not None and int(block[1]) >= layers:
                raise ValueError(
                    f"{where} holds {key}, of block {block[1]}, but the last of the model's "
                    f"{layers} blocks is {layers - 1}: the adapter belongs to another model"
                )
            raise ValueError(
                f"{where} holds {key}: LoRA adapts the matrices of a "
                f"{model.config.family_title}'s blocks here, and nothing else"
            )
    if model.config.tied_embeddings:
        _drop_twin_head(model, config, whole)
    return low, whole


def _put_once(
    found: dict[str, np.ndarray], name: str, values: np.ndarray, key: str, where: Path
) -> None:
    """Keeps a tensor by its short name, of which the file may not say two things."""
    if name in found and not np.array_equal(found[name], values):
        raise ValueError(
            f"{where} holds {key} and the same under another name with other numbers: take out the "
            "one that is wrong"
        )
    found[name] = values


def _check_complete(
    model: LanguageModel, config: Mapping[str, Any], low: Iterable[str],
    whole: Iterable[str], where: Path,
) -> None:  # fmt: skip
    """Tells of modules that the config names and the file lacks; PEFT leaves them as they are.

    Raises:
        ValueError: one of modules_to_save is missing, which PEFT refuses too.
    """
    heads = [_head_name(model)] if model.config.tied_embeddings else []
    for name in [*_files_tensors(model), *heads]:
        parts = name.split(".")
        inside = [".".join(parts[:end]) for end in range(1, len(parts))]
        if name in whole or name == "embed_out.weight":  # transformers 5 has another name for it
            continue
        if any(peft_config.saved_module(config, one) for one in inside):
            raise ValueError(
                f"{where} lacks {name}, which modules_to_save in its {peft_config.FILE} names: "
                "save it again where it was trained, or take the name out there"
            )
    if config["target_modules"] is None:
        return  # PEFT's own list of the family
    lacking = [m for m in _places(model) if m not in low and peft_config.targeted(config, m)]
    if lacking:
        notices.tell(
            f"{where} has no tensors for {len(lacking)} of the modules that its target_modules "
            f"name, the first {lacking[0]}: they stay as they are in the base"
        )


def _base_name(key: str) -> str:
    """What the base calls a tensor that PEFT keeps beside an adapter."""
    key = re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", key)
    return key.replace(".base_layer.", ".")


def _is_head(model: LanguageModel, name: str) -> bool:
    return name == _head_name(model) and model.config.tied_embeddings


def _head_name(model: LanguageModel) -> str:
    return "embed_out.weight" if model.config.family == "gpt_neox" else "lm_head.weight"


def _ends_of(model: LanguageModel) -> list[str]:
    """The modules of the embedding and of the head."""
    named = _files_tensors(model)
    embed = next(name for name, tensor in named.items() if tensor.paths == (("embed",),))
    return [embed.removesuffix(".weight"), _head_name(model).removesuffix(".weight")]


def _drop_twin_head(
    model: LanguageModel, config: Mapping[str, Any], whole: dict[str, np.ndarray]
) -> None:
    """A tied head that lies in the file beside its embedding, and isn't a module of its own."""
    embed, head = (f"{module}.weight" for module in _ends_of(model))
    own = any(peft_config.saved_module(config, module) for module in _ends_of(model))
    if head in whole and not own:
        whole.setdefault(embed, whole[head])
        del whole[head]


def _pair(
    module: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any],
    tensor: families.Tensor, where: Path,
) -> Pair:  # fmt: skip
    """A module's adapter, its shapes checked."""
    d_out, d_in = tensor.shape
    rank, strength = peft_config.rank_and_strength(config, module)
    for part, other in (("a", "b"), ("b", "a")):
        if part not in parts:
            raise ValueError(
                f"{where} has lora_{other.upper()} of {module} without lora_{part.upper()}: save "
                "it again where it was trained"
            )
    if ("magnitude" in parts) != bool(config["use_dora"]):
        has = "a" if "magnitude" in parts else "no"
        raise ValueError(
            f"{where} has {has} lora_magnitude_vector of {module}, but use_dora is "
            f"{config['use_dora']!r}: they go together"
        )
    wanted = {"a": (rank, d_in), "b": (d_out, rank), "magnitude": (d_out,), "bias": (d_out,)}
    said = {
        "a": "lora_A",
        "b": "lora_B",
        "magnitude": "lora_magnitude_vector",
        "bias": "lora_B's bias",
    }
    for part, values in parts.items():
        fits = part == "a" and values.ndim == 2 and values.shape[1] == d_in
        if fits and len(values) != rank:
            raise ValueError(
                f"lora_A of {module} in {where} has shape {values.shape}, {wanted[part]} is needed "
                f"by the rank {rank} in {peft_config.FILE} (r, 8 where it is missing, or "
                "rank_pattern): correct it there"
            )
        if values.shape != wanted[part]:
            raise ValueError(
                f"{said[part]} of {module} in {where} has shape {values.shape}, {wanted[part]} is "
                "needed: the adapter belongs to another model"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{said[part]} of {module} in {where} holds NaN or infinite values")
    return Pair(
        parts["a"], parts["b"], strength, parts.get("magnitude"),
        parts.get("bias") if config["lora_bias"] else None,
    )  # fmt: skip


def _whole_base(
    model: LanguageModel, pair: Pair, start: str, rows: families.Tensor, file: families.Tensor
) -> Pair:
    """The adapter of twice the rank that is, on the base as it is, what `pair` is in PEFT."""
    linears = dict(adapters.matrices(model.network))
    weight = rows.join([joining.weight_of(linears[path[:-1]]) for path in rows.paths])
    a, b = begun.taken_out(start, len(pair.a), pair.strength, weight, file)
    return pair._replace(a=np.concatenate([pair.a, a]), b=np.concatenate([pair.b, -b], axis=1))


def _files_tensors(model: LanguageModel) -> dict[str, families.Tensor]:
    return families.tensors(model.config, parameter_shapes(model.config))


def _places(model: LanguageModel) -> dict[str, families.Tensor]:
    """Hugging Face's modules that may be adapted, by name; rows lie as [out, in] lies."""
    found = {}
    for tensor in _files_tensors(model).values():
        path = tensor.paths[0]
        if path[0] == "blocks" and path[-1] == "weight" and path[2] in ("attn", "mlp"):
            shape = tensor.shape[::-1] if tensor.conv1d else tensor.shape
            module = tensor.name.removesuffix(".weight")
            found[module] = dataclasses.replace(tensor, conv1d=False, shape=shape)
    return found


def _written(
    model: LanguageModel, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """PEFT's tensors and config of these adapters as one."""
    places = _places(model)
    whole, modules_to_save = replaced.saved(model, names)
    pairs = _joined(model, places, names) or _nothing(places, modules_to_save)
    tensors: dict[str, np.ndarray] = {}
    for module, pair in pairs.items():
        parts = {
            "lora_A.weight": pair.a, "lora_B.weight": pair.b, "lora_B.bias": pair.bias,
            "lora_magnitude_vector": pair.magnitude,
        }  # fmt: skip
        for kind, values in parts.items():
            if values is not None:
                key = f"{_PREFIX}{module}.{kind}"
                tensors[key] = np.ascontiguousarray(values, np.float32)
    for key, values in whole.items():
        module, _, kind = key.rpartition(".")
        inner = ".base_layer" if module in pairs else ""
        tensors[f"{_PREFIX}{module}{inner}.{kind}"] = np.ascontiguousarray(values)
    return tensors, _config(model, pairs, list(places), whole, modules_to_save)


def _nothing(places: Mapping[str, families.Tensor], modules_to_save: list[str]) -> dict[str, Pair]:
    """An adapter of zeros on one module, as PEFT loads none that adapts no module."""
    config = peft_config.DEFAULTS | {"modules_to_save": modules_to_save}
    for module, tensor in places.items():
        if peft_config.targeted(config | {"target_modules": [module]}, module):
            d_out, d_in = tensor.shape
            a, b = np.zeros((1, d_in), np.float32), np.zeros((d_out, 1), np.float32)
            return {module: Pair(a, b, 1.0)}
    raise ValueError(
        "the adapter replaces every matrix of the blocks whole, which PEFT can't load: merge it "
        "(finetuning.lora.merged) and save the model"
    )


def _config(
    model: LanguageModel, pairs: Mapping[str, Pair], places: list[str],
    whole: Iterable[str], modules_to_save: list[str],
) -> dict[str, Any]:  # fmt: skip
    rank, rank_pattern = peft_config.patterns(
        {m: len(pair.a) for m, pair in pairs.items()} or {"": 8}
    )
    alpha, alpha_pattern = peft_config.patterns(
        {module: pair.strength * len(pair.a) for module, pair in pairs.items()} or {"": 8}
    )
    first = next(iter(pairs.values()), None)
    biases = {key.removesuffix(".bias") for key in whole if key.endswith(".bias")}
    biases -= {m for m in biases if any(m.endswith(saved) for saved in modules_to_save)}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha,
        "lora_dropout": 0.0, "use_rslora": False, "inference_mode": True,
        "bias": "none" if not biases else "lora_only" if biases <= pairs.keys() else "all",
        "fan_in_fan_out": model.config.family == "gpt2", "base_model_name_or_path": model.name,
        "target_modules": peft_config.target_names(pairs, places),
        "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern,
        "use_dora": first is not None and first.magnitude is not None,
        "lora_bias": first is not None and first.bias is not None,
        "modules_to_save": modules_to_save or None,
    }  # fmt: skip


def _joined(
    model: LanguageModel, places: Mapping[str, families.Tensor], names: Sequence[str]
) -> dict[str, Pair]:
    """One adapter for each of PEFT's modules, all with a magnitude, or a bias, if one has it."""
    linears = dict(adapters.matrices(model.network))
    own = {module: [linears[path[:-1]] for path in it.paths] for module, it in places.items()}
    found: dict[str, Pair] = {}
    for module, tensor in places.items():
        pairs = [joining.together(linear, names) for linear in own[module]]
        if any(pair is not None for pair in pairs):
            found[module] = joining.fused(tensor, pairs, own[module])
    if any(pair.magnitude is not None for pair in found.values()):
        for module, pair in found.items():
            if pair.magnitude is None:
                weight = places[module].join(list(map(joining.weight_of, own[module])))
                found[module] = pair._replace(magnitude=joining.norms(weight, pair))
    if any(pair.bias is not None for pair in found.values()):
        for module, pair in found.items():
            if pair.bias is None:
                found[module] = pair._replace(bias=np.zeros(len(pair.b), np.float32))
    return found
