"""Hub names, through the real huggingface_hub, from a hub of our own on this machine."""

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from typing import NamedTuple

import huggingface_hub
import pytest

import gptj_lab
from gptj_lab.finetuning import export, lora
from gptj_lab.finetuning.soft_prompts import load_trained

pytestmark = pytest.mark.usefixtures("quick_processes")

BRANCH = "float16"
NOWHERE = "http://127.0.0.1:9"
CODE = """
import sys, gptj_lab
print(gptj_lab.load(sys.argv[1]).generate("the cat", max_new_tokens=5, temperature=0)[0].text)
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
def adapters(tiny_model, tmp_path_factory):
    """Repositories of PEFT's: an adapter with a step of its training beside it, and two names."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    model = lora.adapted(tiny_model, lora.LoRA(rank=2))
    for folder in (one, one / "checkpoint-1", two / "first", two / "second"):
        export.save_adapter(model, folder)
    (one / "adapter_model.bin").write_bytes(b"never fetched")
    return one, two


@pytest.fixture(scope="module")
def hub(repository, bin_repository, pull_requests, variants, adapters):
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
        "lab/lora": {"main": adapters[0]},
        "lab/loras": {"main": adapters[1]},
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
            folder = commits[commit]
            kept = sorted(file for file in folder.rglob("*") if file.is_file())
            if rest.startswith("/tree/"):
                files = [
                    {
                        "type": "file", "path": str(f.relative_to(folder)),
                        "size": f.stat().st_size, "oid": "0" * 40,
                    }
                    for f in kept
                ]  # fmt: skip
                data = json.dumps(files).encode()
            elif path.startswith("/api/"):
                files = [{"rfilename": str(file.relative_to(folder))} for file in kept]
                data = json.dumps({"id": model, "sha": commit, "siblings": files}).encode()
            else:
                data = (folder / rest.partition(commit)[2].strip("/")).read_bytes()
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


class Machine(NamedTuple):
    """A computer with a cache of its own, before this hub."""

    home: object
    endpoint: str
    offline: bool
    capsys: pytest.CaptureFixture

    def before(self, call):
        """What a function of no arguments returns on this machine."""
        with pytest.MonkeyPatch.context() as patch:
            known = huggingface_hub.constants  # read from the environment when it is imported
            old, template = known.ENDPOINT, known.HUGGINGFACE_CO_URL_TEMPLATE
            patch.setattr(known, "ENDPOINT", self.endpoint)
            address = template.replace(old, self.endpoint)
            patch.setattr(known, "HUGGINGFACE_CO_URL_TEMPLATE", address)
            patch.setattr(known, "HF_HUB_CACHE", str(self.home))
            patch.setattr(known, "HF_HUB_OFFLINE", self.offline)
            return call()

    def run(self, name, **options):
        """What the model of that name writes, or the sentence that refuses it; and what is told."""
        self.capsys.readouterr()
        try:
            found = written(self.before(lambda: gptj_lab.load(name, **options)))
        except (OSError, ValueError) as error:
            found = f"sentence: {error}"
        told = self.capsys.readouterr().err.splitlines()
        return found, "\n".join(line for line in told if line.startswith("gptj_lab: "))

    def load(self, name, **options):
        return self.run(name, **options)[0]


def written(model):
    return model.generate("the cat", max_new_tokens=5, temperature=0)[0].text


@pytest.fixture
def machine(hub, tmp_path, capsys):
    """What stands before the hub, and what does without a network; and the paths that are asked."""
    endpoint, asked = hub
    asked.clear()
    home = tmp_path / "cache"
    return Machine(home, endpoint, False, capsys), Machine(home, endpoint, True, capsys), asked


@pytest.fixture(scope="module")
def expected(tiny_directory):
    """What every repository here writes once it is loaded: all have the same weights."""
    return written(gptj_lab.load(tiny_directory))


def test_a_hub_name_is_fetched_once_and_works_offline_after(machine, expected):
    online, offline, asked = machine
    assert online.load("lab/tiny") == expected
    assert any("model.safetensors" in path for path in asked)
    assert not any("pytorch_model.bin" in path for path in asked), "only what is read is fetched"
    assert not any("flax_model" in path for path in asked)
    assert offline.load("lab/tiny") == expected
    assert online._replace(endpoint=NOWHERE).load("lab/tiny") == expected, "no network, but a cache"


def test_the_environment_decides_as_everywhere(hub, expected, tmp_path):
    """In a process of its own: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are the library's."""
    settings = {
        "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-c", CODE, "lab/tiny"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr
    assert list((tmp_path / "hub").glob("models--lab--tiny/snapshots/*/config.json"))


def test_what_the_hub_does_not_have_or_cannot_send_is_one_sentence(machine):
    online, offline, _ = machine
    unknown = online.load("lab/none")
    assert unknown.startswith("sentence: lab/none could not be loaded: the hub answered")
    assert "can't be reached" in offline.load("lab/none")
    assert "can't be reached" in online._replace(endpoint=NOWHERE).load("lab/none")
    wrong = online.load("lab/no such name!")
    assert wrong.startswith("sentence: lab/no such name!")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left.*free some space, or set HF_HOME"),
        (PermissionError(errno.EACCES, "no"), "denied.*set HF_HOME to a folder that you may"),
        (RuntimeError("IO Error: full (os error 28)"), "No space left.*free some space"),  # xet's
        (ConnectionResetError(errno.ECONNRESET, "gone"), "the hub can't be reached"),
    ],
)
def test_a_full_disk_is_not_taken_for_a_hub_that_is_away(machine, monkeypatch, failure, said):
    online, _, _ = machine

    def fails(*arguments, **settings):
        raise failure

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fails)
    found = online.load("lab/tiny")
    assert re.search(f"lab/tiny could not be .*{said}", found), found
    monkeypatch.undo()
    assert not online.load("lab/tiny").startswith("sentence"), "the next time it goes on"


def test_a_model_of_the_bin_era_and_a_revision_of_it(machine, expected):
    online, offline, asked = machine
    assert online.load("lab/bin", revision=BRANCH) == expected
    assert any("pytorch_model.bin" in path for path in asked)
    assert not any("flax_model" in path for path in asked), "only what is read is fetched"
    assert offline.load("lab/bin", revision=BRANCH) == expected
    assert "can't be reached" in offline.load("lab/bin")
    assert "it has no revision 'float61'" in online.load("lab/bin", revision="float61")


def test_safetensors_of_a_known_pull_request_are_taken_before_a_bin(machine, expected):
    online, offline, asked = machine
    found, told = online.run("EleutherAI/GPT-J-6B")
    assert found == expected
    assert "no safetensors on its main branch: those of refs/pr/40 are taken" in told
    assert not any("pytorch_model.bin" in path for path in asked)
    again, told = offline.run("EleutherAI/GPT-J-6B")
    assert again == expected and "refs/pr/40 are taken" in told
    asked.clear()
    found, told = online.run("EleutherAI/GPT-J-6B", revision="main")
    assert found == expected and not told
    assert any("pytorch_model.bin" in path for path in asked)
    found, told = online.run("EleutherAI/GPT-J-6B")
    assert found == expected and not told, "main's are in the cache: nothing else is fetched"


def test_a_known_pull_request_of_another_network_is_left(machine, expected):
    online, _, asked = machine
    found, told = online.run("Eleutherai/gpt-j-6b")
    assert found == expected and "another config.json than main: what main has is taken" in told
    assert not any(path.endswith("model.safetensors") for path in asked)


def test_pull_requests_of_strangers_are_told_and_taken_only_by_name(machine, expected, tmp_path):
    online, offline, asked = machine
    found, told = online.run("lab/asked")
    assert found == expected and any("pytorch_model.bin" in path for path in asked)
    assert (
        'refs/pr/10 has: if you trust who opened it, choose it with revision="refs/pr/10"' in told
    )
    asked.clear()
    assert online.run("lab/asked") == (found, "")
    assert not any("/refs" in path for path in asked), "once it is in the cache nobody looks"
    new = {"home": tmp_path / "new"}
    assert online._replace(**new).load("lab/asked", revision="refs/pr/10") == found
    assert offline._replace(**new).load("lab/asked", revision="refs/pr/10") == found


def test_a_hub_that_does_not_tell_its_pull_requests_is_no_obstacle(machine, expected):
    assert machine[0].run("lab/silent") == (expected, "")


def test_variants_on_the_hub(machine, expected):
    online, offline, asked = machine
    found, told = online.run("lab/fp16")
    assert found == expected and "its weights only in the variant 'fp16'" in told
    asked.clear()
    assert online.run("lab/many", variant="fp16") == (expected, "")
    assert not any("pytorch_model" in path or "bf16" in path for path in asked)
    assert offline.run("lab/many", variant="fp16") == (expected, "")
    lacking = online.load("lab/many", variant="fp8")
    assert "lab/many has no weights of the variant 'fp8': it has the variants 'bf16', 'fp16', " in (
        lacking
    )


def test_adapters_of_the_hub_by_their_names(machine, adapters, tiny_model):
    online, offline, asked = machine
    loaded = online.before(lambda: load_trained(tiny_model, "lab/lora"))
    ids = [[1, 2, 3]]
    here = load_trained(tiny_model, adapters[0])
    assert (loaded.logits(ids) == here.logits(ids)).all()
    assert not any(".bin" in path or "checkpoint" in path for path in asked)
    again = offline.before(lambda: export.load_adapter(tiny_model, "lab/lora", "again"))
    assert lora.names(again) == ["again"]
    second = online.before(lambda: export.load_adapter(tiny_model, "lab/loras", "second"))
    assert lora.names(second) == ["second"]
    for place, said in ((online, "the hub answered"), (offline, "can't be reached")):
        with pytest.raises(FileNotFoundError, match=f"lab/none could not be loaded: .*{said}"):
            place.before(lambda: export.load_adapter(tiny_model, "lab/none"))
