"""Every family against its transformers class on PyTorch, there and back through its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptj_lab.checkpoints import families, huggingface

CASES = {
    "codegen": ("codegen", {}),
    "codegen, rotated whole": ("codegen", {"rotary_dim": 12, "layer_norm_epsilon": 1e-2}),
    "codegen, narrow relu": ("codegen", {"n_inner": 40, "activation_function": "relu"}),
    "neox": ("gpt_neox", {}),
    "neox, sequential": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.34}),
    "neox, tied, no biases": (
        "gpt_neox",
        {"tie_word_embeddings": True, "attention_bias": False, "rotary_emb_base": 300},
    ),
    "neox, sequential, rotated whole": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "hidden_act": "gelu_fast",
            "layer_norm_eps": 1e-2,
        },
    ),
    "neo": ("gpt_neo", {}),
    "neo, global, untied": (
        "gpt_neo",
        {"attention_types": [[["global"], 3]], "tie_word_embeddings": False},
    ),
    "neo, alternating, window 1": (
        "gpt_neo",
        {
            "attention_types": [[["local", "global"], 1], [["local"], 1]],
            "window_size": 1,
            "intermediate_size": 40,
            "activation_function": "silu",
            "layer_norm_epsilon": 1e-2,
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, unscaled, untied": (
        "gpt2",
        {"scale_attn_weights": False, "tie_word_embeddings": False},
    ),
    "gpt2, narrow gelu": (
        "gpt2",
        {
            "n_inner": 40,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-2,
            "reorder_and_upcast_attn": True,
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 20))


def logits_of(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request, torch_model, tmp_path_factory):
    """The torch model, and the config and network that we read from its directory."""
    family, fields = CASES[request.param]
    theirs = torch_model(family, **fields)
    directory = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return theirs, *huggingface.read(directory)


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_logits_are_those_of_transformers(case, tolerance):
    theirs, config, ours = case
    close(ours(jnp.asarray(TOKENS))[0], logits_of(theirs), tolerance["float32"])
    assert config.num_parameters == sum(p.numel() for p in theirs.parameters())
    assert config.num_parameters == sum(a.size for a in jax.tree.leaves(nnx.state(ours)))


def test_transformers_loads_what_is_written(case, tolerance, tmp_path):
    theirs, config, ours = case
    huggingface.write(tmp_path, config, ours)
    loaded, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert (logits_of(loaded.eval()) == logits_of(theirs)).all()
    again_config, again = huggingface.read(tmp_path)
    assert again_config == config
    pairs = zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(again)), strict=True)
    assert all((a == b).all() for a, b in pairs)


@pytest.mark.parametrize("family", ["gptj", "codegen", "gpt_neox", "gpt_neo", "gpt2"])
def test_gradients_are_those_of_torch(family, torch_model, tmp_path):
    import torch

    model = torch_model(family)
    model.save_pretrained(tmp_path)
    config, ours = huggingface.read(tmp_path)
    labels = torch.tensor(TOKENS)
    model(labels, labels=labels).loss.backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    tokens = jnp.asarray(TOKENS)

    def loss(network):
        logprobs = jax.nn.log_softmax(network(tokens)[0][:, :-1])
        return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()

    gradients = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.grad(loss)(ours))}
    wanted = families.tensors(config, {path: a.shape for path, a in gradients.items()})
    assert {families.full_name(config, name) for name in theirs} == wanted.keys()
    for name, gradient in theirs.items():
        tensor = wanted[families.full_name(config, name)]
        found = tensor.join([np.asarray(gradients[path]) for path in tensor.paths])
        # k's bias shifts all scores of a query alike, so its gradient is only rounding.
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(found, gradient, rtol=0, atol=2e-5 * scale)
