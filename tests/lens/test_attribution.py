"""The shares of a logit: they add up to it, and each is what float64 says."""

import dataclasses

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import FAMILIES, cases, small_model

from gptj_lab.lens import attribution, shares
from gptj_lab.lens.attribution import attribute
from gptj_lab.lens.interventions import Interventions, run

PROMPT = "the cat sat on the mat, and the dog"
TOKEN, OTHER = " cat", " dog"
MODELS = cases(
    *FAMILIES, ("gptj", "int8", 2, 2),
    slow=[("gptj", "int8"), ("gpt2", "int8"), ("gpt_neo", "float32", 1, 4),
          ("gpt_neox", "float32", 2, 2), ("codegen", "int8", 1, 2)],
)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return small_model(*request.param)


def wanted(model, ids, token, other, position):
    """Every share from the weights in float64: the final LayerNorm, linear once it is frozen."""
    oracle = Float64Network(model).run(ids)
    final, layers = oracle.final[position], range(model.config.num_layers)
    deviation = np.sqrt(final.var() + model.config.layer_norm_eps)
    head_bias = oracle.w.get("head.bias", np.zeros(model.config.vocab_size))

    def lead(of_tokens):
        return of_tokens[token] - (0 if other is None else of_tokens[other])

    def share(written):
        centred = written - written.mean(-1, keepdims=True)
        return (centred / deviation * oracle.w["final_ln.scale"]) @ lead(oracle.unembedding)

    def of_bias(name):
        zero = np.zeros(model.config.d_model)
        return np.array([share(oracle.w.get(f"blocks.{i}.{name}.bias", zero)) for i in layers])

    by_token = [
        share(np.einsum("hk,khd,hmd->hkm", oracle.pattern[i][:, position], oracle.v[i],
                        oracle.out_of(i)))
        for i in layers
    ]  # fmt: skip
    learned = oracle.position_embed
    return {
        "embed": share(oracle.embed[position]),
        "position_embed": 0 if learned is None else share(learned[position]),
        "heads": np.stack([share(heads[:, position]) for heads in oracle.heads]),
        "heads_by_token": np.stack(by_token),
        "attention_biases": of_bias("attn.out"),
        "mlps": np.array([share(mlp[position]) for mlp in oracle.mlp]),
        "mlp_biases": of_bias("mlp.fc_out"),
        "final_bias": oracle.w["final_ln.bias"] @ lead(oracle.unembedding),
        "head_bias": lead(head_bias),
        "scale": 1 / deviation,
        "logit": lead(oracle.logits[position]),
    }


@pytest.mark.parametrize("other", [None, OTHER])
def test_shares_add_up_to_the_logit_and_are_those_of_float64(model, other):
    found = attribute(model, PROMPT, TOKEN, other, position=-3)
    logits = np.asarray(model.logits([found.token_ids]))[0, found.position]
    own = logits[found.token] - (0 if other is None else logits[found.other])
    assert abs(found.logit - own) < 1e-5
    assert abs(found.total - found.logit) < attribution.TOLERANCE
    assert f"the sum holds within {attribution.TOLERANCE:g}" in repr(found)
    oracle = wanted(model, found.token_ids, found.token, found.other, found.position)
    for name, value in oracle.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=2e-5, err_msg=name)


def test_a_sum_that_does_not_hold_is_said(model):
    found = attribute(model, PROMPT, TOKEN)
    wrong = dataclasses.replace(found, mlps=found.mlps + 0.01)
    assert "holds" in repr(found) and "holds" not in repr(wrong)
    assert repr(wrong).splitlines()[-1].strip().startswith("sum")


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def test_a_heads_share_is_the_sum_over_the_tokens_it_read(gptj):
    found = attribute(gptj, PROMPT, TOKEN, position=6)
    np.testing.assert_allclose(found.heads_by_token.sum(-1), found.heads, atol=1e-5)
    assert not found.heads_by_token[..., 7:].any() and found.heads_by_token[..., 6].all()


def test_a_difference_is_the_difference_of_two(gptj):
    both = attribute(gptj, PROMPT, TOKEN, OTHER)
    one, two = (attribute(gptj, PROMPT, token).parts for token in (TOKEN, OTHER))
    assert both.parts.keys() == one.keys()
    for name, share in both.parts.items():
        assert abs(share - (one[name] - two[name])) < 1e-5, name
    assert not any(attribute(gptj, PROMPT, TOKEN, TOKEN).parts.values())


def test_later_tokens_count_for_nothing(gptj):
    ids = gptj.tokenizer.encode(PROMPT)
    whole = attribute(gptj, ids * 3, TOKEN, position=9)  # padded to another length
    cut = attribute(gptj, (ids * 3)[:10], TOKEN)
    assert whole.parts.keys() == cut.parts.keys()
    np.testing.assert_allclose([*whole.parts.values()], [*cut.parts.values()], atol=1e-5)


def test_names_are_of_parts_that_the_network_has(gptj):
    names = attribute(gptj, PROMPT, TOKEN).parts.keys()
    assert {"L1H3", "L0 MLP", "L1 MLP bias", "head bias"} <= names
    assert not {"position_embed", "L0 attention bias"} & names
    gpt2 = attribute(small_model("gpt2"), PROMPT, TOKEN).parts.keys()
    assert {"position_embed", "L0 attention bias"} <= gpt2 and "head bias" not in gpt2


def test_the_largest_parts_come_first_and_blocks_are_sums(gptj):
    found = attribute(gptj, PROMPT, TOKEN)
    sizes = [abs(share) for _, share in found.largest(100)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(found.parts)
    outside = found.embed + found.final_bias + found.head_bias
    assert abs(found.by_layer().sum() + outside - found.total) < 1e-5


def edited(model, length):
    """Interventions of every kind that leave the final LayerNorm alone."""
    random = np.random.default_rng(0)

    def vector():
        return random.normal(size=32).astype(np.float32)

    none = Interventions.none(model, length)
    yield none
    yield none.ablate_head(1, 2).ablate_mlp(0)
    yield none.cut_edge(0, 1, length - 1, 2).freeze_pattern(1, 0, np.eye(length))
    yield none.steer("resid_post", 0, vector(), 2.0).patch("attn_out", 1, -1, vector())
    yield none.patch("resid_pre", 1, [3, -1], vector()).scale("attn.v", 1, 0.5, head=3)
    yield none.patch("embed", 0, -1, vector()).scale("mlp.post", 1, 0.5)


@pytest.mark.parametrize(
    "case", cases("gptj", slow=["codegen", "gpt_neo", "gpt_neox", ("gpt2", "int8", 2, 2)])
)
def test_under_interventions_shares_add_up_to_the_changed_logit(case):
    model = small_model(*case)
    ids = model.tokenizer.encode(PROMPT)
    plain = attribute(model, ids, TOKEN)
    for number, what in enumerate(edited(model, len(ids))):
        found = attribute(model, ids, TOKEN, interventions=what)
        logits, _ = run(model, ids, what)
        assert abs(found.logit - logits[-1, found.token]) < 1e-5
        assert abs(found.total - found.logit) < attribution.TOLERANCE, what
        assert (abs(found.logit - plain.logit) > 1e-3) == bool(number), what
        assert ("interventions" in found.parts) == (number in (3, 4)), what
        programs = shares.shares_of._cache_size() if number == 0 else programs
    assert shares.shares_of._cache_size() == programs


def test_an_ablated_head_has_no_share_and_a_steered_stream_has_the_vectors(gptj):
    ids, vector = gptj.tokenizer.encode(PROMPT), np.linspace(-1, 1, 32).astype(np.float32)
    none = Interventions.none(gptj, len(ids))
    assert attribute(gptj, ids, TOKEN, interventions=none.ablate_head(1, 2)).heads[1, 2] == 0
    found = attribute(gptj, ids, TOKEN, interventions=none.steer("resid_post", 1, vector, 3.0))
    oracle = Float64Network(gptj)
    read = oracle.w["final_ln.scale"] * oracle.unembedding[found.token]
    share = found.scale * 3 * (vector - vector.mean()) @ read
    np.testing.assert_allclose(found.edits, share, rtol=1e-4)


def test_other_tokens_positions_and_prompts_compile_nothing(gptj):
    attribute(gptj, PROMPT, TOKEN)
    before = shares.shares_of._cache_size()
    for position in range(5):
        attribute(gptj, PROMPT[position:], position, OTHER, position)
    assert shares.shares_of._cache_size() == before


def test_bfloat16_says_what_it_is_off_by():
    found = attribute(small_model("gptj", "bfloat16"), PROMPT, TOKEN)
    assert 0 < abs(found.total - found.logit) < 0.05 * np.abs(found.heads).sum()
    assert "rounding of bfloat16" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((PROMPT, " cat dog"), "3 tokens|2 tokens"),
        ((PROMPT, ""), "0 tokens \\(nothing\\)"),
        ((PROMPT, 304), "ids from 0 to 303"),
        ((PROMPT, TOKEN, -1), "other is -1"),
        ((PROMPT, TOKEN, None, 99), "position is 99: the prompt has"),
        (("", TOKEN), "has no tokens"),
        (([1] * 65, TOKEN), "1 more than the context of 64"),
        (([[1]], TOKEN), "shape"),
        ((PROMPT, TOKEN, None, -1, Interventions.none(small_model("gptj"), 20)), "padded to 32"),
        (
            (
                "the",
                TOKEN,
                None,
                0,
                Interventions.none(small_model("gptj"), 1).scale("final_ln", 0, 2.0),
            ),
            "edit final_ln",
        ),
    ],
)
def test_what_is_not_there_is_refused(gptj, arguments, said):
    with pytest.raises(ValueError, match=said):
        attribute(gptj, *arguments)


def test_a_token_that_is_no_token_is_refused(gptj):
    with pytest.raises(TypeError, match="the text of one token or its id"):
        attribute(gptj, PROMPT, 1.5)
