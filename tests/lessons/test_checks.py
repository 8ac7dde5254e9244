"""Each check passes a right answer, refuses wrong ones, and says what they are."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import attribution, patching
from gptj_lab.lessons import attention_maps, causality, logit_lens
from gptj_lab.model.transformer import Transformer


def induction(pattern, ids):
    seq = len(ids)
    after = np.zeros((seq, seq), bool)
    for query in range(seq):
        for key in range(1, query + 1):
            after[query, key] = key - 1 < query and ids[key - 1] == ids[query]
    return (pattern * after).sum(-1)[:, after.any(-1)].mean(-1)


def offset(distance):
    return lambda pattern, ids: np.diagonal(pattern, -distance, -2, -1).mean(-1)


def duplicate(pattern, ids):
    same = np.tril(ids[:, None] == ids[None], -1)
    return (pattern * same).sum(-1)[:, same.any(-1)].mean(-1)


def renormalised(pattern):
    rest = pattern * (np.arange(pattern.shape[-1]) > 0)
    return rest / np.maximum(rest.sum(-1, keepdims=True), 1e-12)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (induction, None),
        (lambda pattern, ids: None, "returns nothing"),
        (lambda pattern, ids: pattern, r"shape \(5, 24, 24\)"),
        (lambda pattern, ids: 1 / 0, "ZeroDivisionError"),
        (lambda pattern, ids: "high", "numbers are needed"),
        (duplicate, "AFTER"),
        (offset(1), "previous-token"),
        (lambda pattern, ids: induction(pattern.swapaxes(1, 2), ids), "a row is the token that"),
        (offset(7), "again after 6 tokens"),
        (None, "a function is needed, not NoneType"),
        (lambda pattern, ids: 0.3 * induction(pattern, ids), "it should get 1"),
        (lambda pattern, ids: np.ones(len(pattern)), "of the cases only"),
        (lambda pattern, ids: np.full(len(pattern), np.nan), "not finite"),
    ],
)
def test_induction_detector(function, said):
    check(attention_maps.induction_detector(function), said)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (renormalised, None),
        (lambda pattern: pattern, "first token still"),
        (lambda pattern: pattern * (np.arange(9) > 0), "sum to 1"),
        (lambda pattern: renormalised(np.sqrt(pattern)), "ratios"),
        (lambda pattern: np.full_like(pattern, np.inf), "a share is not finite"),
        (
            lambda pattern: np.where(np.arange(9)[:, None] > 0, renormalised(pattern), np.nan),
            "divided by 0",
        ),
        (
            lambda pattern: np.where(np.arange(9)[:, None] > 0, renormalised(pattern), 1 / 9),
            "row 0 has nothing",
        ),
    ],
)
def test_without_first(function, said):
    check(attention_maps.without_first(function), said)


def check(verdict, said):
    """The verdict passes, or fails with these words."""

    assert verdict.passed == (said is None), verdict
    assert re.search(said or "^Right: ", repr(verdict)), verdict
    assert repr(verdict).endswith((".", "?", "only", "0")) or len(repr(verdict)) > 20


# What might stand where (layer, head) pairs are asked for, and what is said of it.
NO_PAIRS = [
    ([(9, 0)], r"no layer 9 head 0: a pair is \(layer, head\), counted from 0 to \(1, 3\)"),
    ([(0, -1)], "no layer 0 head -1"), ([1], "whole numbers are needed"), (3, "whole numbers"),
    (["a"], "whole numbers"), ([("0", "1")], "whole numbers"), ([(0.5, 1)], "whole numbers"),
    ([(0, 1, 1)], "whole numbers"), ([(np.nan, 0)], "whole numbers"), ([(np.inf, 0)], "whole num"),
    ([None], "whole numbers"), (np.zeros((2, 4), bool), "whole numbers"),
]  # fmt: skip


def test_heads_by_position(tiny_model):
    text = "the cat sat on the mat, and the dog sat on the log"
    check(attention_maps.by_position(None, tiny_model, text), "Replace None")
    for wrong, said in NO_PAIRS:
        check(attention_maps.by_position(wrong, tiny_model, text), said)
    check(attention_maps.by_position([], tiny_model, text, least=0.9), None)
    check(attention_maps.by_position([], tiny_model, text, least=-0.2), "is missing")
    check(attention_maps.by_position([(0, 0)], tiny_model, text, least=0.99), "only")


def ours(network, residual, *, norm=True, mean=True, gain=True, gain_bias=True, head_bias=True):
    x = residual.astype(np.float64)
    ln = network.final_ln
    if norm:
        x = (x - mean * x.mean()) / np.sqrt(((x - mean * x.mean()) ** 2).mean() + ln.eps)
    x = x * np.asarray(ln.scale[...]) if gain else x
    x = x + gain_bias * np.asarray(ln.bias[...])
    return np.asarray(network.head.weight[...]) @ x + head_bias * np.asarray(network.head.bias[...])


@pytest.fixture
def biased(tiny_model):
    """The tiny model with biases at its end that count."""
    import copy

    model = copy.copy(tiny_model)
    model.network = copy.deepcopy(tiny_model.network)
    ends = model.network.final_ln, model.network.head
    for parameter in (*(part.bias for part in ends), ends[0].scale):
        value = parameter[...]
        parameter[...] = value + np.linspace(-1, 1, value.size, dtype=np.float32)
    return model


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({}, None),
        ({"head_bias": False}, "bias of its own .model.network.head.bias"),
        ({"gain_bias": False}, "bias of its own .final_ln.bias"),
        ({"head_bias": False, "gain_bias": False}, "both the final LayerNorm and the unembedding"),
        ({"norm": False}, "takes the mean off"),
        ({"mean": False}, "takes the mean off the residual, then"),
        ({"gain": False}, "multiplies by its scale"),
    ],
)
def test_lens(biased, slip, said):
    check(logit_lens.lens(lambda residual: ours(biased.network, residual, **slip), biased), said)


def test_lens_that_is_only_off(biased):
    def logits(residual):
        return ours(biased.network, residual)

    check(logit_lens.lens(lambda residual: np.zeros(304), biased), "off at most")
    check(logit_lens.lens(lambda residual: np.full(304, np.nan), biased), "not finite")
    check(logit_lens.lens(lambda residual: logits(residual) - 7, biased), "by the same number")
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    check(logit_lens.lens(lambda residual: softmax(logits(residual)), biased), "probabilities")
    check(logit_lens.lens(lambda residual: None, biased), "returns nothing")


def test_lens_of_a_tied_head_without_bias(tiny_tokenizer):
    config = ModelConfig.of_family(
        "gpt2", vocab_size=304, context=32, d_model=32, num_layers=1, num_heads=4, d_ff=64,
        initializer_range=0.2,
    )  # fmt: skip
    network = Transformer(config, key=jax.random.key(0))
    tied = LanguageModel(config, network, tiny_tokenizer, "tied")

    def logits(residual):
        normal = (residual - residual.mean()) / residual.std()
        return np.asarray(network.embed[...]) @ normal

    check(logit_lens.lens(logits, tied), None)
    check(logit_lens.lens(lambda residual: logits(residual) + 1, tied), "by the same number")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (2, None), (None, "Replace None"), (0, "still says 'b'"), (3, "already"),
        (9, "from 0 to 3"), (True, "whole number"), (2.0, "whole number"), ("2", "whole number"),
        (float("nan"), "whole number"), ([2], "whole number"),
    ],
)  # fmt: skip
def test_deciding_block(answer, said):
    check(logit_lens.deciding_block(answer, ["x", "b", "a", "c", "c"]), said)


def test_deciding_block_before_any():
    check(logit_lens.deciding_block(0, ["c", "c"]), "before any block")
    check(logit_lens.deciding_block(0, ["c", "x", "c"]), "still says 'x'")


def test_shares(biased):
    told = attribution.attribute(biased, "the cat", 5)
    biases = told.attention_biases.sum() + told.mlp_biases.sum() + told.final_bias + told.head_bias
    sums = {"embed": told.embed, "heads": told.heads.sum(), "MLPs": told.mlps.sum()}
    check(logit_lens.shares(sums | {"biases": biases}, told), None)
    check(logit_lens.shares(None, told), "Replace None")
    check(logit_lens.shares(dict.fromkeys([*sums, "biases"]), told), "Replace None")
    check(logit_lens.shares({"heads": 1}, told), "a dict with the keys")
    kinds = {"unembedding": told.head_bias, "final LayerNorm": told.final_bias}
    for name, missing in kinds.items():
        said = f"missing among the biases: that of the {name}$"
        check(logit_lens.shares(sums | {"biases": biases - missing}, told), said)
    neither = sums | {"biases": biases - sum(kinds.values())}
    check(logit_lens.shares(neither, told), "that of the unembedding, that of the final LayerNorm$")
    every = sums | {"biases": biases}
    check(logit_lens.shares(every | {"heads": told.heads}, told), r"`heads` has the shape \(2, 4\)")
    check(logit_lens.shares(every | {"MLPs": "much"}, told), "`MLPs` is str, a number is needed")
    check(logit_lens.shares(every | {"embed": np.nan}, told), "`embed` is not finite")
    swapped = every | {"embed": biases, "biases": told.embed}
    check(logit_lens.shares(swapped, told), "`embed` is what the embedding alone adds")
    check(logit_lens.shares([1, 2, 3, 4], told), "a dict with the keys")
    rounded = dataclasses.replace(told, logit=told.logit + 0.03, dtype="bfloat16")
    check(logit_lens.shares(every, rounded), None)
    learned = dataclasses.replace(told, position_embed=0.5, logit=told.logit + 0.5)
    check(logit_lens.shares(every, learned), None)
    check(logit_lens.shares(every | {"embed": told.embed + 0.5}, learned), None)
    check(logit_lens.shares(sums | {"biases": biases + 1}, told), "which bias")
    check(logit_lens.shares(sums | {"biases": 0, "heads": 0}, told), "over all layers and heads")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda patched, clean, corrupt: (patched - corrupt) / (clean - corrupt), None),
        (lambda patched, clean, corrupt: None, "returns nothing"),
        (lambda patched, clean, corrupt: (patched - clean) / (corrupt - clean), "swapped"),
        (lambda patched, clean, corrupt: abs(patched - corrupt) / abs(clean - corrupt), "negative"),
        (lambda patched, clean, corrupt: (patched - corrupt) / clean, "The whole way leads"),
        (lambda patched, clean, corrupt: patched / clean, "not at 0 logits"),
        (lambda patched, clean, corrupt: patched - corrupt, "That is in logits"),
        (lambda patched, clean, corrupt: 100 * (patched - corrupt) / (clean - corrupt), "per cent"),
        (
            lambda patched, clean, corrupt: np.clip((patched - corrupt) / (clean - corrupt), 0, 1),
            "may do harm",
        ),
        (lambda patched, clean, corrupt: np.nan, "yours gives nan, it should be 0.0$"),
        (lambda patched, clean, corrupt: [0], r"shape \(1,\)"),
    ],
)
def test_recovered(function, said):
    check(causality.recovered(function), said)


@pytest.fixture(scope="module")
def patched(tiny_model):
    """All heads of the tiny model patched between two prompts of as many tokens."""
    return patching.heads(tiny_model, "the cat sat", "the dog sat")


def test_few_heads(tiny_model, patched):
    every = [(layer, head) for layer in range(2) for head in range(4)]
    pair = patched.pair
    check(causality.few_heads(None, tiny_model, pair), "Replace None")
    check(causality.few_heads(every, tiny_model, pair), "at most 5")
    for wrong, said in NO_PAIRS:
        check(causality.few_heads(wrong, tiny_model, pair), said)
    check(causality.few_heads([], tiny_model, pair), "bring 0% back")
    verdict = causality.few_heads(every, tiny_model, pair, most=8, least=-9)
    check(verdict, None)
    best = np.unravel_index(patched.recovered.argmax(), patched.recovered.shape)
    alone = causality.few_heads([tuple(map(int, best))], tiny_model, pair, least=-9)
    assert f"{patched.recovered.max():.0%} of the answer" in alone.text


def test_false_positive(tiny_model):
    told = attribution.attribute(tiny_model, "the cat sat", 5, 6)
    grid = patching.positions(tiny_model, "the cat sat", "the dog sat", "mlp_out")
    much = dataclasses.replace(told, mlps=np.array([0.8, 0.1], np.float32))
    back = grid.recovered.copy()
    back[:, told.position] = 0.02, 0.5
    sweep = dataclasses.replace(grid, recovered=back)
    check(causality.false_positive(0, much, sweep), None)
    check(causality.false_positive(1, much, sweep), "nobody would")
    check(causality.false_positive(None, much, sweep), "Replace None")
    for wrong in (7, -1, True, "0", 0.0, [0], np.nan):
        check(causality.false_positive(wrong, much, sweep), "from 0 to 1")
    counts = dataclasses.replace(much, mlps=np.array([0.1, 0.9], np.float32))
    check(causality.false_positive(1, counts, sweep), "does count")
