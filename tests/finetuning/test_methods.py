"""Each method trains what it says, with plain autodiff's and torch's gradients, and no more."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gptj_lab
from gptj_lab import versions
from gptj_lab.finetuning import lora, loss, methods
from gptj_lab.finetuning.methods import Full, LastBlocks, LoRA, SoftPrompt
from gptj_lab.finetuning.optimisers import Optimiser
from gptj_lab.finetuning.packing import Batch
from gptj_lab.language_model import load
from gptj_lab.mesh import planner_memory
from gptj_lab.scaling import operations

RNG = np.random.default_rng(0)
ROWS, SEQ = 4, 12
TOKENS = RNG.integers(0, 97, (ROWS, SEQ + 1)).astype(np.int32)
WEIGHTS = RNG.integers(0, 2, (ROWS, SEQ)).astype(np.float32)  # rows count unequally many tokens
WEIGHTS[0] = 1
METHODS = [Full(), LastBlocks(count=1), LoRA(), SoftPrompt(length=3)]


def batch_of(weights=WEIGHTS):
    positions = np.tile(np.arange(SEQ, dtype=np.int32), (ROWS, 1))
    return Batch(
        tokens=TOKENS, segments=np.ones((ROWS, SEQ), np.int32), positions=positions,
        weights=weights,
    )  # fmt: skip


def moved(model, seed=1):
    """The model, its adapters' b off zero, as in the middle of training."""
    rng = np.random.default_rng(seed)
    for _, linear in lora.matrices(model.network):
        for adapter in linear.adapters.values():
            shape = adapter.b[...].shape
            adapter.b[...] = jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)
    return model


def gradients(model, method, key=None, **settings):
    """The loss and the gradients by name, by the function that trains."""
    graph, trained, frozen = methods.split(model.network, method)
    value, found = _gradients(graph, trained, frozen, batch_of(), key, **settings)
    return float(value), named(found)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("accumulate", "remat", "products"))
def _gradients(graph, trained, frozen, batch, key, **settings):
    return loss.gradients(graph, trained, frozen, batch, key=key, **settings)


def named(tree):
    return {
        ".".join(map(str, path)): np.asarray(versions.value(leaf))
        for path, leaf in nnx.to_flat_state(tree)
    }


def agree(ours, theirs, tolerance=2e-5):
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(np.abs(value).max() for value in theirs[1].values())
    for name, value in theirs[1].items():
        room = tolerance * max(np.abs(value).max(), 0.1 * largest)
        assert np.abs(ours[1][name] - value).max() <= room, name


@pytest.fixture(scope="module")
def torch_pair(torch_gptj, tiny_tokenizer, tmp_path_factory):
    """One network in torch and here."""
    folder = tmp_path_factory.mktemp("torch")
    theirs = torch_gptj(vocab_size=300, n_layer=2)
    theirs.save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return theirs, load(folder)


def torch_loss(theirs):
    import torch

    logits = theirs(torch.tensor(TOKENS[:, :-1]).long()).logits
    targets = torch.tensor(TOKENS[:, 1:]).long()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    weights = torch.tensor(WEIGHTS)
    return (nats * weights).sum() / weights.sum()


def torch_name(path):
    """Hugging Face's name of a parameter of GPT-J."""
    if path == "embed":
        return "transformer.wte.weight"
    names = {"ln.scale": "ln_1.weight", "ln.bias": "ln_1.bias"}
    names |= {f"attn.{part}.weight": f"attn.{part}_proj.weight" for part in ("q", "k", "v", "out")}
    head, _, rest = path.partition(".")
    if head == "blocks":
        layer, _, inside = rest.partition(".")
        return f"transformer.h.{layer}.{names.get(inside, inside)}"
    end = {"scale": "weight"}.get(rest, rest)
    return f"transformer.ln_f.{end}" if head == "final_ln" else f"lm_head.{rest}"


@pytest.mark.parametrize("method", [Full(), LastBlocks(count=1, head=True)], ids=str)
def test_gradients_are_torchs(torch_pair, method):
    theirs, base = torch_pair
    theirs.zero_grad()
    value = torch_loss(theirs)
    value.backward()
    ours = gradients(methods.prepared(base, method), method, remat="nothing kept", accumulate=2)
    found = {name: value.grad.numpy() for name, value in theirs.named_parameters()}
    if isinstance(method, Full):
        assert len(ours[1]) == len(found)
    agree(ours, (value.item(), {name: found[torch_name(name)] for name in ours[1]}))


@pytest.mark.parametrize("remat", [None, "nothing kept"])
def test_lora_is_torchs_written_out_by_hand(torch_pair, remat):
    import torch

    theirs, base = torch_pair
    method = LoRA(rank=3, alpha=6.0, targets=("q", "v", "fc_in"))
    model = moved(methods.prepared(base, method))
    _, trained, _ = methods.split(model.network, method)
    pairs = {name: torch.nn.Parameter(torch.tensor(v)) for name, v in named(trained).items()}
    hooks = []
    for name in pairs:
        if name.endswith(".a"):
            module = torch_name(name.replace(".adapters.default.a", ".weight"))
            a, b = pairs[name], pairs[name[:-1] + "b"]
            hooks.append(
                theirs.get_submodule(module.removesuffix(".weight")).register_forward_hook(
                    lambda _, inputs, out, a=a, b=b: out + 2.0 * inputs[0] @ a.T @ b.T
                )
            )
    assert len(hooks) == 2 * 3
    value = torch_loss(theirs)
    value.backward()
    for hook in hooks:
        hook.remove()
    expected = {name: value.grad.numpy() for name, value in pairs.items()}
    agree(gradients(model, method, remat=remat), (value.item(), expected))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gradients_are_those_of_plain_autodiff_at_what_is_trained(tiny_model, method):
    model = moved(methods.prepared(tiny_model, method))
    graph, state = nnx.split(model.network)
    batch = batch_of()

    def plain(state):
        logits = nnx.merge(graph, state)(before(model, batch.tokens[:, :-1]))[0][:, -SEQ:]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:])
        return (nats * batch.weights).sum() / batch.weights.sum()

    value, everything = jax.jit(jax.value_and_grad(plain))(state)
    ours = gradients(model, method, accumulate=4)
    found = named(everything)
    agree(ours, (float(value), {name: found[name] for name in ours[1]}))
    expected = {
        Full: lambda name: True,
        LastBlocks: lambda name: name.startswith(("blocks.1", "final_ln")),
        LoRA: lambda name: name.endswith((".a", ".b")),
        SoftPrompt: lambda name: name == "soft_prompt",
    }[type(method)]
    assert set(ours[1]) == {name for name in found if expected(name)}


def before(model, ids):
    return np.concatenate([np.tile(model.virtual_tokens, (len(ids), 1)), ids], 1).astype(np.int32)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_given_its_arrays_leaves_the_base_whole(tiny_model, method):
    expected = tiny_model.logits(TOKENS)
    model = methods.prepared(tiny_model, method)
    graph, trained, frozen = methods.split(model.network, method)
    shared = {id(leaf) for leaf in jax.tree.leaves(nnx.state(tiny_model.network))}
    assert all(id(leaf) in shared for leaf in jax.tree.leaves(frozen) if leaf.ndim)
    assert not any(id(leaf) in shared for leaf in jax.tree.leaves(trained))

    @jax.jit
    def twice(trained):
        return jax.tree.map(lambda leaf: 2 * leaf, trained)

    doubled = jax.jit(twice, donate_argnums=0)(trained)
    now = methods.trained_model(tiny_model, model, method, doubled)
    doubled = jax.jit(twice, donate_argnums=0)(doubled)  # what `now` holds is its own
    assert np.isfinite(now.logits(TOKENS)).all()
    assert (tiny_model.logits(TOKENS) == expected).all()


@pytest.mark.parametrize("method", [Full(), LoRA(targets=tuple(lora.TARGETS))], ids=str)
def test_at_the_start_it_is_the_base(tiny_model, method):
    model = methods.prepared(tiny_model, method)
    assert (model.logits(TOKENS) == tiny_model.logits(TOKENS)).all()


def test_tiny_changes_of_bfloat16_weights_are_not_lost(tiny_model, tmp_path):
    """A hundred steps of 1e-4 on a scale of 1, whose neighbours in bfloat16 are 4e-3 away."""
    tiny_model.save(tmp_path)
    base = load(tmp_path, weights="bfloat16")
    model = methods.prepared(base, Full())
    _, trained, _ = methods.split(model.network, Full())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}
    optimiser = Optimiser(
        name="lion", learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0
    )
    rule = optimiser.transformation(100, trained)

    @jax.jit
    def hundred(trained):
        def step(carry, _):
            ones = jax.tree.map(jnp.ones_like, carry[0])
            updates, state = rule.update(ones, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (trained, rule.init(trained)), None, 100)[0][0]

    after = hundred(trained)
    assert np.allclose(named(after)["final_ln.scale"], 0.99, atol=1e-5)
    result = methods.trained_model(base, model, Full(), after)
    scale = result.network.final_ln.scale[...]
    assert result.dtype == "bfloat16" and (scale == jnp.bfloat16(0.99)).all()


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_lora_learns_beside_weights_that_stay(tiny_model, tmp_path, weights):
    tiny_model.save(tmp_path)
    base = load(tmp_path, weights=weights)
    method = LoRA(dropout=0.1, targets=("q", "v", "fc_out"))
    model = methods.prepared(base, method)
    graph, trained, frozen = methods.split(model.network, method)
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]
    rule = Optimiser(learning_rate=1e-2).transformation(30, trained)

    @jax.jit
    def step(trained, state, frozen, key):
        value, found = loss.gradients(graph, trained, frozen, batch_of(), dtype=base.dtype, key=key)
        updates, state = rule.update(found, state, trained)
        return value, optax.apply_updates(trained, updates), state

    state, losses = rule.init(trained), []
    for i in range(30):
        value, trained, state = step(trained, state, frozen, jax.random.key(i))
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    after = methods.trained_model(base, model, method, trained)
    assert after.weights == weights and base.weights == weights
    there = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]
    assert all((a == b).all() for a, b in zip(kept, there, strict=True))


@pytest.mark.parametrize("method", [LoRA(), SoftPrompt(length=3)], ids=str)
def test_products_of_bfloat16_give_nearly_the_same_gradients(tiny_model, method):
    model = moved(methods.prepared(tiny_model, method))
    value, found = gradients(model, method, products="bfloat16", remat="nothing kept")
    exactly, wanted = gradients(model, method)
    assert value == pytest.approx(exactly, rel=5e-3) and value != exactly
    off = sum(((found[name] - wanted[name]) ** 2).sum() for name in wanted)
    assert off < 0.05**2 * sum((gradient**2).sum() for gradient in wanted.values())


def test_dropout_has_a_key_of_its_own_for_each_matrix_and_step(tiny_model):
    method = LoRA(dropout=0.5, targets=("q", "k"))
    model = moved(methods.prepared(tiny_model, method))
    off = gradients(model, method)
    values = [gradients(model, method, key=jax.random.key(i)) for i in (0, 0, 1)]
    assert values[0][0] == values[1][0] != values[2][0]
    assert off[0] not in (values[0][0], values[2][0])
    assert all((values[0][1][name] == values[1][1][name]).all() for name in off[1])


@pytest.mark.parametrize("method", [Full(), LoRA()], ids=str)
def test_the_estimate_is_the_planners(tiny_model, method):
    ready = methods.prepared(tiny_model, method)
    said = methods.estimate(tiny_model, method, batch=4, context=16, remat="nothing kept")
    planned = planner_memory.needed(
        planner_memory.Setting(
            config=tiny_model.config, job="lora" if isinstance(method, LoRA) else "finetune",
            weights="float32", batch=4, context=16, data=1, model=1, rank=8, remat=True,
            activations="float32",
        )
    )  # fmt: skip
    strengths = 4 * 4 if isinstance(method, LoRA) else 0  # the adapters' own four numbers
    counts = 2 * 4  # steps, which the optimiser counts
    assert said.bytes["weights"] - strengths == planned["weights"]
    assert said.bytes["optimiser"] - counts == planned["optimiser"]
    for kind in ("gradients", "activations", "workspace"):
        assert said.bytes[kind] == planned[kind], kind
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(ready.network)))
    assert said.bytes["weights"] == held


def test_the_estimate_counts_what_is_trained(tiny_model):
    def of(method, **settings):
        return methods.estimate(tiny_model, method, batch=4, context=16, **settings)

    config = tiny_model.config
    one = operations(config, 16)
    assert of(Full()).trainable == of(Full()).total == config.num_parameters
    assert of(Full()).flops_per_token == one.training()
    again = of(Full(), remat="nothing kept")
    assert again.flops_per_token == one.training(recomputed=True)
    assert again.bytes["activations"] < of(Full(), remat="products kept").bytes["activations"]
    assert of(LoRA()).trainable == 2 * 2 * 8 * (32 + 32)
    assert of(SoftPrompt(length=5)).trainable == 5 * 32
    last = of(LastBlocks(count=1))
    assert last.bytes["activations"] * 2 == of(Full()).bytes["activations"]
    assert of(LastBlocks(count=1)).flops_per_token < of(LoRA()).flops_per_token < one.training()
    assert of(SoftPrompt()).flops_per_token > 2 * (one.forward + one.blocks)  # 16 tokens more
    parts = of(Full(), optimiser=Optimiser(accumulate=4))
    assert parts.bytes["activations"] * 4 == of(Full()).bytes["activations"]
    assert "Full trains 36,528 of 36,528 numbers (100.00%)" in str(of(Full()))
    small = dataclasses.replace(of(Full()), device=1000)
    assert not small.fits and "it does not fit" in str(small)


@pytest.mark.slow
@pytest.mark.parametrize("products", loss.PRODUCTS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_compiler_drops_what_a_method_does_not_need(method, products):
    """Operations of pocket's compiled step are those of the estimate: no gradient in vain."""
    model = gptj_lab.load()
    graph, trained, frozen = methods.split(methods.prepared(model, method).network, method)
    compiled = (
        jax.jit(lambda t, f, b: loss.gradients(graph, t, f, b, products=products))
        .lower(trained, frozen, batch_of())
        .compile()
    )
    said = methods.estimate(model, method, batch=ROWS, context=SEQ).flops_per_token
    if products == "float32":  # the backward pass makes the pieces' logits again
        said += 2 * model.config.vocab_size * model.config.d_model
    assert compiled.cost_analysis()["flops"] == pytest.approx(said * ROWS * SEQ, rel=0.06)


def test_the_estimate_on_a_mesh_is_of_one_device(tiny_model, tmp_path):
    tiny_model.save(tmp_path)
    mesh = gptj_lab.mesh(data=2, model=4)
    model = load(tmp_path, mesh=mesh)
    said = methods.estimate(model, Full(), batch=4, context=16)
    ready = methods.prepared(model, Full())
    _, trained, _ = methods.split(ready.network, Full())
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trained))
    assert said.bytes["weights"] == said.bytes["gradients"] == held
    assert said.bytes["optimiser"] < 1.1 * held  # two moments, each on half of the replicas


def test_rates_suit_method_and_width(tiny_model):
    def rate(method, **fields):
        return methods.tuned(Optimiser(**fields), tiny_model, method).learning_rate

    assert rate(Full()) == pytest.approx(5e-5 * (4096 / 32) ** 0.5, rel=0.1)
    assert rate(LoRA()) > rate(Full()) > rate(Full(), name="lion")
    assert rate(LoRA(), learning_rate=0.5) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LastBlocks(count=0), "count is 0: a whole number of at least 1"),
        (lambda: SoftPrompt(length=True), "length is True"),
        (lambda: SoftPrompt(text=""), "text is ''"),
    ],
)
def test_bad_fields_are_sentences(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_methods_that_do_not_suit_are_sentences(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="count is 3: the model has 2 blocks"):
        methods.prepared(tiny_model, LastBlocks(count=3))
    with pytest.raises(ValueError, match=r"adapter default, which Full would leave.*lora\.merged"):
        methods.prepared(lora.adapted(tiny_model, LoRA()), Full())
    with pytest.raises(ValueError, match="rank is 33, but q of 32 x 32 has 32 itself: give at"):
        methods.prepared(tiny_model, LoRA(rank=33))
    with pytest.raises(ValueError, match="length is 64, which leaves no room"):
        methods.prepared(tiny_model, SoftPrompt(length=64))
    with pytest.raises(ValueError, match=r"accumulate is 3.*of 4 rows: choose 1, 2, 4"):
        gradients(methods.prepared(tiny_model, LoRA()), LoRA(), accumulate=3)
    with pytest.raises(ValueError, match="products is 'int8': choose 'float32' or 'bfloat16'"):
        gradients(methods.prepared(tiny_model, LoRA()), LoRA(), products="int8")
    with pytest.raises(ValueError, match="remat is 'all'"):
        methods.estimate(tiny_model, Full(), batch=1, context=8, remat="all")
    tiny_model.save(tmp_path)
    for method in (Full(), LastBlocks()):
        with pytest.raises(ValueError, match=r"int8, which .* can't train: use LoRA"):
            methods.prepared(load(tmp_path, weights="int8"), method)
