"""The README.md of a fine-tuned model on the hub: written from the run, with every text escaped."""

import html
import json
import re
from pathlib import Path
from typing import Any, Literal

Kind = Literal["lora", "prompt", "model"]
_SETTINGS = (
    "steps", "batch", "context", "packing", "held_out", "template", "loss_on",
    "seed", "dtype", "remat", "patience",
    "method", "optimiser",
)  # fmt: skip
_ROWS = 12  # of the loss table
_LOAD = {
    "lora": """import gptj_lab
from gptj_lab.finetuning import export
from huggingface_hub import snapshot_download

model = export.load_adapter(gptj_lab.load({base}), snapshot_download("{name}"))""",
    "prompt": """import gptj_lab
from gptj_lab.finetuning import soft_prompts
from huggingface_hub import snapshot_download

model = soft_prompts.load(gptj_lab.load({base}), snapshot_download("{name}"))""",
    "model": """import gptj_lab

model = gptj_lab.load("{name}")""",
}
_PEFT = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "{name}")"""
_TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


_INT8 = (
    "The matrices of its blocks are int8, in the form of compressed-tensors (int-quantized, a "
    "scale a row). transformers (5.24 and 4.57 were tried) reads them where that package is "
    'installed (`pip install compressed-tensors`), best with `dtype="float32"`, and refuses '
    "them elsewhere."
)
_INT8_GPT_2 = (
    "The matrices of its blocks are int8, for which transformers has no form in a GPT-2, so that "
    'it refuses this model. In float32 it reads it: `gptj_lab.load("{name}", '
    'weights="float32").save("folder")`.'
)


def card(
    name: str, kind: Kind, base: str | None, run: Any = None, step: int | None = None,
    int8: str | None = None,
) -> str:  # fmt: skip
    """The card of `name` ("owner/name") as markdown behind its YAML front matter.

    Neither the training text, nor paths, nor names of files are in it; prompts and samples are.

    Args:
        kind: what lies in the repository: "lora" and "prompt" need their base model beside them.
        base: what the base model was loaded as; a path is not told.
        run: a gptj_lab.Run; without one there is no word of data, settings and losses.
        step: of the run, that the weights are of; None is its last evaluation's.
        int8: the family of a model whose matrices lie there in int8.
    """
    from huggingface_hub import ModelCardData

    known = hub_name(base)
    data = ModelCardData(
        base_model=known,
        library_name="transformers" if kind == "model" else "peft",
        pipeline_tag="text-generation",
        tags=["gptj_lab", *([] if kind == "model" else [kind])],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {_plain(name.rpartition('/')[2])}"]
    parts.append(_opening(kind, base, run))
    if run is not None:
        last = run.evaluations[-1]["step"] if run.evaluations else 0
        of = last if step is None else step
        parts += [*_losses(run, of), *_samples(run, of), *_template(run), *_data(run)]
        parts += _settings(run.settings)
    parts += _loading(name, kind, base, int8)
    return "\n\n".join(parts) + "\n"


def hub_name(base: str | None) -> str | None:
    """`base` if it is a name on the hub; None for a path and for the pocket model."""
    if base is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", base, re.ASCII):
        return None
    return None if base.startswith((".", "-")) or Path(base).exists() else base


def _opening(kind: Kind, base: str | None, run: Any) -> str:
    known = hub_name(base)
    link = f"[{_plain(known)}](https://huggingface.co/{known})" if known else None
    what = link or ("gptj_lab's embedded model, pocket" if base == "pocket" else "a local model")
    if run is not None:
        config = run.base.config
        what += f" ({_plain(config.family_title)}, {config.num_parameters:,} parameters)"
    made = {
        "lora": f"A LoRA adapter for {what}, in PEFT's format",
        "prompt": f"A soft prompt for {what}, in PEFT's format",
        "model": f"Fine-tuned from {what}",
    }[kind]
    return f"{made}. Trained with gptj_lab, a JAX playground around GPT-J."


def _losses(run: Any, step: int) -> list[str]:
    if not run.evaluations:
        return []
    rows = [
        f"| {row['step']:,} | {_number(row.get('held_out_loss'))} | {_number(row.get('loss'))} |"
        for row in _spread(run.evaluations)
    ]
    table = "\n".join(["| step | held out | training |", "|---:|---:|---:|", *rows])
    said = f"Mean losses in nats a token. {_weights(run, step)}"
    return ["## How well it predicts", said, table]


def _weights(run: Any, step: int) -> str:
    """Of which step the weights are, and how well they predict beside the best and the base."""
    said = f"The weights are those {f'after step {step:,}' if step else 'of the base: no step'}"
    measured = [r for r in run.evaluations if r["step"] and r.get("held_out_loss") is not None]
    if not step:
        return f"{said} had a lower loss." if measured else f"{said} was taken."
    if not measured:
        return f"{said}."
    best = min(measured, key=lambda row: row["held_out_loss"])
    lowest = f"the lowest was {best['held_out_loss']:.3f}, after step {best['step']:,}"
    base = "" if run.base_loss is None else f", where the base has {run.base_loss:.3f}"
    here = next((row for row in measured if row["step"] == step), None)
    if here is None:
        return f"{said}. On text that was held out {lowest}{base}."
    said += f": {here['held_out_loss']:.3f} on text that was held out{base}"
    return f"{said}." if here is best else f"{said}; {lowest}."


def _samples(run: Any, step: int) -> list[str]:
    rows = [row for row in run.evaluations if row["step"] <= step and row.get("samples")]
    if not rows:
        return []
    said = f"After step {rows[-1]['step']:,}; the prompt, and below the line its text."
    shown = [fenced(f"{each['prompt']}\n{'-' * 8}\n{each['text']}") for each in rows[-1]["samples"]]
    return ["## Samples", said, *shown]


def _template(run: Any) -> list[str]:
    """How a prompt is to be put, if the model was trained on prompts and answers."""
    template = run.corpus.template
    if template is None:
        return []
    asked = [{"role": "user", "content": "What is asked?"}]
    prompt = template([*asked, {"role": "assistant", "content": "What is answered."}])
    said = (
        f"Trained with the chat template {_plain(template.name)}: `model.chat(...)` of gptj_lab "
        "and `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` of transformers "
        "(chat_template.jinja) put a prompt so:"
    )
    return ["## How to ask it", said, fenced(prompt)]


def _data(run: Any) -> list[str]:
    stores = [run.corpus.train.store, run.corpus.held_out.store]
    notes = {sentence for store in stores for sentence in store.notes.sentences()}  # name files
    report = run.corpus.doctor(steps=run.steps, batch=run.settings.get("batch"))
    said = [f"- {_plain(sentence)}" for sentence in report.sentences if sentence not in notes]
    counted = {what: count for store in stores for what, (count, _) in store.notes.found.items()}
    said += [f"- {count:,} x {_plain(what)}." for what, count in counted.items()]
    return ["## Data", "The text itself is not in this repository.", "\n".join(said)]


def _settings(settings: dict[str, Any]) -> list[str]:
    flat: dict[str, Any] = {}
    for name in _SETTINGS:
        value = settings.get(name)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        if isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier()):
            flat[name] = value
    rows = [f"| {_plain(name)} | {code(str(value))} |" for name, value in flat.items()]
    return ["## Settings", "\n".join(["| setting | value |", "|---|---|", *rows])]


def _loading(name: str, kind: Kind, base: str | None, int8: str | None) -> list[str]:
    known = hub_name(base) or ("pocket" if base == "pocket" else "path/of/the/base")
    other, where = _PEFT, "PEFT and transformers"
    if kind == "model":
        other, where = _TRANSFORMERS, "transformers"
    elif base == "pocket":
        other = f'import gptj_lab\n\ngptj_lab.load("pocket").save("pocket")\n{_PEFT}'
    ours, theirs = (
        f"```python\n{text.format(name=name, base=json.dumps(known))}\n```"
        for text in (_LOAD[kind], other)
    )
    parts = ["## How to load it", "In gptj_lab:", ours]
    if int8 == "gpt2":
        return [*parts, _INT8_GPT_2.format(name=name)]
    parts += [f"In {where}:", theirs]
    return parts if int8 is None else [*parts, _INT8]


def _spread(rows: list[Any]) -> list[Any]:
    """At most `_ROWS` of the rows, evenly, the first, the best and the last among them."""
    if len(rows) <= _ROWS:
        return rows
    best = {i for i, row in enumerate(rows) if row.get("best")}
    even = {round(i * (len(rows) - 1) / (_ROWS - 2)) for i in range(_ROWS - 1)}
    return [rows[i] for i in sorted(even | {max(best)} if best else even)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _clean(text: str) -> str:
    """Without control characters, marks that turn the direction of writing, and half characters."""
    text = re.sub(r"\r\n?", "\n", text.encode("utf-8", "replace").decode("utf-8"))
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "", text)


def _plain(text: str) -> str:
    """Text that markdown and HTML show as it stands, on one line."""
    line = html.escape(" ".join(_clean(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", line)


def _ticks(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def code(text: str) -> str:
    """A code span that its text can't end, for a cell of a table too."""
    text = " ".join(_clean(text).split()).replace("|", r"\|")
    ticks = _ticks(text, 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def fenced(text: str) -> str:
    """A block of literal text that its content can't end."""
    text = _clean(text)
    ticks = _ticks(text, 3)
    return f"{ticks}text\n{text}\n{ticks}"
