"""benchmarks/stories.py: its questions are fair, and its scores are the model's own."""

import importlib.util
import random
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import train_bpe


@pytest.fixture(scope="module")
def stories():
    source = Path(__file__).parents[1] / "benchmarks" / "stories.py"
    spec = importlib.util.spec_from_file_location("stories_benchmark", source)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tiny_config, stories):
    texts = [" ".join((p.question.read, *p.question.answers)) for p in stories.probes()]
    config = tiny_config(vocab_size=400, context=64, d_model=16, num_layers=1, num_heads=2)
    network = Transformer(config, key=jax.random.key(0))
    return LanguageModel(config, network, train_bpe(texts, 400))


def test_the_probes_are_two_hundred_of_five_kinds_in_balanced_pairs(stories):
    probes = stories.probes()
    assert Counter(probe.kind for probe in probes) == dict.fromkeys(
        dict.fromkeys(probe.kind for probe in probes), 40
    )
    assert len({probe.question for probe in probes}) == len(probes) == 200
    for first, second in zip(probes[::2], probes[1::2], strict=True):
        assert first.question.answers == second.question.answers[::-1]
        assert first.question.read != second.question.read
        assert all(" " not in answer.strip() for answer in first.question.answers), "one word"


def test_who_does_not_heed_the_context_gets_half_of_the_probes(stories, model, monkeypatch):
    def of_the_answer_alone(model, texts, longest):
        values = [random.Random(then).random() for _, then in texts]
        return np.array([[value, 1.0] for value in values])

    monkeypatch.setattr(stories, "log_probabilities", of_the_answer_alone)
    asked = [probe.question for probe in stories.probes()]
    assert stories.answered(model, asked, 64).mean() == 0.5


def test_sentences_are_the_text_and_the_right_answer_follows_what_was_read(stories):
    said = ['"Who is there?" asked the old king of the hill.', "Nobody answered him at all."]
    tale = " ".join(
        f"{said[n % 2]} Then the {n} sons of the miller went home again." for n in range(30)
    )
    assert "".join(stories.sentences(tale)) == tale
    questions = stories.next_sentences([tale])
    assert len(questions) == 16 and questions == stories.next_sentences([tale])
    for question in questions:
        right, *wrong = question.answers
        assert tale.startswith(question.read + right)
        assert len(wrong) == 3 and right not in wrong and len(set(wrong)) == 3
        assert all(answer in tale for answer in wrong)


def test_a_score_is_the_sum_of_the_continuations_own_log_probabilities(stories, model):
    texts = [
        ("The king was", " tired"),
        ("The dogs in the yard", " are here and bark"),
        ("", " he"),
    ]
    found = stories.log_probabilities(model, texts, 48, group=2)
    for (read, then), (score, count) in zip(texts, found, strict=True):
        before, after = model.tokenizer.encode(read), model.tokenizer.encode(then)
        ids = [model.tokenizer.end_of_text_id, *before, *after]
        logprobs = jax.nn.log_softmax(model.network(jnp.array([ids]))[0], -1)[0]
        own = [logprobs[i, token] for i, token in enumerate(ids[1:])][-len(after) :]
        assert score == pytest.approx(float(sum(own)), rel=1e-4)
        assert count == len(after)
    with pytest.raises(ValueError, match="more than the 4 of a row"):
        stories.log_probabilities(model, [("a", " the dogs in the yard are here")], 4)


def test_repetition_counts_runs_of_four_words_said_before(stories):
    assert stories.repeated("one two three four five six") == 0
    assert stories.repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert stories.repeated("la la la la la la") == pytest.approx(2 / 3)
    assert stories.repeated("too short") == 0


def test_the_table_has_a_row_a_measure_and_a_column_a_model(stories):
    shown = stories.table({
        "old": {"parameters": 6_800_000, "tales, bits per byte": 1.25, "samples": []},
        "new": {"parameters": 9_200_000, "tales, bits per byte": 1.1, "samples": []},
    })  # fmt: skip
    assert shown.splitlines()[0] == "| | old | new |"
    assert "| parameters | 6.8 M | 9.2 M |" in shown
    assert "| tales, bits per byte | 1.250 | 1.100 |" in shown and "samples" not in shown
