"""What the project promises, once each and without torch: `make compat` runs it on other versions.

Equalities that need no reference; the rest of the suite compares with transformers and PEFT.
"""

import json
import random

import jax
import numpy as np
import pytest
from small_models import FAMILIES, small_model

import gptj_lab

pytestmark = [pytest.mark.core, pytest.mark.slow]  # the default suite asserts all of it elsewhere
QUIET = {"say": lambda line: None, "batch": 2, "context": 16, "held_out": 0.2}


@pytest.fixture(scope="module")
def pocket():
    return gptj_lab.load()


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path / "corpora"))
    draw = random.Random(0)  # rows that differ: copies of one text are never held out
    words = "the cat dog sat on a mat".split()
    rows = [json.dumps({"text": " ".join(draw.choices(words, k=20))}) for _ in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return tmp_path / "rows.jsonl"


def test_the_pocket_model_loads_and_tells(pocket):
    told = pocket.generate("Once upon a time", max_new_tokens=8, temperature=0)[0]
    assert len(told.token_ids) == 8 and all(np.isfinite(told.logprobs))
    assert "".join(pocket.stream("Once upon a time", max_new_tokens=8, temperature=0)) == told.text


@pytest.mark.parametrize(
    ("family", "weights"),
    [*((family, "float32") for family in FAMILIES), ("gptj", "bfloat16"), ("gptj", "int8")],
)
def test_every_family_generates_what_its_logits_say(family, weights):
    model = small_model(family, weights)
    ids = model.tokenizer.encode("the cat")
    told = model.generate("the cat", max_new_tokens=3, temperature=0)[0].token_ids
    logits = np.asarray(model.logits([[*ids, *told]]), np.float32)[0, len(ids) - 1 :]
    chosen = logits[np.arange(len(told)), told]
    near = {"float32": 1e-4, "bfloat16": 0.1, "int8": 1e-3}[weights] * abs(logits).max()
    assert told and (chosen >= logits[: len(told)].max(-1) - near).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced_and_saved(family, tmp_path):
    model = small_model(family)
    trace = model.trace("the cat sat", sites=["blocks.*.attn.pattern", "logits"])
    np.testing.assert_allclose(trace["blocks.1.attn.pattern"].sum(-1), 1, atol=1e-5)
    model.save(tmp_path / "saved")
    again = gptj_lab.load(tmp_path / "saved")
    assert (again.logits([[1, 2, 3]]) == model.logits([[1, 2, 3]])).all()


def test_eight_devices_compute_what_one_does():
    one = small_model("gptj")
    eight = small_model("gptj", "float32", 2, 4)
    assert len(jax.devices()) == 8 and eight.mesh.size == 8
    ids = [[1, 2, 3, 4], [5, 6, 7, 8]]
    expected = np.asarray(one.logits(ids))
    np.testing.assert_allclose(eight.logits(ids), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_steps_lower_the_loss(method, weights, text):
    if (method, weights) == ("full", "int8"):
        with pytest.raises(ValueError, match="int8, which Full can't train"):
            gptj_lab.finetune(small_model("gptj", weights), text, method=gptj_lab.Full(), steps=1)
        return
    run = gptj_lab.finetune(
        small_model("gptj", weights), text, steps=6, **QUIET,
        method=gptj_lab.LoRA(rank=4) if method == "lora" else gptj_lab.Full(),
        optimiser=gptj_lab.Optimiser(learning_rate=0.01),
    )  # fmt: skip
    losses = [told["held_out_loss"] for told in run.evaluations]
    assert run.status == "finished" and losses[-1] < losses[0]


def test_a_run_goes_on_where_it_stopped(text, tmp_path):
    common = dict(method=gptj_lab.LoRA(rank=2), save_every=1, **QUIET)
    first = gptj_lab.finetune(
        small_model("gptj"), text, steps=6, out=tmp_path / "a", wait=False, **common
    )
    first.stop()
    first.wait()
    second = gptj_lab.finetune(small_model("gptj"), text, steps=6, out=tmp_path / "a", **common)
    whole = gptj_lab.finetune(small_model("gptj"), text, steps=6, out=tmp_path / "b", **common)
    ids = [[1, 2, 3]]
    assert second.step == 6 and (second.model.logits(ids) == whole.model.logits(ids)).all()


def test_a_plan_is_made():
    plan = gptj_lab.plan("gpt-j-6b", hardware="colab-v5e-1", job="lora")
    assert "colab-v5e-1" in str(plan)


@pytest.mark.parametrize("view", ["Playground", "Explorer"])
def test_the_views_are_constructed(view):
    pytest.importorskip("anywidget")
    model = small_model("gptj")
    made = getattr(gptj_lab.widgets, view)(model, *(["the cat sat"] if view == "Explorer" else []))
    assert made.get_state()
