"""Public config.json files of the family, each tried at a tiny size beside transformers.

public_configurations.json holds their fields and where they were read.
`python tests/public_configurations.py` writes docs/configurations.md anew.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers_classes import MODELS

from gptj_lab import hugging_face_config
from gptj_lab.checkpoints import huggingface

ROWS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
DOCS = Path(__file__).parents[1] / "docs" / "configurations.md"
_GPT2_SIZES = dict(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)
_HIDDEN = dict(vocab_size=96, max_position_embeddings=32, hidden_size=32)
TINY: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2_SIZES,
    "gptj": _GPT2_SIZES | dict(rotary_dim=4),
    "codegen": _GPT2_SIZES | dict(rotary_dim=4),
    "gpt_neo": _HIDDEN | dict(num_layers=2, num_heads=4, window_size=3),
    "gpt_neox": _HIDDEN | dict(num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
}
_IDS = np.arange(18).reshape(2, 9) * 5 % 96
_HEAD = """# Configurations
What `gptj_lab.load` does with public config.json files: {loaded} of {total} load, with the logits
of transformers {version} (float32, 1e-5 of the largest) at a tiny size: sizes replaced, random
weights of std 0.2, every other field as in the file. Where each file was read, and which are known
in part only, stands in `tests/public_configurations.json`. This page is made by
`python tests/public_configurations.py`.

A field is refused only if transformers' class of the family reads it, it changes what the network
computes, and we don't honour it at its value. `gptj_lab/transformers_fields.json` holds what the
classes read, measured on them. What they don't read is passed over, as transformers does, and
`load` says so in one line.

| configuration | family | passed over | outcome |
| --- | --- | --- | --- |
"""


class Refused(Exception):
    """Ours or transformers' refusal of a configuration."""


def tiny(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with small sizes, everything else as it is."""
    family = family_of(fields)
    if family is None:
        return fields
    small = fields | TINY[family]
    for name in ("n_inner", "intermediate_size"):
        if fields.get(name) is not None:
            small[name] = 64
    if "n_ctx" in fields:
        small["n_ctx"] = 32
    if isinstance(fields.get("attention_layers"), list):
        small["attention_layers"] = fields["attention_layers"][:2]
    types = fields.get("attention_types")
    if types and isinstance(types[0], list) and isinstance(types[0][0], list):
        small["attention_types"] = [[(types[0][0] * 2)[:2], 1]]
    return small


def family_of(fields: dict[str, Any]) -> str | None:
    """The family that model_type or architectures names, if it is one of ours."""
    named = fields.get("architectures") or []
    kinds = [family for family, model in MODELS.items() if model in named]
    kind = fields.get("model_type") or (kinds[0] if kinds else None)
    return kind if kind in MODELS else None


def theirs(fields: dict[str, Any], folder: Path):
    """transformers' model of these fields with random weights (std 0.2), saved into a folder.

    Raises:
        Refused: transformers takes no such configuration.
    """
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    family = family_of(fields)
    try:
        if family is None:
            config = transformers.AutoConfig.from_pretrained(folder)
            raise Refused(f"transformers makes a {type(config).__name__} of it")
        kind = getattr(transformers, MODELS[family])
        model = kind(kind.config_class.from_pretrained(folder)).eval().float()
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"transformers refuses it too ({type(error).__name__})") from error
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.2 * torch.randn_like(value))
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def difference(
    fields: dict[str, Any], folder: Path, reference: dict[str, Any] | None = None
) -> float:
    """How far our logits are off transformers', relative to the largest.

    Args:
        fields: what our config.json says.
        reference: what transformers' says, if that is something else.

    Raises:
        Refused: transformers takes no such configuration.
        ValueError: we don't.
    """
    model = theirs(reference or fields, folder)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    _, network = huggingface.read(folder)
    with torch.no_grad():
        expected = model(torch.from_numpy(_IDS)).logits.float().numpy()
    found, _ = network(_IDS)
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def outcome(row: dict[str, Any], folder: Path) -> tuple[str, float | None]:
    """What happens to one configuration, in words, and the difference if it loads.

    Raises:
        AssertionError: we refuse what transformers loads as one of our families.
    """
    try:
        off = difference(tiny(row["fields"]), folder)
    except Refused as refused:
        try:
            huggingface.read_config(folder)
        except ValueError:
            return f"refused: {refused}", None
        raise AssertionError(f"we take {row['name']}, but {refused}") from refused
    except ValueError as error:
        raise AssertionError(f"{row['name']} is refused, but not by transformers") from error
    return "the same logits", off


def line(row: dict[str, Any], words: str) -> str:
    """The row of the table for one configuration."""
    family = family_of(row["fields"])
    idle = hugging_face_config.passed_over(tiny(row["fields"])) if family else []
    named = ", ".join(f"`{name}`" for name in idle)
    partly = " (known partly)" if row.get("note", "").startswith("known partly") else ""
    return f"| {row['name']}{partly} | {family or '–'} | {named} | {words} |\n"


def page() -> str:
    """The whole of docs/configurations.md."""
    lines, loaded = [], 0
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            words, off = outcome(row, Path(folder))
        loaded += off is not None
        lines.append(line(row, words))
    version = transformers.__version__.split(".")[0]
    return _HEAD.format(loaded=loaded, total=len(ROWS), version=version) + "".join(lines)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    DOCS.write_text(page(), encoding="utf-8")
    print(f"wrote {DOCS}")
