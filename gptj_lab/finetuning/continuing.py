"""An adapter that is there already: trained further, or with another one on top of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gptj_lab.finetuning import export, lora
from gptj_lab.finetuning.lora import Continued, LoRA
from gptj_lab.finetuning.methods import Method
from gptj_lab.finetuning.soft_prompts import SoftPrompt
from gptj_lab.language_model import LanguageModel


def beginning(
    model: LanguageModel, method: Method, adapter: Path | str | None
) -> tuple[LanguageModel, Method]:
    """What a run trains, and how.

    Args:
        adapter: the name of an adapter of the model, or a PEFT folder, that is trained further;
            None trains new ones, which get another name where theirs is taken.

    Raises:
        FileNotFoundError, ValueError: as export.load_adapter; or the method isn't LoRA.
    """
    if adapter is None:
        if isinstance(method, LoRA) and not isinstance(method, Continued):
            method = dataclasses.replace(method, name=lora.free_name(model, method.name))
        return model, method
    if not isinstance(adapter, str | Path):
        raise TypeError(
            f"adapter is {adapter!r}: a folder, or the name of an adapter of the model, is needed"
        )
    if not str(adapter).strip():
        raise ValueError("adapter is empty: name a folder, or leave it out")
    if not isinstance(method, LoRA):
        raise ValueError(
            f"adapter is {str(adapter)!r}, which only LoRA trains further, not "
            f"{type(method).__name__}: leave method out, or adapter"
        )
    name = str(adapter)
    if name not in lora.names(model):
        name = lora.free_name(model, method.name)
        model = export.load_adapter(model, Path(adapter).expanduser(), name)
    return model, lora.continued(model, name, method.dropout)


def check(model: LanguageModel, method: Method) -> None:
    """Nothing, if what the method trains on this model can be saved.

    Raises:
        ValueError: it can't.
    """
    if isinstance(method, LoRA):
        export.check_savable(model, lora.names(model), method.dora)


def sentences(model: LanguageModel, method: Method) -> Iterator[str]:
    """What becomes of the adapters and of the soft prompt that the model has already."""
    there = lora.names(model)
    name = method.name if isinstance(method, LoRA) else None
    others = [other for other in there if other != name]
    if isinstance(method, Continued):
        yield (
            f"the adapter {name} is trained further: rank {method.rank} of "
            f"{', '.join(method.targets)}, of the method only its dropout counts"
        )
        if name in model.replaced:
            yield (
                f"the biases and whole weights of the adapter {name} stay as they are, and are "
                "saved with it"
            )
    if isinstance(method, LoRA) and others:
        yield (
            f"the adapter {name} is trained on top of {', '.join(others)}: what is saved is all of "
            "them as one adapter, which works on the base alone"
        )
    if isinstance(method, SoftPrompt) and others:
        yield (
            f"the soft prompt is trained on top of the adapter {', '.join(others)} and saved "
            "without: load the adapter first, then the prompt"
        )
    if isinstance(method, LoRA) and model.network.soft_prompt is not None:
        yield (
            f"the adapter {name} is trained behind the model's soft prompt and saved without: "
            "load both"
        )
