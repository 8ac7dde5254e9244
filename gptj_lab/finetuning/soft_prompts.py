"""Soft prompts: vectors before the text that are trained while the model stays as it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from safetensors.numpy import save as safetensors

from gptj_lab.checkpoints import huggingface
from gptj_lab.finetuning import export, peft_config
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import distributed, sharding
from gptj_lab.model.attention import EVERYONE
from gptj_lab.model.transformer import SoftPromptTable, Transformer

_KIND, _TENSOR = "PROMPT_TUNING", "prompt_embeddings"  # PEFT's names


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """Virtual tokens whose vectors are trained (Lester et al. 2021).

    Attributes:
        length: how many.
        text: what they begin as, repeated or cut to `length` tokens; None takes random tokens.

    Raises:
        ValueError: `length` is no whole number of at least 1, or the text is empty.
    """

    length: int = 16
    text: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length is {self.length!r}: a whole number of at least 1 is needed")
        if self.text is not None and not (isinstance(self.text, str) and self.text):
            raise ValueError(f"text is {self.text!r}: some text to begin as, or None")


def prompted(model: LanguageModel, prompt: SoftPrompt, seed: int = 0) -> LanguageModel:
    """The model with a new soft prompt; `model` itself stays as it is, its weights are shared.

    Raises:
        ValueError: it has one already, or the prompt fills its context.
    """
    if prompt.text is None:
        count = model.tokenizer.vocab_size
        ids = jax.random.randint(jax.random.key(seed), (prompt.length,), 0, count)
    else:
        begin = model.tokenizer.encode(prompt.text, add_special_tokens=False)
        ids = jnp.resize(jnp.asarray(begin), (prompt.length,))
    return _with(model, model.network.embed[...][ids])


def before(
    network: Transformer,
    ids: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    segments: Int[Array, "batch seq"] | None,
) -> tuple[Int[Array, "batch more"], Int[Array, "batch more"], Int[Array, "batch more"] | None]:
    """Ids, positions and segments of windows with the network's virtual tokens before them.

    Every document packed into a window sees them, and none of them sees a document.
    """
    table = network.soft_prompt
    assert table is not None
    length, rows = table.shape[0], ids.shape[0]
    count = jnp.arange(length, dtype=ids.dtype)
    virtual = jnp.broadcast_to(network.embed.shape[0] + count, (rows, length))
    first = jnp.broadcast_to(count.astype(positions.dtype), (rows, length))
    if segments is not None:
        for_all = jnp.full((rows, length), EVERYONE, segments.dtype)
        segments = jnp.concatenate([for_all, segments], axis=1)
    return (
        jnp.concatenate([virtual, ids], axis=1),
        jnp.concatenate([first, positions + length], axis=1),
        segments,
    )


def without(model: LanguageModel) -> LanguageModel:
    """The model without its soft prompt, if it has one; `model` itself stays as it is."""
    copy = model.twin()
    copy.network.soft_prompt = None
    return copy


def save(model: LanguageModel, directory: Path | str) -> None:
    """Writes the soft prompt as a folder that `peft` loads onto the same base model.

    Raises:
        ValueError: the model has none.
        OSError: it can't be written; files that were there stay whole.
    """
    table = model.network.soft_prompt
    if table is None:
        raise ValueError("the model has no soft prompt to save")
    vectors = np.asarray(distributed.gather(table[...]), np.float32)
    config = {
        "peft_type": _KIND, "task_type": "CAUSAL_LM", "num_virtual_tokens": len(vectors),
        "token_dim": model.config.d_model, "num_layers": model.config.num_layers,
        "num_attention_heads": model.config.num_heads, "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM", "base_model_name_or_path": model.name,
        "inference_mode": True,
    }  # fmt: skip
    with huggingface.replacing(directory, whole=False) as aside:
        stored = safetensors({_TENSOR: vectors}, {"format": "pt"})
        (aside / "adapter_model.safetensors").write_bytes(stored)
        (aside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        export.save_template(model, aside)


def load(model: LanguageModel, directory: Path | str) -> LanguageModel:
    """The model with the soft prompt of a PEFT folder; `model` itself stays as it is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it holds no soft prompt, or one of another model; or the model has one already.
    """
    directory = Path(directory)
    peft_config.of_kind(directory / peft_config.FILE, _KIND)
    vectors = export.read_tensors(directory).get(_TENSOR)
    width = model.config.d_model
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != width:
        found = "no prompt_embeddings" if vectors is None else f"a prompt of {vectors.shape}"
        raise ValueError(
            f"{directory} holds {found}: [virtual tokens, {width}] is needed, as the model has "
            f"d_model {width}"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"the prompt in {directory} holds NaN or infinite values")
    prompted = _with(model, jnp.asarray(vectors))
    export.load_template(prompted, directory)
    return prompted


def load_trained(
    model: LanguageModel, directory: Path | str, name: str = "default"
) -> LanguageModel:
    """The model with what a PEFT folder holds, an adapter or a soft prompt; `model` stays as it is.

    Args:
        directory: it, or "owner/name" on the hub.
        name: of the adapter; adapters of several names are stacked.

    Raises: as export.load_adapter and `load`.
    """
    directory = export.folder_of(Path(directory), name)
    if peft_config.kind(directory / peft_config.FILE) == _KIND:
        return load(model, directory)
    return export.load_adapter(model, directory, name)


def _with(model: LanguageModel, vectors: Float[Array, "length d_model"]) -> LanguageModel:
    if model.network.soft_prompt is not None:
        raise ValueError("the model has a soft prompt already: take soft_prompts.without(model)")
    if len(vectors) >= model.config.context:
        raise ValueError(
            f"the soft prompt's length is {len(vectors)}, which leaves no room for text in the "
            f"context of {model.config.context}"
        )
    copy = model.twin()
    copy.network.soft_prompt = SoftPromptTable(vectors.astype(jnp.float32))
    if copy.mesh is not None:
        copy.network = sharding.place(copy.network, copy.config, copy.mesh)
    return copy
