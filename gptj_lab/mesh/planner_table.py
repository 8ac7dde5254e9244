"""Paper beside the TPU compiler for GPT-J-6B, as a table: `make plan-table` writes docs/ anew."""

import sys
from collections.abc import Sequence
from pathlib import Path

from gptj_lab.mesh.planner import Plan, gigabytes, plan
from gptj_lab.mesh.planner_compile import Compiled, compile_plan

CASES = [
    (machine, job, weights)
    for machine in ("colab-v5e-1", "kaggle-v5e-8", "kaggle-v3-8", "v2-8")
    for job, weights in (
        ("generate", "bfloat16"), ("generate", "int8"), ("lora", "bfloat16"), ("lora", "int8"),
        ("finetune", "bfloat16"), ("finetune", "float32"),
    )
]  # fmt: skip
_INTRODUCTION = """# The planner's paper and the TPU compiler
Bytes on one device for GPT-J-6B, one sequence of 2,048 tokens, AdamW, whole blocks recomputed, \
LoRA of rank 8 on q and v; `model` runs over all devices. `make plan-table` compiles every line \
again with libtpu (no TPU is needed) and writes this page: {version}. Where the compiler refuses, \
its number is what its message says it would need. Generation's number is the larger of prefill \
and decode.

| machine | job | weights | paper | compiler | paper / compiler - 1 | fits: paper, compiler |
|---|---|---|---|---|---|---|
"""


def ask(machine: str, job: str, weights: str) -> tuple[Plan, Compiled]:
    """A case on paper, and the compiler's answer for its most demanding program."""
    paper = plan("gpt-j-6b", machine, job, weights=weights)
    return paper, max(compile_plan(paper), key=lambda answer: answer.peak or 0)


def difference(paper: Plan, compiled: Compiled) -> float:
    """By how much of the compiler's bytes paper says more.

    Raises:
        ValueError: the compiler gave no number.
    """
    if not compiled.peak:
        raise ValueError(f"the compiler gave no number of bytes: {compiled.message}")
    return paper.total / compiled.peak - 1


def row(machine: str, job: str, weights: str) -> str:
    """One line of the table."""
    paper, compiled = ask(machine, job, weights)
    words = {True: "yes", False: "no"}
    cells = (
        machine, job, weights, gigabytes(paper.total), gigabytes(compiled.peak or 0),
        f"{difference(paper, compiled):+.1%}", f"{words[paper.fits]}, {words[compiled.fits]}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the table into the file that is named."""
    import importlib.metadata as metadata

    packages = ("jax", "libtpu")
    version = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    rows = []
    for case in CASES:
        rows.append(row(*case))
        print(rows[-1], end="", file=sys.stderr, flush=True)
    text = _INTRODUCTION.format(version=version) + "".join(rows)
    Path(arguments[0]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
