"""Attention as bytes: what comes back from them, and how many they are."""

import numpy as np
import pytest

from gptj_lab.widgets import explorer_encoding as encoding


def patterns(*shape, seed=0):
    """Random causal patterns [*shape, T, T], most of whose weights are small."""
    scores = 4 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    scores = np.where(np.tril(np.ones(shape[-2:], bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)


def test_bytes_keep_weights_to_a_few_per_cent_of_their_size():
    shares = patterns(4, 64, 64)
    back = encoding.expand(encoding.compand(shares))
    assert np.abs(back - shares).max() < 0.004
    small = (shares > 1e-4) & (shares < 0.01)
    assert np.median(np.abs(back - shares)[small] / shares[small]) < 0.06
    linear = np.rint(255 * shares) / 255
    assert np.median(np.abs(linear - shares)[small] / shares[small]) > 0.3
    assert encoding.compand(np.array([0.0, 1.0], np.float32)).tolist() == [0, 255]


def test_differences_keep_their_sign_and_nothing_is_128():
    values = np.array([[-0.5, 0.0], [0.25, 0.5]], np.float32)
    data, largest = encoding.sign(values)
    back = (data.astype(np.float32) - 128) / 127 * largest
    np.testing.assert_allclose(back, values, atol=largest / 254)
    assert data[0, 1] == 128
    assert encoding.sign(np.zeros((2, 3), np.float32))[0].tolist() == [[128] * 3] * 2


@pytest.mark.parametrize("side", [1, 2, 7, 33])
def test_a_triangle_comes_back(side):
    square = np.tril(np.arange(1, 2 * side * side + 1).reshape(2, side, side))
    flat = encoding.triangle(square)
    assert flat.shape == (2, side * (side + 1) // 2)
    assert np.array_equal(encoding.untriangle(flat), square)
    for query in range(side):  # as the protocol says: row q begins at q (q + 1) / 2
        begin = query * (query + 1) // 2
        assert np.array_equal(flat[0, begin : begin + query + 1], square[0, query, : query + 1])


@pytest.mark.parametrize("side, size", [(5, 8), (8, 8), (33, 32), (100, 32), (70, 7)])
def test_a_pool_holds_each_tiles_largest_magnitude(side, size):
    values = np.random.default_rng(1).normal(size=(2, side, side)).astype(np.float32)
    pooled = encoding.pool(values, size)
    tiles = min(side, size)
    assert pooled.shape == (2, tiles, tiles)
    edges = [i * side // tiles for i in range(tiles + 1)]
    for row in range(tiles):
        for column in range(tiles):
            tile = values[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
            flat = tile.reshape(2, -1)
            largest = flat[np.arange(2), np.abs(flat).argmax(1)]
            assert np.array_equal(pooled[:, row, column], largest)
    shares = encoding.compand(patterns(2, side, side))
    assert np.array_equal(
        encoding.pool(shares, size) == 0, np.abs(encoding.pool(shares, size)) == 0
    )
    assert not encoding.triangle(encoding.pool(shares, size)).max() == 0


def test_gpt_js_first_paint_is_below_a_megabyte():
    layers, heads, tokens = 28, 16, 256
    small = patterns(layers, heads, encoding.THUMBNAIL, encoding.THUMBNAIL)
    thumbnails = encoding.packed(encoding.triangle(encoding.compand(small)), "u1")
    layer = encoding.packed(
        encoding.triangle(encoding.compand(patterns(heads, tokens, tokens))), "u1"
    )
    assert len(thumbnails) == 236_544 and len(layer) == 526_336
    assert encoding.parts(heads, tokens) == [(0, heads)], "one message"


@pytest.mark.parametrize(
    "tokens, how", [(512, "layer"), (513, "head"), (1024, "head"), (1025, "pooled")]
)
def test_no_part_of_a_matrix_is_above_a_megabyte(tokens, how):
    assert encoding.mode(tokens) == how
    size = min(tokens, encoding.POOL) if how == "pooled" else tokens
    heads = 16 if how == "layer" else 1
    pieces = encoding.parts(heads, size)
    assert sum(count for _, count in pieces) == heads
    assert [first for first, _ in pieces] == np.cumsum([0, *(n for _, n in pieces)])[:-1].tolist()
    assert all(count * size * (size + 1) // 2 < encoding.MOST_BYTES for _, count in pieces)
