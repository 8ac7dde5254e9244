"""The tuned lens: it starts as the logit lens, comes nearer to the model, is saved and refused."""

import numpy as np
import pytest
from small_models import changed, small_model

from gptj_lab.lens.affine_lens import AffineLens
from gptj_lab.lens.logit_lens import logit_lens
from gptj_lab.lens.tuned_lens import train_tuned_lens

PROMPT = "the dog sat on the log"
TEXT = "the cat sat on the mat, and the dog 🙂 sat on the log; naïve cats do. " * 9
SMALL = {"steps": 25, "batch": 4, "seq": 16, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


@pytest.fixture(scope="module")
def lens(gptj):
    return train_tuned_lens(gptj, [TEXT], **SMALL)


def test_it_comes_nearer_to_the_model_in_every_layer(gptj, lens):
    trace = gptj.trace(PROMPT)
    plain, tuned = logit_lens(trace), lens.read(trace)
    assert (tuned.kl[:-1].mean(1) < 0.7 * plain.kl[:-1].mean(1)).all()
    assert (lens.history[-1] < 0.7 * lens.history[0]).all() and lens.history.shape == (25, 3)
    assert (tuned.logits(-1) == plain.logits(-1)).all() and (tuned.kl[-1] == 0).all()


def test_its_first_loss_is_the_logit_lens_kl(gptj):
    """Before a step the maps are the identity: the loss is the KL of the plain lens."""
    window = gptj.tokenizer.encode(TEXT)[:16]
    text = gptj.tokenizer.decode(window)
    assert gptj.tokenizer.encode(text) == window
    first = train_tuned_lens(gptj, [text], steps=1, batch=2, seq=16)
    plain = logit_lens(gptj.trace(window))
    np.testing.assert_allclose(first.history[0], plain.kl[:-1].mean(1), rtol=1e-4)


def test_translation_is_the_affine_map_of_float64(gptj, lens):
    x = gptj.trace(PROMPT).residuals[1]
    expected = x.astype(float) @ lens.matrix[1].astype(float).T + lens.bias[1]
    np.testing.assert_allclose(lens.translate(1, x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="layer is 3: layers 0 to 2"):
        lens.translate(3, x)


def test_the_same_seed_gives_the_same_lens(gptj, lens):
    again = train_tuned_lens(gptj, [TEXT], **SMALL)
    assert (again.matrix == lens.matrix).all() and (again.history == lens.history).all()


@pytest.mark.slow
def test_int8_on_a_mesh_trains_as_on_one_device():
    settings = SMALL | {"steps": 5}
    alone = train_tuned_lens(small_model("gpt2", "int8"), [TEXT], **settings)
    cut = train_tuned_lens(small_model("gpt2", "int8", 2, 2), [TEXT], **settings)
    np.testing.assert_allclose(cut.history, alone.history, rtol=1e-4)
    np.testing.assert_allclose(cut.matrix, alone.matrix, atol=1e-3)


def test_it_can_be_stopped_and_tells_how_it_goes(gptj):
    told = []

    def progress(step, loss):
        told.append((step, loss))
        return step == 3

    lens = train_tuned_lens(gptj, [TEXT], progress=progress, **SMALL)
    assert [step for step, _ in told] == [1, 2, 3] and lens.history.shape == (3, 3)
    np.testing.assert_allclose([loss for _, loss in told], lens.history.mean(1), rtol=1e-6)


def test_saved_and_loaded(gptj, lens, tmp_path):
    lens.save(tmp_path / "it", gptj)
    again = AffineLens.load(tmp_path / "it", gptj)
    assert (again.kind, again.fingerprint) == ("tuned", lens.fingerprint)
    for name in ("matrix", "bias", "history"):
        assert (getattr(again, name) == getattr(lens, name)).all()


def test_other_models_are_refused(gptj, lens, tmp_path):
    lens.save(tmp_path / "it", gptj)
    other = small_model("gptj", seed=2)
    with pytest.raises(ValueError, match="made with other weights"):
        lens.read(other.trace(PROMPT))
    with pytest.raises(ValueError, match="made with other weights"):
        lens.save(tmp_path / "that", other)
    with pytest.raises(ValueError, match="belongs to other weights"):
        AffineLens.load(tmp_path / "it", other)
    gptj.trace(PROMPT).save(tmp_path / "trace")
    with pytest.raises(ValueError, match="is a gptj_lab.trace file, a gptj_lab.affine_lens"):
        AffineLens.load(tmp_path / "trace", gptj)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"seq": 65}, "seq is 65: 1 to 64"),
        ({"texts": ["the"], "seq": 16}, "the texts have 1 tokens"),
        ({"texts": []}, "the texts have 0 tokens"),
    ],
)
def test_settings_that_do_not_fit(gptj, settings, words):
    with pytest.raises(ValueError, match=words):
        train_tuned_lens(gptj, **{"texts": [TEXT], "seq": 16} | settings)


def test_a_model_with_nan_gives_no_lens(gptj):
    def spoil(network):
        network.final_ln.bias[...] = network.final_ln.bias[...] * np.float32(np.nan)

    with pytest.raises(ValueError, match="loss is not finite at step 1"):
        train_tuned_lens(changed(gptj, spoil), [TEXT], **SMALL)
