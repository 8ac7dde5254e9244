"""Makes colab/NAME.ipynb from every notebooks/NAME.ipynb: the same cells, ready for Colab."""

import hashlib
import sys
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
OWNER = "gptj-lab"  # the account on GitHub that publishes the project: change it here only
REPOSITORY = f"https://github.com/{OWNER}/gptj_lab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

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
here = {{d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}}
Path("kept.txt").write_text("".join(f"{{name}}=={{version}}\\n" for name, version in here.items()))
pip = [sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt"]
jax_version = importlib.metadata.version("jax")
if SpecifierSet("{jax}").contains(jax_version):
    subprocess.run([*pip, "./gptj-lab", "{anywidget}"], check=True)
else:
    print(f"JAX here is {{jax_version}}, gptj_lab is made for {jax}: it may still work.")
    wanted = [{others}]
    subprocess.run([*pip, *wanted, "{anywidget}"], check=True)
    subprocess.run([*pip, "--no-deps", "./gptj-lab"], check=True)
os.chdir("gptj-lab")
"""

RUNTIME = """#@title What runtime is this?
import jax

devices = jax.devices()
memory = (devices[0].memory_stats() or {}).get("bytes_limit")
size = "" if memory is None else f", {memory / 1e9:.1f} GB each"
kind = f"{devices[0].device_kind} ({devices[0].platform})"
print(f"{len(devices)} x {kind}{size}, jax {jax.__version__}")
if devices[0].platform == "cpu":
    print("A CPU: quick enough for pocket. For GPT-J-6B: Runtime > Change runtime type.")
elif memory is not None and memory < 13e9:
    print("GPT-J-6B takes 12.1 GB in bfloat16: too much for one of these. Use pocket.")
else:
    print("GPT-J-6B takes 12.1 GB in bfloat16, 24.2 GB in float32.")
"""

FORMS = {
    "MODEL": '#@param ["pocket", "EleutherAI/gpt-j-6b"] {allow-input: true}',
    "WEIGHTS": '#@param ["float32", "bfloat16", "float16"]',
}


def colab(source: NotebookNode, name: str) -> NotebookNode:
    """The notebook for Colab: no outputs, a badge, an install cell, forms for the parameters."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needs = project["dependencies"]
    jax = next(need for need in needs if need.startswith("jax>")).removeprefix("jax")
    anywidget = next(
        need for need in project["optional-dependencies"]["lab"] if need.startswith("anywidget")
    )
    skipped = ("jax>", "numpy")
    others = ", ".join(f'"{need}"' for need in needs if not need.startswith(skipped))
    install = INSTALL.format(repository=REPOSITORY, jax=jax, anywidget=anywidget, others=others)
    made = nbformat.v4.new_notebook(
        metadata={
            "accelerator": "TPU",
            "colab": {"name": f"{name}.ipynb", "provenance": []},
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in source.cells:
        text = cell.source
        if cell.cell_type == "markdown":
            made.cells.append(nbformat.v4.new_markdown_cell(text))
            continue
        if text.startswith("MODEL ="):
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


def main() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        made = colab(nbformat.read(path, as_version=4), path.stem)
        nbformat.validate(made)
        target = ROOT / "colab" / path.name
        nbformat.write(made, target)
        print(f"wrote {target.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
