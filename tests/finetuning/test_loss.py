"""The loss in pieces is the plain loss, with the plain gradients; packed documents are alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gptj_lab.config import ModelConfig
from gptj_lab.finetuning import loss
from gptj_lab.model.transformer import Transformer

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 97, (2, 25)))


def network_of(family, **fields):
    base = dict(
        vocab_size=97, context=32, d_model=48, num_layers=2, num_heads=4, d_ff=96,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    if family in ("gptj", "gpt_neox"):
        base["d_rotary"] = 6
    return Transformer(ModelConfig.of_family(family, **(base | fields)), key=jax.random.key(0))


def plain(network, tokens):
    logits = network(tokens[:, :-1])[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def gradients(function, network):
    graph, state = nnx.split(network)
    value, grads = jax.jit(jax.value_and_grad(lambda s: function(nnx.merge(graph, s))))(state)
    return float(value), jax.tree.leaves(grads)


def agree(ours, theirs, tolerance=1e-5):
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    largest = max(np.abs(gradient).max() for gradient in theirs[1])
    for a, b in zip(ours[1], theirs[1], strict=True):  # that of GPT-2's key bias is nothing
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 0.1 * largest)


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
@pytest.mark.parametrize(
    ("remat", "piece"), [(None, 7), ("nothing kept", 8), ("products kept", 64)]
)
def test_pieces_and_remat_change_no_gradient(family, remat, piece):
    network = network_of(family)
    ours = gradients(lambda n: loss.next_token_loss(n, TOKENS, remat=remat, piece=piece), network)
    agree(ours, gradients(lambda n: plain(n, TOKENS), network))


def test_weights_choose_the_tokens_that_count():
    network = network_of("gptj")
    weights = jnp.asarray(RNG.integers(0, 2, (2, 24)), jnp.float32)
    logits = network(TOKENS[:, :-1])[0]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:])
    ours = loss.next_token_loss(network, TOKENS, weights=weights, piece=5)
    assert float(ours) == pytest.approx(float(each[weights == 1].mean()), rel=1e-5)
    nothing = loss.next_token_loss(network, TOKENS, weights=jnp.zeros((2, 24)))
    assert float(nothing) == 0


@pytest.mark.parametrize("family", ["gptj", "gpt_neox", "gpt_neo", "gpt2"])
def test_packed_documents_are_each_alone(family):
    """Two documents in a window: the losses of each in a window of its own."""
    windows = {"local_windows": (None, 3)} if family == "gpt_neo" else {}
    network = network_of(family, **windows)
    first, second = TOKENS[:1, :11], TOKENS[1:, :14]
    packed = jnp.concatenate([first[:, :-1], second], axis=1)  # [1, 24]: 10 and 14 tokens
    read = packed.shape[1] - 1
    positions = jnp.asarray([[*range(10), *range(13)]])
    segments = jnp.asarray([[0] * 10 + [1] * 13])
    weights = jnp.asarray([[1.0] * 9 + [0.0] + [1.0] * 13])  # the first's end predicts nothing
    assert read == 23
    ours = gradients(
        lambda n: (
            loss.next_token_loss(
                n, packed, weights=weights, positions=positions, segments=segments, piece=6
            )
            * 22
        ),
        network,
    )
    agree(ours, gradients(lambda n: plain(n, first[:, :-1]) * 9 + plain(n, second) * 13, network))


def test_logits_are_never_whole():
    """XLA's own count of temporary bytes for GPT-J's vocabulary."""
    network = network_of("gptj", vocab_size=50_400, context=1024, num_layers=1, num_heads=1)
    graph, state = nnx.split(network)
    tokens = jax.ShapeDtypeStruct((1, 1025), jnp.int32)
    whole = 1024 * 50_400 * 4

    def bytes_of(piece):
        def value(state, tokens):
            return loss.next_token_loss(nnx.merge(graph, state), tokens, piece=piece)

        compiled = jax.jit(jax.grad(value)).lower(state, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(1024) > whole
    assert bytes_of(64) < 0.5 * whole


def test_bad_remat_is_a_sentence():
    with pytest.raises(ValueError, match="remat is 'all'.*'nothing kept'"):
        loss.next_token_loss(network_of("gptj"), TOKENS, remat="all")
