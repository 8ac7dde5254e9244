"""`gptj-lab finetune`: the words of gptj_lab.finetune on the command line."""

import argparse
import shlex
from pathlib import Path
from typing import Any

_METHODS = ("lora", "full", "last-blocks", "soft-prompt")
_TARGETS = "q,v"
# Options that belong to some methods: their type, and what they do.
_OF_METHODS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "rank": (int, ("lora",), "of the adapters (8)"),
    "alpha": (float, ("lora",), "what they add is multiplied by alpha / rank (16)"),
    "dropout": (float, ("lora",), "share of their inputs that is dropped (0)"),
    "targets": (str, ("lora",), f"matrices, such as q,k,v,out,fc_in,fc_out ({_TARGETS})"),
    "count": (int, ("last-blocks",), "how many blocks (2)"),
    "length": (int, ("soft-prompt",), "virtual tokens (16)"),
    "text": (str, ("soft-prompt",), "what the soft prompt begins as (random tokens)"),
}
_OF_OPTIMISER: dict[str, tuple[Any, str]] = {
    "optimiser": (str, "adamw, adafactor or lion (adamw)"),
    "learning-rate": (float, "the highest (one that suits the method)"),
    "schedule": (str, "cosine, linear, constant or original (cosine)"),
    "warmup-steps": (int, "steps until the highest rate (a tenth, at most 100)"),
    "weight-decay": (float, "of matrices (0.01)"),
    "clip": (float, "norm that the gradient is cut to (1)"),
    "accumulate": (int, "parts that a step is computed in, to save memory (1)"),
}
_OF_RUN: dict[str, tuple[Any, str]] = {
    "steps": (int, "of the whole run (200)"),
    "batch": (int, "windows a step (8)"),
    "context": (int, "tokens a window (the model's, at most 512)"),
    "held-out": (float, "share of the text that is measured on only (0.05)"),
    "packing": (str, "documents or plain (documents)"),
    "text-field": (str, "the field of a row that holds its text (text, and others that are known)"),
    "prompt-field": (str, "the field of a prompt (prompt, question, instruction, input, ...)"),
    "answer-field": (str, "the field of its answer (completion, answer, response, output, ...)"),
    "system-field": (str, "a field that goes before the prompt (system_prompt, system)"),
    "context-field": (str, "a field that goes after the prompt (context, Alpaca's input)"),
    "template": (
        str,
        "plain, chat, chatml, alpaca, tokenizer, none, a form such as '### "
        "{question}\\n{answer}', or a .jinja file (the model's, or plain and chat)",
    ),
    "loss-on": (str, "answers or all (answers)"),
    "me": (str, "whose words are the assistant's in an exported chat, by the name that is in it"),
    "encoding": (str, "of text files that are not UTF-8, such as cp1251 (found out, and told)"),
    "evaluate-every": (int, "steps (a tenth of all)"),
    "save-every": (int, "steps (as often as it evaluates)"),
    "keep": (int, "states that stay on the disk, beside the best (2)"),
    "sample-tokens": (int, "tokens of a sample (40)"),
    "seed": (int, "of new weights, order and dropout (0)"),
    "dtype": (str, "of activations: float32, bfloat16 or float16 (the model's)"),
    "remat": (str, "'nothing kept' or 'products kept': less memory, more time"),
    "patience": (int, "stop after so many evaluations without a lower held-out loss"),
}


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    finetune = commands.add_parser(
        "finetune",
        help="train a model on your text; run again, it goes on where it was stopped",
        description="Trains a model on texts and saves the result. Ctrl-C saves and stops; the "
        "same command goes on from there.",
        argument_default=argparse.SUPPRESS,
    )
    finetune.add_argument(
        "data",
        nargs="+",
        help="files and folders: txt, md, code, jsonl, json, csv, parquet, html, pdf, docx, epub, "
        "exported chats, zip, ...",
    )
    finetune.add_argument(
        "--out", required=True, type=Path, help="a folder for state, record and result"
    )
    finetune.add_argument("--model", default="pocket", help="pocket, a directory, or a hub name")
    finetune.add_argument("--weights", default=None, help="float32, bfloat16 or int8 (float32)")
    finetune.add_argument("--revision", default=None, help="branch, tag or commit on the hub")
    finetune.add_argument(
        "--method", default="lora", choices=_METHODS, help="what is trained (lora)"
    )
    for name, (kind, methods, what) in _OF_METHODS.items():
        finetune.add_argument(f"--{name}", type=kind, help=f"{'/'.join(methods)}: {what}")
    finetune.add_argument(
        "--adapter", type=Path, default=None,
        help="lora: a folder in PEFT's format whose adapter is trained further",
    )  # fmt: skip
    finetune.add_argument("--dora", action="store_true", help="lora: train rows' lengths too")
    finetune.add_argument("--rslora", action="store_true", help="lora: divide by the rank's root")
    finetune.add_argument("--head", action="store_true", help="last-blocks: train the head too")
    for name, (kind, what) in (_OF_OPTIMISER | _OF_RUN).items():
        finetune.add_argument(f"--{name}", type=kind, help=what)
    finetune.add_argument(
        "--prompt", action="append", help="a text to be continued at each evaluation; repeatable"
    )
    finetune.add_argument(
        "--best", action="store_true", default=False,
        help="save the model of the lowest held-out loss among the saved states, not the last",
    )  # fmt: skip
    finetune.add_argument("--strict", action="store_true", help="refuse bad lines of the data")
    finetune.add_argument("--mesh-data", type=int, default=None, help="devices along data")
    finetune.add_argument("--mesh-model", type=int, default=None, help="devices along model")
    finetune.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Trains; 0 when it is finished, 1 when it failed, 130 when it was interrupted."""
    import gptj_lab
    from gptj_lab.finetuning import results

    given = vars(chosen)
    mesh = None
    if chosen.mesh_data is not None or chosen.mesh_model is not None:
        mesh = gptj_lab.mesh(data=chosen.mesh_data, model=chosen.mesh_model)
    results.check(chosen.out.expanduser() / "result")
    method = _method(given)
    optimiser = _optimiser(given)
    settings = {name: given[name] for name in (*map(_word, _OF_RUN), "strict") if name in given}
    if "template" in settings:
        settings["template"] = template(settings["template"])
    model = gptj_lab.load(chosen.model, weights=chosen.weights, mesh=mesh, revision=chosen.revision)
    trained = gptj_lab.finetune(
        model, [Path(name) for name in chosen.data], method=method, optimiser=optimiser,
        out=chosen.out, prompts=given.get("prompt", ()), say=_say, best=chosen.best,
        adapter=chosen.adapter, **settings,
    )  # fmt: skip
    if trained.status not in ("finished", "failed"):
        return 130
    if trained.step < trained.steps and trained.status == "failed":
        return 1
    promised = chosen.out.expanduser() / "result"
    result, step = results.save(trained, promised, best=chosen.best, say=_say)
    of = f", that of step {step:,}" if chosen.best else ""
    _say(f"{_kind(chosen.method)} is in {result}{of}")
    if chosen.method in ("lora", "soft-prompt"):
        model = "" if chosen.model == "pocket" else f" --model {shlex.quote(chosen.model)}"
        adapter = shlex.quote(str(result))
        if trained.corpus.template is not None:
            _say(f"talk with it: gptj-lab chat{model.replace('--model ', '')} --adapter {adapter}")
        else:
            _say(f"try it: gptj-lab generate 'Once upon a time'{model} --adapter {adapter}")
    return 0 if trained.status == "finished" and result == promised else 1


def _method(given: dict[str, Any]) -> Any:
    import gptj_lab

    kinds = {
        "lora": gptj_lab.LoRA, "full": gptj_lab.Full, "last-blocks": gptj_lab.LastBlocks,
        "soft-prompt": gptj_lab.SoftPrompt,
    }  # fmt: skip
    name = given["method"]
    options = {option: methods for option, (_, methods, _) in _OF_METHODS.items()}
    options |= {"rslora": ("lora",), "dora": ("lora",), "head": ("last-blocks",)}
    for option, methods in options.items():
        if option in given and name not in methods:
            raise ValueError(f"--{option} belongs to --method {methods[0]}, not to {name}")
        if option in given and given["adapter"] is not None and option != "dropout":
            raise ValueError(
                f"--{option} is for a new adapter, and that of --adapter is trained further as it "
                "is: leave one of the two out"
            )
    fields = {option: given[option] for option in options if option in given}
    if "targets" in fields:
        fields["targets"] = tuple(
            word.strip() for word in fields["targets"].strip().removesuffix(",").split(",")
        )
    return kinds[name](**fields)


def _optimiser(given: dict[str, Any]) -> Any:
    from gptj_lab.finetuning.optimisers import NAMES, Optimiser, one_of

    fields = {name: given[name] for name in map(_word, _OF_OPTIMISER) if name in given}
    name = fields.pop("optimiser", NAMES[0])
    if name not in NAMES:
        raise ValueError(f"--optimiser is {name!r}: choose {one_of(NAMES)}")
    return Optimiser(name=name, **fields)


def _kind(method: str) -> str:
    return {
        "lora": "the adapter, in PEFT's format,",
        "soft-prompt": "the soft prompt, in PEFT's format,",
    }.get(method, "the model: gptj_lab.load() takes that folder; it")


def template(given: str) -> str:
    """A template as a shell gives it: \\n in a form is a line end."""
    return given.replace("\\n", "\n").replace("\\t", "\t")


def _word(option: str) -> str:
    return option.replace("-", "_")


def _say(line: str) -> None:
    print(line, flush=True)
