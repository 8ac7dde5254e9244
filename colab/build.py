"""Makes colab/NAME.ipynb from every source: the same cells, ready for Colab.

Sources are all of notebooks/, and those of colab/sources/, which are for Colab alone. The address
of the project stands in pyproject.toml ([project.urls]) and nowhere else: a fork changes it there
and runs `make colab`, which writes it into the badges of the sources and of the README too.
"""

import hashlib
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from string import Template
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
BADGE = re.compile(r"(?<=colab\.research\.google\.com/)github/[^/\s]+/[^/\s]+/blob/[^/\s]+(?=/)")

INSTALL = Template("""#@title Install gptj_lab (half a minute) {display-mode: "form"}
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


for name, needed in {$needed}.items():
    if version(name) and not SpecifierSet(needed).contains(version(name), prereleases=True):
        raise RuntimeError(f"{name} is {version(name)} here, and gptj_lab needs {needed}: choose "
                           "another version under Runtime > Change runtime type.")
if not (version("gptj_lab") and version("anywidget")):
    # A wheel that you have dragged into Colab's Files comes before GitHub.
    wheels = [wheel.as_uri() for wheel in Path.cwd().glob("gptj_lab-*-any.whl")]
    source = max(wheels, default="$archive")
    # pip adds what is missing. What JAX and the notebook run on keeps its version.
    keep = $keep
    kept = [f"{name}=={version(name)}" for name in keep if version(name)]
    pip = [sys.executable, "-m", "pip", "install", "-q", f"gptj_lab[colab] @ {source}", *kept]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-3000:])
        raise RuntimeError(f"pip could not install {source}: the lines above say why. If GitHub "
                           "can't be reached, drag a wheel (gptj_lab-*.whl, of `make wheel`) into "
                           "Files and run this cell again. (Kaggle: Settings > Internet on.)")
    importlib.invalidate_caches()
for name in ["flax", "optax", "anywidget", "tokenizers", "huggingface_hub"]:
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if loaded not in (None, version(name)):
        raise RuntimeError(f"{name} is {version(name)} now, but this session has loaded {loaded} "
                           "already: Runtime > Restart session, then Runtime > Run all.")
print(f"gptj_lab {version('gptj_lab')} is installed; JAX stays at {version('jax')}.")
""")
# What pip must leave as the runtime brings it: JAX with its parts, and what the kernel has loaded.
KEEP = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "numpy", "ml_dtypes",
    "protobuf", "ipykernel", "ipython", "ipywidgets", "traitlets", "tornado", "pyzmq",
)  # fmt: skip

RUNTIME = """#@title What machine is this?
from gptj_lab import colab

HARDWARE = colab.runtime()
"""

FIND = """#@title Find the model (it may be a folder on your Google Drive)
MODEL = colab.model(MODEL)
"""

FORMS = {
    "MODEL": '#@param ["pocket", "EleutherAI/gpt-j-6b"] {allow-input: true}',
    "WEIGHTS": '#@param ["float32", "bfloat16", "float16", "int8"]',
    "STEPS": '#@param {type: "integer"}',
    "SEED": '#@param {type: "integer"}',
}


def project(root: Path = ROOT) -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]


def install_cell(root: Path = ROOT) -> str:
    """The code of every notebook's first code cell."""
    described = project(root)
    needs = [re.fullmatch(r"([\w-]+)(\S+)", need) for need in described["dependencies"]]
    ranges = {need[1]: need[2] for need in needs if need}
    return INSTALL.substitute(
        needed=", ".join(f'"{name}": "{ranges[name]}"' for name in ("jax", "numpy")),
        archive=f"{described['urls']['Repository']}/archive/refs/heads/main.zip",
        keep=textwrap.fill(str(list(KEEP)).replace("'", '"'), 86, subsequent_indent=" " * 12),
    ).strip()  # fmt: skip


def readdressed(text: str, repository: str) -> str:
    """The text with every Colab badge leading to a repository on GitHub.

    Raises:
        ValueError: the repository isn't on GitHub.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", repository)
    if found is None:
        raise ValueError(
            f"[project.urls] Repository in pyproject.toml is {repository!r}: Colab opens "
            "notebooks from https://github.com/OWNER/NAME only"
        )
    return BADGE.sub(f"github/{found[1]}/blob/main", text)


def colab(source: NotebookNode, name: str, install: str) -> NotebookNode:
    """The notebook for Colab: no outputs, an install cell, forms for the parameters.

    Raises:
        ValueError: it has no badge that opens it.
    """
    if not re.search(rf"{BADGE.pattern}/colab/{re.escape(name)}\.ipynb\)", source.cells[0].source):
        raise ValueError(f"{name}: its first cell has no badge that opens colab/{name}.ipynb")
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
        first = not parameters_seen and text.partition(" =")[0] in FORMS
        if not first:
            made.cells.append(nbformat.v4.new_code_cell(text))
            continue
        parameters_seen = True
        parts = [install, RUNTIME, _with_forms(text)] + [FIND] * text.startswith("MODEL =")
        made.cells += [nbformat.v4.new_code_cell(part.strip()) for part in parts]
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


def sources(root: Path = ROOT) -> list[Path]:
    """Every notebook that has a form for Colab."""
    return sorted([*root.glob("notebooks/*.ipynb"), *root.glob("colab/sources/*.ipynb")])


def main(folder: Path, root: Path = ROOT) -> None:
    """Writes them all into a folder; brings the badges of sources and README up to date."""
    repository = project(root)["urls"]["Repository"]
    install = install_cell(root)
    for path in [*sources(root), root / "README.md"]:
        before = path.read_text("utf-8")
        if (text := readdressed(before, repository)) != before:
            path.write_text(text, "utf-8")
            print(f"brought the badge of {path} up to date", file=sys.stderr)
    for path in sources(root):
        made = colab(nbformat.read(path, as_version=4), path.stem, install)
        nbformat.validate(made)
        nbformat.write(made, folder / path.name)
        print(f"wrote {folder / path.name}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "colab")
