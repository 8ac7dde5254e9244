"""The command line: the same words as in Python, for the same things."""

import argparse
import errno
import importlib.util
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptj_lab import __version__, cli_chat, cli_finetune
from gptj_lab.cli_sampling import begin_with

# Settings of `generate`: their type, and what they do.
_SETTINGS: dict[str, tuple[Any, str]] = {
    "max-new-tokens": (int, "tokens to make at most (64)"),
    "temperature": (float, "0 always takes the likeliest token (the model's own, or 1)"),
    "top-k": (int, "keep the k likeliest tokens, 0 keeps all (0)"),
    "top-p": (float, "keep the likeliest tokens that together reach this probability (1)"),
    "min-p": (float, "keep tokens at least this times as likely as the likeliest (0)"),
    "typical-p": (float, "keep the tokens nearest to the expected surprise (1)"),
    "repetition-penalty": (float, "above 1, tokens seen become less likely (1)"),
    "frequency-penalty": (float, "subtracted from a token's logit each time it was made (0)"),
    "presence-penalty": (float, "subtracted once from the logits of tokens made (0)"),
    "seed": (int, "the same seed gives the same text (0)"),
}

# glibc reads it at a process's start only. A training step on a CPU then spends less on fresh
# memory (docs/training_speed.md); other systems ignore it.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code. Bad input is one sentence on stderr and code 2."""
    parser = _parser()
    chosen, others = parser.parse_known_args(arguments)
    if chosen.command == "lab":
        chosen.options = others  # argparse hands no option on by itself
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if arguments is None and chosen.command in ("finetune", "train-pocket"):
        _start_again_with_huge_pages()
    try:
        if chosen.command in ("finetune", "chat"):
            _keep_compiled_programs()
        return chosen.run(chosen)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"gptj-lab {chosen.command}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        said = f"gptj-lab {chosen.command}: {interrupt}" if str(interrupt) else ""
        print(said, file=sys.stderr)
        return 130


def _sentence(error: Exception) -> str:
    """What an error says; of the system's own about a disk the fix too."""
    if not isinstance(error, OSError) or error.strerror is None or error.filename is None:
        return str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return str(error)
    from gptj_lab.checkpoints.huggingface import fix_of

    return f"{error.filename} can't be written ({error.strerror}): {fix_of(error)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gptj-lab", description="A playground around GPT-J.")
    parser.add_argument("--version", action="version", version=f"gptj-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    lab = commands.add_parser(
        "lab", help="open JupyterLab on the first notebook; further options are handed on to it"
    )
    lab.set_defaults(run=_lab)

    generate = commands.add_parser("generate", help="continue a prompt, streaming")
    generate.add_argument("prompt", help="the text to continue, or - to read it from stdin")
    generate.add_argument("--model", default="pocket", help="pocket, a directory, or a hub name")
    generate.add_argument("--weights", help="float32, bfloat16, float16 or int8 (float32)")
    generate.add_argument("--revision", help="branch, tag or commit on the hub")
    generate.add_argument("--variant", help="fp16 for weights in model.fp16.safetensors")
    for name, (kind, what) in _SETTINGS.items():
        generate.add_argument(f"--{name}", type=kind, help=what, default=argparse.SUPPRESS)
    generate.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, help="a text that ends it; repeatable"
    )
    generate.add_argument(
        "--end-token", action="append", default=argparse.SUPPRESS, dest="end_tokens",
        help="a token that ends it, text or id, in place of the model's own; repeatable; '' = none",
    )  # fmt: skip
    generate.add_argument(
        "--keep-end", action="store_true", help="of a prompt too long, keep the end"
    )
    generate.add_argument(
        "--adapter", action="append", default=[], type=Path,
        help="a folder of PEFT's: LoRA or a soft prompt; repeatable, they are stacked",
    )  # fmt: skip
    generate.add_argument("--json", action="store_true", help="one JSON object, with logprobs")
    generate.set_defaults(run=_generate)

    cli_chat.add(commands, _SETTINGS)

    convert = commands.add_parser(
        "convert", help="write a checkpoint in another form; goes on where it was stopped"
    )
    convert.add_argument("source", help="pocket, a directory, an original release, or a hub name")
    convert.add_argument("target", help="a folder that is not there yet")
    convert.add_argument(
        "--to", required=True, choices=("huggingface", "mesh-transformer"),
        help="safetensors, or the original release's slim form; .bin and msgpack are only read",
    )  # fmt: skip
    convert.add_argument("--dtype", help="float32, bfloat16, float16 or int8 (as it is)")
    convert.add_argument("--shards", type=int, default=8, help="of mesh-transformer (8)")
    convert.add_argument(
        "--max-shard-bytes", type=int, default=5_000_000_000,
        help="of one safetensors file (5000000000)",
    )  # fmt: skip
    convert.add_argument("--revision", help="branch, tag or commit on the hub")
    convert.add_argument("--variant", help="fp16 for weights in model.fp16.safetensors")
    convert.set_defaults(run=_convert)
    _add_plan(commands)
    cli_finetune.add(commands)

    train = commands.add_parser("train-pocket", help="train the embedded model from a folder")
    train.add_argument("--text", required=True, type=Path, nargs="+", help="folders of *.txt files")
    train.add_argument("--code", type=Path, help="a folder of Python, as code_corpus writes it")
    train.add_argument("--plan", type=Path, help="sources and phases, a JSON file (mixture.py)")
    train.add_argument("--out", required=True, type=Path, help="state, curve and weights go here")
    train.add_argument("--steps", type=int, default=20_000, help="steps in all (20000)")
    train.add_argument("--decay-steps", type=int, help="steps of falling rate (a fifth of all)")
    train.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop and save after so long; run again later",
    )
    train.add_argument("--batch", type=int, default=16, help="windows a step (16)")
    train.add_argument("--context", type=int, default=256, help="tokens a window (256)")
    train.add_argument("--d-model", type=int, default=256, help="width (256)")
    train.add_argument("--layers", type=int, default=6, help="blocks (6)")
    train.add_argument("--heads", type=int, default=8, help="heads of a block (8)")
    train.add_argument("--vocabulary", type=int, default=4096, help="tokens (4096)")
    train.add_argument("--peak-lr", type=float, default=0.02, help="highest learning rate (0.02)")
    train.add_argument("--warmup-steps", type=int, default=100, help="steps until it (100)")
    train.add_argument("--code-share", type=float, default=0.2, help="of the windows (0.2)")
    train.add_argument(
        "--start-from", type=Path, help="a directory whose weights and tokenizer are the beginning"
    )
    train.add_argument(
        "--save-minutes", type=float, default=6.0, help="between two saved states (6)"
    )
    train.add_argument(
        "--products", default="bfloat16", choices=("float32", "bfloat16"),
        help="operands of products; float32 is quicker without bfloat16 instructions (bfloat16)",
    )  # fmt: skip
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train_pocket)
    export = commands.add_parser("export-pocket", help="write what train-pocket has saved so far")
    export.add_argument("--out", required=True, type=Path, help="the --out of train-pocket")
    export.add_argument("--to", required=True, type=Path, help="a directory for the model")
    export.set_defaults(run=lambda chosen: _export_pocket(chosen.out, chosen.to))
    return parser


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan", help="will it fit, and what to change; exit code 0 if it fits, 1 if not"
    )
    plan.add_argument("model", help="gpt-j-6b, pocket, or a directory with a config.json")
    plan.add_argument("--hardware", default="colab-v5e-1", help="such as kaggle-v5e-8 or laptop")
    plan.add_argument("--job", default="generate", help="generate, lora, finetune or pretrain")
    plan.add_argument("--weights", help="float32, bfloat16, float16 or int8")
    plan.add_argument("--batch", type=int, help="sequences in a step, on all devices together")
    plan.add_argument("--context", type=int, help="tokens of a sequence (the model's own)")
    plan.add_argument("--mesh-data", type=int, dest="data", help="devices along the data axis")
    plan.add_argument("--mesh-model", type=int, dest="width", help="devices along the model axis")
    plan.add_argument("--rank", type=int, default=8, help="of LoRA's adapters (8)")
    plan.add_argument("--no-remat", action="store_true", help="keep the inside of every block")
    plan.add_argument(
        "--compile", action="store_true", help="ask the TPU compiler too (extra `tpu`; minutes)"
    )
    plan.set_defaults(run=_plan)


def _lab(chosen: argparse.Namespace) -> int:
    notebook = "notebooks/00_start_here.ipynb"
    start = [f"--LabApp.default_url=/lab/tree/{notebook}"] if Path(notebook).is_file() else []
    if importlib.util.find_spec("jupyterlab") is None:
        raise OSError("JupyterLab is not installed: pip install 'gptj_lab[lab]'")
    command = [sys.executable, "-m", "jupyterlab", *start, *chosen.options]
    return subprocess.call(command, env=_HUGE_PAGES | os.environ)  # kernels inherit it


def _generate(chosen: argparse.Namespace) -> int:
    names = [name.replace("-", "_") for name in (*_SETTINGS, "stop", "keep-end")]
    settings = {name: getattr(chosen, name) for name in names if hasattr(chosen, name)}
    if hasattr(chosen, "end_tokens"):
        named = [int(end) if end.isdecimal() else end for end in chosen.end_tokens if end]
        settings["end_tokens"] = named
    prompt = _standard_input() if chosen.prompt == "-" else chosen.prompt
    for what, texts in (
        ("stdin" if chosen.prompt == "-" else "the prompt", [prompt]),
        ("--stop", settings.get("stop", [])),
        ("--end-token", getattr(chosen, "end_tokens", [])),
    ):
        for text in texts:
            _check_utf8(what, text)
    _keep_compiled_programs()
    import gptj_lab

    model = gptj_lab.load(
        chosen.model, weights=chosen.weights, revision=chosen.revision, variant=chosen.variant
    )
    for number, folder in enumerate(chosen.adapter, 1):
        from gptj_lab.finetuning.soft_prompts import load_trained

        model = load_trained(model, folder, f"adapter_{number}")
    settings = begin_with(model, settings)
    if chosen.json:
        (done,) = model.generate(prompt, **settings)
        fields = ("prompt", "text", "token_ids", "logprobs", "finish_reason")
        print(json.dumps({name: getattr(done, name) for name in fields}))
        return 0
    pieces = model.stream(prompt, **settings)
    print(prompt, end="", flush=True)
    begun = time.perf_counter()
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print()
    print(f"[{time.perf_counter() - begun:.1f} s]", file=sys.stderr)
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8("stdin", error.object[error.start])) from None


def _check_utf8(what: str, text: str) -> None:
    """Refuses bytes that Python could not decode, which it keeps as lone surrogates."""
    if found := next((each for each in text if "\udc80" <= each <= "\udcff"), None):
        raise ValueError(_not_utf8(what, ord(found) - 0xDC00))


def _not_utf8(what: str, byte: int) -> str:
    return (
        f"{what} isn't UTF-8 (it holds the byte 0x{byte:02x}): convert it, for example with "
        "iconv -f latin1 -t utf-8"
    )


def _convert(chosen: argparse.Namespace) -> int:
    from gptj_lab.checkpoints.convert import convert
    from gptj_lab.language_model import find

    source, weights_in = find(chosen.source, chosen.revision, chosen.variant)
    convert(
        source, chosen.target, chosen.to, dtype=chosen.dtype, shards=chosen.shards,
        max_shard_bytes=chosen.max_shard_bytes, variant=chosen.variant, weights_in=weights_in,
    )  # fmt: skip
    print(f"{chosen.target} is whole: gptj_lab.load() takes that folder")
    if not (Path(chosen.target) / "tokenizer.json").is_file():
        print(f"{chosen.source} has no tokenizer: put its tokenizer.json there", file=sys.stderr)
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    import gptj_lab

    plan = gptj_lab.plan(
        chosen.model, chosen.hardware, chosen.job, weights=chosen.weights, batch=chosen.batch,
        context=chosen.context, data=chosen.data, model=chosen.width, rank=chosen.rank,
        remat=not chosen.no_remat,
    )  # fmt: skip
    print(plan)
    if not chosen.compile:
        return 0 if plan.fits else 1
    from gptj_lab.mesh.planner_compile import compile_plan

    answers = compile_plan(plan)
    print("The TPU compiler's own answer, by program:")
    for answer in answers:
        print(textwrap.indent(str(answer), "  "))
    return 0 if all(answer.fits for answer in answers) else 1


def _train_pocket(chosen: argparse.Namespace) -> int:
    from gptj_lab.finetuning import pocket

    step = pocket.train_pocket(
        chosen.text, chosen.out,
        steps=chosen.steps, decay_steps=chosen.decay_steps, max_minutes=chosen.minutes,
        batch=chosen.batch, context=chosen.context, d_model=chosen.d_model,
        num_layers=chosen.layers, code_share=chosen.code_share, start_from=chosen.start_from,
        peak_lr=chosen.peak_lr, warmup_steps=chosen.warmup_steps,
        seed=chosen.seed, export_to=chosen.out / "pocket", num_heads=chosen.heads,
        vocab_size=chosen.vocabulary, code_dir=chosen.code, plan=chosen.plan,
        save_every_minutes=chosen.save_minutes, products=chosen.products,
    )  # fmt: skip
    if step < chosen.steps:
        print(f"gptj-lab export-pocket --out {chosen.out} --to FOLDER measures it as it is")
        return 0
    return _export_pocket(chosen.out, chosen.out / "pocket")


def _export_pocket(out: Path, target: Path) -> int:
    from gptj_lab.finetuning import pocket

    measures = pocket.export(out, target)
    for name in ("tales", "code"):
        if name in measures:
            print("{}: {bits_per_byte:.3f} bits per byte, xz {xz_bits_per_byte:.3f}".format(
                name, **measures[name]
            ))  # fmt: skip
    try:
        from gptj_lab.plots import loss_curve

        loss_curve(pocket.curves(out)).savefig(target / "loss_curve.png")
    except ImportError:
        print("no loss_curve.png: matplotlib is not installed (pip install 'gptj_lab[lab]')")
    print(f"the model is in {target}: gptj_lab.load() takes that folder")
    return 0


def _start_again_with_huge_pages() -> None:
    """Replaces this process by one with _HUGE_PAGES, unless the user has set such things."""
    if sys.platform == "linux" and not _HUGE_PAGES.keys() & os.environ.keys():
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, os.environ | _HUGE_PAGES)


def _keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs between runs, unless the user has chosen a place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / "gptj_lab" / "xla")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


if __name__ == "__main__":
    sys.exit(main())
