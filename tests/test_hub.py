"""Hub names, through the real huggingface_hub, from a hub of our own on this machine."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_processes")

BRANCH = "float16"
CODE = """
import sys, gptj_lab
try:
    options = dict(option.split("=") for option in sys.argv[2:])
    model = gptj_lab.load(sys.argv[1], **options)
    print(model.generate("the cat", max_new_tokens=5, temperature=0)[0].token_ids)
except (FileNotFoundError, ValueError) as error:
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
def pull_requests(repository, bin_repository, tmp_path_factory):
    """Folders of pull requests: with everything, with weights only, and of another network."""
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(repository, whole, dirs_exist_ok=True)
    (whole / "tokenizer.json").write_text("of main, not of the pull request")
    weights = tmp_path_factory.mktemp("weights")
    shutil.copy(repository / "model.safetensors", weights)
    other = tmp_path_factory.mktemp("other")
    shutil.copy(repository / "model.safetensors", other)
    fields = json.loads((repository / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(fields | {"layer_norm_epsilon": 0.5}))
    return whole, weights, other


@pytest.fixture(scope="module")
def variants(repository, tmp_path_factory):
    """Two folders: with a variant alone, and with two beside the plain .bin."""
    alone, many = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("many")
    for folder in (alone, many):
        shutil.copytree(repository, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    for file in ("pytorch_model.bin", "flax_model.msgpack"):
        (alone / file).unlink()
    (many / "model.bf16.safetensors").write_bytes(b"never fetched")
    return alone, many


@pytest.fixture(scope="module")
def hub(repository, bin_repository, pull_requests, variants):
    """The address of a server that answers as the hub does, and the paths it was asked for."""
    whole, weights, other = pull_requests
    revisions = {
        "lab/tiny": {"main": repository},
        "lab/bin": {"main": bin_repository, BRANCH: bin_repository},
        "lab/silent": {"main": bin_repository},  # doesn't answer when asked for its refs
        "lab/asked": {
            "main": bin_repository, "refs/pr/2": whole, "refs/pr/10": weights,
            "refs/pr/11": bin_repository,
        },
        "EleutherAI/GPT-J-6B": {"main": bin_repository, "refs/pr/40": whole},
        "Eleutherai/gpt-j-6b": {"main": bin_repository, "refs/pr/40": other},
        "lab/fp16": {"main": variants[0]},
        "lab/many": {"main": variants[1]},
    }  # fmt: skip
    commits = {
        hashlib.sha1(f"{model} {revision}".encode()).hexdigest(): folder
        for model, folders in revisions.items()
        for revision, folder in folders.items()
    }
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def log_message(self, *_):
            pass

        def _answer(self, body: bool):
            asked.append(urllib.parse.unquote(self.path))
            path = asked[-1].split("?")[0]
            model = next((m for m in revisions if f"/{m}/" in f"{path}/"), None)
            if model is None:
                return self._refuse("RepoNotFound")
            rest = path.partition(model)[2]
            if rest == "/refs":
                return self._refs(model)
            name = next((n for n in revisions[model] if f"/{n}/" in f"{rest}/"), None)
            commit = next((commit for commit in commits if commit in rest), None)
            if rest and not name and not commit:
                return self._refuse("RevisionNotFound")
            commit = commit or hashlib.sha1(f"{model} {name or 'main'}".encode()).hexdigest()
            kept = sorted(commits[commit].iterdir())
            if rest.startswith("/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                    for f in kept
                ]
                data = json.dumps(files).encode()
            elif path.startswith("/api/"):
                files = [{"rfilename": file.name} for file in kept]
                data = json.dumps({"id": model, "sha": commit, "siblings": files}).encode()
            else:
                data = (commits[commit] / path.rpartition("/")[2]).read_bytes()
            self._send(data, commit, body)

        def _refs(self, model: str):
            if model == "lab/silent":
                return self.connection.close()
            refs = [
                {"name": name, "ref": name, "targetCommit": "0" * 40}
                for name in revisions[model]
                if name.startswith("refs/")
            ]
            answer = {"branches": [], "converts": [], "tags": [], "pullRequests": refs}
            return self._send(json.dumps(answer).encode(), "0" * 40, True)

        def _refuse(self, code: str):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, data: bytes, commit: str, body: bool):
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def run(name: str, home: Path, endpoint: str, *options: str, **more: str) -> tuple[str, str]:
    """What loading it prints, and what it tells on standard error."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu",
    } | more  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE, name, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("gptj_lab: ")]
    return done.stdout, "\n".join(told)


def load(name: str, home: Path, endpoint: str, *options: str, **more: str) -> str:
    return run(name, home, endpoint, *options, **more)[0]


@pytest.fixture(scope="module")
def expected(hub, tmp_path_factory):
    """What every repository here prints once it is loaded: all have the same weights."""
    return load("lab/tiny", tmp_path_factory.mktemp("home"), hub[0])


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


def test_a_model_of_the_bin_era_and_a_revision_of_it(hub, expected, tmp_path):
    endpoint, asked = hub
    asked.clear()
    assert load("lab/bin", tmp_path, endpoint, f"revision={BRANCH}") == expected
    assert any("pytorch_model.bin" in path for path in asked)
    assert not any("flax_model" in path for path in asked), "only what is read is fetched"
    assert load("lab/bin", tmp_path, endpoint, f"revision={BRANCH}", HF_HUB_OFFLINE="1") == expected
    assert "can't be reached" in load("lab/bin", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    wrong = load("lab/bin", tmp_path, endpoint, "revision=float61")
    assert "it has no revision 'float61'" in wrong


def test_safetensors_of_a_known_pull_request_are_taken_before_a_bin(hub, expected, tmp_path):
    endpoint, asked = hub
    asked.clear()
    found, told = run("EleutherAI/GPT-J-6B", tmp_path, endpoint)
    assert found == expected
    assert "no safetensors on its main branch: those of refs/pr/40 are taken" in told
    assert not any("pytorch_model.bin" in path for path in asked)
    again, told = run("EleutherAI/GPT-J-6B", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert again == expected and "refs/pr/40 are taken" in told
    asked.clear()
    found, told = run("EleutherAI/GPT-J-6B", tmp_path, endpoint, "revision=main")
    assert found == expected and not told
    assert any("pytorch_model.bin" in path for path in asked)
    found, told = run("EleutherAI/GPT-J-6B", tmp_path, endpoint)
    assert found == expected and not told, "main's are in the cache: nothing else is fetched"


def test_a_known_pull_request_of_another_network_is_left(hub, expected, tmp_path):
    endpoint, asked = hub
    asked.clear()
    found, told = run("Eleutherai/gpt-j-6b", tmp_path, endpoint)
    assert found == expected and "another config.json than main: what main has is taken" in told
    assert not any(path.endswith("model.safetensors") for path in asked)


def test_pull_requests_of_strangers_are_told_and_taken_only_by_name(hub, expected, tmp_path):
    endpoint, asked = hub
    asked.clear()
    found, told = run("lab/asked", tmp_path, endpoint)
    assert found == expected and any("pytorch_model.bin" in path for path in asked)
    assert (
        'refs/pr/10 has: if you trust who opened it, choose it with revision="refs/pr/10"' in told
    )
    asked.clear()
    assert run("lab/asked", tmp_path, endpoint) == (found, "")
    assert not any("/refs" in path for path in asked), "once it is in the cache nobody looks"
    assert load("lab/asked", tmp_path / "new", endpoint, "revision=refs/pr/10") == found
    offline = ("revision=refs/pr/10",)
    assert load("lab/asked", tmp_path / "new", endpoint, *offline, HF_HUB_OFFLINE="1") == found


def test_a_hub_that_does_not_tell_its_pull_requests_is_no_obstacle(hub, expected, tmp_path):
    endpoint, _ = hub
    found, told = run("lab/silent", tmp_path, endpoint)
    assert found == expected and not told


def test_variants_on_the_hub(hub, expected, tmp_path):
    endpoint, asked = hub
    found, told = run("lab/fp16", tmp_path, endpoint)
    assert found == expected and "its weights only in the variant 'fp16'" in told
    asked.clear()
    assert run("lab/many", tmp_path, endpoint, "variant=fp16") == (expected, "")
    assert not any("pytorch_model" in path or "bf16" in path for path in asked)
    offline = run("lab/many", tmp_path, endpoint, "variant=fp16", HF_HUB_OFFLINE="1")
    assert offline == (expected, "")
    lacking = load("lab/many", tmp_path, endpoint, "variant=fp8")
    assert "lab/many has no weights of the variant 'fp8': it has the variants 'bf16', 'fp16', " in (
        lacking
    )
