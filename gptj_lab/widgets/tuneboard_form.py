"""The settings of a run as a form has them, and as Python that repeats the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_lab.corpora.options import ReadingOptions
from gptj_lab.finetuning.lora import TARGETS, LoRA
from gptj_lab.finetuning.loss import REMAT
from gptj_lab.finetuning.methods import Full, LastBlocks, SoftPrompt
from gptj_lab.finetuning.optimisers import Optimiser

METHODS = {"lora": LoRA, "full": Full, "last_blocks": LastBlocks, "soft_prompt": SoftPrompt}
_TITLES = {
    "lora": "LoRA: small matrices beside the model's", "full": "full: every weight",
    "last_blocks": "the last blocks", "soft_prompt": "soft prompt: vectors before the text",
}  # fmt: skip
# A Corpus has settled these.
OF_READING = (
    "strict", "template", "loss_on",
    *(field.name for field in dataclasses.fields(ReadingOptions) if field.name != "templates"),
)  # fmt: skip
OF_THE_DATA = ("context", "held_out", "packing", *OF_READING)


@dataclasses.dataclass(frozen=True)
class Field:
    """One line of the form.

    Attributes:
        name: of the argument.
        owner: "method", "optimiser", or "run" for an argument of finetune.
        kind: "int", "float", "bool", "choice", "targets", "text" or "lines".
        default: as the form shows it; None: empty, which means None.
        method: the method that it belongs to, if it isn't everyone's.
        choices: of a "choice" or of "targets", and suggestions for a "text": (value, words).
        hint: what it does, in a few words.
    """

    name: str
    owner: str
    kind: str
    label: str
    default: Any
    method: str | None = None
    choices: tuple[tuple[str, str], ...] = ()
    hint: str = ""


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


_PACKINGS = (("documents", "by documents"), ("plain", "plain, as the original"))
_SHAPES = (
    ("cosine", "warm-up, cosine"), ("linear", "warm-up, linear"), ("constant", "warm-up, constant"),
    ("original", "GPT-J's original"),
)  # fmt: skip
_TEMPLATES = (
    ("plain", "a line break and Answer:"), ("chat", "User: and Assistant:"),
    ("chatml", "<|im_start|> and <|im_end|>"), ("alpaca", "### Instruction: and ### Response:"),
    ("tokenizer", "the model's own"), ("none", "rows as they are"),
    ("### {question}\\n{answer}", "a form of your own"),
)  # fmt: skip
_LOSS_ON = (("answers", "answers only"), ("all", "all of the text"))
_LORA, _LAST, _SOFT, _OPTIMISER = LoRA(), LastBlocks(), SoftPrompt(), Optimiser()
FIELDS = (
    Field("method", "method", "choice", "method", "lora", choices=tuple(_TITLES.items())),
    Field("rank", "method", "int", "rank", _LORA.rank, "lora", hint="larger learns more"),
    Field("alpha", "method", "float", "alpha", _LORA.alpha, "lora", hint="strength: alpha / rank"),
    Field("dropout", "method", "float", "dropout", _LORA.dropout, "lora", hint="0 to below 1"),
    Field("targets", "method", "targets", "matrices", list(_LORA.targets), "lora", _same(*TARGETS)),
    Field("rslora", "method", "bool", "rsLoRA", _LORA.rslora, "lora", hint="alpha / √rank"),
    Field("dora", "method", "bool", "DoRA", _LORA.dora, "lora", hint="rows' lengths too"),
    Field("count", "method", "int", "blocks", _LAST.count, "last_blocks", hint="from the end"),
    Field("head", "method", "bool", "and the head", _LAST.head, "last_blocks"),
    Field("length", "method", "int", "vectors", _SOFT.length, "soft_prompt"),
    Field("text", "method", "text", "begin as", _SOFT.text, "soft_prompt", hint="a text's tokens"),
    Field("steps", "run", "int", "steps", 200, hint="updates of the weights"),
    Field("batch", "run", "int", "batch", 8, hint="windows a step"),
    Field("context", "run", "int", "window", None, hint="tokens; empty: what fits"),
    Field("learning_rate", "optimiser", "float", "learning rate", None, hint="empty: a good one"),
    Field("evaluate_every", "run", "int", "evaluate every", None, hint="steps; empty: by itself"),
    Field("out", "run", "text", "folder", None, hint="keeps the run; one there goes on"),
    Field("prompts", "run", "lines", "sample prompts", []),
    Field("schedule", "optimiser", "choice", "schedule", _OPTIMISER.schedule, None, _SHAPES),
    Field("warmup_steps", "optimiser", "int", "warm-up steps", _OPTIMISER.warmup_steps,
          hint="empty: a tenth, at most 100"),
    Field("name", "optimiser", "choice", "optimiser", _OPTIMISER.name, None,
          (("adamw", "AdamW"), ("adafactor", "Adafactor"), ("lion", "Lion"))),
    Field("weight_decay", "optimiser", "float", "weight decay", _OPTIMISER.weight_decay),
    Field("clip", "optimiser", "float", "clip gradients at", _OPTIMISER.clip, hint="empty: never"),
    Field("accumulate", "optimiser", "int", "accumulate", _OPTIMISER.accumulate,
          hint="parts of a batch, one by one"),
    Field("remat", "run", "choice", "recompute", None, None, (("", "nothing"), *_same(*REMAT))),
    Field("patience", "run", "int", "patience", None, hint="evaluations; empty: no early stop"),
    Field("held_out", "run", "float", "held out", 0.05, hint="share of the text"),
    Field("packing", "run", "choice", "packing", "documents", None, _PACKINGS),
    Field("sample_tokens", "run", "int", "tokens a sample", 40),
    Field("seed", "run", "int", "seed", 0),
    Field("text_field", "run", "text", "text's column", None, hint="of rows; empty: found"),
    Field("prompt_field", "run", "text", "prompt's column", None, hint="of rows; empty: found"),
    Field("answer_field", "run", "text", "answer's column", None, hint="of rows; empty: found"),
    Field("template", "run", "text", "template", None, None, _TEMPLATES,
          hint="prompt to text; empty: plain or chat"),
    Field("loss_on", "run", "choice", "loss on", "answers", None, _LOSS_ON),
    Field("me", "run", "text", "me in a chat", None, hint="the assistant; empty: nobody"),
)  # fmt: skip
_BY_NAME = {field.name: field for field in FIELDS}
Form = dict[str, Any]


def form_of(settings: Mapping[str, Any]) -> Form:
    """The form of settings of `finetune`; what it has no line for is left out."""
    method = settings.get("method") or LoRA()
    kinds = [name for name, kind in METHODS.items() if isinstance(method, kind)]
    if not kinds:
        raise TypeError(
            f"method is a {type(method).__name__}: gptj_lab.LoRA, Full, LastBlocks or SoftPrompt "
            "is needed"
        )
    optimiser = settings.get("optimiser") or Optimiser()
    form: Form = {}
    for field in FIELDS:
        source: Any = {"method": method, "optimiser": optimiser}.get(field.owner)
        if field.name == "method":
            value: Any = kinds[0]
        elif source is None:
            value = settings.get(field.name, field.default)
        else:
            value = getattr(source, field.name, field.default)
        form[field.name] = _plain(value, field.kind)
    return form


def _plain(value: Any, kind: str) -> Any:
    if kind in ("targets", "lines"):
        return [value] if isinstance(value, str) else [str(each) for each in value or ()]
    if kind == "text" and value is not None:
        return str(value).replace("\n", "\\n")
    return value if isinstance(value, str | int | float | bool | None) else None


def settings_of(form: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a view's form means; what it has no line for stays as it was `before`.

    Raises:
        ValueError: a line can't be read, or a method or optimiser refuses it.
    """
    read = {name: _read(field, form.get(name, field.default)) for name, field in _BY_NAME.items()}
    kind = METHODS[read["method"]]
    old: Any = before.get("method")
    optimiser = before.get("optimiser") or Optimiser()
    fields = {f.name: read[f.name] for f in FIELDS if f.method == read["method"]}
    if "targets" in fields:
        fields["targets"] = tuple(fields["targets"])
    known = {f.name for f in dataclasses.fields(kind)}
    fields = {name: value for name, value in fields.items() if name in known}
    method = dataclasses.replace(old if isinstance(old, kind) else kind(), **fields)
    of_optimiser = {f.name: read[f.name] for f in FIELDS if f.owner == "optimiser"}
    of_run = {f.name: read[f.name] for f in FIELDS if f.owner == "run"}
    if not isinstance(before.get("held_out", 0.0), int | float):
        of_run["held_out"] = before["held_out"]  # sources of their own
    of_run["prompts"] = tuple(of_run["prompts"])
    return {
        **before, **of_run, "method": method,
        "optimiser": dataclasses.replace(optimiser, **of_optimiser),
    }  # fmt: skip


def settings_of_run(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `finetune` that a run's record (`Run.settings`) tells."""
    kinds = {kind.__name__: kind for kind in METHODS.values()}
    method = dict(recorded["method"])
    name = method.pop("kind")
    further = {"adapter": method["name"]} if name == "Continued" else {}
    kind = LoRA if further else kinds[name]
    if "targets" in method:
        method["targets"] = tuple(method["targets"])
    found = {
        name: value
        for name, value in recorded.items()
        if name not in ("base", "corpus", "held_out", "chat_template")
    }
    if recorded.get("held_out") is not None:
        found["held_out"] = recorded["held_out"]
    return found | {
        "method": kind(**method), "optimiser": Optimiser(**recorded["optimiser"]),
        "prompts": tuple(recorded["prompts"]), **further,
    }  # fmt: skip


def _read(field: Field, value: Any) -> Any:
    """A line's value; an empty one is None where that is allowed."""
    if field.kind == "lines":
        lines = value.splitlines() if isinstance(value, str) else value
        return [str(line) for line in lines or () if str(line).strip()]
    if field.kind == "targets":
        return [str(each) for each in value or ()]
    if field.kind == "bool":
        return bool(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        if field.default is None or field.name == "clip":
            return None
        raise ValueError(f"{field.label} is empty: a value such as {field.default!r} is needed")
    if field.kind == "choice" and value not in dict(field.choices):
        raise ValueError(f"{field.label} is {value!r}: {', '.join(dict(field.choices))} are there")
    if field.kind in ("int", "float"):
        return _number(field, value)
    if field.name == "template":
        return str(value).replace("\\n", "\n")
    return str(value)


def _number(field: Field, value: Any) -> int | float:
    wanted = "a whole number" if field.kind == "int" else "a number"
    try:
        read = int(str(value)) if field.kind == "int" else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{field.label} is {str(value)[:40]!r}: {wanted} is needed") from None
    if not math.isfinite(read):
        raise ValueError(f"{field.label} is {read}: {wanted} is needed")
    return read


def code(model_name: str, data: Any, settings: Mapping[str, Any], *, is_corpus: bool) -> str:
    """The Python that makes the same run without the board (its headless twin)."""
    lines = ["import gptj_lab", ""]
    if model_name:
        lines += [f"model = gptj_lab.load({model_name!r})"]
    source, comment = "data", ""
    if not is_corpus and _is_writable(data):
        source = repr(str(data) if isinstance(data, Path) else data)
    else:
        comment = "  # what the board was given"
    lines += ["run = gptj_lab.finetune(", "    model,", f"    {source},{comment}"]
    first = {name: settings[name] for name in ("method", "steps") if name in settings}
    for name, value in (first | dict(settings)).items():
        if is_corpus and name in OF_THE_DATA:
            continue
        if name not in ("method", "steps") and _is_default(name, value):
            continue
        lines += [f"    {name}={written(value)},"]
    return "\n".join([*lines, ")", "run.model.generate(" + repr(_prompt(settings)) + ")[0].text"])


def _prompt(settings: Mapping[str, Any]) -> str:
    return next(iter(settings.get("prompts") or ()), "Once upon a time")


def _is_writable(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return len(data) <= 20 and all(_is_writable(each) for each in data)
    return isinstance(data, Path) or (isinstance(data, str) and len(data) <= 1000)


def _is_default(name: str, value: Any) -> bool:
    if name == "optimiser":
        return value == Optimiser()
    field = _BY_NAME.get(name)
    default = field.default if field else {"keep": 2, "strict": False, "best": False}.get(name)
    return value == default or (name == "prompts" and not value)


def written(value: Any) -> str:
    """A setting as Python, of a method or an optimiser only what isn't the default.

    >>> written(LoRA(rank=4))
    'gptj_lab.LoRA(rank=4)'
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = type(value)()
        changed = [
            f"{f.name}={getattr(value, f.name)!r}"
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != getattr(plain, f.name)
        ]
        return f"gptj_lab.{type(value).__name__}({', '.join(changed)})"
    return repr(str(value) if isinstance(value, Path) else value)
