"""The cache: made once, whole or absent, keyed by all that decides its tokens, small in memory."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gptj_lab.corpora import reading
from gptj_lab.finetuning import corpus, splitting, token_cache
from gptj_lab.tokenizer import train_bpe

TEXTS = [f"the king number {i} saw {i * i} foxes over the sea" for i in range(30)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def prepare(tokenizer, text, tmp_path):
    def make(source=text, **settings):
        settings = dict(tokenizer=tokenizer, context=64, cache=tmp_path / "cache") | settings
        return corpus.prepare(source, **settings)

    return make


def stores(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())


def tokens(found):
    return found.train.batch(np.arange(len(found.train))).tokens.tolist()


def test_a_second_time_nothing_is_tokenised(prepare, monkeypatch, tmp_path):
    first = prepare()
    monkeypatch.setattr(token_cache, "_write", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(reading, "documents", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(splitting, "split", lambda *_: pytest.fail("split again"))
    second = prepare()
    assert second.split.overlap == first.split.overlap
    assert tokens(first) == tokens(second) and first.name == second.name
    assert str(first.doctor()) == str(second.doctor())
    assert isinstance(second.train.store.tokens, np.memmap)
    assert second.train.store.tokens.dtype == np.uint16


def test_content_tokenizer_and_settings_are_the_key(prepare, text, tmp_path):
    names = {prepare().train.store.name}
    prepare(context=32)  # windows are not kept
    assert set(stores(tmp_path)) == names
    names.add(prepare(strict=True).train.store.name)
    names.add(prepare(tokenizer=train_bpe(TEXTS, 290)).train.store.name)
    os.utime(text, (1, 1))
    assert prepare().train.store.name in names
    text.write_text(text.read_text().replace("king", "ring"))
    names.add(prepare().train.store.name)
    assert len(names) == 4 and set(stores(tmp_path)) == names


def test_names_of_runs_differ_where_what_they_train_on_does(prepare):
    names = [prepare(**more).name for more in (
        {}, {"context": 32}, {"packing": "plain"}, {"held_out": 0.1}, {"held_out": TEXTS[:3]}
    )]  # fmt: skip
    assert len(set(names)) == 5
    assert prepare(held_out=TEXTS[:3]).name == names[-1]


@pytest.mark.parametrize("file", ["tokens.bin", "documents.bin", "corpus.json", "split*"])
def test_a_damaged_cache_is_made_again(prepare, tmp_path, file):
    first = tokens(prepare())
    (name,) = stores(tmp_path)
    path = next((tmp_path / "cache" / name).glob(file))
    path.write_bytes(path.read_bytes()[:-3])
    assert tokens(prepare()) == first


def test_a_failure_leaves_nothing_behind(prepare, text, tmp_path):
    text.write_text(text.read_text() + "not JSON\n")
    with pytest.raises(ValueError, match="line 31"):
        prepare(strict=True)
    assert stores(tmp_path) == []
    text.write_text("\n")
    with pytest.raises(ValueError, match="hold no text: 1 x a file without text, left out"):
        prepare()
    assert stores(tmp_path) == []


def test_of_two_at_once_one_tokenises_and_the_other_waits(prepare, monkeypatch):
    made, write = [], token_cache._write

    def slowly(*arguments):
        made.append(arguments)
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(token_cache, "_write", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: prepare(), range(2))
    assert len(made) == 1 and tokens(one) == tokens(two)


def test_a_full_disk_leaves_no_cache(prepare, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare()
    assert stores(tmp_path) == []


def test_what_streams_by_is_named_by_what_it_held(prepare, tmp_path):
    one = prepare(iter(TEXTS))
    two = prepare(iter(TEXTS))
    assert one.name == two.name and len(stores(tmp_path)) == 1
    assert prepare(iter(TEXTS[1:])).name != one.name
    assert tokens(one) == tokens(prepare(TEXTS))


KILLED = """
    import os, signal, sys
    from gptj_lab.finetuning import corpus, token_cache
    from gptj_lab.tokenizer import Tokenizer
    steps = iter(range(10**6))
    def die(frame, event, argument):
        if frame.f_code.co_filename == token_cache.__file__ and event == "line":
            if next(steps) == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
        return die
    tokenizer = Tokenizer.from_directory(sys.argv[1])
    sys.settrace(die)
    corpus.prepare(sys.argv[2], tokenizer, context=64, cache=sys.argv[1] + "/cache")
    print("whole")
"""


@pytest.mark.parametrize("line", [25, 400, 1200])
def test_a_killed_process_leaves_no_cache_that_is_used(prepare, tokenizer, text, tmp_path, line):
    tokenizer.save(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(text), str(line)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert [name for name in stores(tmp_path) if not name.endswith(".partial")] == []
    assert len(tokens(prepare())) > 0
    assert not [name for name in stores(tmp_path) if name.endswith(".partial")]


SMALL_MEMORY = """
    import resource, sys
    import numpy as np
    from gptj_lab.finetuning import corpus
    from gptj_lab.tokenizer import Tokenizer
    tokenizer = Tokenizer.from_directory(sys.argv[1])
    settings = dict(context=128, cache=sys.argv[1] + "/cache")
    warm = corpus.prepare(sys.argv[1] + "/small.txt", tokenizer, **settings)
    next(warm.batches(4))
    status = dict(line.split(":") for line in open("/proc/self/status"))
    used = int(status["VmData"].split()[0]) * 1024
    # A cap on what can't be paged out: private memory, whatever was used before.
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[3]),) * 2)
    found = corpus.prepare(sys.argv[2], tokenizer, **settings)
    batches = found.batches(4)
    for _ in range(50):
        batch = next(batches)
    print(found.train.predictions, found.held_out.predictions, batch.tokens.max())
"""


def run_in_small_memory(tmp_path, tokenizer, megabytes, cap):
    rng = np.random.default_rng(0)
    path = tmp_path / "large.txt"
    words = np.array(" ".join(TEXTS).split())
    paragraph = " ".join(rng.choice(words, 150_000)) + "\n"
    with path.open("w") as file:
        for _ in range(megabytes * (1 << 20) // len(paragraph) + 1):
            file.write(paragraph)
    (tmp_path / "small.txt").write_text(paragraph)
    tokenizer.save(tmp_path)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SMALL_MEMORY), str(tmp_path), str(path), str(cap)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
@pytest.mark.slow
def test_a_text_larger_than_memory_is_prepared_and_read(tokenizer, tmp_path):
    run = run_in_small_memory(tmp_path, tokenizer, megabytes=48, cap=40 << 20)
    assert run.returncode == 0, run.stderr[-2000:]
    train, held_out, _ = map(int, run.stdout.split())
    assert train + held_out > 10_000_000
