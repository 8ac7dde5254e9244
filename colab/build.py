"""Makes colab/NAME.ipynb from every source: the same cells, ready for Colab.

Sources are all of notebooks/, and those of colab/sources/, which are for Colab alone.
"""

import hashlib
import sys
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
# The account on GitHub that publishes the project; the badge of every notebook names it too.
OWNER = "gptj-lab"
REPOSITORY = f"https://github.com/{OWNER}/gptj_lab"

INSTALL = """#@title Install (half a minute; the JAX that Colab brings stays as it is)
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet

if not Path("gptj-lab").is_dir():
    clone = ["git", "clone", "-q", "--depth", "1", "{repository}", "gptj-lab"]
    subprocess.run(clone, check=True)
# pip may add packages; those that are here keep their versions, so no restart is needed.
here = {{d.name: d.version for d in importlib.metadata.distributions() if d.name}}
kept = Path("kept.txt")
kept.write_text("".join(f"{{name}}=={{version}}\\n" for name, version in here.items()))
pip = [sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt"]
if subprocess.run([*pip, "./gptj-lab", "{anywidget}"]).returncode:
    # Something here is outside our range: all stays but JAX's companions, JAX itself first of all.
    held = [n for n in here if n.lower() not in ({companions})]
    kept.write_text("".join(f"{{name}}=={{here[name]}}\\n" for name in held))
    subprocess.run([*pip, {others}, "{anywidget}"], check=True)
    subprocess.run([*pip, "--no-deps", "./gptj-lab"], check=True)
jax_version = importlib.metadata.version("jax")
if not SpecifierSet("{jax}").contains(jax_version):
    print(f"JAX here is {{jax_version}}, gptj_lab is made for {jax}: it may still work.")
os.chdir("gptj-lab")
"""

RUNTIME = """#@title What runtime is this?
import jax

import gptj_lab

devices = jax.devices()
memory = (devices[0].memory_stats() or {}).get("bytes_limit")
size = "" if memory is None else f", {memory / 1e9:.1f} GB each"
kind = f"{devices[0].device_kind} ({devices[0].platform})"
print(f"{len(devices)} x {kind}{size}, jax {jax.__version__}")
names = {"TPU v5 lite": "colab-v5e-1", "TPU v6 lite": "colab-v6e-1", "Tesla T4": "colab-t4"}
HARDWARE = names.get(devices[0].device_kind, "laptop")  # as gptj_lab.plan calls it
if devices[0].platform == "cpu":
    print("A CPU: quick enough for pocket. For GPT-J-6B: Runtime > Change runtime type.")
elif memory is not None or HARDWARE != "laptop":
    formats = ("float32", "bfloat16", "int8")
    fits = [w for w in formats if gptj_lab.plan("gpt-j-6b", HARDWARE, weights=w).fits]
    words = " or ".join(map(repr, fits))
    print(f"GPT-J-6B fits with WEIGHTS = {words}." if fits else "GPT-J-6B doesn't fit: pocket.")
if "T4" in devices[0].device_kind:
    print("A T4 has no bfloat16 in hardware: float16 is quicker.")
"""

FORMS = {
    "MODEL": '#@param ["pocket", "EleutherAI/gpt-j-6b"] {allow-input: true}',
    "WEIGHTS": '#@param ["float32", "bfloat16", "float16", "int8"]',
    "STEPS": '#@param {type: "integer"}',
    "SEED": '#@param {type: "integer"}',
}


def colab(source: NotebookNode, name: str) -> NotebookNode:
    """The notebook for Colab: no outputs, an install cell, forms for the parameters.

    Raises:
        ValueError: its badge leads elsewhere.
    """
    if f"/github/{OWNER}/gptj_lab/blob/main/colab/{name}.ipynb" not in source.cells[0].source:
        raise ValueError(f"{name}: the badge leads elsewhere than to {REPOSITORY}, colab/{name}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs = project["dependencies"]
    jax = next(need for need in needs if need.startswith("jax>")).removeprefix("jax")
    anywidget = next(
        need for need in project["optional-dependencies"]["lab"] if need.startswith("anywidget")
    )
    ours = [need for need in needs if not need.startswith(("jax>", "numpy"))]
    others = ", ".join(f'"{need}"' for need in ours)
    companions = ", ".join(f'"{need.split(">")[0].split("=")[0]}"' for need in ours)
    install = INSTALL.format(
        companions=companions, repository=REPOSITORY, jax=jax, anywidget=anywidget, others=others
    )
    made = nbformat.v4.new_notebook(
        metadata={
            "accelerator": "TPU",
            "colab": {"name": f"{name}.ipynb", "provenance": [], "gpuType": "V5E1"},
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python"},
        }
    )
    parameters_seen = False
    for cell in source.cells:
        text = cell.source
        if cell.cell_type == "markdown":
            made.cells.append(nbformat.v4.new_markdown_cell(text))
            continue
        if not parameters_seen and text.partition(" =")[0] in FORMS:
            parameters_seen = True
            made.cells += [
                nbformat.v4.new_code_cell(part) for part in (install.strip(), RUNTIME.strip())
            ]
            text = _with_forms(text)
        made.cells.append(nbformat.v4.new_code_cell(text))
    for i, cell in enumerate(made.cells):  # the same notebook gives the same file
        cell["id"] = hashlib.sha256(f"{name} {i}".encode()).hexdigest()[:8]
    return made


def _with_forms(text: str) -> str:
    lines = ["#@title Parameters"]
    for line in text.splitlines():
        name = line.split(" =")[0]
        value = line.split("#")[0].rstrip()
        lines.append(f"{value}  {FORMS[name]}" if name in FORMS else line)
    return "\n".join(lines)


def sources() -> list[Path]:
    """Every notebook that has a form for Colab."""
    return sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("colab/sources/*.ipynb")])


def main(folder: Path) -> None:
    """Writes them all into a folder."""
    for path in sources():
        made = colab(nbformat.read(path, as_version=4), path.stem)
        nbformat.validate(made)
        nbformat.write(made, folder / path.name)
        print(f"wrote {folder / path.name}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "colab")
