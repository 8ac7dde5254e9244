"""QK and OV tables against the whole [vocab, vocab] matrices in float64, and the network itself."""

import math

import numpy as np
import pytest
from float64_network import Float64Network
from small_models import cases, small_model

from gptj_lab.lens import circuits
from gptj_lab.lens.attribution import attribute
from gptj_lab.lens.circuits import ov_table, qk_table

MODELS = cases("gptj", "gpt2", slow=["codegen", "gpt_neox", "gpt_neo", ("gptj", "int8", 1, 4)])
TOKENS = [" cat", 7, " dog", 303]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return small_model(*request.param)


@pytest.fixture(scope="module")
def gptj():
    return small_model("gptj")


def head_of(oracle, layer, head, name):
    """What q, k or v of a head makes of every token's embedding, in float64."""
    path = f"blocks.{layer}"
    normal = oracle.norm(f"{path}.ln", oracle.w["embed"])
    made = oracle.linear(f"{path}.attn.{name}", normal)
    return made.reshape(len(made), oracle.config.num_heads, -1)[:, head : head + 1]


def whole_qk(model, layer, head, distance):
    oracle = Float64Network(model)
    q, k = (head_of(oracle, layer, head, name) for name in "qk")
    q = oracle.rotated(q, np.full(len(q), distance))
    scores = q[:, 0] @ k[:, 0].T
    return scores / (math.sqrt(model.config.d_head) if model.config.scaled_attention else 1)


def whole_ov(model, layer, head):
    oracle = Float64Network(model)
    written = head_of(oracle, layer, head, "v")[:, 0] @ oracle.out_of(layer)[head].T
    written = written - written.mean(-1, keepdims=True)
    return (written * oracle.w["final_ln.scale"]) @ oracle.unembedding.T


def check(table, whole, k):
    whole = whole[table.rows]
    close = dict(rtol=0, atol=2e-5 * np.abs(whole).max())
    largest = -np.sort(-whole, axis=1)
    np.testing.assert_allclose(table.values, largest[:, :k], **close)
    np.testing.assert_allclose(table.lowest_values, largest[:, ::-1][:, :k], **close)
    for ids, values in ((table.ids, table.values), (table.lowest_ids, table.lowest_values)):
        assert all(len(set(row)) == k for row in ids)
        np.testing.assert_allclose(np.take_along_axis(whole, ids, 1), values, **close)
    own = whole[np.arange(len(whole)), table.rows]
    np.testing.assert_allclose(table.own_values, own, **close)
    margin = close["atol"]
    most, least = ((whole > own[:, None] + m).sum(1) for m in (-margin, margin))
    assert ((least <= table.own_ranks) & (table.own_ranks <= most)).all()


def test_entries_are_the_largest_of_the_whole_matrix(model):
    check(qk_table(model, 1, 2, TOKENS, k=6, distance=9), whole_qk(model, 1, 2, 9), 6)
    check(ov_table(model, 1, 3, TOKENS, k=6), whole_ov(model, 1, 3), 6)


def test_without_tokens_the_whole_vocabulary_is_looked_at(gptj):
    table, whole = ov_table(gptj, 0, 1, k=4), whole_ov(gptj, 0, 1)
    assert table.ids.shape == (304, 4)
    check(table, whole, 4)
    found = [value for _, _, value in table.strongest(4)]
    np.testing.assert_allclose(found, -np.sort(-whole.ravel())[:4], rtol=1e-5)
    row, token, value = table.strongest(1)[0]
    i, j = np.unravel_index(whole.argmax(), whole.shape)
    assert (row, token) == (gptj.tokenizer.display(int(i)), gptj.tokenizer.display(int(j)))
    assert "writes" in repr(table) and "and 284 more rows" in repr(table)


@pytest.mark.parametrize("case", cases("gpt_neox", slow=["gptj", "codegen"]))
def test_in_the_first_block_they_are_the_networks_scores_and_writes(case):
    model, head = small_model(*case), 1
    ids, position = [5, 17, 40, 8], 3
    found = attribute(model, ids, 99, position=position)
    oracle = Float64Network(model).run(ids)
    for key in range(position + 1):
        qk = qk_table(model, 0, head, [ids[position]], k=304, distance=position - key)
        score = dict(zip(qk.ids[0].tolist(), qk.values[0], strict=True))[ids[key]]
        np.testing.assert_allclose(score, oracle.scores[0][head, position, key], atol=1e-5)
        ov = ov_table(model, 0, head, [ids[key]], k=304)
        write = dict(zip(ov.ids[0].tolist(), ov.values[0], strict=True))[99]
        read = oracle.pattern[0][head, position, key] * found.scale
        np.testing.assert_allclose(found.heads_by_token[0, head, key], read * write, atol=2e-5)


def test_other_layers_heads_tokens_and_distances_compile_nothing(gptj):
    qk_table(gptj, 0, 0, [1], k=3)
    before = circuits._entries._cache_size()
    qk_table(gptj, 1, 3, TOKENS, k=3, distance=5)
    assert circuits._entries._cache_size() == before


def test_learned_positions_are_left_out():
    model = small_model("gpt2")
    near, far = (qk_table(model, 0, 0, TOKENS, distance=d).values for d in (0, 9))
    assert (near == far).all()
    one, alone = qk_table(model, 0, 0, TOKENS[:1]), qk_table(model, 0, 0, TOKENS[0])
    assert (one.ids == alone.ids).all() and alone.rows.tolist() == one.rows.tolist()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: ov_table(m, 3, 0), "layer is 3: layers 0 to 2"),
        (lambda m: qk_table(m, 0, -1), "head is -1: heads 0 to 3"),
        (lambda m: ov_table(m, 0, 0, [" cat dog"]), "give one token"),
        (lambda m: ov_table(m, 0, 0, []), "tokens is empty"),
        (lambda m: ov_table(m, 0, 0, [1], k=305), "k is 305"),
        (lambda m: qk_table(m, 0, 0, [1], distance=64), "distance is 64"),
    ],
)
def test_what_is_not_there_is_refused(gptj, call, said):
    with pytest.raises(ValueError, match=said):
        call(gptj)
