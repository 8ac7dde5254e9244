"""The headless twin: a line an evaluation, a bar where somebody watches."""

import types

from gptj_lab.finetuning import telling
from gptj_lab.finetuning.telling import Aloud


def run(step=3, **fields):
    told = {"loss": 3.5, "tokens_per_second": 1234.5, "rate": 1e-3, "gradient_norm": 0.5,
            "memory_bytes": 2_500_000_000}  # fmt: skip
    evaluation = {"step": step, "held_out_loss": 3.25, "loss": 3.75, "best": True, "samples": [
        {"prompt": "the\ncat", "text": "sat " * 100}]}  # fmt: skip
    base = dict(step=step, steps=10, history=[told], evaluations=[evaluation], base_loss=4.0,
                seconds_left=200.0)  # fmt: skip
    return types.SimpleNamespace(**(base | fields))


def test_an_evaluation_is_one_line_and_each_sample_another():
    line, sample = telling.evaluation_lines(run())
    assert line == (
        "step 3 of 10  held-out loss 3.250 (base 4.000), the best so far  training loss 3.750  "
        "rate 0.001, gradient 0.5  1,234 tokens/s  2.50 GB  3 min left"
    )
    assert sample.startswith("    the cat ... sat sat") and sample.endswith(" ...")
    assert len(sample) < 200
    first = run(0, history=[], seconds_left=None)
    first.evaluations[0] |= {"loss": None, "samples": []}
    assert telling.evaluation_lines(first) == ["step 0 of 10  held-out loss 3.250"]


def test_the_end_says_where_the_model_began_to_learn_by_heart():
    settings = types.SimpleNamespace(out="out")
    pace = types.SimpleNamespace(seconds=41.0)
    early = {"step": 1, "held_out_loss": 3.0, "loss": 3.9}
    late = run(settings=settings, pace=pace)
    late.evaluations.insert(0, early)
    said = telling.end_sentence(late)
    assert "by heart" in said
    assert said.startswith("finished after step 3, 41 s of work: the held-out loss went from 4.000")
    assert "lowest, 3.000, at step 1" in said and "run.best()" in said
    assert "by heart" not in telling.end_sentence(run(settings=settings, pace=pace))
    late.evaluations[:1] = [{"step": 0, "held_out_loss": 3.0, "loss": None}, early | {"loss": 3.5}]
    said = telling.end_sentence(late)
    assert "lowest, 3.000, before the first step" in said and "by heart" not in said
    assert "take a lower learning rate" in said


def test_where_the_loss_should_start_after_a_new_soft_prompt():
    assert "the held-out text; a" in telling.start_sentence(3.0, 100)
    prompted = telling.start_sentence(3.0, 100, prompted=True)
    assert "near 3.00" in prompted and "text after the new soft prompt; a" in prompted


def test_a_bar_is_shown_only_where_somebody_watches(monkeypatch, capsys):
    said = []
    teller = Aloud(said.append)
    monkeypatch.setattr(telling, "watched", lambda: False)
    teller.moved(run())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(telling, "watched", lambda: True)
    for step in (4, 5):
        teller.moved(run(step))
    teller.line("a sentence")
    teller.close()
    teller.close()
    err = capsys.readouterr().err
    assert "5/10" in err and "loss 3.500, 1,234 tokens/s" in err
    assert said == ["a sentence"] and "a sentence" not in err


def test_durations_read_as_people_say_them():
    assert [telling.duration(s) for s in (41.2, 720, 12_240)] == ["41 s", "12 min", "3.4 h"]
