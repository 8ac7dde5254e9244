"""Speed and time left, by a clock that the test turns."""

import pytest

from gptj_lab.finetuning import pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def test_speed_is_of_the_last_steps_and_time_left_counts_evaluations(clock):
    run = pace.Pace(seconds=7.0)
    assert run.left(10, 1) is None and run.tokens_per_second is None
    clock(50)  # compiling
    run.rest()
    for seconds in (9, *[2] * 20):  # the first is forgotten
        clock(seconds)
        run.step(300)
    assert run.tokens_per_second == 150
    assert run.left(10, 3) == 20
    for seconds in (30, 4):  # the first evaluation compiles
        with run.evaluating():
            clock(seconds)
    assert run.left(10, 3) == 20 + 3 * 4
    clock(1000)  # a pause
    run.rest()
    clock(2)
    run.step(300)
    assert run.tokens_per_second == 150
    assert run.seconds == 7 + 9 + 20 * 2 + 34 + 2
