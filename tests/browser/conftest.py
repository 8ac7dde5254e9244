"""A real JupyterLab server and a real Chromium, one of each for all browser tests."""

import json
import os
import shutil
from pathlib import Path

import jupyter_server
import pytest

ROOT = Path(__file__).parents[2]
HOW = "Chromium is not here; install it (Debian: apt-get install chromium) to run browser tests"


@pytest.fixture(scope="session")
def chromium():
    """The path of the browser."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip(HOW)
    return path


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab with its own settings: its folder, its address and its token."""
    with jupyter_server.running(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="session")
def browser(chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update "
        "--disable-background-networking --disable-sync"
    )
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=quiet.split())


@pytest.fixture(scope="session")
def open_notebook(lab, browser):
    """A function: a page with the notebook of that name, its kernel idle, no cell run yet."""
    if not (ROOT / "data/pocket/config.json").is_file():
        pytest.skip("data/pocket holds no model: gptj-lab train-pocket makes one")
    folder, address, token = lab
    for name in ("notebooks", "data/prompts"):
        shutil.copytree(ROOT / name, folder / name)

    def opened(name):
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        page.set_default_timeout(60_000)
        # A workspace of its own: JupyterLab would open the other notebooks' tabs again.
        page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={token}")
        page.locator(".jp-NotebookPanel").wait_for()
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("| Idle").wait_for()  # before, running a cell asks which kernel to take
        return page

    return opened


@pytest.fixture(scope="session")
def run_all():
    """A function: Run > Run All Cells."""

    def run(page):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    return run


@pytest.fixture(scope="session")
def run_cell():
    """A function: runs code in a new cell at the notebook's end."""

    def run(page, code):
        page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
        for key in ("Escape", "b", "Enter"):
            page.keyboard.press(key)
        page.keyboard.insert_text(code)
        page.keyboard.press("Shift+Enter")

    return run


@pytest.fixture(scope="session")
def open_code(lab, browser):
    """A function: a page with a new notebook of one cell with that code, not run yet."""
    folder, address, token = lab

    def opened(name, code, host="lab"):
        (folder / f"{name}.ipynb").write_text(jupyter_server.notebook(code))
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.set_default_timeout(60_000)
        page.sent = []  # what the page tells the kernel
        page.on("websocket", lambda ws: ws.on("framesent", lambda f: page.sent.append(f)))
        where = {"lab": f"lab/workspaces/{name}/tree", "notebook": "notebooks"}[host]
        page.goto(f"{address}/{where}/{name}.ipynb?token={token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        if host == "lab":
            page.get_by_text("| Idle").wait_for()
            page.keyboard.press("Control+b")  # the folder's list away: room for the view
        else:
            page.locator(".jp-NotebookKernelStatus", has_text="").first.wait_for(state="attached")
            page.wait_for_timeout(3000)
        return page

    return opened


@pytest.fixture
def python(run_cell):
    """A function: the value of an expression in the kernel, through JSON."""

    def evaluate(page, expression):
        mark = f"IS{os.urandom(4).hex()}"
        run_cell(page, f"import json; print('{mark}', json.dumps({expression}))")
        output = page.locator(".jp-OutputArea-output", has_text=mark).last
        output.wait_for(timeout=60_000)
        text = output.inner_text()
        assert text.startswith(mark), text  # an error names the line, and with it the mark
        return json.loads(text.split(mark, 1)[1])

    return evaluate
