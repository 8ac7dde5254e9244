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

pytestmark = pytest.mark.usefixtures("quick_processes")

SHA = "0123456789abcdef0123456789abcdef01234567"
BRANCH = "float16"
CODE = """
import sys, gptj_lab
try:
    model = gptj_lab.load(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None)
    print(model.generate("the cat", max_new_tokens=5, temperature=0)[0].token_ids)
except FileNotFoundError as error:
    print("sentence:", error)
"""


@pytest.fixture(scope="module")
def repository(tiny_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(tiny_directory, folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "flax_model.msgpack").write_bytes(b"never fetched")
    return folder


@pytest.fixture(scope="module")
def bin_repository(repository, tmp_path_factory):
    """As EleutherAI/gpt-j-6b: no safetensors, but a .bin and a msgpack; a revision of its own."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("bin_repository")
    shutil.copytree(repository, folder, dirs_exist_ok=True)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def hub(repository, bin_repository):
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
            model = next((m for m in ("lab/tiny", "lab/bin") if m in self.path), None)
            kept = bin_repository if model == "lab/bin" else repository
            revision = "/revision/" in self.path and "/revision/main" not in self.path
            if model is None or (revision and f"/revision/{BRANCH}" not in self.path):
                self.send_response(404)
                missing = "RevisionNotFound" if model else "RepoNotFound"
                self.send_header("X-Error-Code", missing)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                    for f in sorted(kept.iterdir())
                ]
                data = json.dumps(files).encode()
            elif self.path.startswith("/api/"):
                files = [{"rfilename": file.name} for file in sorted(kept.iterdir())]
                data = json.dumps({"id": model, "sha": SHA, "siblings": files}).encode()
            else:
                data = (kept / name).read_bytes()
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


def load(name: str, home: Path, endpoint: str, *options: str, **more: str) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu",
    } | more  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", CODE, name, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_hub_name_is_fetched_once_and_works_offline_after(hub, tmp_path):
    endpoint, asked = hub
    found = load("lab/tiny", tmp_path, endpoint)
    assert found.startswith("[") and found.count(",") == 4
    assert any("model.safetensors" in path for path in asked)
    assert not any("pytorch_model.bin" in path for path in asked), "only what is read is fetched"
    assert not any("flax_model" in path for path in asked)
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


def test_a_model_of_the_bin_era_and_a_revision_of_it(hub, tmp_path):
    endpoint, asked = hub
    expected = load("lab/tiny", tmp_path, endpoint)
    asked.clear()
    assert load("lab/bin", tmp_path, endpoint, BRANCH) == expected
    assert any("pytorch_model.bin" in path for path in asked)
    assert not any("flax_model" in path for path in asked), "only what is read is fetched"
    assert load("lab/bin", tmp_path, endpoint, BRANCH, HF_HUB_OFFLINE="1") == expected
    assert "can't be reached" in load("lab/bin", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    wrong = load("lab/bin", tmp_path, endpoint, "float61")
    assert "it has no revision 'float61'" in wrong
