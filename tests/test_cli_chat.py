"""`gptj-lab chat`: commands, pipes, Ctrl-C, and what a model may not do to a terminal."""

import io
import json
from types import SimpleNamespace

import jax
import pytest

from gptj_lab import chat_templates, cli, cli_chat
from gptj_lab.finetuning import export, lora
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer


class Echo:
    """A model that answers with what it is asked, in two pieces; "stop" is interrupted."""

    name = "echo"

    def __init__(self):
        self.asked = []
        self.sampling_defaults = {}

    def stream_chat(self, messages, **settings):
        self.settings = settings
        self.asked.append([dict(message) for message in messages])
        last = messages[-1]["content"]
        if last == "long":
            raise ValueError("the prompt is too long")
        yield "You said: "
        if last == "stop":
            raise KeyboardInterrupt
        yield last


@pytest.fixture
def echo(monkeypatch):
    model = Echo()
    model.chat_template = object()
    monkeypatch.setattr(cli_chat, "_loaded", lambda chosen: model)
    monkeypatch.setattr("gptj_lab.generation.chatting.template_of", lambda *given: None)
    return model


def talk(lines, monkeypatch, *more):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    return cli.main(["chat", *more])


def test_it_begins_with_the_models_sampling_settings(echo, monkeypatch, capsys):
    echo.sampling_defaults = {"temperature": 0.7, "top_p": 0.9}
    assert talk(["hi"], monkeypatch, "--top-p", "0.5") == 0
    assert echo.settings["temperature"] == 0.7 and echo.settings["top_p"] == 0.5
    assert "--temperature 0.7, as generation_config.json of echo says" in capsys.readouterr().err


def test_a_pipe_is_answered_line_by_line(echo, monkeypatch, capsys, tmp_path):
    saved = tmp_path / "chat.jsonl"
    lines = [
        "hi", "", "red\x1b[31m", "stop", "long", f"/save {saved}", f"/save {saved}", "/save",
        "/nope", "/system Be brief.", "again", "/system", "/reset", "/quit", "unheard",
    ]  # fmt: skip
    assert talk(lines, monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "You said: hi", "You said: red␛[31m", "You said: ", "", "You said: again"
    ]  # fmt: skip
    assert "the prompt is too long" in err and "is there already: give another name" in err
    assert "/nope is no command" in err and "/save needs the name of a file" in err
    assert "Be brief." in err and "begun anew" in err
    (row,) = map(json.loads, saved.read_text("utf-8").splitlines())
    contents = [message["content"] for message in row["messages"]]
    assert contents == ["hi", "You said: hi", "red\x1b[31m", "You said: red\x1b[31m", "stop",
                        "You said: "]  # fmt: skip
    assert [message["role"] for message in echo.asked[-1]] == ["system", "user"]


def test_at_a_terminal_ctrl_c_doesnt_end_the_program(echo, monkeypatch, capsys):
    typed = iter(["hi", KeyboardInterrupt, "stop", "/help", EOFError])

    def asked(prompt):
        line = next(typed)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert cli.main(["chat", "--system", "Be."]) == 0
    out, err = capsys.readouterr()
    assert "You said: hi\n" in out and "(Ctrl-D or /quit ends)" in out and "/reset" in err
    assert [len(asked) for asked in echo.asked] == [2, 4]


def test_signs_of_control_are_shown_and_words_left():
    given = "a\tb\nc\x07\x9b\x7f\r\u202e é 🙂"
    assert cli_chat.shown(given) == "a\tb\nc␇‹U+009B›␡␍‹U+202E› é 🙂"


def test_a_saved_model_and_an_adapter_are_talked_with(
    tiny_config, tiny_tokenizer, monkeypatch, capsys, tmp_path
):
    config = tiny_config(num_layers=1, vocab_size=300)
    model = LanguageModel(config, Transformer(config, key=jax.random.key(1)), tiny_tokenizer, "t")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save(base)
    assert talk(["hi"], monkeypatch, str(base)) == 2
    assert "has no chat template" in capsys.readouterr().err
    model.chat_template = chat_templates.named("plain", {"eos_token": "<|endoftext|>"})
    export.save_adapter(lora.adapted(model, lora.LoRA(rank=2)), adapter)
    assert talk(["hi"], monkeypatch, str(adapter)) == 2
    assert "neither pocket nor a name on the hub" in capsys.readouterr().err
    settings = ("--max-new-tokens", "4", "--temperature", "0")
    assert talk(["hi"], monkeypatch, str(base), "--adapter", str(adapter), *settings) == 0
    said = capsys.readouterr().out
    assert said == model.chat("hi", max_new_tokens=4, temperature=0) + "\n"
    form = ("--template", "Q: {question}\\nA: {answer}")
    assert talk(["hi"], monkeypatch, str(base), *form, *settings) == 0
    (expected,) = model.generate("Q: hi\nA:", max_new_tokens=4, temperature=0)
    assert capsys.readouterr().out == cli_chat.shown(expected.text.strip()) + "\n"
