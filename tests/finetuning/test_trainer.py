"""A compiled step = plain autodiff and plain Optax; broken steps change nothing; 8 devices = 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.finetuning import corpus, lora, methods
from gptj_lab.finetuning.packing import Batch
from gptj_lab.finetuning.trainer import Trainer
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.linear import Adapter
from gptj_lab.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("quick_compiles")

# Adam with a large eps: the update is then a smooth function of the gradient.
OPTIMISER = gptj_lab.Optimiser(
    learning_rate=0.5, schedule="constant", warmup_steps=0, weight_decay=0.0, clip=None, eps=1.0
)
DOCUMENTS = [
    {"text": text}
    for text in (
        "the cat sat on the mat",
        "a dog; naïve cats do.",
        "the log",
        "and the dog sat on it",
        "cats do sit on a log",
        "on the mat the dog sat and sat",
        "naïve dogs",
    )  # fmt: skip
]


@pytest.fixture(scope="module")
def model(tiny_config, tiny_tokenizer):
    config = tiny_config(num_layers=1, vocab_size=300)
    network = Transformer(config, key=jax.random.key(1))
    return LanguageModel(config, network, tiny_tokenizer, "tiny")


@pytest.fixture(scope="module")
def words(tiny_tokenizer, tmp_path_factory):
    return corpus.prepare(
        DOCUMENTS, tiny_tokenizer, context=24, held_out=0.0, cache=tmp_path_factory.mktemp("words")
    )


def plain_loss(network, batch):
    """Through whole logits and log_softmax, a function of the network alone."""
    logits, _ = network(
        batch.tokens[:, :-1], positions=jnp.asarray(batch.positions),
        segments=jnp.asarray(batch.segments),
    )  # fmt: skip
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], -1)[..., 0]
    return (nats * batch.weights).sum() / batch.weights.sum()


def flat_norm(tree):
    return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))


@pytest.mark.parametrize(
    ("method", "kind"),
    [(methods.Full(), nnx.Param), (lora.LoRA(targets=("q", "fc_out")), Adapter)],
    ids=["full", "lora"],
)
def test_steps_are_those_of_plain_autodiff_and_optax(model, words, method, kind):
    trainer = Trainer(model, method, OPTIMISER, steps=9, products="float32")
    graph, trained, frozen = nnx.split(methods.prepared(model, method).network, kind, ...)
    rule = optax.adam(0.5, eps=1.0)
    moments = rule.init(trained)
    gradient = jax.jit(
        jax.value_and_grad(lambda own, batch: plain_loss(nnx.merge(graph, own, frozen), batch))
    )
    batches = words.batches(2, seed=5)
    for _ in range(3):
        batch = next(batches)
        told = trainer.measures(trainer.step(trainer.put(batch)))
        loss, gradients = gradient(trained, batch)
        assert told.loss == pytest.approx(float(loss), rel=1e-5)
        assert told.gradient_norm == pytest.approx(float(flat_norm(gradients)), rel=1e-4)
        updates, moments = rule.update(gradients, moments, trained)
        trained = optax.apply_updates(trained, updates)
    expected = dict(nnx.to_flat_state(trained))
    found = dict(nnx.to_flat_state(nnx.state(trainer.snapshot().network, kind)))
    assert expected.keys() == found.keys()
    for path in expected:
        np.testing.assert_allclose(found[path][...], expected[path][...], atol=2e-5, err_msg=path)


def test_a_packed_loss_is_that_of_each_document_alone(model, words):
    trainer = Trainer(model, lora.LoRA(), OPTIMISER, steps=1)
    rows = [words.train.batch(np.arange(len(words.train)))]
    assert rows[0].segments.max() > 1  # some window holds several documents
    end = model.tokenizer.end_of_text_id
    nats, count = 0.0, 0
    for row in DOCUMENTS:
        ids = np.array([[end, *model.tokenizer.encode(row["text"]), end]])
        logits = jax.nn.log_softmax(model.logits(ids[:, :-1]))
        nats -= float(np.take_along_axis(np.asarray(logits), ids[:, 1:, None], -1).sum())
        count += ids.shape[1] - 1
    assert words.train.predictions == count
    assert trainer.loss(rows) == pytest.approx(nats / count, rel=1e-5)
    # In batches of any size, rows of padding among them.
    singles = (words.train.batch(np.array([i, -1])) for i in range(len(words.train)))
    assert trainer.loss(singles) == pytest.approx(nats / count, rel=1e-5)


def test_a_snapshot_stays_while_the_run_goes_on(model, words):
    trainer = Trainer(model, methods.Full(), OPTIMISER, steps=9)
    ids = np.arange(8)[None]
    before, begin = np.asarray(model.logits(ids)), trainer.snapshot()
    assert (np.asarray(begin.logits(ids)) == before).all()
    batch = trainer.put(words.train.batch(np.arange(2)))
    trainer.step(batch)
    later = trainer.snapshot()
    logits = np.asarray(later.logits(ids))
    for _ in range(3):
        trainer.step(batch)
    assert (np.asarray(begin.logits(ids)) == before).all()
    assert (np.asarray(later.logits(ids)) == logits).all() and not (logits == before).all()
    assert (np.asarray(model.logits(ids)) == before).all()


def test_a_step_that_is_no_number_changes_nothing_nor_does_any_after_it(model, words):
    trainer = Trainer(model, methods.LastBlocks(count=1), OPTIMISER, steps=9)
    good = words.train.batch(np.arange(2))
    poisoned = Batch(good.tokens, good.segments, good.positions, good.weights * np.nan)
    first = trainer.measures(trainer.step(trainer.put(good)))
    assert first.broken == -1
    before = jax.tree.map(np.asarray, trainer.arrays())
    told = [trainer.measures(trainer.step(trainer.put(each))) for each in (poisoned, good)]
    assert np.isnan(told[0].loss) and np.isfinite(told[1].loss)
    assert [each.broken for each in told] == [2, 2]
    jax.tree.map(np.testing.assert_array_equal, trainer.arrays(), before)
    trainer.restore(jax.tree.map(jnp.asarray, before))
    assert trainer.measures(trainer.step(trainer.put(good))).broken == -1
    assert int(trainer.arrays()["step"]) == 2


def test_dropout_is_a_function_of_seed_and_step(model, words):
    batch = words.train.batch(np.arange(2))

    def losses(seed, dropout=0.5):
        """Three times of the same weights: at step 1, at step 2, and without dropout."""
        method = lora.LoRA(rank=2, dropout=dropout, targets=("fc_out",))
        trainer = Trainer(model, method, OPTIMISER, steps=9, seed=seed)
        told = []
        for _ in range(2):
            trainer.take([jnp.ones_like(leaf) for leaf in trainer.kept()])  # b = 0 would hide it
            told.append(trainer.measures(trainer.step(trainer.put(batch))).loss)
        trainer.take([jnp.ones_like(leaf) for leaf in trainer.kept()])
        return *told, trainer.loss([batch])

    first, second, without = losses(0)
    assert len({first, second, without}) == 3
    assert losses(0) == (first, second, without)
    assert losses(1)[0] not in (first, second)


@pytest.mark.parametrize(
    "shape", [(2, 4), pytest.param((2, 1), marks=pytest.mark.slow)], ids=["8", "2"]
)
def test_a_mesh_has_the_losses_of_one_device(model, words, shape):
    method = lora.LoRA(rank=2, dropout=0.2, targets=("q", "fc_out"))

    def losses(mesh):
        placed = LanguageModel(model.config, model.network, model.tokenizer, "tiny", mesh)
        trainer = Trainer(placed, method, OPTIMISER, steps=9, products="float32")
        batches = words.batches(3, seed=1)  # 3 rows: `data` = 2 doesn't divide them
        told = [trainer.measures(trainer.step(trainer.put(next(batches)))).loss for _ in range(3)]
        return [*told, trainer.loss([words.train.batch(np.arange(2))])]

    assert losses(gptj_lab.mesh(*shape)) == pytest.approx(losses(None), rel=2e-5)


def test_bfloat16_weights_have_float32_masters_and_come_back_as_bfloat16(model, words, tmp_path):
    model.save(tmp_path)
    base = gptj_lab.load(tmp_path, weights="bfloat16")
    trainer = Trainer(base, methods.Full(), OPTIMISER, steps=9)
    batch = trainer.put(words.train.batch(np.arange(2)))
    losses = [trainer.measures(trainer.step(batch)).loss for _ in range(4)]
    assert losses[-1] < losses[0]
    leaves = jax.tree.leaves(trainer.arrays()["trained"])
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    assert trainer.snapshot().dtype == trainer.snapshot().weights == "bfloat16"
