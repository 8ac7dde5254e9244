"""Nothing held out is seen in training: not copied, not nearly copied, not inside something."""

import numpy as np
import pytest

from gptj_lab.finetuning import corpus, fingerprints, leaks
from gptj_lab.tokenizer import train_bpe

NOUNS = [a + b for a in "bcdfglmnprst" for b in ("ald", "orn", "ip", "usk", "emma", "ivo")]


def words(seed, length=60):
    return " ".join(np.random.default_rng(seed).choice(NOUNS, length))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([words(seed) for seed in range(30)], 400)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    def make(sources, **settings):
        settings = dict(tokenizer=tokenizer, context=64, held_out=0.2, cache=tmp_path) | settings
        return corpus.prepare(sources, **settings)

    return make


def texts_of(windows, tokenizer):
    """The texts of the windows' units."""
    found = []
    for unit in range(len(windows.units)):
        document, start = windows.units.document[unit], windows.units.start[unit]
        tokens, _ = windows.store.read(document, start, windows.units.size[unit])
        found.append(tokenizer.decode(tokens[1:] if start == 0 else tokens))
    return found


def test_the_sides_share_nothing_and_together_are_everything(prepare, tokenizer):
    texts = [words(seed) for seed in range(200)]
    found = prepare(texts)
    train, held = texts_of(found.train, tokenizer), texts_of(found.held_out, tokenizer)
    assert sorted(train + held) == sorted(texts)
    assert 20 <= len(held) <= 60
    assert found.split.overlap == 0 and found.split.moved == 0


def test_a_documents_side_depends_on_its_words_not_on_its_place(prepare, tokenizer):
    texts = [words(seed) for seed in range(100)]
    held = set(texts_of(prepare(texts).held_out, tokenizer))
    more = set(texts_of(prepare([*texts[::-1], *map(words, range(900, 950))]).held_out, tokenizer))
    assert held == more & set(texts)


def test_copies_in_other_case_and_blanks_stay_on_one_side(prepare, tokenizer):
    texts = [words(seed) for seed in range(100)]
    changed = [text.upper().replace(" ", "  ") + "\n" for text in texts]
    found = prepare(texts + changed)
    held = {" ".join(text.lower().split()) for text in texts_of(found.held_out, tokenizer)}
    train = {" ".join(text.lower().split()) for text in texts_of(found.train, tokenizer)}
    assert held and not held & train
    assert found.split.copies == 100


def test_near_copies_stay_on_one_side(prepare, tokenizer):
    texts = [words(seed, 200) for seed in range(80)]
    near = [" ".join([*text.split()[:-3], "quite", "other", "end"]) for text in texts]
    found = prepare(texts + near)
    held = {text[:200] for text in texts_of(found.held_out, tokenizer)}
    train = {text[:200] for text in texts_of(found.train, tokenizer)}
    assert held and not held & train
    assert found.split.near_copies >= 78  # MinHash is an estimate


@pytest.mark.parametrize("copy", ["the same words", "nearly the same", "a row"])
@pytest.mark.parametrize("others", [0, 6])
def test_what_repeats_itself_is_trained_on_whatever_was_drawn(prepare, tokenizer, copy, others):
    """Twelve of one text: whichever side their words draw, it is the one that is trained on."""
    for seed in range(12):
        texts: list = [
            f"{words(seed, 60)} {i if copy == 'nearly the same' else ''}" for i in range(12)
        ]
        if copy == "a row":
            texts = [{"prompt": text, "completion": " yes"} for text in texts]
        found = prepare([*texts, *(words(500 + seed + i, 8) for i in range(others))])
        in_training = " ".join(texts_of(found.train, tokenizer)).count(words(seed, 60))
        assert in_training == 12, seed
        assert len(found.train) and (others or not len(found.held_out))


def test_something_is_left_to_train_on_where_half_is_held_out(prepare):
    sides = [
        prepare([words(10 * seed + i, 20) for i in range(10)], held_out=0.5) for seed in range(6)
    ]
    assert all(len(side.train) and len(side.held_out) for side in sides)


def test_what_lies_inside_a_training_text_is_not_held_out(prepare, tokenizer):
    """Excerpts: too small a share of the whole for near-copies, found by their runs."""
    small = [words(seed, 40) for seed in range(60)]
    long = [words(1000 + i, 300) + " " + " ".join(small[i::6]) for i in range(6)]
    found = prepare(small + long)
    train = " ".join(texts_of(found.train, tokenizer))
    assert found.split.moved > 0
    assert not [text for text in texts_of(found.held_out, tokenizer) if text in train]


def test_one_long_text_has_a_held_out_part_too(prepare, tokenizer):
    text = "\n".join(words(seed) for seed in range(300))
    found = prepare(text)
    total = len(tokenizer.encode(text)) + 1
    assert found.train.predictions + found.held_out.predictions == total
    assert 0.05 < found.held_out.predictions / total < 0.4
    assert len(found.held_out.units) > 2


def test_a_form_that_all_rows_fill_in_does_not_tie_them_together(prepare):
    form = words(5, 150)
    found = prepare([f"{form} {words(seed, 8)}" for seed in range(100)])
    assert found.split.template == 100
    assert "a form that all fill in" in str(found.doctor())


def test_little_text_holds_nothing_out(prepare):
    found = prepare([words(seed) for seed in range(5)])
    assert len(found.held_out) == 0
    assert "Nothing is held out" in str(found.doctor())


def test_a_held_out_text_of_its_own_is_searched_for_leaks(prepare, tokenizer):
    texts = [words(seed) for seed in range(30)]
    clean = prepare(texts, held_out=[words(seed) for seed in range(50, 60)])
    assert clean.split.leaking == 0 and len(clean.held_out.units) == 10
    assert len(clean.train.units) == 30
    leaking = prepare(texts, held_out=[words(50), texts[3], texts[4][:200] + " and then"])
    assert leaking.split.leaking == 2
    assert "LEAK: 2 held-out documents" in str(leaking.doctor())


def test_signatures_estimate_the_share_of_common_runs():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 1000, 4000)
    for kept in (1.0, 0.8, 0.5, 0.0):
        other = np.concatenate([base[: int(4000 * kept)], rng.integers(0, 1000, 4000)])[:4000]
        signatures = []
        for tokens in (base, other):
            signature = fingerprints.Signature()
            for part in np.array_split(tokens, 7):
                signature.add(part)
            signatures.append(signature.value())
        one, two = (set(fingerprints.shingles(t).tolist()) for t in (base, other))
        truth = len(one & two) / len(one | two)
        assert (signatures[0] == signatures[1]).mean() == pytest.approx(truth, abs=0.2)


def test_a_signature_of_parts_is_that_of_the_whole():
    tokens = np.random.default_rng(1).integers(0, 50, 100)
    for size in (1, 3, 8, 100):
        whole, parts = fingerprints.Signature(), fingerprints.Signature()
        whole.add(tokens[:size])
        for token in tokens[:size]:
            parts.add(np.array([token]))
        np.testing.assert_array_equal(whole.value(), parts.value())


def test_runs_are_of_the_units_own_tokens(prepare):
    found = prepare([words(seed) for seed in range(3)])
    both = [leaks.runs(found.train.store, found.train.units, unit) for unit in (0, 1)]
    assert len(both[0]) > 20 and not set(both[0].tolist()) & set(both[1].tolist())
