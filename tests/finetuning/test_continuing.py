"""An adapter is trained further, or another on top of it; whatever a run trains it can save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import cases, small_model

import gptj_lab
from gptj_lab.finetuning import continuing, export, lora, methods, settings, soft_prompts
from gptj_lab.language_model import load
from gptj_lab.model.linear import Adapter

pytestmark = pytest.mark.usefixtures("corpora")

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))
TEXT = [{"text": "the cat sat on the mat, and the dog sat on the log " * 3} for _ in range(12)]
STEADY = gptj_lab.Optimiser(learning_rate=3e-2, schedule="constant", warmup_steps=0)


def tune(model, **given):
    given = dict(
        steps=4, batch=2, context=16, held_out=0.0, say=lambda line: None, optimiser=STEADY
    ) | given  # fmt: skip
    return gptj_lab.finetune(model, TEXT, **given)


def close(ours, theirs, tolerance=5e-5):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def drawn(model, chosen, seed=0):
    """The model with an adapter whose numbers are drawn at std 0.2."""
    new, random = lora.adapted(model, chosen, seed), np.random.default_rng(seed)
    for _, linear in lora.matrices(new.network):
        if chosen.name in linear.adapters:
            adapter = linear.adapters[chosen.name]
            shape = adapter.b[...].shape
            adapter.b = Adapter(jnp.asarray(random.normal(0, 0.2, shape), jnp.float32))
    return lora.trained(new, chosen.name)


MIXED = gptj_lab.LoRA(rank=2, targets=("q", "v", "fc_in"))
RUNS = cases(("gpt_neox",), slow=[("gpt2",), ("codegen",)])


@pytest.mark.parametrize("arguments", RUNS)
@pytest.mark.parametrize("fields", [{}, {"dora": True, "rslora": True}], ids=["lora", "dora"])
def test_what_a_run_trains_is_saved_as_peft_loads_it(arguments, fields, tmp_path, quick_compiles):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    model = small_model(*arguments)
    chosen = gptj_lab.LoRA(rank=2, targets=("q", "v", "fc_in"), **fields)
    run = tune(model, method=chosen)
    assert run.status == "finished" and not close(run.model.logits(IDS), model.logits(IDS), 1e-3)
    run.save(tmp_path / "adapter")
    model.save(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert close(run.model.logits(IDS), theirs(torch.tensor(IDS)).logits.numpy())
    again = export.load_adapter(model, tmp_path / "adapter")
    assert close(run.model.logits(IDS), again.logits(IDS))


def test_an_adapter_is_trained_further(tiny_model, tmp_path, quick_compiles):
    start = drawn(tiny_model, MIXED)
    export.save_adapter(start, tmp_path / "first")
    run = tune(tiny_model, adapter=tmp_path / "first")
    assert close(run.first().logits(IDS), start.logits(IDS))
    assert not close(run.model.logits(IDS), start.logits(IDS), 1e-3)
    assert "the adapter default is trained further: rank 2 of q, v, fc_in" in run.notes[0]
    run.save(tmp_path / "second")
    again = export.load_adapter(tiny_model, tmp_path / "second")
    assert close(again.logits(IDS), run.model.logits(IDS))
    assert lora.trainable(again) == lora.trainable(start)
    by_name = tune(export.load_adapter(tiny_model, tmp_path / "first"), adapter="default")
    assert (by_name.model.logits(IDS) == run.model.logits(IDS)).all()
    assert not run.model.network.blocks[0].attn.q.adapters["default"].live


def test_one_on_top_of_another_is_saved_with_it(tiny_model, tmp_path, quick_compiles):
    start = drawn(tiny_model, MIXED)
    run = tune(start, method=gptj_lab.LoRA(rank=3))
    assert lora.names(run.model) == ["default", "default2"]
    assert "default2 is trained on top of default: what is saved is all of them" in run.notes[0]
    under, kept = (m.network.blocks[0].attn.q.adapters["default"] for m in (run.model, start))
    assert (under.a[...] == kept.a[...]).all() and (under.b[...] == kept.b[...]).all()
    run.save(tmp_path)
    alone = export.load_adapter(tiny_model, tmp_path)
    assert close(alone.logits(IDS), run.model.logits(IDS))
    assert not close(alone.logits(IDS), start.logits(IDS), 1e-3)


def test_a_run_begun_without_an_adapter_goes_on_without(tmp_path):
    new, further = {"method": {"kind": "LoRA"}}, {"method": {"kind": "Continued"}}
    with pytest.raises(ValueError, match="was begun without an adapter to train further .*: do"):
        settings.agree(new, further, tmp_path)
    settings.agree(further, further, tmp_path)


@pytest.mark.parametrize(
    ("adapter", "error", "said"),
    [
        ("", ValueError, "adapter is empty: name a folder, or leave it out"),
        ("  ", ValueError, "adapter is empty"),
        (True, TypeError, "adapter is True: a folder, or the name of an adapter"),
        (gptj_lab.LoRA(), TypeError, r"adapter is LoRA\(.*: a folder, or the name of an adapter"),
    ],
)
def test_an_adapter_that_is_no_place_is_refused(adapter, error, said, tiny_model):
    with pytest.raises(error, match=said):
        tune(tiny_model, adapter=adapter)


@pytest.mark.parametrize("dora", [False, True])
def test_continued_and_interrupted_it_ends_with_the_same_bits(
    dora, tiny_model, tmp_path, quick_compiles
):
    chosen = gptj_lab.LoRA(rank=2, targets=("q", "fc_in"), dora=dora)
    export.save_adapter(drawn(tiny_model, chosen), tmp_path / "first")
    given = dict(adapter=tmp_path / "first", method=gptj_lab.LoRA(dropout=0.3))
    whole = tune(tiny_model, **given)
    run = tune(tiny_model, **given, out=tmp_path / "out", steps=2)
    assert run.step == 2
    run = tune(tiny_model, **given, out=tmp_path / "out")
    assert "resumed from step 2" in " ".join(run.notes)
    assert run.notes.count(run.notes[0]) == 1
    arrays = [jax.tree.leaves(each._loop.trainer.arrays()) for each in (run, whole)]
    for ours, theirs in zip(*arrays, strict=True):
        assert (np.asarray(ours) == np.asarray(theirs)).all()
    with pytest.raises(ValueError, match="was begun with an adapter to train further .*: do the"):
        tune(tiny_model, method=gptj_lab.LoRA(rank=2), out=tmp_path / "out")
    export.save_adapter(drawn(tiny_model, chosen, seed=1), tmp_path / "first")
    with pytest.raises(ValueError, match="the adapter that is trained further, or the model below"):
        tune(tiny_model, **given, out=tmp_path / "out")


def test_gradients_of_dora_are_peft_s(torch_model, tiny_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    base = torch_model("gptj", vocab_size=300)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["q_proj", "fc_in"])
    theirs = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for _, value in theirs.named_parameters():
        if value.requires_grad:
            value.data = value.data + 0.2 * torch.randn_like(value)
    theirs.save_pretrained(tmp_path / "adapter")
    theirs(torch.tensor(IDS)).logits.square().mean().backward()
    wanted = {n: v.grad.numpy() for n, v in theirs.named_parameters() if v.grad is not None}

    model = export.load_adapter(load(tmp_path / "base"), tmp_path / "adapter")
    method = lora.continued(model, "default")
    ready = methods.prepared(model, method)
    graph, trained, frozen = methods.split(ready.network, method)

    @jax.jit
    def gradients(trained):
        loss = lambda part: jnp.square(nnx.merge(graph, part, frozen)(IDS)[0]).mean()  # noqa: E731
        return jax.grad(loss)(trained)

    names = {"a": "lora_A.default.weight", "b": "lora_B.default.weight"}
    names["magnitude"] = "lora_magnitude_vector.default.weight"
    found = nnx.to_flat_state(gradients(trained))
    assert len(list(found)) == len(wanted) == 3 * 2 * 3
    for path, leaf in found:
        module = "attn.q_proj" if path[3] == "q" else "mlp.fc_in"
        key = f"base_model.model.transformer.h.{path[1]}.{module}.{names[path[-1]]}"
        assert close(leaf[...], wanted[key], 1e-4), key


def test_whole_weights_of_an_adapter_stay_and_are_saved(tiny_model, tmp_path, quick_compiles):
    start = drawn(tiny_model, gptj_lab.LoRA(rank=2))
    from gptj_lab.finetuning import replaced

    head = np.random.default_rng(0).normal(0, 0.2, (304, 32)).astype(np.float32)
    whole = {"lm_head.weight": head, "lm_head.bias": head[:, 0]}
    replaced.put(start, "default", whole, ["lm_head"], "here", untie=False)
    export.save_adapter(start, tmp_path / "first")
    run = tune(tiny_model, adapter=tmp_path / "first")
    assert "whole weights of the adapter default stay as they are" in run.notes[1]
    run.save(tmp_path / "second")
    again = export.load_adapter(tiny_model, tmp_path / "second")
    assert close(again.logits(IDS), run.model.logits(IDS))
    assert (again.network.head.weight[...] == head).all()


def test_prompts_and_adapters_that_lie_apart_are_told(tiny_model):
    start = drawn(tiny_model, MIXED)
    (said,) = continuing.sentences(start, gptj_lab.SoftPrompt())
    assert said.startswith("the soft prompt is trained on top of the adapter default and saved")
    prompted = soft_prompts.prompted(tiny_model, gptj_lab.SoftPrompt(length=2))
    (said,) = continuing.sentences(prompted, gptj_lab.LoRA())
    assert said.startswith("the adapter default is trained behind the model's soft prompt")


def test_what_could_not_be_saved_is_refused_before_the_first_step(tiny_model, tmp_path):
    prompted = soft_prompts.prompted(tiny_model, gptj_lab.SoftPrompt(length=2))
    for method in (gptj_lab.Full(), gptj_lab.LastBlocks()):
        with pytest.raises(ValueError, match="has a soft prompt, for which a model that"):
            tune(prompted, method=method)
    with pytest.raises(ValueError, match="adapter is 'x', which only LoRA trains further"):
        tune(tiny_model, method=gptj_lab.Full(), adapter="x")
    with pytest.raises(FileNotFoundError, match=r"nowhere.adapter_config\.json is missing"):
        tune(tiny_model, adapter=tmp_path / "nowhere")
    zeros = np.zeros(32, np.float32)
    pair = lora.Pair(np.zeros((2, 32)), np.zeros((32, 2)), 1.0, None, zeros)
    biased = lora.with_pairs(tiny_model, {("blocks", 0, "attn", "q"): pair}, "default")
    with pytest.raises(ValueError, match=r"adapter with biases \(lora_bias\) and one with magni"):
        tune(biased, method=gptj_lab.LoRA(dora=True))
    with pytest.raises(ValueError, match="the best model is wanted, but nothing is held out"):
        tune(tiny_model, best=True)
