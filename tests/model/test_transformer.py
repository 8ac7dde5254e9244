"""The network against transformers' GPT-J on PyTorch, and every family's against itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptj_lab import versions
from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ModelConfig
from gptj_lab.model import sites
from gptj_lab.model.cache import empty_cache
from gptj_lab.model.transformer import Transformer

SHAPES = [
    {},
    {"n_embd": 64, "n_head": 2, "rotary_dim": 32, "n_layer": 2},  # fully rotated heads
    {"n_inner": 40, "activation_function": "gelu", "layer_norm_epsilon": 1e-2},
    {"n_head": 1, "rotary_dim": 2, "activation_function": "relu", "n_layer": 1},
    {"activation_function": "silu", "vocab_size": 131},
]
CONFIG = ModelConfig.of_family(
    "gptj",
    vocab_size=97,
    context=32,
    d_model=48,
    num_layers=3,
    num_heads=4,
    d_rotary=6,
    d_ff=80,
    activation="gelu_new",
    layer_norm_eps=1e-5,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=0,
)


def ids(batch=2, seq=20, vocab=97, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, seq)))


def close(ours, theirs, tolerance):
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.fixture(scope="module")
def network():
    return Transformer(CONFIG, key=jax.random.key(0))


def family(name, **fields):
    base = {field: getattr(CONFIG, field) for field in
            ("vocab_size", "context", "d_model", "num_layers", "num_heads", "d_ff",
             "initializer_range")}  # fmt: skip
    return ModelConfig.of_family(name, **(base | fields))


RELATIVES = {
    "gptj": CONFIG,
    "codegen": family("codegen", d_rotary=6),
    "neox": family("gpt_neox", d_rotary=6),
    "neox, sequential": family("gpt_neox", d_rotary=6, parallel=False),
    "neo": family("gpt_neo", local_windows=(None, 4)),
    "gpt2": family("gpt2"),
}


@pytest.fixture(scope="module", params=RELATIVES)
def relative(request):
    """A config and a network of each family."""
    config = RELATIVES[request.param]
    return config, Transformer(config, key=jax.random.key(0))


@pytest.mark.parametrize("fields", SHAPES)
def test_logits_are_those_of_transformers(fields, torch_gptj, tolerance, tmp_path):
    import torch

    model = torch_gptj(**fields)
    model.save_pretrained(tmp_path)
    config, ours = huggingface.read(tmp_path)
    tokens = ids(vocab=config.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(tokens))).logits.numpy()
    close(ours(tokens)[0], expected, tolerance["float32"])
    narrow = ours(tokens, dtype=jnp.bfloat16)[0]
    close(narrow, expected, tolerance["bfloat16"])
    assert config.num_parameters == sum(p.numel() for p in model.parameters())


def test_cached_decoding_is_the_full_forward(relative, tolerance):
    config, network = relative
    tokens = jnp.asarray(ids())
    full, _ = network(tokens)
    cache = empty_cache(config, 2, 24, jnp.float32)
    first, cache = network(tokens[:, :7], cache=cache)
    close(first, full[:, :7], tolerance["float32"])
    for i in range(7, tokens.shape[1]):
        positions = jnp.full((2, 1), i)
        step, cache = network(tokens[:, i : i + 1], positions=positions, cache=cache)
        close(step[:, 0], full[:, i], tolerance["float32"])


def test_padded_batch_is_each_prompt_alone(relative, tolerance):
    """Rows of 4 and 7 tokens padded to 7, then each decodes on at its own position."""
    config, network = relative
    lengths, rows = (7, 4), [ids(1, seed=1), ids(1, seed=2)]
    alone = [network(row)[0][0] for row in rows]
    padded = np.zeros((2, 7), int)
    for i, length in enumerate(lengths):
        padded[i, :length] = rows[i][0, :length]
    logits, cache = network(jnp.asarray(padded), cache=empty_cache(config, 2, 24, jnp.float32))
    for i, length in enumerate(lengths):
        close(logits[i, :length], alone[i][:length], tolerance["float32"])
    for made in range(3):
        positions = jnp.asarray([[length + made] for length in lengths])
        step = jnp.stack([row[0, position] for row, position in zip(rows, positions, strict=True)])
        logits, cache = network(step, positions=positions, cache=cache)
        for i, length in enumerate(lengths):
            close(logits[i, 0], alone[i][length + made], tolerance["float32"])


# For every field: what else a config needs so that it can be changed, and the change.
LEARNED = {"positions": "learned", "d_rotary": 0, "rotary_base": 0.0}
TWO_NORMS = {"shared_layer_norm": False}
FIELDS = {
    "family": ({}, "codegen"),
    "vocab_size": ({}, 98),
    "context": (LEARNED, 33),
    "d_model": ({}, 52),
    "num_layers": ({}, 4),
    "num_heads": ({}, 8),
    "d_ff": ({}, 84),
    "positions": ({}, "rotary_half"),
    "d_rotary": ({}, 8),
    "rotary_base": ({}, 100.0),
    "rotary_scaling": ({}, 2.0),
    "parallel": (TWO_NORMS, False),
    "shared_layer_norm": ({}, False),
    "qkv_bias": ({}, True),
    "attn_out_bias": ({}, True),
    "head_bias": ({}, False),
    "tied_embeddings": ({}, True),
    "scaled_attention": ({}, False),
    "layer_scaled_attention": ({}, True),
    "local_windows": ({}, (3, None)),
    "activation": ({}, "relu"),
    "layer_norm_eps": ({}, 0.5),
    "initializer_range": ({}, 0.3),
    "bos_token_id": ({}, 1),
    "eos_token_id": ({}, 1),
}
ONLY_IN_FILES = {"family", "bos_token_id", "eos_token_id"}


def test_every_field_of_the_config_is_tried():
    assert FIELDS.keys() == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("field", FIELDS)
def test_config_field_matters(field):
    """It changes the parameters, or else the logits, or (ids, family) the file."""
    needed, value = FIELDS[field]
    old = dataclasses.replace(CONFIG, **needed)
    new = dataclasses.replace(old, **{field: value})
    if field in ONLY_IN_FILES:
        assert new.to_hugging_face() != old.to_hugging_face()
        return

    def made(config):
        return Transformer(config, key=jax.random.key(0))

    def parameters(config):
        return nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: made(config))))

    def shapes(config):
        return {path: versions.value(leaf).shape for path, leaf in parameters(config)}

    for config in (old, new):
        sizes = [versions.value(leaf).size for _, leaf in parameters(config)]
        assert config.num_parameters == sum(sizes)
    if shapes(old) == shapes(new):
        assert np.abs(np.asarray(made(old)(ids())[0] - made(new)(ids())[0])).max() > 1e-3


def test_capture_changes_nothing_and_sites_are_complete(relative):
    config, network = relative
    wanted = sites.all_of(config)
    collector = sites.Collector(wanted)
    logits, _ = network(ids(), site=collector)
    assert (logits == network(ids())[0]).all()
    assert tuple(collector.values) == wanted
    windows = [config.local_window(layer) for layer in range(config.num_layers)]
    for layer, window in enumerate(windows):
        pattern = collector.values[f"blocks.{layer}.attn.pattern"]
        assert pattern.shape == (2, 4, 20, 20)
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-5)
        assert float(jnp.triu(pattern, 1).max()) == 0.0
        assert float(jnp.tril(pattern, -(window or 20)).max()) == 0.0


def test_unused_sites_leave_the_program_as_it_is(relative):
    _, network = relative
    graph, state = nnx.split(network)
    tokens = jnp.asarray(ids())

    def lowered(site):
        def forward(state):
            return nnx.merge(graph, state)(tokens, site=site)[0]

        return jax.jit(forward).lower(state).as_text()

    assert lowered(sites.ignore) == lowered(sites.intervene({}))


def test_intervention_replaces_a_value(network):
    site = sites.intervene(
        {"blocks.0.attn_out": jnp.zeros_like, "blocks.0.mlp_out": jnp.zeros_like}
    )
    collector = sites.Collector(["blocks.0.resid_pre", "blocks.1.resid_pre"])
    network(ids(), site=lambda name, value: collector(name, site(name, value)))
    assert (collector.values["blocks.0.resid_pre"] == collector.values["blocks.1.resid_pre"]).all()
    wrong = sites.intervene({"embed": lambda value: value[:1]})
    with pytest.raises(ValueError, match="embed returned shape"):
        network(ids(), site=wrong)


def test_site_patterns():
    two = dataclasses.replace(CONFIG, num_layers=2)
    assert sites.match(["blocks.*.attn.pattern"], two) == [
        "blocks.0.attn.pattern",
        "blocks.1.attn.pattern",
    ]
    with pytest.raises(ValueError, match="GPT-J's blocks are parallel"):
        sites.match(["blocks.0.resid_mid"], two)
    with pytest.raises(ValueError, match="GPT-NeoX's blocks are parallel"):
        sites.match(["blocks.*.resid_mid"], RELATIVES["neox"])
    assert sites.match(
        ["*.resid_mid", "*.ln2", "position_embed"], family("gpt2", num_layers=1)
    ) == [
        "position_embed",
        "blocks.0.resid_mid",
        "blocks.0.ln2",
    ]
    assert sites.match(["*.ln2"], RELATIVES["neox"])[0] == "blocks.0.ln2"
    with pytest.raises(ValueError, match=r"nearest are .*blocks\.1\.attn\.pattern"):
        sites.match(["blocks.1.attn.patern"], two)
