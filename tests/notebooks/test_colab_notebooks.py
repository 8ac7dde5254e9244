"""Colab's notebooks on a stand-in for Colab, which keeps its rules: in a kernel, with `pocket`."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import new_session
import pytest
from jupyter_server import one_device
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from shorter_runs import shortened

import gptj_lab
from gptj_lab.finetuning import export

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "stand_in"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VIEW = "application/vnd.jupyter.widget-view+json"
pytestmark = pytest.mark.usefixtures("quick_processes")


def run(notebook, folder, environment):
    client = NotebookClient(notebook, timeout=300, kernel_name="colab")
    client.execute(cwd=str(folder), env=one_device(environment))


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A session on a stand-in for Colab: runs notebooks, each in a kernel of its own."""
    content, environment, kernels = (tmp_path / n for n in ("content", "environment", "kernels"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    variables = {
        "PYTHONPATH": f"{STAND_IN}", "PIP_RECORD": str(tmp_path / "pip.jsonl"),
        "GPTJ_LAB_ROOT": str(ROOT), "COLAB_CONTENT": str(content),
        "COLAB_CALLS": str(tmp_path / "calls.jsonl"), "DRIVE": str(tmp_path / "cloud"),
        "CHOSEN_FILE": str(tmp_path / "chosen.txt"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip

    def begin():
        """A new session has a new disk; what is on the Drive stays."""
        for folder in (content, environment):
            shutil.rmtree(folder, ignore_errors=True)
        (tmp_path / "pip.jsonl").unlink(missing_ok=True)
        content.mkdir()
        python = new_session.environment(environment)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernels / "colab").mkdir(parents=True, exist_ok=True)
        spec = {"argv": argv, "display_name": "Colab", "language": "python"}
        (kernels / "colab" / "kernel.json").write_text(json.dumps(spec))

    def execute(notebook):
        installs = [i for i, c in enumerate(notebook.cells) if "#@title Install" in c.source]
        place = "import pathlib, gptj_lab.colab\ngptj_lab.colab.CONTENT = pathlib.Path.cwd()"
        for i in reversed(installs):  # /content is elsewhere here
            notebook.cells.insert(i + 1, nbformat.v4.new_code_cell(place))
        rules = "import google.colab\ngoogle.colab.keep_the_rules(get_ipython().kernel)"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(rules))
        run(notebook, content, os.environ | variables)

    def recorded(name):
        path = tmp_path / name
        return [json.loads(line) for line in path.open()] if path.exists() else []

    execute.begin, execute.content, execute.cloud = begin, content, tmp_path / "cloud"
    execute.installs = lambda: recorded("pip.jsonl")
    execute.calls = lambda: recorded("calls.jsonl")
    begin()
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


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


def test_the_6b_notebook_plans_loads_prompts_and_keeps_on_the_drive(colab):
    kept = colab.content / "drive" / "MyDrive" / "kept"
    shown = under_the_rules(with_pocket(read("prompt_gptj_6b"), KEEP_IN=str(kept)), colab)
    for words in (
        "pocket in int8, generate", "It fits", "LanguageModel('pocket'", "d_model 256, int8",
        "Time to the first token", "def is_even(i)", "Next time: MODEL = ", str(kept),
        "Your Drive has everything",
    ):  # fmt: skip
        assert words in shown, words
    assert [name for name, *_ in colab.calls()] == ["drive.mount", "drive.flush_and_unmount"]
    kept = gptj_lab.load(colab.cloud / "kept")
    assert kept.weights == "int8"
    text = kept.generate("Once upon a time", max_new_tokens=20, temperature=0)[0].text
    pocket = gptj_lab.load("pocket", weights="int8")
    assert text == pocket.generate("Once upon a time", max_new_tokens=20, temperature=0)[0].text


@pytest.mark.slow
def test_the_inside_notebook_looks_into_pocket(colab):
    notebook = read("inside_gptj_6b")
    shown = under_the_rules(with_pocket(notebook), colab)
    for words in (
        "pocket in int8, generate", "It fits", "Read after", "Trace(", "Rank of the answer",
        "48 heads patched", "Explorer of pocket", "import Interventions, run",
    ):  # fmt: skip
        assert words in shown, words


def under_the_rules(notebook, colab) -> str:
    """All that a notebook shows as it runs on Colab, where it tells the runtime and has a view."""
    colab(notebook)
    assert len(colab.installs()) == 1
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "(cpu)" in "".join(output.get("text", "") for output in outputs), "the runtime is told"
    assert any(VIEW in output.get("data", {}) for output in outputs), "the Playground is shown"
    return "".join(map(str, outputs))


def test_the_6b_notebook_stops_where_the_plan_says_no(colab):
    notebook = read("prompt_gptj_6b")
    too_large = "HARDWARE, WEIGHTS = 'colab-v5e-1', 'float32'"
    i = next(i for i, cell in enumerate(notebook.cells) if "gptj_lab.plan(MODEL" in cell.source)
    notebook.cells.insert(i, nbformat.v4.new_code_cell(too_large))
    with pytest.raises(CellExecutionError, match="the plan above says what to change"):
        colab(notebook)
    planned = str(notebook.cells[i + 3].outputs)  # the rules, the place of /content, ours
    assert "It does not fit" in planned and "It would fit with bfloat16 weights" in planned


def with_pocket(notebook, **parameters):
    """The notebook with the pocket model, and other parameters, in its forms."""
    for name, value in ({"MODEL": "pocket"} | parameters).items():
        pattern = rf"^{name} = (\"[^\"]*\"|\d+)(?=  #@param)"
        cells = [cell for cell in notebook.cells if re.search(pattern, cell.source, re.M)]
        assert len(cells) == 1, f"{name} stands in {len(cells)} forms"
        cells[0].source = re.sub(pattern, f"{name} = {value!r}", cells[0].source, flags=re.M)
    return notebook


FORMS = {"STEPS": 12, "BATCH": 2, "CONTEXT": 32}
KILL = (
    "import os, signal, time\n"
    "while board.run.step < 4 or not list((FOLDER / 'states').glob('step_*')):\n"
    "    time.sleep(0.01)\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
)


@pytest.fixture
def text(tmp_path):
    """A text that somebody has on their computer."""
    lines = [f"And the cat saw {i} mice, and the dog saw none.\n" for i in range(300)]
    (tmp_path / "chosen.txt").write_text("".join(lines))
    return tmp_path / "chosen.txt"


def killed_while_training(notebook):
    (at,) = (i for i, cell in enumerate(notebook.cells) if "board.start()" in cell.source)
    notebook.cells[at + 1 :] = [nbformat.v4.new_code_cell(KILL)]
    return notebook


def check_result(folder):
    """All 12 steps are told once, and the adapter says something else than the base."""
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").open()]
    assert steps == list(range(1, 13))
    base = gptj_lab.load("pocket", weights="int8")
    tuned = export.load_adapter(base, folder / "adapter")
    ids = [base.tokenizer.encode("And the cat saw")]
    assert float(abs(tuned.logits(ids) - base.logits(ids)).max()) > 0.01


@pytest.mark.slow
def test_the_finetuning_notebook_goes_on_in_a_new_session_with_all_on_the_drive(colab, text):
    on_drive = colab.content / "drive" / "MyDrive"
    gptj_lab.load("pocket", weights="int8").save(colab.cloud / "kept")
    forms = FORMS | {
        "MODEL": str(on_drive / "kept"), "DATA": "upload", "FOLDER": str(on_drive / "my_run")
    }  # fmt: skip
    with pytest.raises(DeadKernelError):
        colab(killed_while_training(with_pocket(read("finetune_gptj_6b"), **forms)))
    assert [name for name, *_ in colab.calls()] == ["drive.mount", "files.upload"]
    text.unlink()  # nobody is asked for it again
    colab.begin()
    shown = under_the_rules(again := with_pocket(read("finetune_gptj_6b"), **forms), colab)
    for words in (
        "kept in int8, lora", "It fits", "windows of 32 to train on", "resumed from step",
        "step 12 of 12: held-out loss", "finished, step 12 of 12", "after:",
        "Your browser downloads my_run_adapter.zip", "Your Drive has everything",
    ):  # fmt: skip
        assert words in shown, words
    assert all(cell.execution_count for cell in again.cells if cell.cell_type == "code")
    packed = str(colab.content / "my_run_adapter.zip")
    assert colab.calls()[2:] == [
        ["drive.mount", str(colab.content / "drive")], ["files.download", packed],
        ["drive.flush_and_unmount"],
    ]  # fmt: skip
    shutil.unpack_archive(packed, colab.content / "at_home")
    there = colab.cloud / "my_run"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        at_home = colab.content / "at_home" / name
        assert at_home.read_bytes() == (there / "adapter" / name).read_bytes()
    check_result(there)


@pytest.mark.slow
def test_the_finetuning_notebook_runs_twice_and_after_a_restart(colab, text):
    shutil.copy(text, colab.content / "mine.txt")  # dragged into Files
    forms = FORMS | {"DATA": "mine.txt", "FOLDER": "my_run"}
    with pytest.raises(DeadKernelError):
        colab(killed_while_training(with_pocket(read("finetune_gptj_6b"), **forms)))
    notebook = with_pocket(read("finetune_gptj_6b"), **forms)
    elsewhere = nbformat.v4.new_code_cell("import os\nos.chdir('sample_data')")
    (colab.content / "sample_data").mkdir()
    once = list(notebook.cells)
    notebook.cells = [*once, elsewhere, *read_again(once)]  # "Run all", and again in that kernel
    shown = under_the_rules(notebook, colab)  # pip was asked once, in the kernel that is killed
    for words in ("resumed from step", "finished, step 12 of 12", "Loaded after 0 seconds"):
        assert words in shown, words
    second = "".join(str(cell.get("outputs")) for cell in notebook.cells[len(once) + 4 :])
    assert "finished, step 12 of 12" in second
    assert {name for name, *_ in colab.calls()} == {"files.download"}
    assert [p.name for p in colab.content.rglob("my_run")] == ["my_run"]
    check_result(colab.content / "my_run")


def read_again(cells):
    return [nbformat.from_dict(cell | {"id": f"{cell['id']}-2"}) for cell in cells]


def test_a_pip_that_fails_ends_in_a_sentence(colab):
    install = [cell for cell in read("00_start_here").cells if "#@title Install" in cell.source]
    asked = "https://github.com/gptj-lab"
    assert asked in install[0].source
    install[0].source = install[0].source.replace(asked, "https://example.org/gptj-lab")
    with pytest.raises(CellExecutionError, match="the lines above say why. If GitHub"):
        colab(nbformat.v4.new_notebook(cells=install))


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
        (PIP.format(["install", "flax"]), "nothing keeps jax=="),
        (PIP.format(["install", "flax", "jax==0.1"]), "this could change what Colab brings"),
        (
            "from google.colab import files\nopen('drive', 'w')\nfiles.download('gone.zip')",
            "Cannot find file",
        ),
    ],
)
def test_the_stand_in_bites(source, message, colab):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(CellExecutionError, match=message):
        colab(notebook)
