"""The core suite and the notebooks' install cell on other versions: `make compat`.

Environments lie in .venv-compat/: `colab` has what a Colab runtime has, as far as this Python can
have it; `oldest` the lower bounds of pyproject.toml; `newest` whatever pip finds. In each the
install cell runs as it stands, from a wheel, and then `tests/test_core.py` against what it
installed. The last result of each stands in docs/compatibility.md.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import new_session  # noqa: E402

HOME = ROOT / ".venv-compat"
TABLE = ROOT / "docs" / "compatibility.md"
NAMES = ("colab", "oldest", "newest")
SHOWN = ("jax", "flax", "numpy", "optax", "orbax-checkpoint", "transformers", "ipywidgets")
_SESSION = ("ipykernel", "packaging", "pytest>=8", "beartype", "pyyaml")  # and what we need
_LEFT_OUT = ("jupyterlab",)  # a browser's part, which no test here opens
_HEAD = """# Versions that the core suite ran on
Written by `make compat`. Each line: the Colab notebooks' install cell as it stands, in an
environment of these versions, and then `tests/test_core.py` without torch.

| environment | date | Python | {} | install cell | core suite |
|---|---|---|{}---|---|
"""


class Unavailable(Exception):
    """uv can't make an environment here: no network, or versions that it doesn't find."""


def needs() -> list[str]:
    """What the library and its views need, as pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["lab"]
    return [*project["dependencies"], *(n for n in extra if not n.startswith(_LEFT_OUT))]


def constraints(name: str) -> list[str]:
    """The versions that an environment is held to."""
    if name == "colab":
        return (ROOT / "tests" / "compatibility" / "colab.txt").read_text("utf-8").splitlines()
    if name == "oldest":
        return [re.sub(r">=([^,]*).*", r"==\1", need) for need in needs()]
    return []


def make(name: str) -> Path:
    """The Python of an environment made anew, with pip in it, as Colab has.

    Raises:
        Unavailable: uv can't install it.
    """
    folder = HOME / name
    python = folder / "bin" / "python"
    file = folder.with_suffix(".txt")
    HOME.mkdir(exist_ok=True)
    file.write_text("\n".join(constraints(name)))
    plain = [re.split(r"[>=<]", need)[0] for need in needs()]
    wanted = [*(needs() if name != "colab" else plain), *_SESSION]
    for arguments in (
        ("venv", "--clear", "--seed", "--python", sys.executable, str(folder)),
        ("pip", "install", "--python", str(python), "-c", str(file), *wanted),
    ):
        done = _uv(*arguments)
        if done.returncode:
            said = done.stderr.strip()[-2000:]
            raise Unavailable(f"uv can't make the environment {name}: {said}")
    return python


def run_cell(python: Path) -> str:
    """What the install cell of the Colab notebooks prints in that environment."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "colab" / "build.py")
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    with tempfile.TemporaryDirectory() as content:
        new_session.wheel(Path(content))
        done = subprocess.run(
            [python, "-c", build.install_cell()], cwd=content, env=_alone(), text=True,
            capture_output=True, timeout=600,
        )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"the install cell failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run_core(python: Path, *chosen: str) -> str:
    """pytest's last line on the core suite, run against the package that the cell installed.

    Args:
        chosen: more arguments for pytest.
    """
    suite = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "core"]
    done = subprocess.run(
        [*suite, *chosen, "tests/test_core.py"],
        cwd=ROOT, env=_alone(), text=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(
            f"the core suite failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
        )
    return done.stdout.strip().splitlines()[-1]


def versions(python: Path) -> dict[str, str]:
    """Of the packages in the table, and of Python."""
    told = json.loads(_uv("pip", "list", "--python", str(python), "--format", "json").stdout)
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in told}
    own = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.split()[1]
    return {"Python": own} | {name: found.get(name, "none") for name in SHOWN}


def record(name: str, row: list[str]) -> None:
    """Puts an environment's row into the table in docs/."""
    old = TABLE.read_text("utf-8").splitlines() if TABLE.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")}
    rows.pop("environment", None)
    rows[name] = f"| {' | '.join([name, *row])} |"
    head = _HEAD.format(" | ".join(SHOWN), "---|" * len(SHOWN))
    TABLE.write_text(head + "\n".join(rows[each] for each in sorted(rows)) + "\n", "utf-8")


def _uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    uv = shutil.which("uv", path=beside)  # it takes a tenth of pip's time
    if uv is None:
        raise Unavailable("uv isn't installed: pip install uv")
    return subprocess.run([uv, "-q", *arguments], env=_alone(), capture_output=True, text=True)


def _alone() -> dict[str, str]:
    """This process's environment without what would lead another Python to our packages."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in hidden}


def main() -> int:
    """Makes the environments that are named, or all, and records how they did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    failed = False
    for name in parser.parse_args().names or NAMES:
        cell = core = "not run"
        shown: dict[str, str] = {}
        try:
            python = make(name)
            run_cell(python)
            cell, shown = "passed", versions(python)
            core = re.sub(r", \d+ warnings?| in .*", "", run_core(python))
        except Unavailable as error:
            print(error)
            failed = True
            continue
        except AssertionError as error:
            print(error)
            failed = True
            cell, core = (cell, "failed") if cell == "passed" else ("failed", core)
        date = time.strftime("%Y-%m-%d", time.gmtime())
        record(name, [date, *(shown or versions(python)).values(), cell, core])
        print(f"{name}: install cell {cell}, core suite {core}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
