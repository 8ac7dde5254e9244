"""An environment as a new session has it: every package of ours is there, and gptj_lab isn't."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Folders that a wheel has inside the package, a clone beside it.
_BROUGHT = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def environment(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """The Python of a new environment with links to the packages here, pip among them.

    Args:
        without: names of distributions that it lacks besides gptj_lab.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = site_packages(folder)
    lacking = ("gptj_lab", *without)
    for path in {Path(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib")}:
        for entry in path.iterdir():
            # An editable install has a .pth file and a finder beside its metadata.
            if not any(name in entry.name for name in lacking) and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def site_packages(environment: Path) -> Path:
    """Where an environment has its packages."""
    return next(environment.glob("lib/python*/site-packages"))


def described_as(name: str, version: str, site: Path) -> None:
    """Makes an environment believe that it has a distribution in some version."""
    for path in site.glob(f"{name}-*.dist-info"):
        path.unlink()
    metadata = site / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata.parent / "RECORD").write_text("")


def contents() -> dict[str, Path]:
    """What the wheel of gptj_lab holds, by the path inside it."""
    return {
        f"{inside}/{file.relative_to(ROOT / outside)}": file
        for outside, inside in {"gptj_lab": "gptj_lab", **_BROUGHT}.items()
        for file in sorted((ROOT / outside).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def wheel(folder: Path, version: str = "0.1.0", needs: tuple[str, ...] = ()) -> Path:
    """A wheel of gptj_lab as hatchling makes it, without the network that hatchling needs.

    Args:
        needs: requirements besides those in pyproject.toml.
    """
    project = PROJECT["project"]
    about = ["Metadata-Version: 2.1", "Name: gptj_lab", f"Version: {version}"]
    about += [f"Requires-Dist: {need}" for need in (*project["dependencies"], *needs)]
    for extra, theirs in project["optional-dependencies"].items():
        about.append(f"Provides-Extra: {extra}")
        about += [f"Requires-Dist: {need}; extra == '{extra}'" for need in theirs]
    info = f"gptj_lab-{version}.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    written = {f"{info}/METADATA": "\n".join(about) + "\n", f"{info}/WHEEL": tag}
    path = folder / f"gptj_lab-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for inside, file in contents().items():
            packed.write(file, inside)
        for inside, text in written.items():
            packed.writestr(inside, text)
        names = [*packed.namelist(), f"{info}/RECORD"]
        packed.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path


def linked(site: Path) -> None:
    """Installs what the wheel holds, by links: quicker than pip."""
    package = site / "gptj_lab"
    package.mkdir()
    for entry in (ROOT / "gptj_lab").iterdir():
        (package / entry.name).symlink_to(entry)
    for outside, inside in _BROUGHT.items():
        (site / inside).symlink_to(ROOT / outside)
    described_as("gptj_lab", PROJECT["project"]["version"], site)
