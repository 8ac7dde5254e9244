"""The notebooks as committed are clean, and run from the top, here and under Colab's rules."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from shorter_runs import shortened

import gptj_lab
from gptj_lab.finetuning import export

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "stand_in"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = sorted((ROOT / "colab").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"
pytestmark = pytest.mark.usefixtures("quick_processes")
SOURCES = sorted((ROOT / "colab" / "sources").glob("*.ipynb"))  # of those that are Colab's alone


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_as_one_clean_run_from_the_top(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata, "GitHub shows no notebook with a widget state"
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert len(cell.source.splitlines()) <= 30
        assert not re.search(r"^\s*class ", cell.source, re.M)
        for output in cell.outputs:
            assert output.output_type != "error"
            data = output.get("data", {})
            assert "image/png" in data or VIEW not in data, "a view without picture: a bar?"
            if "image/png" in data:
                assert output.metadata["image/png"]["alt"]
        streams = [output.get("name") for output in cell.outputs]
        assert not any(a and a == b for a, b in itertools.pairwise(streams)), "streams in pieces"
    assert not re.search(r"/(work|home|root|tmp|usr)/", path.read_text("utf-8")), "a path of here"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pictures_survive_as_html_with_their_alt_text(path, tmp_path):
    import nbconvert

    # nbconvert's classic template reads alt texts; its newer "lab" template reads none (7.17).
    html, _ = nbconvert.HTMLExporter(template_name="classic").from_filename(str(path))
    pictures = re.findall(r"<img[^>]*>", html)
    made = [picture for picture in pictures if "data:image/png" in picture]
    assert made and all("alt=" in picture for picture in made)
    assert "No description has been provided" not in html


def test_the_code_prompts_are_those_of_the_well_known_demonstration():
    found = {p.stem: p.read_text() for p in (ROOT / "data" / "prompts" / "code").glob("*.txt")}
    assert found == {
        "is_even": "def is_even(i):\n"
        '    """Check whether an integer is even in factorial O(n!) time"""',
        "is_bird": 'def is_bird(img):\n    """Check whether an image is a bird"""',
        "car": 'class Car:\n    """A class used to represent a car"""',
        "should_terminate": "def should_terminate(Person):\n"
        '    """Check whether a Person should be terminated"""',
    }


def test_colab_notebooks_are_made_and_not_edited(tmp_path):
    before = {path.name: path.read_bytes() for path in COLAB}
    assert set(before) == {path.name for path in [*NOTEBOOKS, *SOURCES]}
    subprocess.run([sys.executable, "colab/build.py", str(tmp_path)], cwd=ROOT, check=True)
    for name, bytes_ in before.items():
        assert (tmp_path / name).read_bytes() == bytes_, f"{name}: run `make colab`"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_source_for_colab_alone_keeps_the_rules_of_notebooks(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(part in text for part in ("**You will learn**", "**It runs on**", "## What we saw"))
    assert "## Next" in notebook.cells[-1].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 30
            assert not re.search(r"^\s*class ", cell.source, re.M)


@pytest.mark.parametrize(
    ("kind", "platform", "name", "advice"),
    [
        ("TPU v5 lite", "tpu", "colab-v5e-1", "WEIGHTS = 'bfloat16' or 'int8'."),
        ("TPU v6 lite", "tpu", "colab-v6e-1", "WEIGHTS = 'float32' or 'bfloat16' or 'int8'."),
        ("Tesla T4", "gpu", "colab-t4", "WEIGHTS = 'bfloat16' or 'int8'."),
        ("cpu", "cpu", "laptop", "quick enough for pocket"),
    ],
)
def test_the_runtime_is_told_which_weights_fit(kind, platform, name, advice, monkeypatch, capsys):
    module = importlib.util.spec_from_file_location("build", ROOT / "colab" / "build.py")
    build = importlib.util.module_from_spec(module)
    module.loader.exec_module(build)
    device = types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: None)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    told: dict = {}
    exec(build.RUNTIME, told)
    said = capsys.readouterr().out
    assert told["HARDWARE"] == name and advice in said
    assert ("float16 is quicker" in said) == (name == "colab-t4")


@pytest.mark.parametrize("path", COLAB, ids=lambda p: p.stem)
def test_colab_notebook_has_what_colab_needs(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "colab-badge.svg" in notebook.cells[0].source
    assert f"colab/{path.name}" in notebook.cells[0].source
    assert text.count("#@param") >= 2 and "#@title Install" in text
    assert all(not cell.get("outputs") for cell in notebook.cells)


# 12 runs in test_exercises.py too, cell by cell.
IN_A_KERNEL = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem[:2] == "12"))
    for path in NOTEBOOKS
]


@pytest.mark.parametrize("path", IN_A_KERNEL)
def test_runs_from_the_top(path, tmp_path):
    notebook = shortened(nbformat.read(path, as_version=4), path)
    run(notebook, ROOT / "notebooks", os.environ | {"PYTHONPATH": str(ROOT)})


def run(notebook, folder, environment):
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(folder), env={k: v for k, v in environment.items() if k != "XLA_FLAGS"})


@pytest.fixture
def colab(tmp_path):
    """Runs a notebook in a kernel that believes to be on Colab; the pip calls it made."""
    record = tmp_path / "pip.jsonl"
    environment = os.environ | {
        "PYTHONPATH": f"{STAND_IN}", "PATH": f"{STAND_IN / 'bin'}:{os.environ['PATH']}",
        "PIP_RECORD": str(record), "GPTJ_LAB_ROOT": str(ROOT),
        "CHOSEN_FILE": str(tmp_path / "chosen.txt"),
    }  # fmt: skip

    def execute(notebook):
        rules = "import google.colab\ngoogle.colab.keep_the_rules(get_ipython().kernel)"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(rules))
        run(notebook, tmp_path, environment)
        lines = record.read_text().splitlines() if record.exists() else []
        return [json.loads(line) for line in lines]

    return execute


# Of all but the first test_runs_from_the_top or test_exercises.py runs the cells each time.
UNDER_COLABS_RULES = [
    pytest.param(
        path, id=path.stem,
        marks=[pytest.mark.slow] * (path.stem != "00_start_here"),
    )
    for path in NOTEBOOKS
]  # fmt: skip


@pytest.mark.parametrize("path", UNDER_COLABS_RULES)
def test_runs_under_the_rules_of_colab(path, colab):
    notebook = nbformat.read(ROOT / "colab" / path.name, as_version=4)
    under_the_rules(shortened(notebook, path), colab)


def test_the_6b_notebook_plans_loads_prompts_and_keeps(colab, tmp_path):
    notebook = nbformat.read(ROOT / "colab" / "prompt_gptj_6b.ipynb", as_version=4)
    shown = under_the_rules(with_pocket(notebook, KEEP_IN=str(tmp_path / "kept")), colab)
    for words in (
        "pocket in int8, generate", "It fits", "LanguageModel('pocket'", "d_model 256, int8",
        "Time to the first token", "def is_even(i)", "Next time: MODEL = ",
    ):  # fmt: skip
        assert words in shown, words
    kept = gptj_lab.load(tmp_path / "kept")
    assert kept.weights == "int8"
    text = kept.generate("Once upon a time", max_new_tokens=20, temperature=0)[0].text
    pocket = gptj_lab.load("pocket", weights="int8")
    assert text == pocket.generate("Once upon a time", max_new_tokens=20, temperature=0)[0].text


def test_the_inside_notebook_looks_into_pocket(colab):
    notebook = nbformat.read(ROOT / "colab" / "inside_gptj_6b.ipynb", as_version=4)
    shown = under_the_rules(with_pocket(notebook), colab)
    for words in (
        "pocket in int8, generate", "It fits", "Read after", "Trace(", "Rank of the answer",
        "48 heads patched", "Explorer of pocket", "import Interventions, run",
    ):  # fmt: skip
        assert words in shown, words


def under_the_rules(notebook, colab) -> str:
    """All that a notebook shows as it runs on Colab, where it tells the runtime and has a view."""
    calls = colab(notebook)
    assert len(calls) == 1 and "./gptj-lab" in calls[0]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "(cpu)" in "".join(output.get("text", "") for output in outputs), "the runtime is told"
    assert any(VIEW in output.get("data", {}) for output in outputs), "the Playground is shown"
    return "".join(map(str, outputs))


def test_the_6b_notebook_stops_where_the_plan_says_no(colab):
    notebook = nbformat.read(ROOT / "colab" / "prompt_gptj_6b.ipynb", as_version=4)
    too_large = "HARDWARE, WEIGHTS = 'colab-v5e-1', 'float32'"
    i = next(i for i, cell in enumerate(notebook.cells) if "gptj_lab.plan(MODEL" in cell.source)
    notebook.cells.insert(i, nbformat.v4.new_code_cell(too_large))
    with pytest.raises(CellExecutionError, match="the plan above says what to change"):
        colab(notebook)
    planned = str(notebook.cells[i + 2].outputs)  # the rules come first, then ours
    assert "It does not fit" in planned and "It would fit with bfloat16 weights" in planned


def with_pocket(notebook, **parameters):
    """The notebook with the pocket model, and other parameters, in its forms."""
    for name, value in ({"MODEL": "pocket"} | parameters).items():
        pattern = rf"^{name} = (\"[^\"]*\"|\d+)(?=  #@param)"
        cells = [cell for cell in notebook.cells if re.search(pattern, cell.source, re.M)]
        assert len(cells) == 1, f"{name} stands in {len(cells)} forms"
        cells[0].source = re.sub(pattern, f"{name} = {value!r}", cells[0].source, flags=re.M)
    return notebook


def test_the_finetuning_notebook_goes_on_where_its_kernel_was_killed(colab, tmp_path):
    text = tmp_path / "chosen.txt"
    lines = [f"And the cat saw {i} mice, and the dog saw none.\n" for i in range(300)]
    text.write_text("".join(lines))
    folder = tmp_path / "drive" / "my_run"
    forms = {"DATA": "upload", "FOLDER": str(folder), "STEPS": 12, "BATCH": 2, "CONTEXT": 32}

    def notebook():
        made = nbformat.read(ROOT / "colab" / "finetune_gptj_6b.ipynb", as_version=4)
        return with_pocket(made, **forms)

    killed = notebook()
    (at,) = (i for i, cell in enumerate(killed.cells) if "board.start()" in cell.source)
    kill = (
        "import os, signal, time\n"
        "while board.run.step < 4 or not list(Path(FOLDER, 'states').glob('step_*')):\n"
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed.cells[at + 1 :] = [nbformat.v4.new_code_cell(kill)]
    with pytest.raises(DeadKernelError):
        colab(killed)
    text.unlink()  # nobody is asked for it again
    for name in ("gptj-lab", "pip.jsonl"):  # a new session has a new disk; the Drive stays
        (tmp_path / name).unlink()
    shown = under_the_rules(again := notebook(), colab)
    for words in (
        "pocket in int8, lora", "It fits", "windows of 32 to train on", "resumed from step",
        "step 12 of 12: held-out loss", "finished, step 12 of 12", "after:", "adapter.zip",
    ):  # fmt: skip
        assert words in shown, words
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").open()]
    assert steps == list(range(1, 13))
    assert all(cell.execution_count for cell in again.cells if cell.cell_type == "code")
    base = gptj_lab.load("pocket", weights="int8")
    tuned = export.load_adapter(base, folder / "adapter")
    ids = [base.tokenizer.encode("And the cat saw")]
    assert float(abs(tuned.logits(ids) - base.logits(ids)).max()) > 0.01


def test_installs_beside_packages_outside_our_range_without_touching_jax(colab):
    notebook = nbformat.read(COLAB[0], as_version=4)
    install = [cell for cell in notebook.cells if "#@title Install" in cell.source]
    install[0].source = "import os\nos.environ['PIP_REFUSES_FIRST'] = '1'\n" + install[0].source
    calls = colab(nbformat.v4.new_notebook(cells=install))
    assert len(calls) == 3 and "--no-deps" in calls[2]
    assert any(argument.startswith("flax") for argument in calls[1])
    assert not any(argument.startswith(("jax>", "numpy")) for argument in calls[1])


WIDGET = (
    "import anywidget\nclass W(anywidget.AnyWidget):\n    _esm = 'export default {}'\nw = W()\n"
)

PIP = (
    "import subprocess, sys\n"
    "run = subprocess.run([sys.executable, '-m', 'pip', *{}], capture_output=True, text=True)\n"
    "assert run.returncode == 0, run.stderr"
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (WIDGET + "w.send({'a': 1}, [b'x' * 1_000_000])", "drops the connection"),
        (WIDGET + "from IPython.display import display\ndisplay(w)\ndisplay(w)", "two frames"),
        (
            WIDGET + "import concurrent.futures as f\n"
            "f.ThreadPoolExecutor().submit(w.send, {'a': 1}).result()",
            "Colab drops it",
        ),
        (
            PIP.format(["install", "jax"]),
            "this could change what Colab brings",
        ),
        (PIP.format(["install", "-U", "flax"]), "this could change what Colab brings"),
        (PIP.format(["install", "flax"]), "nothing keeps JAX where it is"),
        (
            "open('kept.txt', 'w').write('flax==0.1')\n"
            + PIP.format(["install", "-c", "kept.txt", "flax"]),
            "the constraints don't hold jax",
        ),
    ],
)
def test_the_stand_in_bites(source, message, colab):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(CellExecutionError, match=message):
        colab(notebook)
