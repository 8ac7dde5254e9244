"""Every sampling rule equals transformers' own processor on random logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj_lab.generation import sampling

BATCH, VOCAB = 5, 211
RULES = [
    dict(temperature=0.3), dict(temperature=2.5),
    dict(top_k=1), dict(top_k=7), dict(top_k=500),
    dict(top_p=0.02), dict(top_p=0.5), dict(top_p=0.97),
    dict(min_p=0.02), dict(min_p=0.3), dict(min_p=1.0),
    dict(typical_p=0.1), dict(typical_p=0.6), dict(typical_p=0.95),
    dict(repetition_penalty=1.3), dict(repetition_penalty=0.7),
    dict(token_bias={3: 4.5, 200: -3.0}), dict(ban=[0, 5, 210]),
    dict(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, typical_p=0.8,
         repetition_penalty=1.2, token_bias={7: 2.0}, ban=[1]),
]  # fmt: skip


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (BATCH, VOCAB)).astype(np.float32)
    ids = rng.integers(0, VOCAB, (BATCH, 30))
    counts = np.stack([np.bincount(row, minlength=VOCAB) for row in ids]).astype(np.int32)
    return logits, ids, counts


def processed(logits, counts=None, own=None, **rules):
    zeros = np.zeros(logits.shape, np.int32)
    settings = sampling.make_settings(logits.shape[1], **rules)
    counts, own = (zeros if c is None else c for c in (counts, own))
    return np.asarray(jax.jit(sampling.process_logits)(logits, settings, counts, own))


def by_transformers(logits, ids, rules):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as lp

    bias = {(t,): float(v) for t, v in rules.get("token_bias", {}).items()}
    bias |= {(t,): float("-inf") for t in rules.get("ban", [])}
    chain = [lp.SequenceBiasLogitsProcessor(bias)] if bias else []
    made = {
        "repetition_penalty": lp.RepetitionPenaltyLogitsProcessor,
        "temperature": lp.TemperatureLogitsWarper,
        "top_k": lp.TopKLogitsWarper,
        "top_p": lp.TopPLogitsWarper,
        "min_p": lp.MinPLogitsWarper,
        "typical_p": lp.TypicalLogitsWarper,
    }
    chain += [make(rules[name]) for name, make in made.items() if name in rules]
    scores = torch.tensor(logits)
    for processor in chain:
        scores = processor(torch.tensor(ids), scores)
    return scores.numpy()


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_each_rule_equals_transformers(case, rules):
    logits, ids, counts = case
    ours, theirs = processed(logits, counts, **rules), by_transformers(logits, ids, rules)
    assert (np.isneginf(ours) == np.isneginf(theirs)).all()
    kept = np.isfinite(ours)
    assert kept.any(-1).all()
    np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-5, atol=1e-5)


def test_frequency_and_presence_penalty_count_own_tokens_only(case):
    logits, _, counts = case
    own = np.roll(counts, 3, axis=1)
    found = processed(logits, counts, own, frequency_penalty=0.4, presence_penalty=-0.7)
    np.testing.assert_allclose(found, logits - 0.4 * own + 0.7 * (own > 0), rtol=1e-5, atol=1e-5)
    both = processed(logits, counts, own, repetition_penalty=2.0)
    seen = (counts + own) > 0
    expected = np.where(seen, np.where(logits < 0, logits * 2, logits / 2), logits)
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_temperature_zero_is_top_k_of_one_and_leaves_the_first_of_equals(case):
    logits = case[0].copy()
    for rules in (dict(temperature=0), dict(top_k=1)):
        found = processed(logits, **rules)
        assert (np.isfinite(found).sum(-1) == 1).all()
        assert (found.argmax(-1) == logits.argmax(-1)).all()
    logits[0, [9, 50]] = 99.0
    assert np.flatnonzero(np.isfinite(processed(logits, temperature=0)[0])).tolist() == [9]
    kept = np.flatnonzero(np.isfinite(processed(logits, top_k=1)[0])).tolist()
    assert kept == [9, 50], "equals of the last one kept are kept, as transformers does"


def test_extreme_logits_keep_a_token():
    logits = np.array([[1e30, -1e30, 0, 5], [-1e30] * 4, [0.0] * 4], np.float32)
    for rules in (dict(top_p=1e-6), dict(typical_p=1e-6), dict(min_p=1.0), dict(temperature=1e-3)):
        found = processed(logits, **rules)
        assert not np.isnan(found).any() and (found > -np.inf).any(-1).all(), rules


def test_no_setting_compiles_again(case):
    count = 0

    @jax.jit
    def run(logits, settings, counts):
        nonlocal count
        count += 1  # runs once a trace
        return sampling.process_logits(logits, settings, counts, counts)

    for rules in RULES:
        run(case[0], sampling.make_settings(VOCAB, **rules), case[2])
    assert count == 1


def test_a_row_draws_the_same_whatever_stands_beside_it(case):
    logits = jnp.asarray(case[0])
    keys = jnp.stack([sampling.row_key(4, i) for i in range(BATCH)])
    steps = jnp.arange(BATCH) * 3
    settings = sampling.make_settings(VOCAB)
    together = sampling.sample(keys, steps, logits, settings)
    for i in range(BATCH):
        alone = sampling.sample(keys[i : i + 1], steps[i : i + 1], logits[i : i + 1], settings)
        assert int(alone[0]) == int(together[i])
    seeds = (0, 1, -1, 2**40, 2**40 + 1)
    keys = [sampling.row_key(seed, i) for seed in seeds for i in range(3)]
    data = {np.asarray(jax.random.key_data(key)).tobytes() for key in keys}
    assert len(data) == 15


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.1, 0.025], np.float32))
    draws = 4000
    key = sampling.row_key(0, 0)
    keys = jnp.broadcast_to(key, (draws, *key.shape))
    rows = jnp.broadcast_to(logits[None], (draws, 5))
    sample = jax.jit(sampling.sample)
    tokens = sample(keys, jnp.arange(draws), rows, sampling.make_settings(5))
    found = np.bincount(np.asarray(tokens), minlength=5)
    expected = draws * np.exp(logits)
    assert ((found - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees, p = 0.001
    greedy = sampling.make_settings(5, temperature=0)
    assert not sample(keys, jnp.arange(draws), rows, greedy).any()


def test_log_probabilities_and_alternatives(case):
    logits = case[0]
    logprobs = np.asarray(jax.nn.log_softmax(logits, -1))
    ids, values = sampling.top_alternatives(jnp.asarray(logits), 10)
    assert (np.asarray(ids) == np.argsort(-logits, -1)[:, :10]).all()
    np.testing.assert_allclose(values, np.take_along_axis(logprobs, np.asarray(ids), -1), atol=1e-5)
    tokens = jnp.arange(BATCH)
    found = sampling.log_probability(jnp.asarray(logits), tokens)
    np.testing.assert_allclose(found, logprobs[np.arange(BATCH), np.arange(BATCH)], atol=1e-5)


@pytest.mark.parametrize("vocab", [5, 64, 65, 1000, 4096, 50257])
def test_the_highest_are_those_of_top_k_also_where_many_are_equal(vocab):
    rng = np.random.default_rng(vocab)
    rough = np.round(rng.normal(size=(4, vocab)).astype(np.float32))
    rough[1, rng.random(vocab) < 0.9] = -np.inf
    rough[2] = 0
    rough[3] = -np.inf
    rough = jnp.asarray(rough)
    for count in {1, 2, 5, min(10, vocab)}:
        expected = jax.lax.top_k(rough, count)
        values, ids = sampling.highest(rough, count)
        np.testing.assert_array_equal(values, expected[0])
        np.testing.assert_array_equal(ids, expected[1])


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (dict(temperature=-0.1), ValueError, "temperature is -0.1.*from 0 up"),
        (dict(temperature=float("nan")), ValueError, "temperature is nan"),
        (dict(temperature=float("inf")), ValueError, "temperature is inf"),
        (dict(temperature="1"), TypeError, "temperature is '1'"),
        (dict(temperature=True), TypeError, "temperature is True"),
        (dict(top_k=-1), ValueError, "top_k is -1"),
        (dict(top_k=2.5), ValueError, "top_k is 2.5.*whole"),
        (dict(top_k=float("inf")), ValueError, "top_k is inf"),
        (dict(top_p=0), ValueError, "top_p is 0"),
        (dict(top_p=1.5), ValueError, "top_p is 1.5"),
        (dict(min_p=-0.1), ValueError, "min_p is -0.1"),
        (dict(typical_p=0.0), ValueError, "typical_p is 0.0"),
        (dict(repetition_penalty=0), ValueError, "repetition_penalty is 0"),
        (dict(frequency_penalty=float("inf")), ValueError, "frequency_penalty is inf"),
        (dict(presence_penalty=None), TypeError, "presence_penalty is None"),
        (dict(token_bias={211: 1.0}), ValueError, "token_bias holds token id 211.*0 to 210"),
        (dict(token_bias={3: float("nan")}), ValueError, r"token_bias\[3\] is nan"),
        (dict(ban=[-1]), ValueError, "ban holds token id -1"),
        (dict(ban=["the"]), TypeError, "ban holds 'the'"),
        (dict(ban=range(211)), ValueError, "every token"),
    ],
)
def test_bad_settings_are_one_sentence(rules, error, message):
    with pytest.raises(error, match=message):
        sampling.make_settings(VOCAB, **rules)


@pytest.mark.parametrize("seed", [1.5, "a", True, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match="seed is"):
        sampling.row_key(seed, 0)
