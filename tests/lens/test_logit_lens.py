"""The logit lens: rows are float64's, the last is the model's own; what is refused."""

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import FAMILIES, changed, small_model

from gptj_lab.lens import logit_lens as module
from gptj_lab.lens.logit_lens import logit_lens

PROMPT = "the cat sat on the mat, and the dog"
MODELS = [("gptj",), ("gpt2", "int8", 2, 2)]
SLOW = [(f, w) for f in FAMILIES for w in ("float32", "int8")] + [("gpt_neo", "float32", 1, 4)]


@pytest.fixture(
    scope="module", params=[*MODELS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
)
def model(request):
    return small_model(*request.param)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def logits_of_rows(model, ids):
    """[rows, seq, vocab] in float64, the unembedding's bias included."""
    oracle = Float64Network(model).run(ids)
    bias = oracle.w.get("head.bias", 0)
    streams = [*oracle.resid_pre, oracle.final]
    return np.stack([oracle.norm("final_ln", x) @ oracle.unembedding.T + bias for x in streams])


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_every_row_is_that_of_float64(model):
    lens = logit_lens(model.trace(PROMPT), top=4)
    expected = logits_of_rows(model, lens.trace.token_ids)
    told = log_softmax(expected)
    for row in range(len(lens.rows)):
        np.testing.assert_allclose(lens.logits(row), expected[row], atol=5e-5)
    np.testing.assert_allclose(lens.logprobs, -np.sort(-told, -1)[..., :4], atol=5e-5)
    np.testing.assert_allclose(
        np.take_along_axis(told, lens.ids.astype(int), -1), lens.logprobs, atol=5e-5
    )
    np.testing.assert_allclose(lens.entropy, -(np.exp(told) * told).sum(-1), atol=1e-4)
    kl = (np.exp(told[-1:]) * (told[-1:] - told)).sum(-1)
    np.testing.assert_allclose(lens.kl, kl, atol=1e-4)
    assert lens.rows == ("0", "1", "2", "output")


def test_the_last_row_is_the_model_to_the_last_bit(model):
    ids = np.arange(1, 17)  # fills its bucket
    lens = logit_lens(model.trace(ids))
    own = np.asarray(model.logits([ids]))[0]
    assert (lens.logits(-1) == own).all() and (lens.logits(3) == own).all()
    assert (lens.ids[-1] == np.argsort(-own, -1, kind="stable")[:, :5]).all()
    assert (lens.kl[-1] == 0).all()


def test_chosen_tokens_over_layers(model):
    lens = logit_lens(model.trace(PROMPT))
    tokens = [" cat", 7, " dog"]
    found = lens.of(tokens)
    told = log_softmax(logits_of_rows(model, lens.trace.token_ids))
    assert found.token_ids[1] == 7 and found.ranks.shape == (3, 4, len(lens.positions))
    for index, token in enumerate(found.token_ids):
        np.testing.assert_allclose(found.logprobs[index], told[..., token], atol=5e-5)
        ahead = (told > told[..., token, None] + 1e-4).sum(-1)
        near = (told > told[..., token, None] - 1e-4).sum(-1)
        assert ((ahead <= found.ranks[index]) & (found.ranks[index] <= near)).all()


def test_the_likeliest_have_ranks_in_their_order(gptj):
    lens = logit_lens(gptj.trace(PROMPT), top=6, positions=[-1])
    found = lens.of(lens.ids[2, 0].tolist())
    assert found.ranks[:, 2, 0].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(found.logprobs[:, 2, 0], lens.logprobs[2, 0], atol=1e-6)


def test_ranks_of_equal_logits_are_all_different():
    logits = np.zeros((1, 9), np.float32)
    _, ranks = module._told_of(logits, np.arange(9))
    assert ranks[0].tolist() == list(range(9))


def test_the_unembedding_bias_is_in_every_row(gptj):
    def without(network):
        network.head.bias[...] = 0 * network.head.bias[...]

    bias = np.asarray(gptj.network.head.bias[...])
    assert abs(bias).max() > 0.1
    ours = logit_lens(gptj.trace(PROMPT))
    theirs = logit_lens(changed(gptj, without).trace(PROMPT))
    for row in range(4):
        difference = ours.logits(row) - theirs.logits(row)
        np.testing.assert_allclose(difference, np.broadcast_to(bias, difference.shape), atol=1e-5)


def test_positions_and_long_texts(gptj):
    ids = np.arange(64) % 250
    whole, some = logit_lens(gptj.trace(ids)), logit_lens(gptj.trace(ids), positions=[3, -1])
    assert some.positions.tolist() == [3, 63]
    for name in ("ids", "logprobs", "entropy", "kl"):
        np.testing.assert_allclose(
            getattr(some, name), getattr(whole, name)[:, [3, 63]], atol=1e-5, err_msg=name
        )
    before = module.unembed._cache_size()
    logit_lens(gptj.trace(PROMPT), positions=[1, 2, 3])
    assert module.unembed._cache_size() == before


def test_chunks_are_joined_in_order():
    model = small_model("gptj", context=150, num_layers=1)
    lens = logit_lens(model.trace(np.arange(150)), top=1)
    own = np.asarray(model.logits([np.arange(150)]))[0]
    assert (lens.ids[-1, :, 0] == own.argmax(-1)).all()
    np.testing.assert_allclose(lens.of([9]).logprobs[0, -1], log_softmax(own)[:, 9], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top": 0}, "top is 0: 1 to 304"),
        ({"top": 305}, "top is 305"),
        ({"positions": [10]}, "position is 10: the prompt has 10 tokens"),
        ({"positions": []}, "positions is empty"),
        ({"streams": np.zeros((3, 9, 32), np.float32)}, r"streams has shape \(3, 9, 32\)"),
    ],
)
def test_settings_that_do_not_fit(gptj, settings, words):
    with pytest.raises(ValueError, match=words):
        logit_lens(gptj.trace(PROMPT), **settings)


def test_rows_and_tokens_that_are_not_there(gptj):
    lens = logit_lens(gptj.trace(PROMPT), positions=[0])
    with pytest.raises(ValueError, match="row is 4: rows 0 to 3"):
        lens.logits(4)
    for tokens, words in ((["the cat"], "tokens"), ([304], "ids from 0 to 303"), ([], "empty")):
        with pytest.raises(ValueError, match=words):
            lens.of(tokens)
    for token in (7, gptj.tokenizer.decode([7])):  # one needs no list around it
        assert lens.of(token).token_ids.tolist() == [7]
    assert repr(lens.of(7)) == "TokensOverLayers(1 tokens, 4 rows, 1 positions)"


def test_nan_is_named(gptj):
    def spoil(network):
        bias = network.blocks[1].mlp.fc_in.bias
        bias[...] = bias[...] * np.float32(np.nan)

    with pytest.raises(ValueError, match="blocks.1.mlp.pre is the first site"):
        logit_lens(changed(gptj, spoil).trace(PROMPT))
