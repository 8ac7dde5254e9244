"""The notebooks' install cell as it stands, with the real pip, from a wheel, without network."""

import importlib.util
import os
import subprocess
from pathlib import Path

import new_session
import pytest

ROOT = Path(__file__).parents[2]
DONE = "is installed; JAX stays at"


@pytest.fixture(scope="session")
def cell() -> str:
    """The text of the cell."""
    module = importlib.util.spec_from_file_location("build", ROOT / "colab" / "build.py")
    assert module is not None and module.loader is not None
    build = importlib.util.module_from_spec(module)
    module.loader.exec_module(build)
    return build.install_cell()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    return new_session.wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def session(tmp_path, cell):
    """Runs the cell in a new session; more cells may come before or after it."""
    python = new_session.environment(tmp_path / "environment")
    content = tmp_path / "content"
    content.mkdir()
    # No index, and a proxy that isn't there: pip has what lies here.
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_RETRIES": "0",
        "PIP_NO_COMPILE": "1",
        "https_proxy": "http://127.0.0.1:9",
    }
    hidden = ("PYTHONPATH", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | offline

    def run(before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", "\n".join([before, cell, after])],
            cwd=content, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    run.content, run.site = content, new_session.site_packages(tmp_path / "environment")
    return run


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What the cell says last as it stops."""
    assert done.returncode, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: "), done.stderr
    return last.removeprefix("RuntimeError: ")


@pytest.mark.slow
def test_installs_from_a_wheel_and_again_does_nothing(session, wheel):
    (session.content / wheel.name).symlink_to(wheel)
    before = {path.name for path in session.site.iterdir()}
    use = "import gptj_lab\nprint(gptj_lab.__file__, gptj_lab.load())"
    first = session(after=use)
    assert not first.returncode, first.stderr
    assert DONE in first.stdout and str(session.site) in first.stdout
    assert "LanguageModel('pocket'" in first.stdout
    new = {path.name for path in session.site.iterdir()} - before
    assert new == {"gptj_lab", "gptj_lab-0.1.0.dist-info"}, "something else was changed"
    (session.content / wheel.name).unlink()  # a restarted session, and no network for it
    again = session(after="import gptj_lab.lessons.gallery as g\nprint(len(g.prompts()))")
    assert not again.returncode and DONE in again.stdout
    assert again.stdout.split()[-1] == "8"


@pytest.mark.slow
def test_a_half_installed_copy_is_completed(session, wheel):
    (session.content / wheel.name).symlink_to(wheel)
    half = session.site / "gptj_lab"  # pip writes the metadata last
    half.mkdir()
    (half / "__init__.py").write_text("half = True")
    done = session(after="import gptj_lab\nprint(gptj_lab.load)")
    assert not done.returncode and DONE in done.stdout, done.stderr


def test_without_a_network_says_what_to_do(session):
    (session.content / "gptj_lab-0.1.0-py3-none-any (1).whl").write_bytes(b"")  # a browser's name
    done = session()
    said = sentence(done)
    assert said.startswith("pip could not install https://github.com/") and "drag a wheel" in said
    assert "ERROR" in done.stdout, "pip's own words come first"


@pytest.mark.parametrize(
    ("name", "version"), [("jax", "0.6.2"), ("jax", "1.0.0"), ("numpy", "1.26.4")]
)
def test_what_is_out_of_range_is_told_before_pip_is_asked(session, name, version):
    new_session.described_as(name, version, session.site)
    said = sentence(session())
    assert said.startswith(f"{name} is {version} here, and gptj_lab needs >=")
    assert "Runtime > Change runtime type" in said


@pytest.mark.slow
def test_jax_is_not_changed_for_the_sake_of_another_package(session, tmp_path):
    new_session.wheel(session.content, needs=("jax>=99",))
    before = sorted(path.name for path in session.site.iterdir())
    said = sentence(done := session())
    assert "the lines above say why" in said and "jax" in done.stdout
    assert sorted(path.name for path in session.site.iterdir()) == before


@pytest.mark.slow
def test_a_package_that_the_session_has_loaded_already_needs_a_restart(session, wheel):
    (session.content / wheel.name).symlink_to(wheel)
    loaded = "import sys, types\nsys.modules['flax'] = types.SimpleNamespace(__version__='0.11.2')"
    for _ in range(2):  # running the cell again doesn't help
        said = sentence(session(before=loaded))
        assert "this session has loaded 0.11.2 already: Runtime > Restart session" in said
    assert DONE in session().stdout
