"""Traces on disk: one safetensors file, refused for another model than its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptj_lab.checkpoints.safetensors_files import Entry, read_safetensors, write_safetensors
from gptj_lab.config import ModelConfig
from gptj_lab.lens import fingerprint
from gptj_lab.model import sites as network_sites

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.lens.trace import Trace

TRACE = "gptj_lab.trace"  # what the file says that it is


def write(trace: Trace, file: Path, sites: Sequence[str]) -> None:
    """As `Trace.save`."""
    model = trace.model("the weights' fingerprint")
    about = {
        "tokens": list(trace.tokens),
        "names": list(trace.names),
        "model_name": trace.model_name,
    }
    tensors = {"token_ids": trace.token_ids, "residuals": trace.residuals}
    tensors |= {f"values.{name}": trace[name] for name in sites}
    write_tensors(file, TRACE, model, about, tensors)


def read(kind: type[Trace], file: Path, model: LanguageModel | None) -> Trace:
    """As `Trace.load`."""
    config, about, tensors = read_tensors(file, TRACE, model)
    ids, residuals = tensors.pop("token_ids", None), tensors.pop("residuals", None)
    if ids is None or residuals is None or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.int32):
        raise ValueError(f"{file} is damaged: token_ids or residuals are missing; trace again")
    shape = (config.num_layers + 1, len(ids), config.d_model)
    if residuals.shape != shape or len(about["tokens"]) != len(ids):
        raise ValueError(
            f"{file} is damaged: residuals have shape {residuals.shape}, {shape} is needed for "
            f"{len(about['tokens'])} tokens; trace again"
        )
    values = {name.removeprefix("values."): value for name, value in tensors.items()}
    names = network_sites.match([*about["names"], *values], config)
    model = None if model is None else model.twin()
    return kind(
        config, ids, about["tokens"], residuals,
        names=names, values=values, model=model, model_name=about["model_name"],
    )  # fmt: skip


def write_tensors(
    file: Path, what: str, model: LanguageModel, about: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Writes named arrays and what they are, of one model; an old file stays until then."""
    about = about | {
        "what": what,
        "config": fingerprint.config_text(model.config),
        "fingerprint": fingerprint.of_weights(model),
        "weights_of": model.name,
    }
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    entries = [
        Entry(name, value.shape, value.dtype, lambda value=value: value)
        for name, value in {"about": text, **tensors}.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write_safetensors(aside, entries)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(
    file: Path, what: str, model: LanguageModel | None
) -> tuple[ModelConfig, dict[str, Any], dict[str, np.ndarray]]:
    """The config, what else was written about them, and the arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is something else, or belongs to another model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    stored = read_safetensors(file)
    try:
        about = json.loads(stored.pop("about").read().tobytes())
        found = about["what"]
        config = fingerprint.config_of(about["config"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is not a {what} file: choose one that was saved here") from None
    if found != what:
        raise ValueError(f"{file} is a {found} file, a {what} file is needed")
    if model is not None:
        if model.config != config:
            raise ValueError(
                f"{file} belongs to {about['weights_of']!r}, a network of another shape than "
                f"{model.name!r}: load that model, or make it again with this one"
            )
        if fingerprint.of_weights(model) != about["fingerprint"]:
            raise ValueError(
                f"{file} belongs to other weights ({about['weights_of']!r} as it was) than those "
                f"of {model.name!r}: load them in the same dtype, or make it again with these"
            )
    return config, about, {name: np.array(tensor.read()) for name, tensor in stored.items()}
