"""The small files beside the weights: which are read, and how they come back."""

import pytest

import gptj_lab
from gptj_lab.checkpoints.companions import BASE_CARD, CARD, Companions


@pytest.fixture
def folder(tmp_path):
    for name in (
        "config.json", "generation_config.json", "merges.txt", "additional_chat_templates/a.jinja",
        "README.md", "LICENSE.txt", "modeling_x.py", "model.safetensors", "train.jsonl",
        "model.safetensors.index.json", "state/config.json", ".git/config", "train.py",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'{"name": "%s"}' % name.encode())
    return tmp_path


def test_small_files_are_read_and_come_back_byte_for_byte(folder, tmp_path_factory):
    read = Companions.read(folder)
    assert sorted(read.files) == [
        "LICENSE.txt", "README.md", "additional_chat_templates/a.jinja", "config.json",
        "generation_config.json", "merges.txt", "modeling_x.py",
    ]  # fmt: skip
    assert read.json("generation_config.json") == {"name": "generation_config.json"}
    assert read.json("tokenizer_config.json") == {}
    assert sorted(read.tokenizer().files) == ["additional_chat_templates/a.jinja", "merges.txt"]
    other = tmp_path_factory.mktemp("other")
    read.write(other)
    assert Companions.read(other) == read
    tuned = read.of_other_weights().files
    assert tuned[BASE_CARD] == read.files[CARD] and CARD not in tuned
    assert Companions.read(folder / "nowhere") == Companions()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"[1]", "generation_config.json holds a list: a JSON object"),
        (b"{", "generation_config.json is not a JSON file"),
        (b"[" * 100_000, "generation_config.json is not a JSON file"),
        (b"\xff\xfe\xff", "generation_config.json is not a JSON file"),
    ],
)
def test_what_is_no_json_object_is_named(folder, content, words):
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Companions.read(folder).json("generation_config.json")


def test_a_link_a_pointer_and_a_giant_are_refused_but_texts_for_people_left_out(
    folder, tmp_path_factory
):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("{}")
    file = folder / "generation_config.json"
    file.unlink()
    file.symlink_to(secret)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(secret)
    with pytest.raises(ValueError, match="generation_config.json is a link to .*secret, outside"):
        Companions.read(folder)
    file.unlink()
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(ValueError, match="generation_config.json is a Git LFS pointer.*lfs pull"):
        Companions.read(folder)
    file.unlink()
    with open(file, "wb") as out:
        out.truncate(65 << 20)
    with pytest.raises(ValueError, match="has 68,157,440 bytes: .* at most 67,108,864"):
        Companions.read(folder)
    file.unlink()
    assert "README.md" not in Companions.read(folder).files


def test_load_keeps_them_and_a_model_made_in_memory_has_none(tiny_directory, tiny_model):
    model = gptj_lab.load(tiny_directory)
    assert model.companions == Companions.read(tiny_directory)
    assert model.companions.json("config.json")["model_type"] == "gptj"
    assert model.twin().companions is model.companions
    assert tiny_model.companions == Companions()
