"""Hugging Face's tensors in five families, to our parameters and back.

Every tensor of a file is one of our parameters, or the three of q, k and v fused. Each can be taken
apart, or put together, on its own, so that a reader never holds more than one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gptj_lab.config import ModelConfig

Path = tuple[Any, ...]  # of a parameter in a Transformer, such as ("blocks", 3, "ln", "scale")


class _Family(NamedTuple):
    prefix: str  # of every tensor but the head's; files of a base model lack it
    blocks: str  # where block i lies: blocks.i.
    modules: dict[str, str]  # our module, to theirs
    fused: str | None = None  # the module of q, k and v in one
    conv1d: bool = False  # matrices lie as [in, out], instead of [out, in] as ours do
    head: str = "lm_head"
    ignored: str = r"attn\.(bias|masked_bias)"  # buffers beside the weights, in a block


_GPT_J = {
    "embed": "wte",
    "ln": "ln_1",
    "attn.q": "attn.q_proj",
    "attn.k": "attn.k_proj",
    "attn.v": "attn.v_proj",
    "attn.out": "attn.out_proj",
    "mlp.fc_in": "mlp.fc_in",
    "mlp.fc_out": "mlp.fc_out",
    "final_ln": "ln_f",
}
_FAMILIES = {
    "gptj": _Family(
        "transformer.", "h", _GPT_J, ignored=r"attn\.(bias|masked_bias|embed_positions)"
    ),
    "codegen": _Family(
        "transformer.", "h", _GPT_J, fused="attn.qkv_proj",
        ignored=r"attn\.(causal_mask|bias|masked_bias|embed_positions)",
    ),
    "gpt_neox": _Family(
        "gpt_neox.",
        "layers",
        {
            "embed": "embed_in",
            "ln": "input_layernorm",
            "ln2": "post_attention_layernorm",
            "attn.out": "attention.dense",
            "mlp.fc_in": "mlp.dense_h_to_4h",
            "mlp.fc_out": "mlp.dense_4h_to_h",
            "final_ln": "final_layer_norm",
        },
        fused="attention.query_key_value",
        head="embed_out",
        ignored=r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    ),
    "gpt_neo": _Family(
        "transformer.",
        "h",
        {
            "embed": "wte",
            "position_embed": "wpe",
            "ln": "ln_1",
            "ln2": "ln_2",
            "attn.q": "attn.attention.q_proj",
            "attn.k": "attn.attention.k_proj",
            "attn.v": "attn.attention.v_proj",
            "attn.out": "attn.attention.out_proj",
            "mlp.fc_in": "mlp.c_fc",
            "mlp.fc_out": "mlp.c_proj",
            "final_ln": "ln_f",
        },
        ignored=r"attn\.attention\.(bias|masked_bias)",
    ),
    "gpt2": _Family(
        "transformer.",
        "h",
        {
            "embed": "wte",
            "position_embed": "wpe",
            "ln": "ln_1",
            "ln2": "ln_2",
            "attn.out": "attn.c_proj",
            "mlp.fc_in": "mlp.c_fc",
            "mlp.fc_out": "mlp.c_proj",
            "final_ln": "ln_f",
        },
        fused="attn.c_attn",
        conv1d=True,
    ),
}  # fmt: skip
_WRAPPERS = ("module.", "model.")  # DDP's and DataParallel's; a training script's own class
_CODEGEN_SHARDS = 4  # mp_num: the TPU cores that CodeGen was trained on, each with its own q, v, k


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: one of our parameters, or three fused.

    Attributes:
        name: in the file, with its prefix.
        paths: our parameters in it, in the file's order.
        shape: in the file.
        conv1d: a matrix lies as [in, out]; ours lie as [out, in].
        shards: how often the file's outputs go round over `paths`.
    """

    name: str
    paths: tuple[Path, ...]
    shape: tuple[int, ...]
    conv1d: bool
    shards: int

    def split(self, array: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
        """Our parameters in the file's array, each cut out when it is asked for."""
        for i, path in enumerate(self.paths):
            yield path, self.take(i, array)

    def take(self, index: int, array: np.ndarray) -> np.ndarray:
        """The parameter at paths[index], in our layout: a view of the file's array if it can be."""
        rows = array.T if self.conv1d and array.ndim == 2 else array
        if len(self.paths) > 1:
            rest = rows.shape[1:]
            rows = rows.reshape(self.shards, len(self.paths), -1, *rest)[:, index]
            rows = rows.reshape(-1, *rest)
        return rows

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The file's array, of our parameters in the order of `paths`."""
        whole = arrays[0]
        if len(arrays) > 1:
            rest = whole.shape[1:]
            parts = [part.reshape(self.shards, -1, *rest) for part in arrays]
            whole = np.stack(parts, axis=1).reshape(-1, *rest)
        return np.ascontiguousarray(whole.T if self.conv1d and whole.ndim == 2 else whole)


def tensors(config: ModelConfig, shapes: Mapping[Path, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor of the config's family by its name in the file, in the network's order.

    Args:
        config: says the family, and the heads that GPT-NeoX's fused tensors go round over.
        shapes: of the network's parameters, by their path.

    Raises:
        ValueError: a parameter for which the family has no tensor.
    """
    family = _FAMILIES[config.family]
    order, shards = "qkv", 1
    if config.family == "codegen":
        order, shards = "qvk", _CODEGEN_SHARDS
        if config.d_model % shards:
            raise ValueError(
                f"d_model is {config.d_model}: CodeGen's fused qkv_proj lies in {shards} parts, so "
                f"a multiple of {shards} is needed"
            )
    if config.family == "gpt_neox":
        shards = config.num_heads
    found: dict[str, Tensor] = {}
    for path, shape in shapes.items():
        name = _name(config, path)
        if name in found:  # k and v came with q
            continue
        paths = (path,)
        fused = family.fused is not None and path[2:3] == ("attn",) and path[3] in "qkv"
        if fused:
            paths = tuple((*path[:3], letter, *path[4:]) for letter in order)
            shape = (3 * shape[0], *shape[1:])
        conv1d = family.conv1d and path[0] == "blocks"
        lies = shape[::-1] if conv1d else shape
        found[name] = Tensor(name, paths, lies, conv1d, shards if fused else 1)
    return found


def _name(config: ModelConfig, path: Path) -> str:
    """Hugging Face's name of the tensor that holds the parameter at `path`."""
    family = _FAMILIES[config.family]
    suffix = "bias" if path[-1] in ("bias", "head_bias") else "weight"
    if path[0] in ("head", "head_bias"):
        return f"{family.head}.{suffix}"
    where = ""
    inner = [str(part) for part in path]
    if path[0] == "blocks":
        where = f"{family.blocks}.{path[1]}."
        inner = inner[2:]
    if inner[-1] in ("weight", "scale", "bias"):
        inner = inner[:-1]
    module = ".".join(inner)
    if family.fused and module in ("attn.q", "attn.k", "attn.v"):
        theirs = family.fused
    elif module in family.modules:
        theirs = family.modules[module]
    else:
        raise ValueError(f"a {config.family_title} checkpoint has no place for {module}")
    return f"{family.prefix}{where}{theirs}.{suffix}"


def full_name(config: ModelConfig, name: str) -> str | None:
    """The key in `tensors` of a tensor that a file calls `name`; None for a buffer to leave out.

    Files of a base model lack the prefix; GPT-NeoX's head has two names; a tied head that lies in
    the file nevertheless is the embedding once more, and has to be equal to it.
    """
    family = _FAMILIES[config.family]
    if name in ("lm_head.weight", f"{family.head}.weight"):
        return _name(config, ("embed",) if config.tied_embeddings else ("head", "weight"))
    if not name.startswith((family.prefix, f"{family.head}.")):
        name = family.prefix + name
    block = rf"{re.escape(family.prefix)}{family.blocks}\.\d+\."
    return None if re.fullmatch(block + family.ignored, name) else name


def is_head(name: str) -> bool:
    """Whether a file's tensor of this name is the matrix of a head, of whichever family."""
    heads = {family.head for family in _FAMILIES.values()}
    return unwrapped(name) in {f"{head}.weight" for head in heads}


def unwrapped(name: str) -> str:
    """The name of a tensor without what torch's wrappers put before it (DDP, torch.compile)."""
    name = name.replace("_orig_mod.", "")
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is a buffer of some family, which no network needs."""
    ignored = "|".join(family.ignored for family in _FAMILIES.values())
    return re.search(rf"\.\d+\.({ignored})$", name) is not None
