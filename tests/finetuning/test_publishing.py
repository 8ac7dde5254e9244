"""What goes to the hub: weights and a card; no text, path, state or token. With the real client."""

import base64
import http.server
import json
import re
import threading
from types import SimpleNamespace

import huggingface_hub
import mistune
import pytest
from huggingface_hub import ModelCard
from small_models import small_model

import gptj_lab
from gptj_lab.finetuning import corpus, export, lora, model_card
from gptj_lab.finetuning.publishing import push

SECRET = "hf_neverShownAnywhere"
EVIL = (
    "```\n---\nlicense: evil\n---\n<script>alert(1)</script> | `x` ![](http://e.vil/p.png)\x1b[2J"
)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A run as push sees it, of an adapter, a text and two evaluations; its words are hostile."""
    folder = tmp_path_factory.mktemp("run")
    secret = folder / "private_diary.txt"
    text = b"the cat sat on the diary of a very private dog\n" * 200
    secret.write_bytes(text + b"caf\xe9 \xff\n")  # the doctor says so, and names the file
    found = corpus.prepare([str(secret)], tiny_model.tokenizer, context=32, cache=folder / "cache")
    model = lora.adapted(tiny_model, lora.LoRA(rank=2))
    samples = [{"prompt": "the cat", "text": EVIL}, {"prompt": EVIL, "text": "\ud83d sat"}]
    early = [{"prompt": "the cat", "text": "of step ten"}]
    settings = {
        "steps": 20, "batch": 4, "context": 32, "packing": "documents", "held_out": 0.05,
        "method": {"kind": "lora", "rank": 2, "targets": ["q", "v"], "name": EVIL},
        "optimiser": {"name": "adamw", "learning_rate": 1e-3},
        "out": str(folder), "data": str(secret), "prompts": ["the cat"], "token": SECRET,
    }  # fmt: skip

    def save(directory, *, best=False):
        export.save_adapter(model, directory)
        return 10 if best else 20

    return SimpleNamespace(
        base=tiny_model, model=model, corpus=found, steps=20, settings=settings, base_loss=5.25,
        history=[], notes=[f"resumed from {folder}"],
        evaluations=[
            {"step": 0, "held_out_loss": 5.25, "loss": None, "samples": [], "best": True},
            {"step": 10, "held_out_loss": 4.5, "loss": 4.75, "samples": early, "best": True},
            {"step": 20, "held_out_loss": 4.625, "loss": 4.25, "samples": samples, "best": False},
        ],
        save=save,
    )  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """A hub of our own: what was committed, by repository, and every request's path."""
    kept = SimpleNamespace(repos={"me/open": False}, files={}, paths=[], private=[], refuse=False)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/api/models/").split("?")[0]
            there = not kept.refuse and name in kept.repos
            known = {"id": name, "private": kept.repos.get(name), "siblings": []}
            self._answer(
                known if there else {"error": "Invalid credentials"}, 200 if there else 401
            )

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.paths.append(self.path)
            if kept.refuse:
                self._answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                code = 409 if name in kept.repos else 200
                kept.repos.setdefault(
                    name, bool(asked.get("private")) or asked.get("visibility") == "private"
                )
                self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name}, code)
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                self._answer({"files": [{"path": f["path"], **plain} for f in files]})
            else:
                name = self.path.split("/api/models/")[1].split("/commit/")[0]
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        kept.files[name, value["path"]] = base64.b64decode(value["content"])
                url = f"http://{self.headers['Host']}/{name}/commit/1"
                self._answer({"commitUrl": url, "commitOid": "1", "success": True})

        def _answer(self, value, code=200):
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    yield kept
    server.shutdown()


def test_a_run_goes_to_the_hub_as_adapter_and_card(run, hub, tiny_model, tmp_path):
    done = push(run, "me/cats", token=SECRET)
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {key for key in hub.files} == {("me/cats", name) for name in names}
    assert hub.repos["me/cats"] is True and done.url and done.url.endswith("/me/cats")
    assert done.files == {name: len(hub.files["me/cats", name]) for name in sorted(names)}
    for name in names:
        (tmp_path / name).write_bytes(hub.files["me/cats", name])
    again = export.load_adapter(tiny_model, tmp_path)
    ids = [tiny_model.tokenizer.encode("the cat sat")]
    assert (again.logits(ids) == run.model.logits(ids)).all()
    sent = b"".join(hub.files.values())
    for private in (SECRET, "diary", "very private dog", str(run.settings["out"])):
        assert private.encode() not in sent


def test_a_dry_run_says_what_would_go_and_sends_nothing(run, hub):
    would = push(run, "me/cats", dry_run=True, token=SECRET)
    assert hub.paths == [] and would.url is None
    assert "Would upload to me/cats (private): 3 files" in str(would)
    assert "adapter_model.safetensors (" in str(would) and SECRET not in str(would) + would.card
    sent = push(run, "me/cats")
    assert sent.files == would.files and sent.card == would.card
    assert hub.files["me/cats", "README.md"].decode() == would.card


def test_the_card_tells_the_run_and_cannot_be_broken(run):
    text = model_card.card("me/cats", "lora", "EleutherAI/gpt-j-6b", run)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": "EleutherAI/gpt-j-6b",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["gptj_lab", "lora"],
    }
    assert (
        "The weights are those after step 20: 4.625 on text that was held out, where the base has "
        "5.250; the lowest was 4.500, after step 10." in text
    )
    assert "| 0 | 5.250 |  |" in text and "| 20 | 4.625 | 4.250 |" in text
    assert "| optimiser.learning\\_rate | `0.001` |" in text
    assert re.search(r"to train on, \d+ of them seen", text)  # the doctor
    assert any("private_diary" in sentence for sentence in run.corpus.doctor().sentences)
    assert re.search(r"^- \d+ x ", text, re.MULTILINE) and "private_diary" not in text
    assert 'export.load_adapter(gptj_lab.load("EleutherAI/gpt-j-6b")' in text
    assert 'PeftModel.from_pretrained(base, "me/cats")' in text
    assert "\x1b" not in text
    text.encode("utf-8")
    page = mistune.create_markdown(escape=False, plugins=["table", "url"])(card.text)
    assert "&lt;script&gt;" in page  # shown, and nothing but shown
    assert not re.findall('<(script|img)|evil</h|e.vil"', page)
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "How well it predicts", "Samples", "Data", "Settings", "How to load it",
    ]  # fmt: skip


def test_the_card_is_of_the_step_that_goes_to_the_hub(run, tmp_path):
    best = push(run, "me/cats", best=True, dry_run=True).card
    assert "those after step 10: 4.500 on text that was held out, where the base has 5.250." in best
    assert "lowest" not in best and "of step ten" in best and "After step 10; the prompt" in best
    last = push(run, "me/cats", dry_run=True).card
    assert "of step ten" not in last and "After step 20; the prompt" in last
    between = model_card.card("me/cats", "lora", None, run, 13)
    assert "those after step 13. On text that was held out the lowest was 4.500, after" in between
    assert "those of the base: no step" in model_card.card("me/cats", "lora", None, run, 0)
    export.save_adapter(run.model, tmp_path)
    with pytest.raises(ValueError, match=r"best=True .* run.save\(folder, best=True\)"):
        push(tmp_path, "me/cats", best=True, dry_run=True)


def test_a_path_as_base_is_not_told(run, tmp_path):
    for base in (str(tmp_path), "/home/ann/models/x", "pocket", None, "../up/x"):
        card = ModelCard(model_card.card("me/cats", "lora", base, run))
        assert card.data.base_model is None
        assert "/home" not in card.content and str(tmp_path) not in card.content
    assert 'gptj_lab.load("pocket")' in model_card.card("me/cats", "lora", "pocket")
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/ann/models/x"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "/home" not in push(tmp_path, "me/cats", dry_run=True).card


def test_a_folder_goes_without_what_is_not_the_model(tiny_model, hub, tmp_path):
    tiny_model.save(tmp_path)
    for name in ("diary.txt", "history.jsonl", "run.json", ".env", "pytorch_model.bin"):
        (tmp_path / name).write_text(SECRET)
    (tmp_path / "states").mkdir()
    (tmp_path / "vocab.json").symlink_to("/etc/hostname")
    done = push(str(tmp_path), "me/whole", private=False)
    assert hub.repos["me/whole"] is False
    left = {".env", "diary.txt", "history.jsonl", "pytorch_model.bin", "run.json", "states"}
    assert set(done.left_out) == left | {"vocab.json"}
    sent = {name for _, name in hub.files}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= sent
    assert not sent & set(done.left_out) and SECRET.encode() not in b"".join(hub.files.values())
    assert 'gptj_lab.load("me/whole")' in done.card
    (tmp_path / "README.md").write_text("# My own card\n")
    assert push(tmp_path, "me/whole", dry_run=True).card == "# My own card\n"


def test_what_cannot_be_pushed_is_refused_in_sentences(run, hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="me/open is there already, and public"):
        push(run, "me/open")
    assert hub.files == {}
    assert push(run, "me/open", private=False).url
    with pytest.raises(ValueError, match="'owner/name' is needed"):
        push(run, "cats")
    with pytest.raises(ValueError, match="Repo id must"):
        push(run, "me/../cats")
    with pytest.raises(FileNotFoundError, match="neither an adapter_config.json nor"):
        push(tmp_path, "me/cats")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        push(tmp_path / "none", "me/cats")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    with pytest.raises(ValueError, match="peft_type 'VERA'"):
        push(tmp_path, "me/cats")
    hub.refuse = True
    with pytest.raises(
        OSError, match="me/cats was not uploaded, the hub answered: .*401"
    ) as caught:
        push(run, "me/cats", token=SECRET)
    assert SECRET not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="me/cats was not uploaded, the hub can't be reached"):
        push(run, "me/cats")


def test_a_run_pushes_itself(tiny_model, quick_compiles, monkeypatch, tmp_path):
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path))
    texts = [{"text": f"the cat {'sat on a mat ' * i}"} for i in range(1, 25)]
    run = gptj_lab.finetune(
        tiny_model, texts, method=gptj_lab.LoRA(targets=("q",)), steps=2, batch=2, context=16,
        held_out=0.2, say=lambda line: None,
    )  # fmt: skip
    would = run.push("me/cats", dry_run=True)
    assert set(would.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert f"where the base has {run.base_loss:.3f}" in would.card
    assert f"| 2 | {run.evaluations[-1]['held_out_loss']:.3f} | " in would.card
    for row in ("| method.kind | `LoRA` |", "| optimiser.name | `adamw` |", "| steps | `2` |"):
        assert row in would.card


@pytest.mark.parametrize(
    ("family", "said", "transformers_reads"),
    [("gptj", "`pip install compressed-tensors`", True), ("gpt2", "it refuses this model", False)],
)
def test_the_card_says_who_reads_int8(family, said, transformers_reads, tmp_path):
    small_model(family, "int8").save(tmp_path)
    card = push(tmp_path, "me/cats", dry_run=True).card
    assert said in card and ("AutoModelForCausalLM" in card) == transformers_reads
    small_model(family).save(tmp_path)
    assert "int8" not in push(tmp_path, "me/cats", dry_run=True).card
