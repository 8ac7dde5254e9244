"""What a notebook asks of Colab, on the stand-in: Drive, secrets, texts, downloads."""

import json
import sys
import types
import zipfile
from pathlib import Path

import jax
import pytest

from gptj_lab import colab
from gptj_lab.finetuning import samples

STAND_IN = Path(__file__).parent / "notebooks" / "stand_in"


@pytest.fixture
def content(tmp_path, monkeypatch):
    """Colab's folder of this session; the notebook works elsewhere by now."""
    (tmp_path / "content").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(colab, "CONTENT", tmp_path / "content")
    return tmp_path / "content"


@pytest.fixture
def calls(content, tmp_path, monkeypatch):
    """On Colab: a function for what was asked of it."""
    monkeypatch.syspath_prepend(STAND_IN)
    for name, value in {
        "COLAB_CONTENT": content, "COLAB_CALLS": tmp_path / "calls", "DRIVE": tmp_path / "cloud",
        "CHOSEN_FILE": tmp_path / "chosen.txt",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    yield lambda: [json.loads(line) for line in (tmp_path / "calls").open()]
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]


@pytest.fixture
def in_kernel(monkeypatch):
    """Makes huggingface_hub believe that it runs in Colab's kernel, where it reads the secrets."""
    from huggingface_hub.utils import _auth

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_auth, "is_google_colab", lambda: True)
    monkeypatch.setattr(_auth, "_IS_GOOGLE_COLAB_CHECKED", False)
    monkeypatch.setattr(_auth, "_GOOGLE_COLAB_SECRET", None)
    monkeypatch.setattr(_auth.constants, "HF_TOKEN_PATH", "/nowhere/token")


def test_a_model_on_the_drive_is_mounted_once(content, calls, tmp_path):
    (tmp_path / "cloud" / "kept").mkdir(parents=True)
    name = str(content / "drive" / "MyDrive" / "kept")
    assert colab.model(name) == colab.model(name) == name
    assert colab.folder(content / "drive" / "MyDrive" / "run").parent.is_dir()
    assert calls() == [["drive.mount", str(content / "drive")]]


def test_a_model_that_is_not_there_is_told_with_its_neighbours(content, calls, tmp_path):
    (tmp_path / "cloud" / "kept").mkdir(parents=True)
    name = str(content / "drive" / "MyDrive" / "Kept")
    with pytest.raises(
        FileNotFoundError,
        match=r"MODEL is '.*Kept', but nothing lies there. In .* there are: kept$",
    ):
        colab.model(name)


def test_a_model_in_content_is_found_by_its_name(content):
    (content / "mine").mkdir()
    assert colab.model("mine") == str(content / "mine")
    assert colab.model("pocket") == "pocket"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DRIVE_REFUSES", "credential propagation was unsuccessful", "allow the access"),
        ("", "", "holds files though your Drive isn't mounted"),
    ],
)
def test_a_drive_that_can_not_be_mounted_ends_in_a_sentence(
    variable, value, said, content, calls, monkeypatch
):
    if variable:
        monkeypatch.setenv(variable, value)
    else:  # an earlier session wrote before it mounted
        (content / "drive" / "MyDrive").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=said) as told:
        colab.folder(content / "drive" / "MyDrive" / "run")
    assert value in str(told.value)


def test_flush_waits_for_the_drive_and_unmounts_it(content, calls, tmp_path, capsys):
    colab.flush()
    folder = colab.folder(content / "drive" / "MyDrive" / "run")
    folder.mkdir()
    colab.flush()
    assert [name for name, *_ in calls()] == ["drive.mount", "drive.flush_and_unmount"]
    assert not folder.exists() and (tmp_path / "cloud" / "run").is_dir()
    assert capsys.readouterr().out.count("Your Drive has everything") == 1
    assert colab.folder(folder).is_dir(), "a second run mounts it again"


def test_a_flush_that_fails_says_to_leave_the_session_open(content, calls, monkeypatch, capsys):
    colab.folder(content / "drive" / "MyDrive" / "run")
    monkeypatch.setenv("FLUSH_FAILS", "flush_and_unmount failed")
    colab.flush()
    assert "(flush_and_unmount failed). Leave this session open" in capsys.readouterr().out


def test_a_relative_folder_lies_in_content_wherever_the_notebook_is(content):
    assert colab.folder("my_run") == content / "my_run"
    assert colab.folder(content / "my_run") == content / "my_run"
    with pytest.raises(ValueError, match="FOLDER is empty: name a folder"):
        colab.folder("")


def test_a_text_is_found_among_samples_in_content_here_or_by_its_path(content, tmp_path):
    for path in (content / "a.txt", Path("b.txt"), tmp_path / "c.txt", content / "run" / "d.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    assert colab.data("king_james.txt", content / "run") == samples.path("king_james.txt")
    assert colab.data("a.txt", content / "run") == content / "a.txt"
    assert colab.data("b.txt", content / "run") == Path("b.txt").absolute()
    assert colab.data(str(tmp_path / "c.txt"), content / "run") == tmp_path / "c.txt"
    assert colab.data("d.txt", content / "run") == content / "run" / "d.txt"


@pytest.mark.parametrize("name", ["upload", "", "mine.txt"])
def test_a_text_that_is_missing_is_uploaded_once_and_kept(name, content, calls, tmp_path):
    (tmp_path / "mine.txt").write_text("a text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHOSEN_FILE", str(tmp_path / "mine.txt"))
        found = colab.data(name, content / "run" / "text")
    assert found == content / "run" / "text"
    assert (found / "mine.txt").read_text() == "a text"
    again = colab.data(name, content / "run" / "text")
    assert again in (found, found / "mine.txt", Path("mine.txt").absolute())
    assert calls() == [["files.upload"]]


def test_nothing_chosen_and_a_wrong_path_are_told(content, calls, monkeypatch):
    monkeypatch.setenv("CHOSEN_FILE", "")
    with pytest.raises(FileNotFoundError, match="no file was chosen: run this cell again"):
        colab.data("upload", content / "text")
    assert not (content / "text").exists()
    (content / "there.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"DATA is '.*wrong.txt', .* there are: there.txt"):
        colab.data(str(content / "wrong.txt"), content / "text")


def test_a_folder_is_downloaded_as_a_zip_that_outlives_the_drive(content, calls, capsys):
    folder = colab.folder(content / "drive" / "MyDrive" / "run") / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    colab.download(folder, name="run_adapter")
    packed = content / "run_adapter.zip"
    assert calls()[-1] == ["files.download", str(packed)]
    assert zipfile.ZipFile(packed).namelist() == ["adapter_config.json"]
    assert "Your browser downloads run_adapter.zip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SECRET": "hf_mine"}, "with your token"),
        ({}, "There is no HF_TOKEN. Public models load without one."),
        ({"SECRET_FAILS": "access"}, "has not been granted on this notebook. Public models load"),
        ({"SECRET_FAILS": "timeout"}, "timed out"),
    ],
)
def test_the_token_comes_from_the_secrets_or_is_done_without(
    variables, said, calls, in_kernel, monkeypatch, capsys
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # Colab asks for access each time: huggingface_hub asks it once a session
        assert colab.model("EleutherAI/gpt-j-6b") == "EleutherAI/gpt-j-6b"
    out = capsys.readouterr().out
    assert said in out and "hf_mine" not in out
    assert calls() == [["userdata.get", "HF_TOKEN"]]


def test_nobody_is_asked_for_a_token_that_is_not_needed(content, calls, in_kernel, tmp_path):
    (content / "mine").mkdir()
    colab.model("pocket"), colab.model("mine")
    assert not (tmp_path / "calls").exists()


def test_elsewhere_the_same_calls_work_or_say_what_can_not_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colab, "CONTENT", Path("/content"))
    assert colab.folder("run") == tmp_path / "run"
    assert colab.model("EleutherAI/gpt-j-6b") == "EleutherAI/gpt-j-6b"
    with pytest.raises(RuntimeError, match="which Colab alone can mount: give another folder"):
        colab.folder("/content/drive/MyDrive/run")
    with pytest.raises(FileNotFoundError, match="only Colab can do: give a path instead"):
        colab.data("upload", tmp_path / "text")
    with pytest.raises(FileNotFoundError, match=r"DATA is 'mine.txt', but nothing lies there"):
        colab.data("mine.txt", tmp_path / "text")
    (tmp_path / "run").mkdir()
    colab.download(tmp_path / "run")
    assert f"{tmp_path / 'run.zip'} (" in capsys.readouterr().out
    colab.flush()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "platform", "name", "advice"),
    [
        ("TPU v5 lite", "tpu", "colab-v5e-1", "WEIGHTS = 'bfloat16' or 'int8'."),
        ("TPU v6 lite", "tpu", "colab-v6e-1", "WEIGHTS = 'float32' or 'bfloat16' or 'int8'."),
        ("Tesla T4", "gpu", "colab-t4", "WEIGHTS = 'bfloat16' or 'int8'."),
        ("cpu", "cpu", "laptop", "Runtime > Change runtime type > v5e-1 TPU"),
    ],
)
def test_the_runtime_is_told_and_which_weights_fit(
    kind, platform, name, advice, monkeypatch, capsys
):
    device = types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: None)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert colab.runtime() == name
    said = capsys.readouterr().out
    assert advice in said and f"jax {jax.__version__}" in said
    assert ("float16 is quicker" in said) == (name == "colab-t4")


def test_kaggle_is_told_of_a_cpu_in_kaggles_words(monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert colab.runtime() == "laptop"
    said = capsys.readouterr().out
    assert "This is a CPU" in said and "this image doesn't see it: Settings > Environment" in said


def test_a_chip_that_is_taken_ends_in_a_sentence(monkeypatch):
    def taken():
        raise RuntimeError("Unable to initialize backend 'tpu': ALREADY_EXISTS\nmore lines")

    monkeypatch.setattr(jax, "devices", taken)
    with pytest.raises(RuntimeError, match=r"ALREADY_EXISTS\). Another notebook may hold it"):
        colab.runtime()
