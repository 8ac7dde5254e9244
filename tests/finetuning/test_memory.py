"""What docs/memory.md says of GPT-J-6B on TPUs, asked of the TPU compiler again."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOM = 15.75 * 2**30  # bytes that the compiler gives a program on a chip of a v5e
CASES = {
    "LoRA | int8 | 4 x 2,048": "--weights int8 --batch 4",
    "LoRA | bfloat16 | 1 x 2,048": "--weights bfloat16 --batch 1",
    "full | float32 masters | 1 x 2,048":
        "--job finetune --weights bfloat16 --batch 1 --topology v5e:2x4 --model 8",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'gptj_lab[tpu]' in an environment of its own",
)
@pytest.mark.parametrize("row", CASES)
def test_the_loops_own_step_fits_and_the_document_has_its_peak(row):
    command = [sys.executable, "benchmarks/memory.py", "--context", "2048", *CASES[row].split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    assert "refused" not in answer and answer["peak"] < ROOM, answer
    table = (ROOT / "docs" / "memory.md").read_text("utf-8").replace("*", "")
    (told,) = re.findall(rf"\| {re.escape(row)} \| ([\d.]+)", table)[:1]
    assert answer["peak"] / 1e9 == pytest.approx(float(told), rel=0.01)
