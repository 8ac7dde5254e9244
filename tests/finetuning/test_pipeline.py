"""The order of a run: every window once an epoch, the same again, on any number of hosts."""

import json

import numpy as np
import pytest

from gptj_lab.finetuning import corpus
from gptj_lab.tokenizer import train_bpe

TEXTS = [f"the king number {i} saw {i * i} foxes and {i % 7} moons over the sea" for i in range(90)]


@pytest.fixture(scope="module")
def kings(tmp_path_factory):
    tokenizer = train_bpe(TEXTS, 300)
    cache = tmp_path_factory.mktemp("cache")
    return corpus.prepare(TEXTS, tokenizer, context=48, held_out=0.2, cache=cache)


def same(one, other):
    for name in ("tokens", "segments", "positions", "weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def rows(batches):
    return [row.tobytes() for batch in batches for row in batch.tokens]


def test_an_epoch_holds_every_window_once_in_an_order_of_its_own(kings):
    count = len(kings.train)
    assert count > 20
    batches = kings.batches(1, seed=3)
    first, second = rows(take(batches, count)), rows(take(batches, count))
    assert sorted(first) == sorted(second) == sorted(rows(kings.train.batch(np.array([i]))
                                                          for i in range(count)))  # fmt: skip
    in_order = rows([kings.train.batch(np.arange(count))])
    assert first != second and first != in_order


def test_the_seed_decides_the_order(kings):
    once, again = take(kings.batches(4, seed=1), 9), take(kings.batches(4, seed=1), 9)
    for one, other in zip(once, again, strict=True):
        same(one, other)
    assert rows(once) != rows(take(kings.batches(4, seed=2), 9))


@pytest.mark.parametrize("taken", [0, 1, 13, 40])
def test_restored_goes_on_bit_for_bit(kings, taken):
    straight = kings.batches(4, seed=5)
    take(straight, taken)
    state = json.loads(json.dumps(straight.state()))
    rest = take(straight, 6)
    resumed = kings.batches(4, seed=5)
    take(resumed, 3)  # wherever it stood
    resumed.restore(state)
    for one, other in zip(rest, take(resumed, 6), strict=True):
        same(one, other)


def test_hosts_together_see_what_one_host_sees_and_resume_as_another_number(kings):
    alone = kings.batches(4, seed=7)
    pair = [kings.batches(4, seed=7, host=host, hosts=2) for host in range(2)]
    for _ in range(5):
        whole = next(alone)
        parts = [next(part) for part in pair]
        np.testing.assert_array_equal(whole.tokens, np.concatenate([p.tokens for p in parts]))
        np.testing.assert_array_equal(whole.weights, np.concatenate([p.weights for p in parts]))
    four = kings.batches(4, seed=7, host=3, hosts=4)
    four.restore(pair[0].state())
    np.testing.assert_array_equal(next(four).tokens, next(alone).tokens[3:])


def test_a_state_of_other_data_or_settings_is_refused(kings, tmp_path):
    state = kings.batches(4, seed=5).state()
    for other in (kings.batches(4, seed=6), kings.batches(2, seed=5)):
        with pytest.raises(ValueError, match="resume with the same data"):
            other.restore(state)
    fewer = corpus.prepare(TEXTS[1:], kings.tokenizer, context=48, held_out=0.2, cache=tmp_path)
    with pytest.raises(ValueError, match="resume with the same data"):
        fewer.batches(4, seed=5).restore(state)


@pytest.mark.parametrize("hosts", [1, 3])
def test_held_out_windows_come_once_and_the_last_batch_is_filled_with_weight_0(kings, hosts):
    batches = [list(kings.held_out_batches(3, host=host, hosts=hosts)) for host in range(hosts)]
    assert len({len(host) for host in batches}) == 1
    assert {batch.tokens.shape for host in batches for batch in host} == {(3 // hosts, 49)}
    total = sum(batch.weights.sum() for host in batches for batch in host)
    assert total == kings.held_out.predictions > 0


def test_more_rows_than_windows_repeat_them(kings, tmp_path):
    one = corpus.prepare("a short one\n", kings.tokenizer, context=48, cache=tmp_path)
    batch = next(one.batches(8))
    assert batch.tokens.shape == (8, 49) and len(set(rows([batch]))) == 1


def test_rows_that_hosts_cannot_share_are_refused(kings):
    with pytest.raises(ValueError, match="give a multiple of 3"):
        kings.batches(4, hosts=3)
    with pytest.raises(ValueError, match="give a multiple of 3"):
        next(kings.held_out_batches(4, hosts=3))
