"""The pocket recipe: deterministic, resumable bit for bit, and honest about what it holds out."""

import json
import math
import random
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gptj_lab
from gptj_lab.finetuning import mixture, pocket
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import Tokenizer, train_bpe

TINY = dict(
    batch=2, d_model=16, num_layers=1, num_heads=2, d_rotary=4, context=16, vocab_size=300,
    warmup_steps=2,
)  # fmt: skip
WORDS = "once a king and his fox went over the old hill to see the moon and the sea".split()


def tale(seed, length=60):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(length))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    stories = "<|endoftext|>".join(tale(seed) for seed in range(40))
    (folder / "tales_train.txt").write_text(stories)
    (folder / "tales_val.txt").write_text(tale(999))
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(texts, tmp_path):
    lines = []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pocket.train_pocket(texts, whole, steps=6, export_to=whole / "model", say=lines.append, **TINY)
    assert pocket.train_pocket(texts, parts, steps=6, max_minutes=0.0, say=lines.append, **TINY) < 6
    while pocket.train_pocket(texts, parts, steps=6, max_minutes=0.0, say=str, **TINY) < 6:
        pass
    assert pocket.export(parts, parts / "model", averaged=True)["averaged"]
    assert weights(whole / "model") == weights(parts / "model")
    assert any("bits per byte" in line and "tokens/s" in line for line in lines)
    assert any("stopped at step" in line for line in lines)
    history = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    assert any(math.isfinite(line.get("loss", math.nan)) for line in history)


@pytest.mark.slow
def test_a_finished_run_is_extended_from_before_the_rate_fell(texts, tmp_path):
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    for out, plans in ((straight, [(8, 2)]), (extended, [(4, 2), (8, 2)])):
        for steps, fall in plans:
            pocket.train_pocket(texts, out, steps=steps, decay_steps=fall, say=str, **TINY)
        pocket.export(out, out / "model", averaged=False)
    assert weights(straight / "model") == weights(extended / "model")


def test_the_export_loads_and_its_measures_are_those_of_what_lies_there(
    short_library, texts, tmp_path
):
    out = tmp_path / "out"
    pocket.train_pocket(texts, out, steps=3, say=str, **TINY)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("a card")
    measures = pocket.export(out, tmp_path / "model")
    model = gptj_lab.load(tmp_path / "model")
    again = pocket.bits_per_byte(
        model.network, model.tokenizer, pocket.validation_documents(texts), context=16
    )
    assert again == pytest.approx(measures["tales"]["bits_per_byte"], rel=1e-4)
    assert measures == json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert measures["held_out_modules"] == list(pocket.HELD_OUT_MODULES)
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
    assert model.sampling_defaults == gptj_lab.load().sampling_defaults != {}
    assert model.generate("once a king", max_new_tokens=3)[0].token_ids
    bits = {}
    for averaged in (True, False):
        found = pocket.export(out, tmp_path / str(averaged), averaged=averaged)
        bits[averaged] = found["tales"]["bits_per_byte"] + found["code"]["bits_per_byte"]
    assert weights(tmp_path / "True") != weights(tmp_path / "False")
    assert measures["averaged"] == (bits[True] <= bits[False]), "the texts are all of the samples"


def test_bits_per_byte_is_the_sum_of_every_token_given_what_came_before(tiny_config):
    tokenizer = train_bpe([tale(1) + " "], 300)
    config = tiny_config(vocab_size=300, context=16, d_model=16, num_layers=1, num_heads=2)
    network = Transformer(config, key=jax.random.key(0))
    short = "the fox and the king"  # within one window
    ids = [0, *tokenizer.encode(short)]
    assert len(ids) <= 17
    logprobs = jax.nn.log_softmax(network(jnp.array([ids]))[0], -1)[0]
    nats = -sum(float(logprobs[i, token]) for i, token in enumerate(ids[1:]))
    expected = nats / math.log(2) / len(short.encode())
    found = pocket.bits_per_byte(network, tokenizer, [short], context=16)
    assert found == pytest.approx(expected, rel=1e-5)
    # A network that knows nothing needs log2(vocab) bits a token, however the text is cut.
    state = nnx.state(network)
    blank = nnx.merge(nnx.split(network)[0], jax.tree.map(np.zeros_like, state))
    long = tale(3, 200)
    count = len(tokenizer.encode(long))
    found = pocket.bits_per_byte(blank, tokenizer, [long], context=16)
    assert found == pytest.approx(count * math.log2(300) / len(long.encode()), rel=1e-5)
    with pytest.raises(ValueError, match="texts are empty"):
        pocket.bits_per_byte(network, tokenizer, [])


def test_windows_are_a_function_of_seed_and_step_and_take_each_place_once_an_epoch():
    tokens = np.arange(1000, dtype=np.uint16)
    count = (1000 - 1) // 10 - 1
    rows = [mixture.windows(tokens, seed=1, step=s, batch=7, context=10) for s in range(count // 7)]
    starts = np.concatenate([row[:, 0] for row in rows])
    assert len(set(starts.tolist())) == len(starts)
    assert all((row[:, 1:] - row[:, :-1] == 1).all() for row in rows)
    again = mixture.windows(tokens, seed=1, step=3, batch=7, context=10)
    assert (again == rows[3]).all()
    assert (mixture.windows(tokens, seed=2, step=3, batch=7, context=10) != again).any()
    with pytest.raises(ValueError, match="too short for windows of 256"):
        mixture.windows(tokens[:300], seed=0, step=0, batch=1, context=256)


def test_nothing_held_out_is_trained_on(texts, tmp_path):
    (tmp_path / "b_train.txt").write_text(f"{tale(5)}\n\n{tale(999)}\n\n{tale(6)}" * 200)
    (tmp_path / "b_val.txt").write_text(tale(999))
    stories, code = pocket.story_documents(tmp_path), pocket.code_documents()
    # Whole modules: lines of them stand in others too, in another number in each Python.
    assert not set(pocket.held_out_documents()) & set(code)
    assert len(code) > 200 and code == pocket.code_documents() != pocket.code_documents(seed=1)
    assert not any(tale(999) in doc for doc in stories), "a validation text printed again"
    assert any(tale(6) in doc for doc in stories)


def plan_of(*phases, **sources):
    return mixture.Plan(
        sources={name: mixture.Source(files=(name,)) for name in sources or ("stories",)},
        phases=[mixture.Phase(until=u, context=c, rows=rows) for u, c, rows in phases],
    )


def test_every_step_mixes_stories_and_code_in_the_share_that_was_asked_for():
    tokens = {
        "stories": np.arange(1000, dtype=np.uint16),
        "code": np.arange(2000, 2500, dtype=np.uint16),
    }
    plan = plan_of((3, 10, {"stories": 5, "code": 2}), (9, 20, {"stories": 2, "code": 0}))
    for step in range(3):
        rows = mixture.mixed_windows(plan, tokens, seed=1, step=step)
        assert ((rows >= 2000).all(1) == np.array([False] * 5 + [True] * 2)).all()
    longer = mixture.mixed_windows(plan, tokens, seed=1, step=4)
    assert longer.shape == (2, 21) and (longer < 1000).all()
    where = dict(seed=1 + 7919, step=1, batch=2, context=20)
    assert (longer == mixture.windows(tokens["stories"], **where)).all(), "step 1 of its phase"
    assert plan.at(8) == (1, plan.phases[1], 5) and plan.phases[1].tokens == 40
    with pytest.raises(ValueError, match="ends with step 9: there is no phase for step 9"):
        plan.at(9)


def test_a_plan_that_makes_no_sense_is_refused(tmp_path):
    for phases, message in (
        ([], "no phases"),
        ([(3, 10, {"storys": 1})], "reads 'storys': the sources are"),
        ([(3, 10, {"stories": -1})], "reads -1 rows"),
        ([(3, 10, {"stories": 0})], "reads nothing"),
        ([(3, 10, {"stories": 1}), (3, 10, {"stories": 1})], "until step 3, the one before 3"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_of(*phases)
    file = tmp_path / "plan.json"
    for text in (
        "{",
        "[]",
        '{"sources": {}}',
        '{"sources": {"code": {"files": []}}, "phases": []}',
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"plan\.json is no plan"):
            mixture.read_plan(file)


def test_a_run_waits_while_the_pause_file_is_there_unless_it_is_stopped(tmp_path):
    stop, file = threading.Event(), tmp_path / "pause"
    assert pocket._pause(tmp_path, stop) < 0.4
    file.touch()
    threading.Timer(0.2, file.unlink).start()
    assert 0.4 < pocket._pause(tmp_path, stop), "it looks twice a second"
    file.touch()
    stop.set()
    assert pocket._pause(tmp_path, stop) < 0.4


def test_several_folders_and_python_of_packages_are_read(short_library, texts, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "tales_more.txt").write_text(tale(77) + "\n\n" + tale(999))
    folders = [texts, tmp_path / "more"]
    stories = pocket.story_documents(folders)
    assert tale(77) in stories[-1] and tale(999) not in stories[-1], "held out in the other folder"
    chosen = pocket.story_documents(folders, mixture.Source(files=("*_more",)))
    assert chosen == stories[-1:]
    with pytest.raises(FileNotFoundError, match=r"no text to train on in \('poems',\)"):
        pocket.story_documents(folders, mixture.Source(files=("poems",)))
    held_out = pocket.held_out_documents()[0]
    (tmp_path / "code").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.txt files: make them by code_corpus"):
        pocket.code_documents(code_dir=tmp_path / "code")
    (tmp_path / "code" / "a.txt").write_text("x = 'mine'\n<|endoftext|>" + held_out)
    library, both = pocket.code_documents(), pocket.code_documents(code_dir=tmp_path / "code")
    assert sorted(both) == sorted([*library, "x = 'mine'\n"]), "bisect is held out there too"


def test_documents_longer_than_a_source_takes_are_left_out(tmp_path):
    tokenizer = train_bpe([tale(1)], 300)
    pocket._save_tokens(tmp_path / "a.npy", tokenizer, [tale(2, 5), tale(3, 200), tale(4, 5)], 60)
    ids = [tokenizer.encode(tale(seed, 5)) for seed in (2, 4)]
    assert np.load(tmp_path / "a.npy").tolist() == [0, *ids[0], 0, *ids[1], 0]


def test_parts_of_a_step_are_all_of_its_rows():
    for count, context in ((16, 256), (16, 512), (3, 4096), (7, 300), (2, 16)):
        rows = np.arange(count * (context + 1)).reshape(count, context + 1)
        parts = pocket._parts(rows)
        assert (np.concatenate(parts) == rows).all() and len({len(part) for part in parts}) == 1
        assert len(parts[0]) == 1 or len(parts[0]) * context <= 2048


@pytest.mark.slow
def test_a_run_starts_from_a_models_weights_and_tokenizer(texts, tmp_path):
    base = tmp_path / "base"
    pocket.train_pocket(texts, tmp_path / "a", steps=2, export_to=base, say=str, **TINY)
    longer = TINY | {"context": 24, "peak_lr": 1e-12}
    pocket.train_pocket(texts, tmp_path / "b", steps=1, start_from=base, say=str, **longer)
    measures = pocket.export(tmp_path / "b", tmp_path / "model")
    assert weights(tmp_path / "model") == weights(base)
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (
        base / "tokenizer.json"
    ).read_bytes()
    assert gptj_lab.load(tmp_path / "model").config.context == 24
    assert measures["tokens"] == 2 * 2 * 16 + 1 * 2 * 24, "the base's tokens count too"
    wide = TINY | {"d_model": 32}
    with pytest.raises(ValueError, match="holds ModelConfig.*the run needs"):
        pocket.train_pocket(texts, tmp_path / "c", steps=1, start_from=base, say=str, **wide)


def test_other_settings_and_bad_folders_are_refused(short_library, texts, tmp_path):
    pocket.train_pocket(texts, tmp_path / "out", steps=1, say=str, **TINY)
    with pytest.raises(ValueError, match="d_model is 32 but the state in .* with 16"):
        pocket.train_pocket(texts, tmp_path / "out", steps=1, **(TINY | {"d_model": 32}))
    with pytest.raises(FileNotFoundError, match="not a directory"):
        pocket.train_pocket(tmp_path / "none", tmp_path / "out2", steps=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no text to train on"):
        pocket.train_pocket(tmp_path / "empty", tmp_path / "out3", steps=1)
    with pytest.raises(ValueError, match="code_share is 1"):
        pocket.train_pocket(texts, tmp_path / "out4", steps=1, code_share=1)
    with pytest.raises(ValueError, match="steps is 0"):
        pocket.train_pocket(texts, tmp_path / "out4", steps=0)
    with pytest.raises(FileNotFoundError, match="holds no training run"):
        pocket.export(tmp_path / "empty", tmp_path / "m")
    assert Tokenizer.from_directory(tmp_path / "out" / "tokenizer").end_of_text_id == 0
