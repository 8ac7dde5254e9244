"""What colab/finetune_gptj_6b.ipynb asks of a free v5e-1, on paper and of the TPU compiler."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import gptj_lab
from gptj_lab.mesh import planner_compile

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan():
    """The plan that the notebook's forms ask for, on the free runtime."""
    notebook = json.loads((ROOT / "colab" / "finetune_gptj_6b.ipynb").read_text("utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    forms = {
        name: json.loads(value)
        for name, value in re.findall(r'^(\w+) = ("[^"]*"|\d+)  #@param', text, re.M)
    }
    return gptj_lab.plan(
        forms["MODEL"], "colab-v5e-1", job="lora", weights=forms["WEIGHTS"],
        batch=forms["BATCH"], context=forms["CONTEXT"], rank=forms["RANK"],
    )  # fmt: skip


def test_the_forms_ask_for_the_6b_in_int8_and_it_fits(plan):
    setting = plan.setting
    assert setting.config.num_parameters == 6_050_882_784
    assert (setting.weights, setting.batch, setting.context) == ("int8", 4, 512)
    assert plan.fits and plan.utilisation < 0.6


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'gptj_lab[tpu]' in an environment of its own",
)
def test_the_step_fits_a_v5e_chip(plan):
    answers = planner_compile.compile_plan(plan)
    print(*answers, sep="\n")
    assert answers
    for answer in answers:
        assert answer.fits and answer.peak is not None, answer
        assert answer.peak < plan.memory, answer
