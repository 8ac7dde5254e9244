"""The embedded model as it is shipped: small, whole, offline, and as its card says."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest

import gptj_lab
from gptj_lab.finetuning import pocket

POCKET = Path(__file__).parents[1] / "data" / "pocket"
CORPUS = Path(__file__).parents[2] / "shared" / "corpus"


@pytest.fixture(scope="module")
def metrics():
    return json.loads((POCKET / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model():
    return gptj_lab.load()


def test_it_is_small_and_holds_no_text_of_the_corpus():
    files = {path.name for path in POCKET.iterdir()}
    assert files == {
        "README.md", "config.json", "generation_config.json", "loss_curve.png", "metrics.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in POCKET.iterdir()) <= 20e6


def test_it_loads_offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = gptj_lab.load()
    assert model.config.num_parameters < 10e6
    assert model.generate("Once upon a time", max_new_tokens=5, temperature=0)[0].text


def test_its_card_gives_the_figures_that_were_measured(metrics):
    card = (POCKET / "README.md").read_text()
    for name in ("tales", "code"):
        row = next(line for line in card.splitlines() if line.startswith(f"| {name}"))
        numbers = [float(n) for n in re.findall(r"\d\.\d{3}", row)]
        ours, xz = metrics[name]["bits_per_byte"], metrics[name]["xz_bits_per_byte"]
        assert numbers == [pytest.approx(ours, abs=6e-4), pytest.approx(xz, abs=6e-4)]
    assert f"{metrics['steps']:,} steps" in card
    for credit in ("FairytaleQA", "African Storybook Initiative", "Pratham Books StoryWeaver"):
        assert credit in card
    assert all(name in card for name in metrics["held_out_modules"])


def test_it_has_learnt_stories_and_code(model, metrics):
    """Far below the bits of its own vocabulary, on text of our own."""
    story = "Once upon a time there was a king who had a daughter, and she was very beautiful."
    assert pocket.bits_per_byte(model.network, model.tokenizer, [story]) < 1.6
    code = "    def __init__(self, name):\n        self.name = name\n"
    ids = model.tokenizer.encode(code)
    logits = np.asarray(model.logits([ids]))[0]
    guess = [int(row.argmax()) for row in logits[:-1]]
    right = sum(a == b for a, b in zip(guess, ids[1:], strict=True))
    assert right / len(guess) > 0.25


@pytest.mark.slow
def test_the_measured_tales_are_measured_again(model, metrics):
    if not CORPUS.is_dir():
        pytest.skip("../shared/corpus is not here")
    tales = pocket.validation_documents(CORPUS)
    context = model.config.context
    found = pocket.bits_per_byte(model.network, model.tokenizer, tales, context=context)
    assert found == pytest.approx(metrics["tales"]["bits_per_byte"], rel=1e-4)
