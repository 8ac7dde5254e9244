"""The original release of GPT-J, as mesh-transformer-jax writes it: slim and full, any shard count.

A step folder holds `shard_0/`, `shard_1/`, ..., each with `0.npz` to `15.npz`: the leaves of the
training state in JAX's flattening order (dicts by sorted key: opt_state, params, step), cut into 16
runs. The slim form has no opt_state. Kernels are [in, out].
Source: kingoflolz/mesh-transformer-jax, checkpoint.py and transformer_shard.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from gptj_lab import presets
from gptj_lab.checkpoints import families
from gptj_lab.checkpoints.filling import Place, check_dtype, fill, parameter_shapes
from gptj_lab.checkpoints.npz_shards import Leaf, StepFolder
from gptj_lab.checkpoints.stored import StoredTensor
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

CONFIG_NAME = "mesh_transformer.json"  # what we call the configuration in a folder that we write
GPT_J_6B = presets.named("gpt-j-6b")
_KEYS = ("layers", "d_model", "n_heads", "n_vocab", "norm", "pe", "seq", "cores_per_replica")
_END_OF_TEXT = 50256  # of GPT-2's tokenizer, with which that code trains

# Haiku's module and parameter, Hugging Face's name, and how the shards' parts are joined.
_LAYER = (
    ("linear", "w", "attn.q_proj.weight", "columns"),
    ("linear_1", "w", "attn.v_proj.weight", "columns"),
    ("linear_2", "w", "attn.k_proj.weight", "columns"),
    ("linear_3", "w", "attn.out_proj.weight", "rows"),
    ("linear_4", "w", "mlp.fc_in.weight", "columns"),
    ("linear_4", "b", "mlp.fc_in.bias", "rows"),
    ("linear_5", "w", "mlp.fc_out.weight", "rows"),
    ("linear_5", "b", "mlp.fc_out.bias", "sum"),
    ("replicated_layer_norm", "scale", "ln_1.weight", "replicated"),
    ("replicated_layer_norm", "offset", "ln_1.bias", "replicated"),
)
_OUTER = (  # in the model itself
    ("embedding_shard/~/linear", "w", "transformer.wte.weight", "rows"),
    ("embedding_shard/~/linear", "b", "", "sum"),  # Hugging Face's embedding has none
    ("projection_shard/~/linear", "w", "lm_head.weight", "columns"),
    ("projection_shard/~/linear", "b", "lm_head.bias", "rows"),
    ("projection_shard/~/replicated_layer_norm", "scale", "transformer.ln_f.weight", "replicated"),
    ("projection_shard/~/replicated_layer_norm", "offset", "transformer.ln_f.bias", "replicated"),
)


class Parameter(NamedTuple):
    """One leaf of `params`: what Haiku calls it, what Hugging Face does, and its joined shape."""

    module: str
    leaf: str
    name: str
    join: str
    shape: tuple[int, ...]

    @property
    def turned(self) -> bool:
        """Whether it lies transposed, seen from Hugging Face."""
        return self.leaf == "w" and self.name != "transformer.wte.weight"

    @property
    def part(self) -> Leaf:
        """How it is cut into shards."""
        return Leaf(self.join, self.shape, f"{self.module.partition('/~/')[2]} {self.leaf}")


def is_release(directory: Path) -> bool:
    """Whether a folder looks like a step folder of mesh-transformer-jax."""
    return (directory / "shard_0").is_dir()


def refuse_variant(directory: Path, variant: str | None) -> None:
    """Raises ValueError for a variant of the weights, which original releases don't have."""
    if variant is not None:
        raise ValueError(
            f"variant is {variant!r}, but {directory} is an original release, which has none: "
            "leave it out"
        )


def read(
    directory: Path | str,
    dtype: str = "float32",
    *,
    config: ModelConfig | None = None,
    place: Place | None = None,
) -> tuple[ModelConfig, Transformer]:
    """The config and the network in a step folder, its weights in `dtype`.

    Args:
        config: the network's shape. By default that of the configuration json in the folder or
            beside it, and if there is none, GPT-J-6B's.
        place: as for `filling.fill`.

    Raises:
        FileNotFoundError: a shard's folder or file is not there.
        ValueError: a file or leaf that isn't as the configuration says; the message names it.
    """
    check_dtype(dtype)
    directory = Path(directory)
    config, stored = tensors(directory, config)
    return config, fill(config, stored, str(directory), dtype, place)


def tensors(
    directory: Path, config: ModelConfig | None = None
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """The config, and every parameter joined and named and turned as Hugging Face has it.

    Raises as `read`.
    """
    cores = None
    found = None if config is not None else find_config(directory)
    hint = ""
    if found is not None:
        config, cores = found
    elif config is None:
        config = GPT_J_6B
        hint = (
            f" (no configuration json lies in {directory} or beside it, so the shape of GPT-J-6B "
            f"was taken: put the json there as {CONFIG_NAME}, or give `config`)"
        )
    leaves = parameters(config)
    try:
        folder = StepFolder(directory, cores, len(leaves))
        stored: dict[str, StoredTensor] = {}
        bias = None
        for i, parameter in enumerate(leaves):
            joined = folder.joined(i, parameter.part)
            if not parameter.name:
                bias = joined  # sorted before the embedding's w
            elif parameter.name == "transformer.wte.weight":
                assert bias is not None
                stored[parameter.name] = _with_bias(joined, bias)
            else:
                stored[parameter.name] = joined.transposed() if parameter.turned else joined
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from None
    return config, stored


def parameters(config: ModelConfig) -> list[Parameter]:
    """The leaves of `params` in the order in which they are written."""
    root = "causal_transformer_shard/~/"
    rows = [
        (f"{root}layer_{layer}/~/{module}", leaf, f"transformer.h.{layer}.{name}", join)
        for layer in range(config.num_layers)
        for module, leaf, name, join in _LAYER
    ]
    rows += [(root + module, leaf, name, join) for module, leaf, name, join in _OUTER]
    tensors = families.tensors(config, parameter_shapes(config))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shapes[""] = (config.d_model,)
    found = [Parameter(*row, shapes[row[2]]) for row in sorted(rows)]
    return [row._replace(shape=row.shape[::-1]) if row.turned else row for row in found]


def find_config(directory: Path) -> tuple[ModelConfig, int] | None:
    """The shape and the number of shards from the configuration json in a folder or beside it.

    Raises:
        ValueError: several that differ, or one of a network that we don't have.
    """
    for folder in (directory, directory.absolute().parent):
        found = {}
        for file in sorted(folder.glob("*.json")):
            if not file.is_file() or file.stat().st_size > 1_000_000:
                continue
            try:
                fields = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                continue  # some other file
            if isinstance(fields, dict) and {"layers", "cores_per_replica"} <= fields.keys():
                found[file] = (from_fields(fields, str(file)), fields["cores_per_replica"])
        if len({repr(value) for value in found.values()}) > 1:
            raise ValueError(
                f"{', '.join(str(file) for file in found)} differ, and {directory} could belong to "
                "each: leave only the one that does, or give `config`"
            )
        if found:
            return next(iter(found.values()))
    return None


def from_fields(fields: dict[str, Any], where: str) -> ModelConfig:
    """The config that mesh-transformer-jax's configuration json describes.

    Raises:
        ValueError: a missing key, or a norm or position encoding that this network doesn't have.
    """
    missing = [key for key in _KEYS if key not in fields]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: a configuration of GPT-J has them")
    for key, ours in (("norm", "layernorm"), ("pe", "rotary")):
        if fields[key] != ours:
            raise ValueError(
                f"{key} in {where} is {fields[key]!r}, which this network doesn't have: "
                f"only {ours!r} is read"
            )
    for key in ("layers", "d_model", "n_heads", "n_vocab", "seq", "cores_per_replica"):
        if type(fields[key]) is not int or fields[key] < 1:
            raise ValueError(f"{key} in {where} is {fields[key]!r}: a whole number is needed")
    end = _END_OF_TEXT if fields["n_vocab"] > _END_OF_TEXT else None
    try:
        return ModelConfig.of_family(
            "gptj",
            vocab_size=fields["n_vocab"], context=fields["seq"], d_model=fields["d_model"],
            num_layers=fields["layers"], num_heads=fields["n_heads"],
            d_rotary=fields.get("pe_rotary_dims", fields["d_model"] // fields["n_heads"]),
            d_ff=4 * fields["d_model"], bos_token_id=end, eos_token_id=end,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_fields(config: ModelConfig, shards: int) -> dict[str, Any]:
    """The configuration json of a network, for mesh-transformer-jax.

    Raises:
        ValueError: that code has no such network, or can't cut it into so many shards.
    """
    theirs = ModelConfig.of_family(
        "gptj",
        vocab_size=config.vocab_size, context=config.context, d_model=config.d_model,
        num_layers=config.num_layers, num_heads=config.num_heads, d_rotary=config.d_rotary,
        d_ff=4 * config.d_model, initializer_range=config.initializer_range,
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
    ) if config.family == "gptj" else GPT_J_6B  # fmt: skip
    for name, value in dataclasses.asdict(theirs).items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)}: mesh-transformer-jax has only {value} here"
            )
    for name in ("num_heads", "vocab_size"):
        value = getattr(config, name)
        if shards < 1 or value % shards:
            fit = [n for n in range(1, 129) if not (config.num_heads % n or config.vocab_size % n)]
            raise ValueError(
                f"{shards} shards don't divide {name} {value}: "
                f"{', '.join(map(str, fit))} would divide all"
            )
    return {
        "layers": config.num_layers,
        "d_model": config.d_model,
        "n_heads": config.num_heads,
        "n_vocab": config.vocab_size,
        "norm": "layernorm",
        "pe": "rotary",
        "pe_rotary_dims": config.d_rotary,
        "seq": config.context,
        "cores_per_replica": shards,
    }


def _with_bias(weight: StoredTensor, bias: StoredTensor) -> StoredTensor:
    """The embedding with its bias added to every row, in float32 whatever the file has."""

    def read():
        total = weight.read().astype("float32")
        total += bias.read()[None, :]
        return total

    return StoredTensor(weight.shape, bias.dtype, read, weight.where)
