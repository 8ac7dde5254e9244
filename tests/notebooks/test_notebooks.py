"""The notebooks as committed are clean and run from the top; those for Colab are made of them."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_server import one_device
from nbclient import NotebookClient
from shorter_runs import shortened

ROOT = Path(__file__).parents[2]
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


def test_a_fork_changes_its_address_in_one_place(tmp_path):
    for name in ("colab", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    described = tmp_path / "pyproject.toml"
    ours, theirs = "github.com/gptj-lab/gptj_lab", "github.com/some-one/their.lab"
    assert described.read_text("utf-8").count(ours) == 1
    described.write_text(described.read_text("utf-8").replace(ours, theirs), "utf-8")
    made = subprocess.run(
        [sys.executable, "colab/build.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert made.stderr.count("brought the badge of") == len(NOTEBOOKS) + len(SOURCES) + 1
    for path in [*tmp_path.rglob("*.ipynb"), tmp_path / "README.md"]:
        text = path.read_text("utf-8")
        assert "gptj-lab/gptj_lab" not in text, path
        badge = "https://colab.research.google.com/github/some-one/their.lab/blob/main/colab/"
        assert badge in text, path
        if path.parent.name == "colab":
            assert "https://github.com/some-one/their.lab/archive/" in text, path


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


@pytest.mark.parametrize("path", COLAB, ids=lambda p: p.stem)
def test_colab_notebook_has_what_colab_needs(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "colab-badge.svg" in notebook.cells[0].source
    assert f"colab/{path.name}" in notebook.cells[0].source
    assert text.count("#@param") >= 2 and "#@title Install" in text
    assert all(not cell.get("outputs") for cell in notebook.cells)


# 12 and 13 run in test_exercises.py too, cell by cell.
IN_A_KERNEL = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem[:2] in ("12", "13")))
    for path in NOTEBOOKS
]


@pytest.mark.parametrize("path", IN_A_KERNEL)
def test_runs_from_the_top(path, tmp_path):
    notebook = shortened(nbformat.read(path, as_version=4), path)
    run(notebook, ROOT / "notebooks", os.environ | {"PYTHONPATH": str(ROOT)})


def run(notebook, folder, environment):
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(folder), env=one_device(environment))
