"""The project's own promises: versions in one place, imports in one direction, a light import."""

import ast
import doctest
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gptj_lab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# DESIGN.md's direction, leftmost first: a part imports only from rows above its own.
DIRECTION = (
    ("names", "versions", "transformers_fields", "notices", "json_files", "jinja_sandbox"),
    ("hugging_face_families", "special_tokens"),
    ("chunks", "hugging_face_config", "tokenizer_files"),
    ("config", "tokenizer"),
    ("end_tokens", "chat_templates"),
    ("presets", "model", "scaling"),
    ("mesh", "checkpoints", "corpora"),
    ("language_model",),
    ("generation", "finetuning", "evaluation", "lens"),
    ("plots", "lessons"),
    ("widgets", "colab"),
    ("cli_finetune",),
    ("cli_chat",),
    ("cli",),
)
RANK = {part: rank for rank, row in enumerate(DIRECTION) for part in row}
NEIGHBOURS = {("finetuning", "generation"), ("finetuning", "evaluation")}
# model.generate() and .trace() belong to the object that people hold, their code to its right.
ONLY_LAZILY = {("language_model", "generation"), ("language_model", "lens")}


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Each part of gptj_lab that `module` imports, and whether only when called or for types."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, lazy
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")  # one dot: a module's package, or a package itself
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", lazy
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, lazy)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, lazy or inside)

    for name, lazy in visit(ast.parse(source), False):
        package, _, rest = name.partition(".")
        if package == "gptj_lab":
            yield rest.partition(".")[0] or "gptj_lab", lazy


def complaint(importer: str, imported: str, lazy: bool) -> str | None:
    """What is wrong with `importer` importing `imported`, or None."""
    if imported in (importer, "__version__"):
        return None
    if imported not in RANK:  # gptj_lab itself, or a name such as load that it hands on
        return (
            None
            if importer in ("cli", "cli_chat", "cli_finetune")
            else f"{importer} imports the package's front door"
        )
    if importer not in RANK:
        return f"{importer} has no place in DESIGN.md's direction: give it one in DIRECTION"
    if RANK[imported] < RANK[importer] or (importer, imported) in NEIGHBOURS:
        return None
    if lazy and (importer, imported) in ONLY_LAZILY:
        return None
    return f"{importer} imports {imported}, which does not lie to its left"


def test_imports_go_only_leftwards():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).with_suffix("").parts
        if where == ("__init__",):
            continue  # the front door names everything, and loads it when asked
        is_package = where[-1] == "__init__"
        module = ".".join(("gptj_lab", *(where[:-1] if is_package else where)))
        part = "cli" if where == ("__main__",) else where[0]
        for imported, lazy in imports(path.read_text(encoding="utf-8"), module, is_package):
            if said := complaint(part, imported, lazy):
                wrong.append(f"{path.relative_to(ROOT)}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "module", "allowed"),
    [
        ("from gptj_lab.config import ModelConfig", "gptj_lab.model.attention", True),
        ("from ..config import ModelConfig", "gptj_lab.model.attention", True),
        ("from gptj_lab import names", "gptj_lab.model.sites", True),
        ("from gptj_lab.evaluation import bits_per_byte", "gptj_lab.finetuning.trainer", True),
        ("def f():\n    from gptj_lab.generation import x", "gptj_lab.language_model", True),
        ("from gptj_lab.generation import x", "gptj_lab.language_model", False),
        ("def f():\n    from gptj_lab.lens import x", "gptj_lab.language_model", True),
        ("def f():\n    from gptj_lab.plots import x", "gptj_lab.language_model", False),
        ("from gptj_lab import model", "gptj_lab.config", False),
        ("import gptj_lab.model.sites as s", "gptj_lab.tokenizer", False),
        ("from .. import language_model", "gptj_lab.checkpoints.huggingface", False),
        ("from gptj_lab.finetuning import lora", "gptj_lab.evaluation.harness", False),
        ("import gptj_lab", "gptj_lab.widgets.playground", False),
        ("from gptj_lab import load", "gptj_lab.cli", True),
    ],
)
def test_direction_is_held_in_every_spelling(source, module, allowed):
    part = module.split(".")[1]
    said = [complaint(part, imported, lazy) for imported, lazy in imports(source, module)]
    assert said and (set(said) == {None}) is allowed, said


def test_conda_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[lab]"]}
    assert "lab" in PROJECT["optional-dependencies"]


def test_import_is_light_and_touches_no_device():
    code = (
        "import gptj_lab, sys\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'anywidget', 'ipywidgets'}\n"
        "heavy |= {'pandas', 'pyarrow', 'datasets', 'bs4', 'docx', 'pypdf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "assert bridge is None or not bridge._backends, list(bridge._backends)\n"
    )
    # The promise is for everything under the front door, not only for the door itself.
    for more in ("", "import gptj_lab.language_model\n"):
        run = subprocess.run(
            [sys.executable, "-c", more + code], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr


WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(module), verbose=False)
    assert result.attempted and not result.failed
