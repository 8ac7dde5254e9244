"""The Explorer's still picture: what its pixels say is what the arrays hold."""

import io

import numpy as np
import pytest
from PIL import Image
from small_models import small_model

import gptj_lab
from gptj_lab.plots import style
from gptj_lab.widgets import explorer_picture

TEXT = "the cat sat on the mat, and the cat"
LEFT, TOP = 40, 50  # of the first head's square


@pytest.fixture(scope="module")
def model():
    return small_model("gptj", num_layers=2)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_each_heads_square_is_its_pattern_in_colours(model):
    explorer = gptj_lab.widgets.Explorer(model, TEXT, layer=1, head=2)
    image = pixels(explorer._picture()[0])
    patterns = explorer._session.thumbnails("a")
    layers, heads, seq, _ = patterns.shape
    scale = 96 // seq
    tile = scale * seq + 2
    faint = list(bytes.fromhex(style.FAINT[1:]))
    for layer in range(layers):
        for head in range(heads):
            x, y = LEFT + head * tile, TOP + layer * tile
            middle = scale // 2
            square = image[y + middle :: scale, x + middle :: scale][:seq, :seq]
            expected = 255 * style.sequential()(np.sqrt(patterns[layer, head]))[..., :3]
            below = np.tril_indices(seq)
            np.testing.assert_allclose(square[below], expected[below], atol=6)  # 128 levels
            above = np.triu_indices(seq, 1)
            assert (square[above] == faint).all(), "no token reads what comes after it"
    x, y = LEFT - 1 + 2 * tile, TOP - 1 + tile
    mark = image[y, x]
    assert (image[y, x : x + tile] == mark).all() and (image[y : y + tile, x] == mark).all()
    assert (image == mark).all(-1).sum() < 10 * tile, "one head is framed"


def test_the_chosen_heads_weights_stand_beside_its_tokens(model):
    explorer = gptj_lab.widgets.Explorer(model, TEXT, layer=1, head=2)
    before = pixels(explorer._picture()[0])
    explorer.select(head=3)
    after = pixels(explorer._picture()[0])
    assert before.shape == after.shape and (before != after).any(-1).sum() > 1000
    explorer.select(head=2)
    assert (pixels(explorer._picture()[0]) == before).all()
    explorer.ablate(0, 1)
    explorer.select(of="after")
    assert (pixels(explorer._picture()[0]) != before).any()


def test_b_is_pictured_with_its_own_text_and_next_tokens(model, monkeypatch):
    ours, theirs = "the cat sat", "the dog sat on the mat and the cat"
    session = gptj_lab.widgets.Explorer(model, ours, compare=theirs)._session
    asked, real = [], session.next_tokens
    monkeypatch.setattr(session, "next_tokens", lambda at: asked.append(at) or real(at))
    _, alt = explorer_picture.picture(session, {"layer": 0, "head": 1, "of": "b"})
    assert alt.endswith(f"The text: {theirs}") and asked == [len(session.b) - 1]
    _, alt = explorer_picture.picture(session, {"layer": 0, "head": 1, "of": "a"})
    assert alt.endswith(f"The text: {ours}") and asked[-1] == len(session.a) - 1


@pytest.mark.parametrize("text", ["a", "<b> 🙂 \x07\u202e $x^2$ مرحبا", TEXT * 5])
def test_any_text_makes_a_picture_that_is_small(model, text):
    data, alt = gptj_lab.widgets.Explorer(model, text)._picture()
    image = Image.open(io.BytesIO(data))
    assert len(data) <= explorer_picture.MOST_BYTES and image.width <= 1400
    assert alt.startswith("Explorer of")


def test_many_heads_of_noise_stay_within_the_bytes(model, monkeypatch):
    explorer = gptj_lab.widgets.Explorer(model, TEXT * 3)
    noise = np.random.default_rng(0).random((44, 64, 32, 32), np.float32)
    monkeypatch.setattr(explorer._session, "thumbnails", lambda of: noise)
    data, _ = explorer._picture()
    assert len(data) <= explorer_picture.MOST_BYTES
    assert Image.open(io.BytesIO(data)).width > 400
