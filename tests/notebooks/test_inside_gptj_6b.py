"""What colab/inside_gptj_6b.ipynb runs at 6B size, asked of the TPU compiler; no TPU is needed."""

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
TOKENS = 256


@pytest.fixture(scope="module")
def plan():
    """The plan that the notebook's forms ask for, on the free runtime."""
    notebook = json.loads((ROOT / "colab" / "inside_gptj_6b.ipynb").read_text("utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    forms = dict(re.findall(r'^(\w+) = "([^"]*)"  #@param', text, re.M))
    return gptj_lab.plan(forms["MODEL"], "colab-v5e-1", job="generate", weights=forms["WEIGHTS"])


def test_the_forms_ask_for_the_6b_and_it_fits(plan):
    assert plan.setting.config.num_parameters == 6_050_882_784
    assert plan.setting.weights == "int8" and plan.fits


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'gptj_lab[tpu]' in an environment of its own",
)
def test_looking_inside_at_256_tokens_fits_a_v5e_chip(plan):
    arguments = ["gpt-j-6b", plan.setting.weights, plan.hardware.topology, str(TOKENS)]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "lens_steps_of_the_6b.py"), *arguments],
        capture_output=True, text=True, env=os.environ | planner_compile.ENVIRONMENT,
        timeout=1800,
    )  # fmt: skip
    assert not run.returncode, run.stderr[-2000:]
    answers = [planner_compile.Compiled(**each) for each in json.loads(run.stdout)]
    print(*answers, sep="\n")
    programs = ["trace", "read", "pattern", "thumbnails", "scores"]
    assert [answer.program for answer in answers] == programs
    for answer in answers:
        assert answer.fits and answer.peak is not None, answer
        assert answer.peak < 1.2 * plan.bytes["weights"] < plan.memory, answer
    for answer in answers[2:]:  # a map needs one block's weights only
        assert answer.peak < 0.1 * plan.bytes["weights"], answer
