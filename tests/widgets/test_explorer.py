"""The Explorer's Python half, driven by a front end made of messages."""

import base64
import dataclasses
import json
import time

import jax
import numpy as np
import pytest
from explorer_front import FrontEnd, array
from flax import nnx
from small_models import cases, changed, small_model

import gptj_lab
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import fingerprint, heads
from gptj_lab.lens.affine_lens import AffineLens
from gptj_lab.lens.interventions import Interventions, run
from gptj_lab.lens.jacobian_lens import jacobian_lens
from gptj_lab.lens.trace import Trace
from gptj_lab.model.transformer import Transformer
from gptj_lab.widgets import (
    explorer_answers,
    explorer_encoding,
    explorer_lens,
    explorer_requests,
)
from gptj_lab.widgets.explorer_reading import Reading
from gptj_lab.widgets.explorer_session import Session

A, B = "the cat sat on the mat, and the cat", "the dog sat on the mat, and the dog"
NAUGHTY = "<img src=x onerror=alert(1)><script>alert(1)</script> \x07\u202e🙂 $x^2$"


@pytest.fixture(scope="module")
def model():
    return small_model("gptj", num_layers=2)


@pytest.fixture
def front(model):
    return FrontEnd(gptj_lab.widgets.Explorer(model, A))


@pytest.fixture
def pair(model):
    return FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=B))


def ids_of(model, text):
    return np.array(model.tokenizer.encode(text), np.int32)


def pattern_of(model, text, layer, edits=None):
    name = f"blocks.{layer}.attn.pattern"
    return run(model, ids_of(model, text), edits, [name])[1][name]


# --- E1, E2, E3: prompt, overview, matrix ---


def test_hello_gives_the_tokens_the_thumbnails_and_the_next_ones(front, model):
    content, (small, logprobs, ids, chances) = front.one("hello", "ran")
    own = ids_of(model, A)
    seq, config = len(own), model.config
    assert content["ids"] == own.tolist() and content["prompt"] == A
    assert len(content["notes"]) == 1 and "were its weights loaded" in content["notes"][0]
    assert b"".join(map(model.tokenizer.token_bytes, content["ids"])).decode() == A
    assert [shown for shown, _ in content["tokens"]] == [model.tokenizer.display(i) for i in own]
    assert "".join(text for _, text in content["tokens"]) == A
    assert content["mode"] == "layer" and content["thumb"] == seq < 32
    tiles = array(small, "u8", config.num_layers, config.num_heads, seq * (seq + 1) // 2)
    for layer in range(config.num_layers):
        back = explorer_encoding.expand(explorer_encoding.untriangle(tiles[layer]))
        np.testing.assert_allclose(back, pattern_of(model, A, layer), atol=0.004)
    logits = run(model, own)[0]
    best = np.argsort(-logits[-1])[:10]
    assert array(ids, "i32", 10).tolist() == best.tolist()
    expected = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(array(chances, "f32", 10), expected[-1, best], atol=1e-5)
    said = array(logprobs, "f32", seq)
    assert np.isnan(said[0])
    np.testing.assert_allclose(said[1:], expected[np.arange(seq - 1), own[1:]], atol=1e-5)


def test_running_another_text_counts_and_makes_the_old_run_outdated(front):
    old = front.explorer._session.number
    content, _ = front.one("run", "ran", prompt="the dog sat")
    assert content["run"] == old + 1 == front.explorer._session.number
    assert front.explorer.prompt == "the dog sat"
    assert front.one("pattern", "outdated", layer=0, run=old)[0]["run"] == old + 1
    front.one("pattern", layer=0)


def test_what_the_first_run_compiled_is_told(model, monkeypatch):
    """Else a view takes the model for a slow one, and no longer reads on as one types."""
    before = Session.run

    def run_and_compile(*args):
        explorer_requests._COMPILED[0] += 7
        before(*args)

    monkeypatch.setattr(Session, "run", run_and_compile)
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A))
    assert front.one("hello", "ran")[0]["compiled"] >= 7
    assert front.one("run", "ran", prompt=A)[0]["compiled"] == 7


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (None, "NoneType"),
        ("a\ud800", "surrogate"),
        ("the cat sat " * 900, "more than the context of 64"),
    ],
)
def test_a_refused_prompt_leaves_everything_as_it_was(front, prompt, message):
    before = front.explorer.data
    assert message in front.error("run", prompt=prompt)
    assert front.explorer.prompt == A
    assert np.array_equal(front.explorer.data["pattern"], before["pattern"])
    front.one("pattern", layer=0)


def test_a_nan_inside_the_model_is_named(model):
    def spoil(network):
        network.blocks[1].mlp.fc_in.bias[...] = network.blocks[1].mlp.fc_in.bias[...] * np.nan

    with pytest.raises(ValueError, match="blocks.1.mlp.pre"):
        gptj_lab.widgets.Explorer(changed(model, spoil), A)


def test_untrusted_text_is_data_and_comes_back(front, model):
    content, _ = front.one("run", "ran", prompt=NAUGHTY)
    assert b"".join(map(model.tokenizer.token_bytes, content["ids"])).decode() == NAUGHTY
    assert all(shown.isprintable() for shown, _ in content["tokens"])
    assert all("\u202e" not in (text or "") for _, text in content["tokens"])
    bundle, metadata = front.explorer._repr_mimebundle_()
    assert "text/html" not in bundle
    assert NAUGHTY in metadata["image/png"]["alt"]


def test_the_alt_text_counts_the_interventions(front):
    for head, words in enumerate((" 1 intervention made.", " 2 interventions made.")):
        front.explorer.ablate(0, head)
        assert words in front.explorer._repr_mimebundle_()[1]["image/png"]["alt"]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layers_bytes_and_exact_rows_are_the_models_pattern(front, model, layer):
    content, (data,) = front.one("pattern", layer=layer, of="a")
    shares, seq = pattern_of(model, A, layer), len(ids_of(model, A))
    assert (content["first"], content["heads"], content["size"]) == (0, model.config.num_heads, seq)
    flat = array(data, "u8", model.config.num_heads, seq * (seq + 1) // 2)
    assert np.array_equal(flat, explorer_encoding.triangle(explorer_encoding.compand(shares)))
    told, (row,) = front.one("exact", layer=layer, head=2, query=5)
    np.testing.assert_allclose(array(row, "f32", 6), shares[2, 5, :6], atol=1e-6)
    key = int(shares[2, 5].argmax())
    assert f"reads {100 * shares[2, 5, key]:.0f} % from" in told["sentence"]
    _, (column,) = front.one("exact", layer=layer, head=2, key=3)
    np.testing.assert_allclose(array(column, "f32", seq - 3), shares[2, 3:, 3], atol=1e-6)
    without_sink = shares[2, 5, 1:6] / (1 - shares[2, 5, 0])
    np.testing.assert_allclose(without_sink.sum(), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (dict(op="pattern", layer=2), "layer is 2: a whole number from 0 to 1"),
        (dict(op="pattern"), "layer is None"),
        (dict(op="pattern", layer=0, of="c"), "of is 'c'"),
        (dict(op="pattern", layer=0, of="b"), "there is no B"),
        (dict(op="exact", layer=0, head=4, query=1), "head is 4"),
        (dict(op="exact", layer=0, head=0, query=99), "query is 99"),
        (dict(op="exact", layer=0, head=0, query=True), "query is True"),
        (dict(op="next", position=-1), "position is -1"),
        (dict(op="lens", start=0, stop=0.5), "stop"),
        (dict(op="lens_of", position=0, ids=[999999]), "token is 999999"),
        (dict(op="lens_of", position=0), "the request lacks 'ids'"),
        (dict(op="gradient", position=0, of="after"), "without interventions"),
        (dict(op="circuit", layer=0, head=0, token=1, kind="vo"), "kind is 'vo'"),
        (dict(op="sweep", what="magic"), "what is 'magic'"),
        (dict(op="sweep", what="heads"), "there is no B"),
        (dict(op="nonsense"), "doesn't know the request"),
        (dict(op="restore", state=[]), "the state is a list"),
        (dict(op="restore", state={}), "version None"),
        (dict(op=7), "a dictionary with an op"),
    ],
)
def test_what_is_wrong_is_a_sentence(front, message, said):
    assert said in front.error(**message)


def test_malformed_messages_do_not_raise(front):
    for message in (None, 3, [], {}, {"op": None}):
        front.explorer._receive(front.explorer, message, [])
    assert [content["op"] for content, _ in front.got] == ["error"] * 5


# --- E7, E8: next token, interventions ---


def follow(buffers):
    ids = array(buffers[0], "i32", -1)
    return ids, *(array(each, "f32", len(ids)) for each in buffers[1:])


@pytest.mark.parametrize(
    "edit",
    [
        dict(kind="head", layer=0, head=1, how="zero"),
        dict(kind="head", layer=1, head=3, how="mean"),
        dict(kind="head", layer=1, head=3, how="freeze"),
        dict(kind="head", layer=1, head=3, how="zero", positions=[2, 4]),
        dict(kind="mlp", layer=0, how="zero"),
        dict(kind="mlp", layer=1, how="mean"),
        dict(kind="edge", layer=1, head=2, query=6, key=1),
        dict(kind="patch", site="resid_pre", layer=1, position=1),
        dict(kind="patch", site="attn_out", layer=0, position=5, source=[1, 2]),
        dict(kind="patch_head", layer=0, head=2),
        dict(kind="steer", layer=0, scale=2.5),
    ],
    ids=lambda edit: "-".join(str(value) for value in edit.values()),
)
def test_an_intervention_gives_what_the_code_gives(model, edit):
    vector = np.linspace(-1, 1, model.config.d_model).astype(np.float32)
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=B, steer=vector))
    earlier = dict(kind="mlp", layer=0, how="zero")
    edits = [edit] if edit["kind"] == "mlp" else [earlier, edit]
    last = len(ids_of(model, A)) - 1
    content, buffers = front.one("intervene", "next", interventions=edits, position=last)
    ids, before, after, other, logits, logits_after = follow(buffers)
    front.explorer.select(layer=1, of="after")
    made = {"model": model, "vector": vector}
    exec(front.explorer.code(), made)
    np.testing.assert_allclose(made["logits"][ids], logits_after, atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(jax.nn.log_softmax(made["logits"]))[ids], after, atol=1e-5
    )
    np.testing.assert_allclose(made["pattern"], front.explorer.data["pattern"], atol=1e-6)
    np.testing.assert_allclose(run(model, ids_of(model, A))[0][-1][ids], logits, atol=1e-5)
    assert np.isfinite(other).all() and len(content["chips"]) == len(edits)
    assert content["kl"]["after"] > 1e-6 or edit.get("how") == "freeze"
    assert all(abs(total - 1) < 1e-4 for total in content["sums"].values())
    assert (np.diff(before) <= 0).all()


def test_nothing_changed_is_the_plain_pass_bit_for_bit(front):
    last = front.explorer._session.a.logits.shape[0] - 1
    edits = [dict(kind="head", layer=0, head=1)]
    content, _ = front.one("intervene", "next", interventions=edits, position=last)
    assert not np.array_equal(
        front.explorer._session.after.logits, front.explorer._session.a.logits
    )
    assert content["undoable"]
    content, buffers = front.one("undo", "next", position=last)
    assert not content["undoable"]
    assert content["interventions"] == [] and front.explorer.interventions == []
    _, _, after, _, logits, after_logits = follow(buffers)
    assert np.isnan(after).all() and np.isnan(after_logits).all()
    assert content["kl"] == {"after": None, "b": None}
    session = front.explorer._session
    none = Interventions.none(session.model, last + 1)
    again = Reading(session.model, session.a.ids, none)
    assert np.array_equal(again.logits, session.a.logits)
    assert np.array_equal(again.pattern(1), session.a.pattern(1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("L0H0", "'L0H0'"),
        (dict(kind="hed", layer=0), "its kind has to be one of head"),
        (dict(kind="head", layer=0, head=9), "head is 9"),
        (dict(kind="head", layer=0, head=1, how="gently"), "how is 'gently'"),
        (dict(kind="edge", layer=0, head=0, query=1, key=2), "key 2 comes after query 1"),
        (dict(kind="edge", layer=0, head=0, query=99, key=2), "query is 99"),
        (dict(kind="patch", site="logits", layer=0, position=0), "site is 'logits'"),
        (dict(kind="patch", layer=0, position=0), "takes its value from B"),
        (dict(kind="patch", layer=0, position=0, source=[9, 0]), "source's layer is 9"),
        (dict(kind="patch", layer=0, position=0, source=[0, 99]), "source's position is 99"),
        (dict(kind="patch", layer=0, position=0, source=3), "source is 3: [layer, position]"),
        (dict(kind="steer", layer=0), "no direction to steer along"),
        (dict(kind="steer", layer=0, scale="much"), "scale is 'much'"),
        (dict(kind="head", layer=0, head=1, positions=[64]), "positions is 64"),
        (dict(kind="head", layer=0, head=1, positions="all"), "positions are 'all'"),
    ],
)
def test_a_refused_intervention_changes_nothing(front, edit, message):
    first = dict(kind="head", layer=0, head=1, how="zero")
    front.one("intervene", "next", interventions=[first], position=0)
    assert message in front.error("intervene", interventions=[edit], position=0)
    assert front.explorer.interventions == [first]


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out"])
def test_a_value_put_in_its_own_place_changes_nothing_and_elsewhere_it_does(model, site):
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=A))
    for source, changes in ((None, False), ([1, 3], False), ([1, 2], True)):
        edit = dict(kind="patch", site=site, layer=1, position=3, source=source)
        content, _ = front.one("intervene", "next", interventions=[edit], position=3)
        assert (content["kl"]["after"] > 1e-6) == changes, (source, content["kl"])
    assert content["chips"] == [f"{site} 1 at 3 from B's layer 1 at 2"]


def test_a_head_that_is_named_twice_counts_once(front):
    edits = [dict(kind="head", layer=0, head=1, how=how) for how in ("zero", "mean")]
    content, _ = front.one("intervene", "next", interventions=edits, position=0)
    assert content["interventions"] == edits[1:]
    assert content["chips"] == ["L0H1 set to its mean"]


def test_no_click_compiles_anything(pair, model):
    """The first click of a kind may; after it neither another head, position, text nor layer."""
    seq = len(ids_of(model, A))

    def clicks(layer, head, position, prompt):
        pair.one("run", "ran", prompt=prompt, prompt_b=B)
        for how in ("zero", "mean", "freeze"):
            edits = [
                dict(kind="head", layer=layer, head=head, how=how),
                dict(kind="edge", layer=layer, head=head, query=position, key=1),
                dict(kind="mlp", layer=layer, how="mean", positions=[position]),
            ]
            pair.one("intervene", "next", interventions=edits, position=position)
        pair.one("pattern", layer=layer, of="after")
        pair.one("pattern", layer=layer, of="b-a")
        pair.one("exact", layer=layer, head=head, query=position)
        pair.one("next", position=position)
        pair.one("thumbs", of="after-a")
        pair.one("lens", start=0, stop=position + 1)
        pair.one("lens_of", position=position, ids=[position, 7])
        pair.one("attribute", "attribution", position=position, token=position)
        pair.one("ledger", position=position)
        pair.one("compare", "compared")
        sweep, _ = pair.one("sweep", what="ablate_heads", position=position)
        pair.one("sweep_next", "sweep", sweep=sweep["sweep"])

    clicks(0, 1, 3, A)
    before = explorer_requests.compiled()
    clicks(1, 3, seq - 1, A)
    clicks(0, 0, 5, "the dog sat on the log, and the dog")
    assert explorer_requests.compiled() == before


@pytest.mark.slow
def test_clicks_and_edits_are_answered_at_once():
    """On pocket, the quickest of ten: what else the machine does then counts little."""
    text = "Once upon a time there was a little girl named Lily. One day, Lily"
    front = FrontEnd(gptj_lab.widgets.Explorer(gptj_lab.load(), text))

    def click(i):
        head = dict(kind="head", layer=i % 6, head=i % 8)
        front.one("intervene", "next", interventions=[head], position=5)

    def edit(i):
        front.one("run", "ran", prompt=text + " and" * (i % 2))

    def switch(i):
        front.one("pattern", layer=i % 6)

    for act, most in ((click, 0.15), (edit, 0.15), (switch, 0.05)):
        act(0), act(1)
        compiled, times = explorer_requests.compiled(), []
        for i in range(10):
            begun = time.perf_counter()
            act(i)
            times.append(time.perf_counter() - begun)
        assert explorer_requests.compiled() == compiled
        assert min(times) < most, (act, times)


# --- E6, E9: lens and attribution ---


def test_the_lens_ends_with_the_models_output_exactly(front, model):
    seq, rows = len(ids_of(model, A)), model.config.num_layers + 1
    content, (ids, logprobs, entropy, kl) = front.one("lens", start=0, stop=seq)
    assert content["rows"] == ["0", "1", "output"]
    logits = run(model, ids_of(model, A))[0]
    own = np.asarray(jax.nn.log_softmax(logits))
    ids = array(ids, "i32", rows, seq, 5)
    assert np.array_equal(ids[-1, :, 0], logits.argmax(-1))
    told = array(logprobs, "f32", rows, seq, 5)
    np.testing.assert_allclose(told[-1], np.take_along_axis(own, ids[-1], -1), atol=1e-5)
    assert set(content["names"]) == {str(i) for i in ids.reshape(-1).tolist()}
    # Row 1 by hand: what block 1 reads, through the final LayerNorm and the head with its bias.
    _, values = run(model, ids_of(model, A), sites=["blocks.1.resid_pre"])
    by_hand = np.asarray(
        model.network.unembed(jax.numpy.asarray(values["blocks.1.resid_pre"][None]))[0]
    )
    said = np.asarray(jax.nn.log_softmax(by_hand))
    np.testing.assert_allclose(told[1], np.sort(said, -1)[:, :-6:-1], atol=1e-5)
    assert np.abs(model.network.head.bias[...]).max() > 0.1, "a bias that was left out would show"
    np.testing.assert_allclose(
        array(entropy, "f32", rows, seq)[1], -(np.exp(said) * said).sum(-1), atol=1e-4
    )
    divergence = (np.exp(own) * (own - said)).sum(-1)
    np.testing.assert_allclose(array(kl, "f32", rows, seq)[1], divergence, atol=1e-4)
    np.testing.assert_allclose(array(kl, "f32", rows, seq)[-1], 0, atol=1e-6)
    content, (followed, ranks) = front.one("lens_of", position=4, ids=[int(ids[-1, 4, 0]), 9])
    followed, ranks = array(followed, "f32", 2, rows), array(ranks, "i32", 2, rows)
    np.testing.assert_allclose(followed[:, -1], own[4, [ids[-1, 4, 0], 9]], atol=1e-5)
    np.testing.assert_allclose(followed[:, 1], said[4, [ids[-1, 4, 0], 9]], atol=1e-5)
    assert ranks[0, -1] == 0 and ranks[1, -1] == (own[4] > own[4, 9]).sum()


@pytest.fixture
def lenses(model):
    """A view with a tuned lens (any maps will do) and a second prompt."""
    layers, width = model.config.num_layers, model.config.d_model
    drawn = np.random.default_rng(0).normal(size=(layers, width, width + 1)).astype(np.float32)
    matrix = np.eye(width, dtype=np.float32) + 0.3 * drawn[..., 1:]
    weights = fingerprint.of_weights(model)
    tuned = AffineLens("tuned", matrix, drawn[..., 0], weights, np.zeros((0, layers), np.float32))
    explorer = gptj_lab.widgets.Explorer(model, A, compare=B, tuned_lens=tuned)
    return FrontEnd(explorer), tuned


def test_tuned_and_jacobian_lens_are_those_of_the_library(lenses, model):
    front, tuned = lenses
    assert front.explorer.about["lenses"] == ["logit", "tuned", "jacobian"]
    rows = model.config.num_layers + 1
    for of, text in (("a", A), ("b", B)):
        trace = Trace.of(model, text)
        seen = []
        for kind, whole in (("tuned", tuned.read(trace)), ("jacobian", jacobian_lens(trace))):
            content, (ids, logprobs, entropy, kl) = front.one(
                "lens", of=of, kind=kind, start=2, stop=6
            )
            assert content["kind"] == kind
            assert np.array_equal(array(ids, "i32", rows, 4, 5), whole.ids[:, 2:6])
            told = array(logprobs, "f32", rows, 4, 5)
            np.testing.assert_allclose(told, whole.logprobs[:, 2:6], atol=1e-4)
            np.testing.assert_allclose(array(kl, "f32", rows, 4), whole.kl[:, 2:6], atol=1e-4)
            seen.append(told[0])
            _, (followed, ranks) = front.one("lens_of", of=of, kind=kind, position=4, ids=[9, 11])
            expected = whole.of([9, 11])
            np.testing.assert_allclose(
                array(followed, "f32", 2, rows), expected.logprobs[:, :, 4], atol=1e-4
            )
            assert np.array_equal(array(ranks, "i32", 2, rows), expected.ranks[:, :, 4])
        assert np.abs(seen[0] - seen[1]).max() > 0.1, "the kinds would not be told apart"


def test_the_jacobian_lens_takes_each_derivative_once(lenses, monkeypatch):
    front, _ = lenses
    asked = []

    def counted(trace, top, positions):
        asked.append(list(positions))
        return jacobian_lens(trace, top, positions)

    monkeypatch.setattr(explorer_lens, "jacobian_lens", counted)
    for start, stop in ((0, 3), (1, 5), (0, 5)):
        front.one("lens", kind="jacobian", start=start, stop=stop)
    assert asked == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["logit", "tuned", "jacobian"])
def test_the_lens_that_is_shown_is_in_data_code_and_state(lenses, model, kind):
    front, tuned = lenses
    front.explorer.view = {"lens": kind}
    front.explorer.ablate(0, 1)
    for of in ("a", "b", "after", "b-a"):
        front.explorer.select(layer=1, query=4, of=of)
        made = {"model": model, "tuned_lens": tuned}
        exec(front.one("code")[0]["text"], made)
        data = front.explorer.data
        if kind == "jacobian" and of == "after":
            assert "lens" not in made and "lens_ids" not in data
            continue
        assert np.array_equal(made["lens"].ids[:, 0], data["lens_ids"])
        np.testing.assert_allclose(made["lens"].logprobs[:, 0], data["lens_logprobs"], atol=1e-4)
        np.testing.assert_allclose(made["logits"], data["logits"], atol=1e-5)
        own = np.asarray(jax.nn.log_softmax(data["logits"]))[data["lens_ids"][-1]]
        np.testing.assert_allclose(data["lens_logprobs"][-1], own, atol=1e-5)  # that run's output
    state = json.loads(json.dumps(front.explorer.state))
    again = gptj_lab.widgets.Explorer(model, tuned_lens=tuned, state=state)
    assert again.state == state and again.view["lens"] == kind
    assert np.array_equal(again.data["lens_ids"], front.explorer.data["lens_ids"])


def test_a_lens_that_cannot_be_is_a_sentence(front, lenses, model):
    assert front.explorer.about["lenses"] == ["logit", "jacobian"]
    assert "there is no tuned lens" in front.error("lens", kind="tuned", start=0, stop=2)
    assert "one of logit, tuned, jacobian" in front.error("lens", kind="other", start=0, stop=2)
    front.explorer.ablate(0, 1)
    text = front.error("lens", of="after", kind="jacobian", start=0, stop=2)
    assert "without interventions" in text
    _, tuned = lenses

    def doubled(network):
        weight = network.blocks[0].attn.q.weight
        weight[...] = 2 * weight[...]

    other = gptj_lab.widgets.Explorer(changed(model, doubled), A, tuned_lens=tuned)
    assert "other weights" in FrontEnd(other).error("lens", kind="tuned", start=0, stop=2)
    with pytest.raises(TypeError, match="tuned_lens is a str"):
        gptj_lab.widgets.Explorer(model, A, tuned_lens="lens")
    with pytest.raises(ValueError, match="tuned_lens is a jacobian lens"):
        gptj_lab.widgets.Explorer(model, A, tuned_lens=dataclasses.replace(tuned, kind="jacobian"))


@pytest.mark.parametrize("minus", [None, 11])
def test_the_attribution_sums_to_the_logit(front, model, minus):
    logits = run(model, ids_of(model, A))[0]
    content, (by_head, mlps, others) = front.one(
        "attribute", "attribution", position=6, token=9, minus=minus
    )
    by_head = array(by_head, "f32", model.config.num_layers, model.config.num_heads)
    whole = by_head.sum() + array(mlps, "f32", -1).sum() + array(others, "f32", -1).sum()
    expected = logits[6, 9] - (0 if minus is None else logits[6, minus])
    assert len(content["others"]) == len(others) // 4
    np.testing.assert_allclose([whole, content["total"], content["logit"]], expected, atol=1e-4)
    assert content["gap"] < 1e-4
    assert f"{content['gap']:.1e} apart" in content["sentence"]
    told = front.explorer.attribute(9, minus, 6)
    assert abs(told.total - content["total"]) < 1e-6
    front.explorer.ablate(0, 1)
    content, (by_head, *_) = front.one(
        "attribute", "attribution", position=6, token=9, minus=minus, of="after"
    )
    assert content["gap"] < 1e-4 and abs(content["logit"] - expected) > 1e-3
    assert array(by_head, "f32", 2, 4)[0, 1] == 0, "what is ablated has no share"


def test_scores_are_what_the_lens_says(front, model):
    content, (grids,) = front.one("scores", of="a")
    told = heads.scores(Trace.of(model, A))
    grids = array(grids, "f32", 5, 2, 4)
    for score, grid, name in zip(content["scores"], grids, heads.SCORES, strict=True):
        np.testing.assert_allclose(grid, told[name], atol=1e-5)
        assert score["low"] == grid.min() and score["high"] == grid.max()


def test_gradients_are_complete_where_they_promise_it(front):
    content, (scores,) = front.one("gradient", position=5, token=9, method="integrated")
    assert abs(content["sum"] - content["expected"]) < 1e-2
    assert not array(scores, "f32", -1)[6:].any(), "no token after the position counts"
    content, _ = front.one("gradient", position=5, token=9)
    assert content["expected"] is None


# --- E10, E11: sweeps, compare ---


def pulled(front, what, **more):
    """A sweep, asked on to its end."""
    content, _ = front.one("sweep", what=what, **more)
    grid = np.full(content["shape"], np.nan, np.float32)
    number, done = content["sweep"], 0
    while done < content["total"]:
        told, (cells,) = front.one("sweep_next", "sweep", sweep=number)
        assert told["from"] == done < told["done"]
        grid.reshape(-1)[told["from"] : told["done"]] = array(cells, "f32", -1)
        done = told["done"]
    return content, grid


@pytest.mark.parametrize("what, site", [("resid_pre", "resid_pre"), ("mlp_out", "mlp_out")])
def test_a_patching_sweep_is_each_patch_by_hand(pair, model, what, site):
    content, grid = pulled(pair, what)
    clean, corrupt = ids_of(model, A), ids_of(model, B)
    token, minus = content["token"], content["minus"]
    lead = "'{}' over '{}'".format(*map(model.tokenizer.display, (token, minus)))
    assert lead in content["sentence"]

    def difference(logits):
        return float(logits[-1, token] - logits[-1, minus])

    low, high = difference(run(model, corrupt)[0]), difference(run(model, clean)[0])
    layer, position = np.unravel_index(np.abs(grid).argmax(), grid.shape)
    _, values = run(model, clean, sites=[f"blocks.{layer}.{site}"])
    value = values[f"blocks.{layer}.{site}"][position]
    edits = Interventions.none(model, len(corrupt)).patch(site, layer, position, value)
    recovered = (difference(run(model, corrupt, edits)[0]) - low) / (high - low)
    np.testing.assert_allclose(grid[layer, position], recovered, atol=1e-3)
    assert not grid[:, 0].any(), "the prompts begin with the same token"
    assert np.array_equal(pair.explorer.sweep(what), grid)


def test_patching_every_token_of_the_first_layer_restores_the_answer(pair, model):
    differ = np.flatnonzero(ids_of(model, A) != ids_of(model, B))
    edits = [dict(kind="patch", site="resid_pre", layer=0, position=int(p)) for p in differ]
    pair.explorer.intervene(edits)
    session = pair.explorer._session
    np.testing.assert_allclose(session.after.logits, session.b.logits, atol=1e-4)


def test_an_ablation_sweep_is_each_ablation_by_hand_and_becomes_a_score(front, model):
    content, grid = pulled(front, "ablate_heads", token=9)
    plain = run(model, ids_of(model, A))[0]
    edits = Interventions.none(model, len(plain)).ablate_head(1, 2)
    change = run(model, ids_of(model, A), edits)[0][-1, 9] - plain[-1, 9]
    np.testing.assert_allclose(grid[1, 2], change, atol=1e-4)
    told, (scores,) = front.one("scores", of="a")
    assert told["scores"][-1]["name"] == "ablation"
    assert np.array_equal(array(scores, "f32", -1)[-grid.size :], grid.reshape(-1))
    _, mlps = pulled(front, "ablate_mlps", token=9)
    edits = Interventions.none(model, len(plain)).ablate_mlp(1)
    change = run(model, ids_of(model, A), edits)[0][-1, 9] - plain[-1, 9]
    np.testing.assert_allclose(mlps, np.array([[mlps[0, 0]], [change]]), atol=1e-4)


def test_an_old_sweep_is_outdated(front):
    old, _ = front.one("sweep", what="ablate_heads")
    new, _ = front.one("sweep", what="ablate_mlps")
    front.one("sweep_next", "outdated", sweep=old["sweep"])
    front.one("sweep_next", "sweep", sweep=new["sweep"])
    front.one("run", "ran", prompt=A)
    front.one("sweep_next", "outdated", sweep=new["sweep"])


def test_the_same_model_and_text_do_not_differ(model):
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=model))
    content, (moved, ours, theirs, kl) = front.one("compare", "compared")
    assert content["kind"] == "model" and content["aligned"]
    assert not array(moved, "f32", -1).any() and not array(kl, "f32", -1).any()
    assert content["top"] == [] and content["sentence"].startswith("No head moved")
    assert ours == theirs
    content, (data,) = front.one("pattern", layer=1, of="b-a")
    assert content["signed"] and set(array(data, "u8", -1).tolist()) == {128}


def test_a_tuned_model_shows_which_head_moved(model):
    network = nnx.merge(*nnx.split(model.network))
    weight = network.blocks[1].attn.q.weight
    size = model.config.d_head
    turned = np.array(weight[...])
    turned[2 * size : 3 * size] *= -1  # head 2 of layer 1 looks for the opposite
    network.blocks[1].attn.q.weight = nnx.Param(jax.numpy.asarray(turned))
    tuned = LanguageModel(model.config, network, model.tokenizer, "tuned")
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=tuned))
    assert front.explorer.about["compare"] == "model"
    content, (moved, *_) = front.one("compare", "compared")
    moved = array(moved, "f32", 2, 4)
    assert content["top"][0][:2] == (1, 2) and moved[1, 2] > 0.1
    assert np.abs(np.delete(moved.reshape(-1), 6)).max() < 1e-3
    told, _ = front.one("scores", of="a")
    assert told["scores"][-1]["name"] == "moved"
    assert "patching puts one prompt's values" in front.error("sweep", what="heads")


def test_texts_of_unequal_length_stand_side_by_side(model):
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare="the dog"))
    content, _ = front.one("hello", "ran")
    assert content["compare"]["aligned"] is False
    notes = " ".join(content["notes"])
    ours, theirs = (model.tokenizer.display(ids_of(model, text)[1]) for text in (A, "the dog"))
    assert "not subtracted" in notes and "They part at position 1" in notes
    assert f"|{ours}|" in notes and f"|{theirs}|" in notes
    front.one("pattern", layer=0, of="b")
    assert "only texts of as many tokens" in front.error("pattern", layer=0, of="b-a")
    assert np.isnan(array(front.one("compare", "compared")[1][0], "f32", -1)).all()
    edits = [dict(kind="patch", layer=0, position=0)]
    assert "the A prompt has" in front.error("intervene", interventions=edits)
    with pytest.raises(ValueError, match="They part at position 1"):
        front.explorer.sweep("resid_pre")
    last = len(ids_of(model, A)) - 1
    front.explorer.select(of="b", query=last)  # B ends before: its last token stands for that
    found = {"model": model}
    exec(front.explorer.code(), found)
    assert np.array_equal(found["logits"], front.explorer.data["logits"])
    turned = FrontEnd(gptj_lab.widgets.Explorer(model, "the dog", compare=A))
    turned.one("next", position=last)  # a token that only B has
    assert "whole number from 0" in turned.error("next", position=last + 1)


def test_what_cannot_be_compared_is_refused(model):
    other = small_model("gptj", num_layers=3)
    with pytest.raises(ValueError, match="differ in"):
        gptj_lab.widgets.Explorer(model, A, compare=other)
    with pytest.raises(TypeError, match="compare is a int"):
        gptj_lab.widgets.Explorer(model, A, compare=3)


# --- E12, E13: generation, GPT-J's specials ---


def test_generated_tokens_are_read_as_they_were_made(front, model):
    front.one("generate", "generated", max_new_tokens=6, temperature=0.0, seed=0)
    ids = []
    while True:
        content, _ = front.one("generate_next", "generated")
        ids += content["ids"]
        if content["last"]:
            break
    expected = model.generate(A, max_new_tokens=6, temperature=0.0)[0].token_ids
    assert ids == expected
    told, _ = front.one("hello", "ran")
    own = ids_of(model, A).tolist()
    assert told["ids"] == own + ids and told["prompt_tokens"] == len(own) and told["prompt"] == A
    made = {"model": model}
    exec(front.explorer.code(), made)
    np.testing.assert_allclose(made["pattern"], front.explorer.data["pattern"], atol=1e-6)
    again = gptj_lab.widgets.Explorer(model, state=json.loads(json.dumps(front.explorer.state)))
    assert again.data["token_ids"].tolist() == own + ids


def test_stopping_keeps_what_was_made(front):
    front.one("generate", "generated", max_new_tokens=40)
    made, _ = front.one("generate_next", "generated")
    assert front.one("generate_stop", "generated")[0]["last"]
    session = front.explorer._session
    assert session.a.ids[len(session.a) - session.made :].tolist() == made["ids"]
    front.one("generate_next", "outdated")


def test_rotary_parts_sum_to_the_scores_and_move_with_the_distance(front, model):
    content, (wavelengths, scores, curve) = front.one("rotary", layer=1, head=2, query=7, key=3)
    pairs = model.config.d_rotary // 2
    query, key = (model.tokenizer.display(int(ids_of(model, A)[at])) for at in (7, 3))
    assert content["sentence"].startswith(f"How '{query}' (7) would read '{key}' (3) from other")
    assert len(wavelengths) == 4 * pairs
    name = "blocks.1.attn.scores"
    whole = run(model, ids_of(model, A), sites=[name])[1][name][2, 7, :8]
    scores = array(scores, "f32", pairs + 1, 8)
    np.testing.assert_allclose(scores.sum(0), whole, atol=1e-4)
    curve = array(curve, "f32", pairs + 1, content["distances"])
    np.testing.assert_allclose(curve[:, 4], scores[:, 3], atol=1e-4)
    assert np.ptp(curve[-1]) == 0, "what isn't rotated doesn't know the distance"


def test_the_ledger_is_what_the_block_writes(front, model):
    content, (norms, ids, logits) = front.one("ledger", position=6)
    sites = [f"blocks.1.{site}" for site in ("resid_pre", "attn_out", "mlp_out")]
    _, values = run(model, ids_of(model, A), sites=sites)
    rows = [values[site][6] for site in sites]
    cosine = rows[1] @ rows[2] / np.linalg.norm(rows[1]) / np.linalg.norm(rows[2])
    expected = [*map(np.linalg.norm, rows), cosine]
    np.testing.assert_allclose(array(norms, "f32", 2, 4)[1], expected, rtol=1e-4)
    assert content["parallel"] and content["sentence"].startswith("Attention and MLP read the same")
    assert array(ids, "i32", 2, 2, 3).shape == array(logits, "f32", 2, 2, 3).shape


def test_circuits_name_tokens(front):
    for kind in ("qk", "ov"):
        content, (ids, values, low_ids, low) = front.one(
            "circuit", layer=0, head=1, kind=kind, token=9
        )
        assert (np.diff(array(values, "f32", 10)) <= 0).all()
        assert (np.diff(array(low, "f32", 10)) >= 0).all()
        wanted = {"9", *map(str, array(ids, "i32", 10)), *map(str, array(low_ids, "i32", 10))}
        assert set(content["names"]) == wanted


def test_a_typed_token_is_named(front, model):
    ids = model.tokenizer.encode(" cat")
    content, _ = front.one("token", text=" cat")
    assert content["ids"] == ids and content["whole"] == (len(ids) == 1)
    content, _ = front.one("token", text="the cat sat")
    assert not content["whole"] and "the first is meant" in content["note"]


# --- E14, E15, E18: state, pin, size, limits, stale ---


def test_code_gives_the_data(pair):
    for of in ("a", "b", "b-a", "after-a"):
        pair.explorer.intervene([dict(kind="patch", site="mlp_out", layer=0, position=2)])
        pair.explorer.select(layer=1, head=3, query=4, of=of)
        made = {"model": pair.explorer._session.model}
        exec(pair.one("code")[0]["text"], made)
        data = pair.explorer.data
        np.testing.assert_allclose(made["pattern"], data["pattern"], atol=1e-6)
        np.testing.assert_allclose(made["logits"], data["logits"], atol=1e-5)


def test_the_state_makes_another_explorer_the_same(pair, model):
    pair.explorer.select(layer=1, head=2, query=3, key=1, of="after")
    pair.explorer.ablate(0, 1, "mean")
    pair.explorer.view = {"pane": "lens", "pinned": [5]}
    state = json.loads(json.dumps(pair.one("state")[0]["state"]))
    other = gptj_lab.widgets.Explorer(model, state=state)
    assert other.state == state == pair.explorer.state
    for name in ("pattern", "logits", "token_ids"):
        assert np.array_equal(other.data[name], pair.explorer.data[name])
    fresh = FrontEnd(gptj_lab.widgets.Explorer(model, "the dog"))
    fresh.one("restore", "ran", state=state)
    assert fresh.explorer.state == state


def test_a_script_that_changes_something_tells_the_view(front):
    front.explorer.run("the dog sat")
    front.explorer.ablate(1, 2)
    front.explorer.undo()
    told = [content for content, _ in front.got]
    assert told == [{"op": "changed", "req": "", "run": 2}] * 3
    front.explorer.ablate(1)
    assert front.one("hello", "ran")[0]["undoable"], "what the script did, the view can undo"
    front.one("undo", "next")
    assert front.explorer.interventions == []


def test_a_shorter_text_forgets_positions_and_edits_beyond_it(front):
    front.explorer.select(query=8, key=2)
    edge = dict(kind="edge", layer=0, head=0, query=8, key=2)
    front.explorer.intervene([edge, dict(kind="mlp", layer=0)])
    content, _ = front.one("run", "ran", prompt="the cat sat")
    assert front.explorer.selection["query"] is None
    assert content["interventions"] == [dict(kind="mlp", layer=0, how="zero")]
    assert any("1 intervention doesn't fit" in note for note in content["notes"])


def test_the_notebook_grows_by_less_than_80_kb(model):
    explorer = gptj_lab.widgets.Explorer(model, "the cat sat on the mat, and the cat. " * 5)
    data, metadata = explorer._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and "text/html" not in data
    alt = metadata["image/png"]["alt"]
    assert "attention of 2 layers with 4 heads" in alt and "reads" in alt
    saved = data | {"image/png": base64.b64encode(data["image/png"]).decode()}
    assert len(json.dumps([saved, metadata])) <= 80_000
    state = {name: value for name, value in explorer.get_state().items() if name[0] != "_"}
    assert len(json.dumps(state)) < 4_000, "no array is a trait"


def test_pin_leaves_a_picture_with_alt_text(front, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **more: shown.append((args, more)))
    front.explorer.pin()
    ((data,), more) = shown[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert more["metadata"]["image/png"]["alt"] == data["text/plain"]
    content, (picture,) = front.one("pin", "pinned")
    assert picture == data["image/png"] and content["alt"] == data["text/plain"]
    assert not content["below"], "no cell has shown the view"


def test_the_views_pin_fills_the_output_below_it(front, monkeypatch):
    class Shell(list):
        def display(self, data, **more):
            self.append((data, more))
            return self if more.get("display_id") else None

        update = display

    shell = Shell()
    monkeypatch.setattr("IPython.display.display", shell.display)
    front.explorer._ipython_display_()
    (shown, more), (empty, _) = shell
    assert "application/vnd.jupyter.widget-view+json" in shown and empty == {"text/plain": ""}
    assert more["metadata"]["image/png"]["alt"] == shown["text/plain"]
    front.explorer.select(layer=1, head=2)
    content, (picture,) = front.one("pin", "pinned")
    data, more = shell[-1]
    assert content["below"] and len(shell) == 3
    assert data == {"image/png": picture, "text/plain": content["alt"]}
    assert more == {"raw": True, "metadata": {"image/png": {"alt": content["alt"]}}}
    assert "head 2 of layer 1" in content["alt"]


def test_weights_that_change_make_the_view_stale(tiny_config, tiny_tokenizer):
    network = Transformer(tiny_config(), key=jax.random.key(3))
    model = LanguageModel(tiny_config(), network, tiny_tokenizer, "tuned in place")
    front = FrontEnd(gptj_lab.widgets.Explorer(model, A))
    front.one("next", position=3)
    weight = model.network.blocks[0].attn.q.weight
    weight[...] = 2 * weight[...]
    content, _ = front.one("next", "stale", position=3)
    assert "weights have changed" in content["text"] == front.explorer.stale
    with pytest.raises(ValueError, match="stale"):
        front.explorer.ablate(0, 1)
    front.one("run", "ran", prompt=A)
    assert front.explorer.stale == ""
    front.one("next", position=3)
    model.network = Transformer(tiny_config(), key=jax.random.key(4))
    front.one("next", "stale", position=3)


def test_only_the_last_explorers_hold_arrays(model):
    first = FrontEnd(gptj_lab.widgets.Explorer(model, A, compare=B))
    first.explorer.ablate(0, 1)
    first.explorer.select(layer=1, of="after")
    before = first.explorer.data
    held = [gptj_lab.widgets.Explorer(model, A) for _ in range(6)]
    assert sum(each._session._runs is not None for each in [first.explorer, *held]) == 4
    assert first.explorer._session._runs is None
    after = first.explorer.data
    assert all(np.array_equal(after[name], before[name]) for name in ("pattern", "logits"))
    assert sum(each._session._runs is not None for each in [first.explorer, *held]) == 4
    first.one("compare", "compared")


def test_a_restarted_kernel_is_another_session(front, monkeypatch):
    pong, _ = front.one("ping", "pong")
    assert pong["session"] == front.explorer.about["session"]
    monkeypatch.setattr(explorer_requests, "SESSION", "another")
    assert front.one("ping", "pong")[0]["session"] != front.explorer.about["session"]


def test_an_error_of_the_device_leaves_the_kernel_alive(front, monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setitem(explorer_answers._ANSWERS, "next", fails)
    assert "out of memory" in front.error("next", position=0)
    front.one("pattern", layer=0)


@pytest.fixture(scope="module")
def long_model(tiny_config, tiny_tokenizer):
    config = dataclasses.replace(tiny_config(), context=2048)
    network = Transformer(config, key=jax.random.key(1))
    return LanguageModel(config, network, tiny_tokenizer, "long")


@pytest.mark.parametrize(
    ("tokens", "mode", "size"),
    [pytest.param(700, "head", 700, marks=pytest.mark.slow), (2048, "pooled", 512)],
)
def test_long_texts_are_sent_by_head_or_pooled_and_say_so(long_model, tokens, mode, size):
    words = (" cat sat on the mat, and the dog" * 300).strip()
    ids = long_model.tokenizer.encode(words)[:tokens]
    text = long_model.tokenizer.decode(ids)
    front = FrontEnd(gptj_lab.widgets.Explorer(long_model, text))
    content, (small, *_) = front.one("hello", "ran")
    assert abs(len(content["ids"]) - tokens) < 2 and content["mode"] == mode
    assert any("attention is fetched" in n or "512 x 512 cells" in n for n in content["notes"])
    seq = len(content["ids"])
    assert len(small) == 2 * 4 * 32 * 33 // 2
    told, (data,) = front.one("pattern", layer=1, head=3)
    size = seq if mode == "head" else size
    assert (told["first"], told["heads"], told["size"], told["mode"]) == (3, 1, size, mode)
    tile = array(data, "u8", size * (size + 1) // 2)
    _, (row,) = front.one("exact", layer=1, head=3, query=seq - 1)
    row = array(row, "f32", seq)
    np.testing.assert_allclose(row.sum(), 1, atol=1e-4)
    top = explorer_encoding.untriangle(tile)[-1].max()
    assert explorer_encoding.compand(row.max(keepdims=True)) <= top
    front.one("lens", start=seq - 128, stop=seq)
    front.one("rotary", layer=0, head=1, query=seq - 1)
    front.one("ledger", position=seq - 1)
    edits = [dict(kind="edge", layer=0, head=0, query=seq - 1, key=0)]
    front.one("intervene", "next", interventions=edits, position=seq - 1)


@pytest.mark.slow
def test_the_first_picture_of_28_layers_and_256_tokens_is_below_a_megabyte():
    model = small_model(
        "gptj", num_layers=28, num_heads=16, d_model=128, d_ff=128, d_rotary=4, context=256
    )
    text = model.tokenizer.decode(model.tokenizer.encode("the cat sat on the mat, and " * 99)[:256])
    front = FrontEnd(gptj_lab.widgets.Explorer(model, text))
    answers = [front.one("hello", "ran"), front.one("pattern", layer=0)]
    assert len(answers[0][0]["ids"]) == 256 and answers[0][0]["mode"] == "layer"
    sizes = [len(json.dumps(content)) + sum(map(len, data)) for content, data in answers]
    assert sum(sizes) <= 1_000_000
    data, metadata = front.explorer._repr_mimebundle_()
    assert len(base64.b64encode(data["image/png"])) + len(json.dumps(metadata)) <= 80_000


# --- Every family ---


@pytest.mark.parametrize(
    "kind", cases(slow=["gpt_neo", "gpt_neox", "gpt2", ("gptj", "int8", 2, 2)])
)
def test_every_family_int8_and_a_mesh(kind):
    model = small_model(*kind, num_layers=2)
    front = FrontEnd(gptj_lab.widgets.Explorer(model, "the cat sat on the mat"))
    edits = [dict(kind="head", layer=0, head=1), dict(kind="mlp", layer=1, how="mean")]
    content, _ = front.one("intervene", "next", interventions=edits, position=2)
    assert content["kl"]["after"] > 0
    front.explorer.select(layer=1, of="after")
    made = {"model": model}
    exec(front.explorer.code(), made)
    np.testing.assert_allclose(made["pattern"], front.explorer.data["pattern"], atol=1e-5)
    front.one("lens", start=0, stop=3)
    front.one("ledger", position=2)
    if model.config.positions == "learned":
        assert "positions are learned" in front.error("rotary", layer=0, head=0, query=1)
