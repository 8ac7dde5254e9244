"""`gptj-lab chat`: a conversation with a model on the command line, or in a pipe by lines."""

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptj_lab import cli_finetune
from gptj_lab.cli_sampling import begin_with

_COMMANDS = """\
/system TEXT  sets what the model is told first, and begins anew; without a text it is shown
/reset        begins anew
/save FILE    writes the chat as a row that `gptj-lab finetune` reads
/quit         ends, as Ctrl-D does; Ctrl-C stops an answer"""


def add(commands: Any, settings: dict[str, tuple[Any, str]]) -> None:
    """Adds the command to the parser's, with `generate`'s settings."""
    chat = commands.add_parser(
        "chat",
        help="talk with a model that was trained on prompts and answers, by its template",
        description="A conversation; from a pipe each line is a message, answered on stdout.",
        epilog=_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument(
        "model", nargs="?", default="pocket",
        help="pocket, a directory (of an adapter too), or a hub name (pocket)",
    )  # fmt: skip
    chat.add_argument(
        "--adapter", action="append", default=[], type=Path,
        help="a folder of PEFT's: LoRA or a soft prompt; repeatable, they are stacked",
    )  # fmt: skip
    chat.add_argument(
        "--template", help="plain, chat, chatml, alpaca, a form such as '### {question}\\n{answer}'"
        ", or a .jinja file (the model's own)",
    )  # fmt: skip
    chat.add_argument("--system", default="", help="what the model is told first")
    chat.add_argument("--weights", help="float32, bfloat16, float16 or int8 (float32)")
    chat.add_argument("--revision", help="branch, tag or commit on the hub")
    chat.add_argument("--variant", help="fp16 for weights in model.fp16.safetensors")
    for name, (kind, what) in settings.items():
        chat.add_argument(f"--{name}", type=kind, help=_help(name, what), default=argparse.SUPPRESS)
    chat.set_defaults(run=run, settings=[name.replace("-", "_") for name in settings])


def _help(name: str, what: str) -> str:
    return what.replace("(64)", "(256)") if name == "max-new-tokens" else what


def run(chosen: argparse.Namespace) -> int:
    """Talks until the end of the input; 0."""
    settings = {name: getattr(chosen, name) for name in chosen.settings if hasattr(chosen, name)}
    if chosen.template is not None:
        settings["template"] = cli_finetune.template(chosen.template)
    model = _loaded(chosen)
    from gptj_lab.generation import chatting

    chatting.template_of(model, settings.get("template"))  # refuses before anything is typed
    settings = begin_with(model, settings)
    talk = Talk(model, chosen.system, settings)
    try:
        if sys.stdin.isatty():
            return _at_a_terminal(talk)
        return _from_a_pipe(talk)
    except BrokenPipeError:  # `gptj-lab chat | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (Python flushes it at its end)
        return 0


class Talk:
    """A conversation that goes on.

    Attributes:
        messages: those so far, the system's words first if there are any.
    """

    def __init__(self, model: Any, system: str, settings: dict[str, Any]):
        self._model, self._system, self._settings = model, system, dict(settings)
        self._seed = self._settings.pop("seed", 0)
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        told = [{"role": "system", "content": self._system}] if self._system else []
        self.messages = [*told]

    def answer(self, said: str, show: Callable[[str], None]) -> None:
        """Answers a message, piece by piece; Ctrl-C keeps what was said so far.

        Raises:
            ValueError: the message can't be answered; it is forgotten.
        """
        asked = [*self.messages, {"role": "user", "content": said}]
        pieces: list[str] = []
        answers = self._model.stream_chat(
            asked, keep_end=True, seed=self._seed + len(asked), **self._settings
        )
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(answers):
            for piece in answers:
                pieces.append(piece)
                show(shown(piece))
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def obey(self, line: str) -> str | None:
        """What a command answers; None where it ends the chat."""
        command, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if command in ("quit", "exit", "q"):
            return None
        if command == "reset":
            self.reset()
            return "begun anew"
        if command == "system" and rest:
            self._system = rest
            self.reset()
            return "begun anew with these words"
        if command == "system":
            return shown(self._system) or "no words of a system; /system TEXT sets them"
        if command == "save":
            return self._save(rest)
        known = "" if command in ("help", "?") else f"/{shown(command)} is no command; there are\n"
        return known + _COMMANDS

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs the name of a file, such as /save chat.jsonl"
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError:
            return f"{path} is there already: give another name"
        except OSError as error:
            return f"{path} can't be written: {error}"
        return f"{len(self.messages)} messages saved in {path}"


def shown(text: str) -> str:
    """Text for a terminal: control and direction characters as signs, so that none is obeyed.

    >>> shown("red" + chr(27) + "[31m")
    'red␛[31m'
    """
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    text = text.replace("\x7f", "␡")
    return re.sub(
        r"[\x80-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda found: f"‹U+{ord(found[0]):04X}›", text,
    )  # fmt: skip


def _at_a_terminal(talk: Talk) -> int:
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  (input() then edits lines and knows the last ones)
    print("/help lists the commands, /quit or Ctrl-D ends.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends)")
            continue
        if not _one(talk, line, _say):
            return 0


def _from_a_pipe(talk: Talk) -> int:
    for line in _lines():
        if not _one(talk, line, _say):
            break
    return 0


def _one(talk: Talk, line: str, say: Callable[[str], None]) -> bool:
    """Does what a line wants; whether to go on."""
    line = line.strip()
    if line.startswith("/"):
        told = talk.obey(line)
        if told is not None:
            print(told, file=sys.stderr)
        return told is not None
    if line:
        try:
            talk.answer(line, say)
        except (ValueError, TypeError) as error:
            print(error, file=sys.stderr)
        say("\n")
    return True


def _lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"stdin isn't UTF-8 (it holds the byte 0x{byte:02x}): convert it, for example with "
            "iconv -f latin1 -t utf-8"
        ) from None


def _say(text: str) -> None:
    print(text, end="", flush=True)


def _loaded(chosen: argparse.Namespace) -> Any:
    """The model with its adapters; the folder of an adapter alone names its base."""
    import gptj_lab
    from gptj_lab.finetuning import model_card, peft_config
    from gptj_lab.finetuning.soft_prompts import load_trained

    name, adapters = chosen.model, list(chosen.adapter)
    folder = Path(name).expanduser()
    if (folder / peft_config.FILE).is_file() and not (folder / "config.json").is_file():
        config = json.loads((folder / peft_config.FILE).read_text("utf-8"))
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        if base != "pocket" and not model_card.hub_name(base if isinstance(base, str) else None):
            raise ValueError(
                f"{folder} is an adapter for {base!r}, which is neither pocket nor a name on the "
                f"hub: gptj-lab chat BASE --adapter {folder}"
            )
        name, adapters = str(base), [folder, *adapters]
    model = gptj_lab.load(
        name, weights=chosen.weights, revision=chosen.revision, variant=chosen.variant
    )
    for number, adapter in enumerate(adapters, 1):
        model = load_trained(model, adapter, f"adapter_{number}")
    return model
