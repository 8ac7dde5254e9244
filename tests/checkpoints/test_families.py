"""The names that files of the five families use, and what a file may hold or lack besides."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from gptj_lab.checkpoints import families, huggingface
from gptj_lab.checkpoints.filling import checked
from gptj_lab.config import ModelConfig
from gptj_lab.model.transformer import Transformer

SIZES = dict(
    vocab_size=23, context=12, d_model=16, num_layers=2, num_heads=2, d_ff=24,
    initializer_range=0.2,
)  # fmt: skip
CONFIGS = {
    "gptj": ModelConfig.of_family("gptj", d_rotary=4, **SIZES),
    "codegen": ModelConfig.of_family("codegen", d_rotary=4, **SIZES),
    "gpt_neox": ModelConfig.of_family("gpt_neox", d_rotary=4, **SIZES),
    "gpt_neo": ModelConfig.of_family("gpt_neo", local_windows=(None, 3), **SIZES),
    "gpt2": ModelConfig.of_family("gpt2", **SIZES),
}
# Buffers that the hub's files hold beside the weights.
BUFFERS = {
    "gptj": ["attn.bias", "attn.masked_bias", "attn.embed_positions"],
    "codegen": ["attn.causal_mask"],
    "gpt_neox": ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
    "gpt_neo": ["attn.attention.bias", "attn.attention.masked_bias"],
    "gpt2": ["attn.bias", "attn.masked_bias"],
}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """By family: the config, the network and the directory that it was written to."""
    made = {}
    for family, config in CONFIGS.items():
        network = Transformer(config, key=jax.random.key(0))
        directory = tmp_path_factory.mktemp(family)
        huggingface.write(directory, config, network)
        made[family] = config, network, directory
    return made


@pytest.fixture(params=CONFIGS)
def made(request, every):
    return every[request.param]


def rewritten(directory, target, change):
    """`target` with the tensors of `directory` after `change`, and its config.json."""
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), target / "model.safetensors")
    (target / "config.json").write_bytes((directory / "config.json").read_bytes())
    return target


def same(a, b):
    pairs = zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    return all(bool((x == y).all()) for x, y in pairs)


def test_split_and_join_undo_each_other(made):
    config, network, _ = made
    shapes = {p: leaf[...].shape for p, leaf in nnx.to_flat_state(nnx.state(network))}
    tensors = families.tensors(config, shapes)
    seen = []
    for tensor in tensors.values():
        array = np.arange(np.prod(tensor.shape), dtype=np.float32).reshape(tensor.shape)
        pieces = dict(tensor.split(array))
        assert {path: piece.shape for path, piece in pieces.items()} == {
            path: shapes[path] for path in tensor.paths
        }
        assert (tensor.join(list(pieces.values())) == array).all()
        seen += pieces
    assert sorted(map(str, seen)) == sorted(map(str, shapes))  # each parameter once


def test_names_without_prefix_and_with_buffers_load(made, tmp_path):
    """As the hub's gpt2 is: a base model's names, and masks beside the weights."""
    config, network, directory = made
    prefix = "gpt_neox." if config.family == "gpt_neox" else "transformer."
    block = "layers.1." if config.family == "gpt_neox" else "h.1."

    def change(tensors):
        bare = {name.removeprefix(prefix): value for name, value in tensors.items()}
        return bare | {block + name: np.ones(3, np.float32) for name in BUFFERS[config.family]}

    config_again, again = huggingface.read(rewritten(directory, tmp_path, change))
    assert config_again == config and same(network, again)


def test_neox_head_under_its_newer_name(tmp_path, every):
    _, network, directory = every["gpt_neox"]

    def change(tensors):
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
        return tensors

    assert same(network, huggingface.read(rewritten(directory, tmp_path, change))[1])


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2"])
def test_tied_head_in_the_file_must_be_the_embedding(family, every, tmp_path):
    _, network, directory = every[family]
    assert not any("head" in name for name in load_file(directory / "model.safetensors"))

    def copied(tensors):
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}

    def other(tensors):
        return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}

    assert same(network, huggingface.read(rewritten(directory, tmp_path, copied))[1])
    with pytest.raises(ValueError, match="lm_head.weight and transformer.wte.*tie_word_embeddings"):
        huggingface.read(rewritten(directory, tmp_path, other))


def test_missing_and_surplus_tensors_are_named(made, tmp_path, capsys):
    config, network, directory = made
    name = sorted(load_file(directory / "model.safetensors"))[3]

    def without(tensors):
        return {key: value for key, value in tensors.items() if key != name}

    with pytest.raises(ValueError, match=f"lacks {name}: "):
        huggingface.read(rewritten(directory, tmp_path, without))
    more = rewritten(directory, tmp_path, lambda t: t | {"h.0.attn.rope": np.ones(2, np.float32)})
    assert same(network, huggingface.read(more)[1])
    told = capsys.readouterr().err
    assert f"holds h.0.attn.rope, which a {config.family_title} of its config.json doesn't" in told
    crooked = rewritten(directory, tmp_path, lambda t: t | {name: np.ones((5, 7), np.float32)})
    with pytest.raises(ValueError, match=rf"{name}.*\(5, 7\)"):
        huggingface.read(crooked)


def test_a_network_that_its_family_has_no_file_for_is_not_written(tmp_path):
    config = ModelConfig.of_family("gptj", d_rotary=4, qkv_bias=True, **SIZES)
    with pytest.raises(ValueError, match="qkv_bias is True.*GPT-J config.json"):
        huggingface.write(tmp_path, config, Transformer(config, key=jax.random.key(0)))
    assert not list(tmp_path.iterdir())
    odd = ModelConfig.of_family("codegen", d_rotary=2, **(SIZES | dict(d_model=18)))
    with pytest.raises(ValueError, match="d_model is 18.*multiple of 4"):
        huggingface.write(tmp_path, odd, Transformer(odd, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="d_model is 18.*multiple of 4"):
        checked(odd, {}, "a folder")
