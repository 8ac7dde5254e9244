"""Ablation and patching sweeps against transformers' models with forward hooks."""

import contextlib

import numpy as np
import pytest

import gptj_lab
from gptj_lab.lens import ablation, patching, path_patching

torch = pytest.importorskip("torch")

CLEAN = [7, 40, 41, 99, 43, 44, 45, 46, 47]
CORRUPT = [7, 40, 41, 98, 43, 44, 60, 46, 47]
ANSWER, INSTEAD = 50, 70
LAYERS, HEADS = 2, 4
# The blocks, attention's output matrix and the MLP, and how the number of layers is called.
PLACES = {
    "gptj": ("transformer.h", "attn.out_proj", "mlp", "n_layer"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp", "n_layer"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp", "num_hidden_layers"),
    "gpt_neo": ("transformer.h", "attn.attention.out_proj", "mlp", "num_layers"),
    "codegen": ("transformer.h", "attn.out_proj", "mlp", "n_layer"),
}
RELATIVES = [
    "gptj",
    *(pytest.param(name, marks=pytest.mark.slow) for name in PLACES if name != "gptj"),
]


class Hooked:
    """A torch model whose heads' z, MLPs and blocks can be read and replaced."""

    def __init__(self, model, family):
        blocks, out, mlp, _ = PLACES[family]
        self.model = model
        self.blocks = list(model.get_submodule(blocks))
        self.out = [block.get_submodule(out) for block in self.blocks]
        self.mlp = [block.get_submodule(mlp) for block in self.blocks]

    def z(self, layer, change):
        """Before the output matrix: [1, seq, d_model], heads side by side."""
        return self.out[layer].register_forward_pre_hook(lambda _, args: (change(args[0]),))

    def mlp_out(self, layer, change):
        return self.mlp[layer].register_forward_hook(lambda _, args, out: change(out))

    def resid_post(self, layer, change):
        def hook(module, args, out):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return self.blocks[layer].register_forward_hook(hook)

    def logits(self, ids, *hooks):
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for place, layer, change in hooks:
                stack.callback(getattr(self, place)(layer, change).remove)
            return self.model(torch.tensor([ids])).logits[0].numpy()

    def read(self, place, ids):
        found = []
        keep = lambda value: found.append(value.clone()) or value  # noqa: E731
        self.logits(ids, *((place, layer, keep) for layer in range(LAYERS)))
        return found


@pytest.fixture(scope="module", params=RELATIVES)
def both(request, torch_model, tiny_tokenizer, tmp_path_factory):
    """Our model and transformers' with the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    layers = {PLACES[request.param][3]: LAYERS}
    if request.param == "gpt_neo":
        layers["attention_types"] = [[["global", "local"], 1]]
    theirs = torch_model(request.param, vocab_size=304, **layers)
    theirs.save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return gptj_lab.load(folder), Hooked(theirs, request.param)


def head_set(head, value):
    def change(z):
        heads = z.clone().view(1, z.shape[1], HEADS, -1)
        heads[:, :, head] = (
            value if isinstance(value, float) else value.view(heads.shape)[:, :, head]
        )
        return heads.view(z.shape)

    return change


def logprobs(logits):
    return torch.log_softmax(torch.tensor(logits).double(), -1).numpy()


def nll(logits, ids):
    return -logprobs(logits)[np.arange(len(ids) - 1), ids[1:]].mean()


def test_zero_ablation_of_every_head_and_mlp(both):
    ours, theirs = both
    plain = theirs.logits(CLEAN)
    heads = ablation.heads(ours, CLEAN, answer=ANSWER, instead=INSTEAD)
    mlps = ablation.mlps(ours, CLEAN, answer=ANSWER, instead=INSTEAD)
    for layer in range(LAYERS):
        cells = [(heads, (layer, head), ("z", layer, head_set(head, 0.0))) for head in range(HEADS)]
        for effects, cell, hook in [*cells, (mlps, (layer,), ("mlp_out", layer, torch.zeros_like))]:
            ablated = theirs.logits(CLEAN, hook)
            change = logprobs(ablated)[-1] - logprobs(plain)[-1]
            gap = (ablated - plain)[-1]
            divergence = -(np.exp(logprobs(plain)[-1]) * change).sum()
            near = dict(abs=2e-4)
            assert effects.logprob[cell] == pytest.approx(change[ANSWER], **near)
            assert effects.logit_difference[cell] == pytest.approx(
                gap[ANSWER] - gap[INSTEAD], **near
            )
            assert effects.kl[cell] == pytest.approx(divergence, **near)
            assert effects.nll[cell] == pytest.approx(
                nll(ablated, CLEAN) - nll(plain, CLEAN), **near
            )
    assert abs(heads.logprob).max() > 0.1 and abs(mlps.logprob).max() > 0.1


def recovered(theirs, logits):
    def gap(logits):
        return float(logits[-1, ANSWER]) - float(logits[-1, INSTEAD])

    clean, corrupt = gap(theirs.logits(CLEAN)), gap(theirs.logits(CORRUPT))
    return (gap(logits) - corrupt) / (clean - corrupt)


def test_patching_every_position_and_every_head(both):
    ours, theirs = both
    named = dict(answer=ANSWER, instead=INSTEAD)
    by_position = patching.positions(ours, CLEAN, CORRUPT, "resid_post", **named).recovered
    by_head = patching.heads(ours, CLEAN, CORRUPT, **named).recovered
    clean = {place: theirs.read(place, CLEAN) for place in ("z", "resid_post")}
    for layer in range(LAYERS):
        for position in range(len(CLEAN)):

            def change(x, layer=layer, position=position):
                x = x.clone()
                x[:, position] = clean["resid_post"][layer][:, position]
                return x

            expected = recovered(theirs, theirs.logits(CORRUPT, ("resid_post", layer, change)))
            assert by_position[layer, position] == pytest.approx(expected, abs=1e-3)
        for head in range(HEADS):
            change = head_set(head, clean["z"][layer])
            expected = recovered(theirs, theirs.logits(CORRUPT, ("z", layer, change)))
            assert by_head[layer, head] == pytest.approx(expected, abs=1e-3)
    assert by_position[LAYERS - 1, -1] == pytest.approx(1, abs=1e-4)
    assert (by_position[:, :3] == 0).all()  # before the first token that differs


@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_paths_to_the_logits(both, freeze_mlps):
    ours, theirs = both
    sent = path_patching.senders(
        ours, CLEAN, CORRUPT, freeze_mlps=freeze_mlps, answer=ANSWER, instead=INSTEAD
    ).recovered
    clean, held = theirs.read("z", CLEAN), theirs.read("z", CORRUPT)
    mlps = theirs.read("mlp_out", CORRUPT)
    for layer in range(LAYERS):
        for head in range(HEADS):
            hooks = []
            for other in range(LAYERS):
                one = head_set(head, clean[other])(held[other]) if other == layer else held[other]
                hooks.append(("z", other, lambda _, one=one: one))
                if freeze_mlps:
                    hooks.append(("mlp_out", other, lambda _, other=other: mlps[other]))
            expected = recovered(theirs, theirs.logits(CORRUPT, *hooks))
            assert sent[layer, head] == pytest.approx(expected, abs=1e-3)
    assert abs(sent).max() > 0.01
