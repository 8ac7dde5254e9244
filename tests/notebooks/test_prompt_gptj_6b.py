"""What colab/prompt_gptj_6b.ipynb does at 6B size, asked of the TPU compiler; no TPU is needed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptj_lab
from gptj_lab.mesh import planner_compile

ROOT = Path(__file__).parents[2]
NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'gptj_lab[tpu]' in an environment of its own",
)


@pytest.fixture(scope="module")
def forms() -> dict[str, str]:
    """What the notebook's forms say."""
    notebook = json.loads((ROOT / "colab" / "prompt_gptj_6b.ipynb").read_text("utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    return dict(re.findall(r'^(\w+) = "([^"]*)"  #@param', text, re.M))


@pytest.fixture(scope="module")
def plan(forms):
    """The plan that the notebook shows on the free runtime: one sequence of the whole context."""
    return gptj_lab.plan(forms["MODEL"], "colab-v5e-1", job="generate", weights=forms["WEIGHTS"])


def test_the_forms_ask_for_the_6b_in_int8_and_it_fits(plan):
    setting = plan.setting
    assert setting.config.num_parameters == 6_050_882_784
    assert (setting.weights, setting.batch, setting.context) == ("int8", 1, 2048)
    assert plan.fits and plan.utilisation < 0.6


@pytest.mark.slow
@NEEDS_LIBTPU
def test_the_planned_steps_fit_a_v5e_chip(plan):
    answers = planner_compile.compile_plan(plan)
    print(*answers, sep="\n")
    assert [answer.program for answer in answers] == ["decode", "prefill"]
    for answer in answers:
        assert answer.fits and answer.peak is not None, answer
        assert answer.peak < 1.1 * plan.total < plan.memory, answer


@pytest.mark.slow
@NEEDS_LIBTPU
def test_the_steps_that_generation_runs_fit_a_v5e_chip(plan):
    arguments = ["gpt-j-6b", plan.setting.weights, plan.hardware.topology]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "steps_of_the_6b.py"), *arguments],
        capture_output=True, text=True, env=os.environ | planner_compile.ENVIRONMENT,
        timeout=1800,
    )  # fmt: skip
    assert not run.returncode, run.stderr[-2000:]
    answers = [planner_compile.Compiled(**each) for each in json.loads(run.stdout)]
    print(*answers, sep="\n")
    for answer in answers:
        assert answer.fits and answer.peak is not None, answer
        # Less than weights in bfloat16: no copy of them all is made for the loop over tokens.
        assert plan.bytes["weights"] < answer.peak < 1.1 * plan.total, answer
