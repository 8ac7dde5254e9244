"""Taking a fine-tuned model to the Hugging Face hub: its weights and a model card, nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from gptj_lab import json_files
from gptj_lab.checkpoints import hub
from gptj_lab.checkpoints.companions import CONFIG
from gptj_lab.finetuning import model_card

# Whatever else lies in a folder (texts, states, histories) stays at home.
_FILES = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|config\.json|generation_config\.json|"
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|tokenizer\.json|"
    r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|"
    r"chat_template\.jinja"
)
_KINDS: dict[str, model_card.Kind] = {"LORA": "lora", "PROMPT_TUNING": "prompt"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push:
    """What was uploaded, or would be; printed, it says so.

    Attributes:
        repo_id: "owner/name" on the hub.
        private: whether only its owner sees it.
        files: what goes there, with the bytes of each.
        left_out: what lies in the folder and stays at home.
        card: the model card, README.md.
        url: of the repository; None where nothing was uploaded.
    """

    repo_id: str
    private: bool
    files: dict[str, int]
    left_out: list[str]
    card: str
    url: str | None = None

    def __str__(self) -> str:
        seen = "private" if self.private else "public"
        size = sum(self.files.values()) / 1e6
        what = f"{len(self.files)} files of {size:,.1f} MB"
        done = f"Uploaded to {self.url}" if self.url else f"Would upload to {self.repo_id}"
        lines = [f"{done} ({seen}): {what}."]
        lines += [f"  {name} ({bytes_:,} bytes)" for name, bytes_ in self.files.items()]
        if self.left_out:
            lines.append(f"Left out: {', '.join(self.left_out)}.")
        return "\n".join(lines)

    __repr__ = __str__


def push(
    run_or_directory: Any,
    repo_id: str,
    *,
    best: bool = False,
    private: bool = True,
    dry_run: bool = False,
    token: str | None = None,
) -> Push:
    """Uploads a run's adapter or model to the hub with a model card written from the run.

    Of the training text, the states and the folder's other files nothing goes there. The card has
    the settings, the losses, what the doctor said of the text, and the samples of that step.

    Args:
        run_or_directory: a gptj_lab.Run, or a folder that `Run.save` or `LanguageModel.save` wrote,
            whose own README.md is taken as the card if it has one.
        repo_id: "owner/name"; made if it isn't there.
        best: of a run the model of the lowest held-out loss, not that of the last step.
        private: only you see it.
        dry_run: upload nothing, and say what would be.
        token: of the hub; by default the one that you have logged in with.

    Raises:
        ValueError: the name is none, the repository is public and `private` is set, or there is no
            best model.
        FileNotFoundError: the folder holds neither an adapter nor a model.
        OSError: the hub refuses or can't be reached; the sentence says what it answered.
    """
    from huggingface_hub.utils import validate_repo_id

    if "/" not in repo_id:
        raise ValueError(f"repo_id is {repo_id!r}: 'owner/name' is needed, as on huggingface.co")
    validate_repo_id(repo_id)
    if isinstance(run_or_directory, str | Path):
        folder = Path(run_or_directory)
        if best:
            raise ValueError(
                f"best=True chooses a model of a run, and {folder} is a folder: save it there with "
                "run.save(folder, best=True), or push the run"
            )
        contents = _contents(folder)
        own = folder / "README.md"
        if own.is_file():
            card = own.read_text("utf-8")
        else:
            card = model_card.card(repo_id, *_kind(folder, contents), int8=_int8(folder))
        return _push(folder, contents, card, repo_id, private, dry_run, token)
    with tempfile.TemporaryDirectory(prefix="gptj_lab-push-") as aside:
        run, folder = run_or_directory, Path(aside)
        step = run.save(folder, best=best)
        contents = _contents(folder)
        kind, _ = _kind(folder, contents)
        try:
            card = model_card.card(repo_id, kind, run.base.name, run, step, _int8(folder))
        except Exception as error:  # the weights are worth more than what is said of the run
            card = model_card.card(repo_id, kind, run.base.name, int8=_int8(folder))
            card += f"\nOf the run nothing could be told ({type(error).__name__}).\n"
        return _push(folder, contents, card, repo_id, private, dry_run, token)


def _push(
    folder: Path, contents: dict[str, bytes | Path], card: str, repo_id: str, private: bool,
    dry_run: bool, token: str | None,
) -> Push:  # fmt: skip
    contents["README.md"] = card.encode()
    there = {path.relative_to(folder).parts[0] for path in folder.glob("*")}
    done = Push(
        repo_id=repo_id,
        private=private,
        files={name: _size(content) for name, content in sorted(contents.items())},
        left_out=sorted(there - contents.keys()),
        card=card,
    )
    if dry_run:
        return done
    return dataclasses.replace(done, url=_upload(repo_id, contents, private, token))


def _contents(folder: Path) -> dict[str, bytes | Path]:
    """The files to upload; the adapter's configuration without a path of this machine."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: save the run first, run.save(folder)")
    contents: dict[str, bytes | Path] = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.is_symlink() and _FILES.fullmatch(path.name)
    }
    if not contents.keys() & {"adapter_config.json", "config.json"}:
        raise FileNotFoundError(
            f"{folder} holds neither an adapter_config.json nor a config.json: save the run first, "
            "run.save(folder)"
        )
    if "adapter_config.json" in contents:
        config = _adapter_config(folder)
        base = config.get("base_model_name_or_path")
        config["base_model_name_or_path"] = model_card.hub_name(base) if base else None
        contents["adapter_config.json"] = json.dumps(config, indent=2).encode() + b"\n"
    return contents


def _kind(folder: Path, contents: dict[str, Any]) -> tuple[model_card.Kind, str | None]:
    """What lies in the folder, and the name of its base model if it is known."""
    if "adapter_config.json" not in contents:
        return "model", None
    config = _adapter_config(folder)
    kind = _KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise ValueError(
            f"{folder / 'adapter_config.json'} has peft_type {config.get('peft_type')!r}: "
            f"{' and '.join(_KINDS)} are pushed"
        )
    base = config.get("base_model_name_or_path")
    return kind, base if isinstance(base, str) else None


def _int8(folder: Path) -> str | None:
    """The family of the model in a folder, if its matrices are int8."""
    if not (folder / CONFIG).is_file():
        return None
    fields = json_files.read_file(folder / CONFIG)
    return str(fields.get("model_type")) if fields.get("quantization_config") else None


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no json ({error}): save the adapter again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object: save the adapter again")
    return config


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _upload(
    repo_id: str, contents: dict[str, bytes | Path], private: bool, token: str | None
) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:  # `private` is only for a new one
            raise ValueError(
                f"{repo_id} is there already, and public: push with private=False, or to another "
                "name"
            )
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in sorted(contents.items())
        ]
        api.create_commit(repo_id, operations, commit_message="Upload from gptj_lab")
    except LocalTokenNotFoundError:
        raise OSError(_unsent(repo_id, "you are not logged in")) from None
    except HfHubHTTPError as error:
        raise OSError(_unsent(repo_id, f"the hub answered: {error}")) from error
    except Exception as error:
        if not hub.no_connection(error):
            raise
        raise OSError(_unsent(repo_id, f"the hub can't be reached ({error})")) from error
    return f"{api.endpoint}/{repo_id}"


def _unsent(repo_id: str, why: str) -> str:
    return (
        f"{repo_id} was not uploaded, {why}. Log in with huggingface_hub.login() as someone who "
        "may write there, or give token="
    )
