"""The command line says the same as Python, and one sentence where something is wrong."""

import argparse
import errno
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import gptj_lab
from gptj_lab import cli, cli_finetune
from gptj_lab.finetuning.control import Interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tiny_directory):
    return str(tiny_directory)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))


SETTINGS = ["--max-new-tokens", "9", "--temperature", "0.8", "--seed", "3", "--top-k", "40"]


def test_generate_streams_what_python_gives(folder, capsys):
    assert cli.main(["generate", "the cat", "--model", folder, *SETTINGS]) == 0
    expected = gptj_lab.load(folder).generate(
        "the cat", max_new_tokens=9, temperature=0.8, seed=3, top_k=40
    )[0]
    out, err = capsys.readouterr()
    assert out == "the cat" + expected.text + "\n"
    assert err.startswith("[")


def test_generate_json(folder, capsys):
    assert cli.main(["generate", "the cat", "--model", folder, "--json", *SETTINGS]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"prompt", "text", "token_ids", "logprobs", "finish_reason"}
    assert len(told["token_ids"]) == len(told["logprobs"]) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["the cat", "--temperature", "-1"], "temperature is -1"),
        (["the cat", "--model", "no/such/thing"], "no/such/thing"),
        ([""], "prompt is empty"),
        (["the cat " * 90], "too many for a context"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, message):
    model = [] if "--model" in arguments else ["--model", folder]
    assert cli.main(["generate", *arguments, *model]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
    assert out == ""


def test_the_program_answers_at_once_and_imports_nothing_heavy():
    code = (
        "import sys; from gptj_lab import cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"gptj-lab {gptj_lab.__version__}\n"


def test_lab_hands_its_options_on(capfd):
    assert cli.main(["lab", "--version"]) == 0
    assert capfd.readouterr().out.startswith("4.")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own setting")
@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=2"])
def test_training_starts_again_with_huge_pages_unless_told_otherwise(tmp_path, given):
    shown = "import atexit, os; atexit.register(lambda: print(os.environ['GLIBC_TUNABLES']))"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nif len(sys.orig_argv) > 3: {shown}")
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    command = [sys.executable, "-m", "gptj_lab.cli", "finetune", "no such text", "--out", "run"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no such text" in done.stderr
    assert done.stdout == (given or "glibc.malloc.hugetlb=1") + "\n"


def test_lab_without_jupyterlab_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "JupyterLab is not installed: pip install" in capsys.readouterr().err


def test_an_option_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "the cat", "--warmth", "3"])
    assert "unrecognized arguments: --warmth 3" in capsys.readouterr().err


def test_prompt_from_standard_input(folder):
    run = subprocess.run(
        [sys.executable, "-m", "gptj_lab.cli", "generate", "-", "--model", folder, *SETTINGS],
        input="the cat\n", capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("the cat\n")


def test_train_pocket_leaves_a_model_its_measures_and_its_curve(short_library, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    texts = {"train": "once a king went over the hill to see the moon ", "val": "two foxes sang "}
    for name, text in texts.items():
        (tmp_path / "texts" / f"tales_{name}.txt").write_text(text * 90)
    out = tmp_path / "out"
    size = ["--d-model", "128", "--layers", "1", "--batch", "2", "--context", "32"]
    where = ["--text", str(tmp_path / "texts"), "--out", str(out)]
    assert cli.main(["train-pocket", *where, "--steps", "3", *size]) == 0
    said = capsys.readouterr().out
    assert "step 3  loss" in said and "tales: " in said and " xz " in said
    assert (out / "pocket" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert gptj_lab.load(out / "pocket").generate("once", max_new_tokens=2)[0].token_ids
    assert cli.main(["export-pocket", "--out", str(out), "--to", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (out / "pocket" / "model.safetensors").read_bytes()
    assert cli.main(["train-pocket", *where, "--steps", "9", "--minutes", "0", *size]) == 0
    assert "stopped at step 4" in (said := capsys.readouterr().out) and "export-pocket" in said
    assert cli.main(["train-pocket", "--text", str(tmp_path / "no"), "--out", str(out)]) == 2
    assert "is not a directory" in capsys.readouterr().err


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path / "corpora"))
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and the dog sat on the log\n" * 60)
    return tmp_path / "text.txt"


def finetune(folder, text, out, *more):
    sizes = ["--batch", "2", "--context", "16", "--rank", "2", "--steps", "4"]
    return cli.main(["finetune", str(text), "--out", str(out), "--model", folder, *sizes, *more])


def test_finetune_trains_as_python_does_and_goes_on(quick_compiles, folder, text, tmp_path, capsys):
    more = ["--learning-rate", "0.01"]
    assert finetune(folder, text, tmp_path / "out", *more) == 0
    out, _ = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("step ")]
    assert len(told) == 5
    from gptj_lab.finetuning import export

    model = gptj_lab.load(folder)
    run = gptj_lab.finetune(
        model, text, method=gptj_lab.LoRA(rank=2), batch=2, context=16, steps=4,
        optimiser=gptj_lab.Optimiser(learning_rate=0.01), say=lambda line: None,
    )  # fmt: skip
    tuned = export.load_adapter(model, tmp_path / "out" / "result")
    assert (tuned.logits([[1, 2]]) == run.model.logits([[1, 2]])).all()
    assert finetune(folder, text, tmp_path / "out", *more) == 0
    said = capsys.readouterr().out
    assert "resumed from step 4" in said
    assert f"--model {folder} --adapter {tmp_path / 'out' / 'result'}" in said.splitlines()[-1]
    adapter = ["--adapter", str(tmp_path / "out" / "result")]
    assert cli.main(["generate", "the cat", "--model", folder, *SETTINGS, *adapter]) == 0
    (tuned_text,) = tuned.generate("the cat", max_new_tokens=9, temperature=0.8, seed=3, top_k=40)
    assert capsys.readouterr().out == f"the cat{tuned_text.text}\n"
    assert cli.main(["generate", "the cat", "--model", adapter[1]]) == 2
    assert "adapter or soft prompt, no model" in capsys.readouterr().err
    assert cli.main(["generate", "the cat", "--model", folder, "--adapter", folder]) == 2
    assert "adapter_config.json is missing" in capsys.readouterr().err


def test_finetune_saves_the_best_model_where_asked(
    quick_compiles, folder, text, tmp_path, capsys, lowest_after
):
    lowest_after(2)
    draw = random.Random(0)
    rows = [
        {"text": " ".join(draw.choices("the cat dog sat on a mat".split(), k=20))}
        for _ in range(40)
    ]
    words = tmp_path / "words.jsonl"
    words.write_text("\n".join(map(json.dumps, rows)))
    more = ["--learning-rate", "0.01", "--held-out", "0.2"]
    assert finetune(folder, words, tmp_path / "out", *more) == 0
    from gptj_lab.finetuning import export

    model, ids = gptj_lab.load(folder), [[1, 2, 3]]
    run = gptj_lab.finetune(
        model, words, method=gptj_lab.LoRA(rank=2), batch=2, context=16, steps=4, held_out=0.2,
        optimiser=gptj_lab.Optimiser(learning_rate=0.01), say=lambda line: None,
    )  # fmt: skip
    lowest = min(run.evaluations, key=lambda row: row["held_out_loss"])
    step, best = run.best_state()  # of a run without a folder, which keeps it in memory
    assert step == lowest["step"] == 2
    result = tmp_path / "out" / "result"
    assert (export.load_adapter(model, result).logits(ids) == run.model.logits(ids)).all()
    assert finetune(folder, words, tmp_path / "out", *more, "--best") == 0
    assert (export.load_adapter(model, result).logits(ids) == best.logits(ids)).all()
    assert (best.logits(ids) != run.model.logits(ids)).any()
    out = capsys.readouterr().out
    assert "--best" in out, "the end says that there is such a thing"
    assert f"is in {result}, that of step {step}\n" in out
    assert finetune(folder, text, tmp_path / "none", "--best") == 2
    said = capsys.readouterr().err
    assert "the best model is wanted, but nothing is held out" in said and "(--held-out)" in said
    assert not (tmp_path / "none" / "history.jsonl").exists(), "refused before it trains"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "full"], "--rank belongs to --method lora, not to full"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--optimiser", "sgd"], "--optimiser is 'sgd': choose 'adamw', 'adafactor' or 'lion'"),
        (["--targets", "q,x"], "targets names 'x'"),
        (["--adapter", "a/b/c"], "--rank is for a new adapter, and that of --adapter"),
        (["--mesh-model", "64"], "model=64 doesn't divide the 8 cpu devices"),
    ],
)
def test_finetune_says_what_is_wrong_in_one_sentence(folder, text, tmp_path, capsys, more, message):
    assert finetune(folder, text, tmp_path / "out", *more) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and "Traceback" not in err and out == ""
    assert cli.main(["finetune", "no/text.txt", "--out", str(tmp_path), "--model", folder]) == 2
    assert "no/text.txt is no file or folder" in capsys.readouterr().err


def test_finetune_reads_the_field_that_is_named(quick_compiles, folder, text, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"title": "no", "body": "the cat sat on the mat"}) + "\n")
    assert finetune(folder, rows, tmp_path / "out") == 2
    assert "its fields are 'title', 'body'; needed is text, or" in capsys.readouterr().err
    assert finetune(folder, rows, tmp_path / "out", "--text-field", "body") == 0
    tokens = len(gptj_lab.load(folder).tokenizer.encode("the cat sat on the mat"))
    assert f"{tokens} tokens: one window of 16 to train on" in capsys.readouterr().out


def test_what_is_said_of_the_data_reaches_its_reading(folder, tmp_path, capsys, monkeypatch):
    rows, chat, table = tmp_path / "rows.jsonl", tmp_path / "chat.txt", tmp_path / "t.parquet"
    rows.write_text(json.dumps({"Frage": "Wer?", "Antwort": "Ich."}) + "\n")
    chat.write_text("05/03/2024, 20:14 - Anna: Hi\n05/03/2024, 20:15 - Ben: Yo\n")
    table.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path, more, message in (
        (rows, ("--prompt-field", "Frage", "--answer-field", "Antwurt"), "no field 'Antwurt'"),
        (rows, ("--system-field", "Rolle", "--text-field", "x"), "are both given"),
        (
            chat,
            ("--me", "Zed"),
            "without 'Zed', left out: me is none of its people: chat.txt: Anna",
        ),
        (chat, ("--encoding", "klingon"), "encoding is 'klingon', which Python doesn't know"),
        (table, (), "pip install 'gptj_lab[data]'"),
    ):
        assert finetune(folder, path, tmp_path / "out", *more) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and out == ""


def test_finetune_interrupted_is_130_and_failed_is_1(folder, text, tmp_path, capsys, monkeypatch):
    run = type("Run", (), {"status": "stopped", "step": 2, "steps": 4})()
    monkeypatch.setattr("gptj_lab.finetuning.run.finetune", lambda *given, **more: run)
    assert finetune(folder, text, tmp_path / "out") == 130
    run.status = "failed"
    assert finetune(folder, text, tmp_path / "out") == 1

    def interrupted(*given, **more):
        raise Interrupted("stopped after step 2 of 4; the same call goes on", run)

    capsys.readouterr()
    monkeypatch.setattr("gptj_lab.finetuning.run.finetune", interrupted)
    assert finetune(folder, text, tmp_path / "out") == 130
    assert capsys.readouterr().err == (
        "gptj-lab finetune: stopped after step 2 of 4; the same call goes on\n"
    )


@pytest.mark.parametrize("option", [[], ["--stop"], ["--end-token"]])
def test_what_is_not_utf8_is_said_so(option, capsys):
    text = os.fsdecode(b"caf\xe9")
    assert cli.main(["generate", *(["the", *option, text] if option else [text])]) == 2
    assert "isn't UTF-8 (it holds the byte 0xe9)" in capsys.readouterr().err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_stdin_that_is_not_utf8_is_said_so(errors, capsys, monkeypatch):
    given = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8", errors)
    monkeypatch.setattr("sys.stdin", given)
    assert cli.main(["generate", "-"]) == 2
    assert "stdin isn't UTF-8 (it holds the byte 0xe9)" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["q,v", "q, v,", " q ,v ", "q,v,"])
def test_targets_may_have_spaces_and_a_comma_at_the_end(words):
    assert cli_finetune._method({"method": "lora", "targets": words, "adapter": None}) == (
        gptj_lab.LoRA(targets=("q", "v"))
    )


STATUSES = [
    (KeyboardInterrupt(), 130, ""),
    (OSError(errno.ENOSPC, "No space left on device", "x/y"), 2, "x/y can't be written (No space"),
    (OSError(errno.EROFS, "Read-only file system", "x"), 2, "): name a folder that you may write"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied: 'x'"),
    (ImportError("No module named 'x'"), 2, "No module named 'x'"),
]


@pytest.mark.parametrize(("error", "status", "said"), STATUSES)
@pytest.mark.parametrize("command", ["generate", "convert", "finetune", "plan", "export-pocket"])
def test_whatever_goes_wrong_has_a_status_and_a_line(command, error, status, said, capsys):
    class Fails(argparse.Namespace):
        def run(self, chosen):
            raise error

    chosen = Fails(command=command)
    with pytest.MonkeyPatch.context() as patch:
        parser = type("Parser", (), {"parse_known_args": lambda self, given: (chosen, [])})
        patch.setattr(cli, "_parser", parser)
        assert cli.main([command]) == status
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "Traceback" not in err and out == ""
    assert not said or err.startswith(f"gptj-lab {command}: ")
