"""Hub names, through the real huggingface_hub, from a hub of our own on this machine."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys, gptj_lab
try:
    model = gptj_lab.load(sys.argv[1])
    print(model.generate("the cat", max_new_tokens=5, temperature=0)[0].token_ids)
except FileNotFoundError as error:
    print("sentence:", error)
"""


@pytest.fixture(scope="module")
def repository(tiny_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(tiny_directory, folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return folder


@pytest.fixture(scope="module")
def hub(repository):
    """The address of a server that answers as the hub does, and the paths it was asked for."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def log_message(self, *_):
            pass

        def _answer(self, body: bool):
            asked.append(self.path)
            name = self.path.split("?")[0].rpartition("/")[2]
            if not self.path.startswith(("/api/models/lab/tiny", "/lab/tiny/resolve/")):
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                    for f in sorted(repository.iterdir())
                ]
                data = json.dumps(files).encode()
            elif self.path.startswith("/api/"):
                files = [{"rfilename": file.name} for file in sorted(repository.iterdir())]
                data = json.dumps({"id": "lab/tiny", "sha": SHA, "siblings": files}).encode()
            else:
                data = (repository / name).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def load(name: str, home: Path, endpoint: str, **more: str) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu",
    } | more  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", CODE, name], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_hub_name_is_fetched_once_and_works_offline_after(hub, tmp_path):
    endpoint, asked = hub
    found = load("lab/tiny", tmp_path, endpoint)
    assert found.startswith("[") and found.count(",") == 4
    assert any("model.safetensors" in path for path in asked)
    assert not any("pytorch_model.bin" in path for path in asked), "only what is read is fetched"
    assert load("lab/tiny", tmp_path, endpoint, HF_HUB_OFFLINE="1") == found
    assert load("lab/tiny", tmp_path, "http://127.0.0.1:9") == found, "no network, but a cache"


def test_what_the_hub_does_not_have_or_cannot_send_is_one_sentence(hub, tmp_path):
    endpoint, _ = hub
    unknown = load("lab/none", tmp_path, endpoint)
    assert unknown.startswith("sentence: lab/none could not be loaded: the hub answered")
    offline = load("lab/none", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert "can't be reached" in offline
    nowhere = load("lab/none", tmp_path, "http://127.0.0.1:9")
    assert "can't be reached" in nowhere
    wrong = load("lab/no such name!", tmp_path, endpoint)
    assert wrong.startswith("sentence: lab/no such name!")
