"""generation_config.json says what the views begin with; generate() itself stays neutral."""

import json

import pytest

import gptj_lab
from gptj_lab import cli
from gptj_lab.generation import defaults
from gptj_lab.generation.decoding import Decoding
from gptj_lab.widgets.playground import Playground

OWN = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "repetition_penalty": 1.5}
PROMPT = "the cat"


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("sampled") / "model"
    tiny_model.save(path)
    (path / "generation_config.json").write_text(json.dumps(OWN))
    return path


def test_the_file_sets_what_it_names_and_null_is_nothing():
    named = {**OWN, "min_p": None, "eos_token_id": 3, "num_beams": 4}
    found = defaults.declared(json.dumps(named).encode())
    assert found == {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "repetition_penalty": 1.5}
    with pytest.raises(TypeError):
        found["temperature"] = 1
    assert defaults.declared(b'{"do_sample": false, "temperature": 0.5}') == {"temperature": 0}
    for nothing in (None, b"", b"{}", b"[3]", b"{\xff", b'{"eos_token_id": 0}'):
        assert defaults.declared(nothing) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", "0.5"), ("temperature", True), ("top_p", 0),
        ("top_p", float("nan")), ("top_k", 2.5), ("repetition_penalty", [1]), ("min_p", 2),
        ("do_sample", "yes"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_in_one_line_and_passed_over(field, value, capfd):
    found = defaults.declared(json.dumps({"typical_p": 0.5, field: value}).encode(), "mine")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"mine: generation_config.json: {field} is {value!r}" in line and "passed over" in line
    assert found == {"typical_p": 0.5}


def test_the_command_line_begins_with_them_and_says_so(folder, capsys):
    command = ["generate", PROMPT, "--model", str(folder), "--max-new-tokens", "8", "--json"]
    model = gptj_lab.load(folder)
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    (told,) = [line for line in printed.err.splitlines() if "generation_config.json" in line]
    assert "--temperature 0.5 --top-k 7 --top-p 0.25 --repetition-penalty 1.5" in told
    own = model.generate(PROMPT, max_new_tokens=8, **model.sampling_defaults)[0].text
    assert json.loads(printed.out)["text"] == own
    neutral = ["--temperature", "1", "--top-k", "0", "--top-p", "1", "--repetition-penalty", "1"]
    assert cli.main([*command, *neutral]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["text"] == model.generate(PROMPT, max_new_tokens=8)[0].text
    assert "generation_config.json" not in printed.err and json.loads(printed.out)["text"] != own


def test_python_stays_neutral_and_the_playground_begins_with_them(folder):
    model = gptj_lab.load(folder)
    drawn = Decoding(model, PROMPT)._settings
    assert float(drawn.temperature) == 1 and float(drawn.top_p) == 1 and float(drawn.top_k) == 0
    shown = Playground(model, top_k=3).settings
    own = {name: OWN[name] for name in ("temperature", "top_p", "repetition_penalty")}
    assert shown.items() >= {**own, "top_k": 3}.items()
    assert Playground(model.twin()).settings["temperature"] == 0.5
