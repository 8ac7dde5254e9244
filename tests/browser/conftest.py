"""A real JupyterLab server and a real Chromium, one of each for all browser tests."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

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
    home = tmp_path_factory.mktemp("lab")
    folder = home / "work"
    folder.mkdir()
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    kernels = home / "data" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"],'
        '"display_name": "Python 3", "language": "python"}'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "run"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces"), "IPYTHONDIR": str(home / "ipython"),
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("XLA_FLAGS", None)
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
                f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1",
                "--LabApp.news_url=None",
            ],
            env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("JupyterLab did not start:\n" + (home / "log").read_text()[-3000:])
                time.sleep(0.3)
        yield folder, address, token
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


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
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = {
            "cells": [cell | {"outputs": [], "source": code}],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
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
