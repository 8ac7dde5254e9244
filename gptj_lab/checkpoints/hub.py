"""Fetching a model from the Hugging Face hub: the weights in one form only, the best there is."""

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gptj_lab import json_files, notices
from gptj_lab.checkpoints.companions import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PATTERNS
from gptj_lab.checkpoints.weights import SAFETENSORS, Form, choose
from gptj_lab.config import ModelConfig

# Repositories without safetensors on their main branch, and the pull request whose safetensors are
# taken instead. Anyone can open one, so only what is known comes in here.
SAFETENSORS_IN = {"eleutherai/gpt-j-6b": "refs/pr/40"}
_ROOM = "free some space, or set HF_HOME to a folder on another disk"
_PERMISSION = "set HF_HOME to a folder that you may write to"
_DISK = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION, errno.EROFS: _PERMISSION, errno.ENOTDIR: _PERMISSION,
    errno.EEXIST: _PERMISSION,
}  # fmt: skip
_PULL_REQUESTS = 3  # how many of others are looked at, the newest first
_PULL_REQUEST = re.compile(r"refs/pr/(\d+)")


class Folders(NamedTuple):
    """Where a checkpoint lies: mostly one folder.

    Attributes:
        directory: config.json, the tokenizer and all that is small.
        weights: the weights; another folder where they come from a pull request.
    """

    directory: Path
    weights: Path


def fetch(name: str, revision: str | None = None, variant: str | None = None) -> Folders:
    """The folder of a model on the hub, fetched into huggingface_hub's cache if it isn't there.

    Without a network, what the cache has is taken.

    Args:
        revision: a branch, tag, commit or pull request ("refs/pr/40"); by default the main branch,
            and of a repository in SAFETENSORS_IN the weights of that pull request. One that has
            only weights is completed by the main branch.
        variant: of the weights, see `weights.choose`.

    Raises:
        FileNotFoundError: the hub doesn't have it or can't be reached, or it holds no weights, or
            not that variant.
        ValueError: it has several variants and no plain weights.
        OSError: the cache can't be written, or its disk is full.
    """
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(name, revision=revision).siblings or []
    except Exception as error:  # huggingface_hub has had three HTTP libraries, each with its own
        return _instead(error, name, revision, variant)
    names = [file.rfilename for file in siblings]
    form = choose(names, name, variant)
    try:
        if revision is None and variant is None and not (form and form.is_safetensors):
            if not _is_here(name, form) and (found := _from_pull_request(name)):
                return found
        if form is not None:
            folder = _snapshot(name, revision, _patterns(form))
            return _completed(name, revision, folder)
    except Exception as error:
        return _instead(error, name, revision, variant)
    raise FileNotFoundError(_could_not(name, "it holds no weights as safetensors, .bin or msgpack"))


def fetch_adapter(name: str) -> Path:
    """The folder of a PEFT adapter on the hub, fetched into the cache if it isn't there.

    Without a network, what the cache has is taken. Of adapters in folders of their own, where none
    lies in the repository itself, all are fetched.

    Raises:
        FileNotFoundError: the hub doesn't have it or can't be reached.
        OSError: the cache can't be written, or its disk is full.
    """
    try:
        folder = _snapshot(name, None, [ADAPTER_CONFIG])
        inside = "" if (folder / ADAPTER_CONFIG).is_file() else "*/"
        config, *weights = (f"{inside}{file}" for file in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS))
        template = [f"{inside}chat_template.jinja", f"{inside}tokenizer_config.json"]
        for file in weights:  # the first that is there
            folder = _snapshot(name, None, [config, file, *template])
            if any(folder.glob(file)):
                break
        return folder
    except Exception as error:
        raise _told(error, name, None) from error


def _instead(error: Exception, name: str, revision: str | None, variant: str | None) -> Folders:
    """What the cache has of a model for which the hub failed with this error.

    Raises:
        FileNotFoundError: nothing, or the error says that there is no such model.
        OSError: the cache can't be written, or its disk is full.
    """
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    certain = isinstance(error, HFValidationError | RevisionNotFoundError)
    if not certain and (cached := _cached(name, revision, variant)):
        return cached
    raise _told(error, name, revision) from error


def _told(error: Exception, name: str, revision: str | None) -> Exception:
    """The error to raise in place of the library's: it says what failed, and the fix."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    if fix := _DISK.get(number := _number(error)):
        told = OSError(
            f"{name} could not be fetched into {constants.HF_HUB_CACHE} ({os.strerror(number)}): "
            f"{fix}; what has come stays there, and the same call goes on with it"
        )
        told.errno = number
        return told
    problem = "the hub can't be reached and nothing of it is in the local cache"
    if isinstance(error, HFValidationError):
        problem = str(error)
    elif isinstance(error, RevisionNotFoundError):
        problem = f"it has no revision {revision!r}"
    elif isinstance(error, HfHubHTTPError):
        problem = f"the hub answered: {error}"
    elif not no_connection(error):
        return error
    return FileNotFoundError(_could_not(name, problem))


def _number(error: Exception) -> int:
    """The system's number of an error, 0 without one; xet's errors have it in their text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) or (int(found[1]) if found else 0)


def _could_not(name: str, problem: str) -> str:
    return (
        f"{name} could not be loaded: {problem}. Check the name and the network, "
        "or give the path of a directory"
    )


def _from_pull_request(name: str) -> Folders | None:
    """Safetensors of a repository that has none on main, if they lie in one that we know.

    Of others it is only told that they are there. Whatever fails on the way is no reason not to
    load what main has.
    """
    from huggingface_hub import HfApi

    known = SAFETENSORS_IN.get(name.lower())
    try:
        if known is None:
            _tell_of_others(name)
            return None
        names = HfApi().list_repo_files(name, revision=known)
        if not SAFETENSORS.is_among(names):
            return None
        directory = _snapshot(name, None, PATTERNS)
        beside = _snapshot(name, known, [CONFIG])
    except Exception:  # no answer, no such pull request, a mirror that has only main
        return None
    if not _taken(name, known, directory, beside):
        return None
    return Folders(directory, _snapshot(name, known, [CONFIG, *_weights(SAFETENSORS)]))


def _taken(name: str, known: str, directory: Path, beside: Path) -> bool:
    """Whether weights from a pull request go with the config.json on main; told in any case."""
    fits = not (beside / CONFIG).is_file() or _config(beside) == _config(directory)
    if fits:
        notices.tell(
            f"{name} has no safetensors on its main branch: those of {known} are taken, all else "
            'from main (revision="main" takes what main has)'
        )
    else:
        notices.tell(
            f"{known} of {name} has safetensors, but another config.json than main: what main has "
            f'is taken (revision="{known}" takes that one)'
        )
    return fits


def _config(folder: Path) -> ModelConfig | None:
    """The network that a folder's config.json describes; None if it is none that we have."""
    try:
        return ModelConfig.from_hugging_face(json_files.read_file(folder / CONFIG))
    except (OSError, ValueError):
        return None


def _tell_of_others(name: str) -> None:
    """Tells of the newest pull request of a repository that has safetensors."""
    from huggingface_hub import HfApi

    refs = HfApi().list_repo_refs(name, include_pull_requests=True).pull_requests or []
    numbers = [int(match[1]) for ref in refs if (match := _PULL_REQUEST.fullmatch(ref.ref))]
    for number in sorted(numbers, reverse=True)[:_PULL_REQUESTS]:
        revision = f"refs/pr/{number}"
        if SAFETENSORS.is_among(HfApi().list_repo_files(name, revision=revision)):
            notices.tell(
                f"{name} has no safetensors on its main branch, but {revision} has: if you trust "
                f'who opened it, choose it with revision="{revision}"'
            )
            return


def _completed(name: str, revision: str | None, folder: Path, local: bool = False) -> Folders:
    """A revision's folder; where a pull request has only weights, main has the rest."""
    if (folder / CONFIG).is_file() or not _PULL_REQUEST.fullmatch(revision or ""):
        return Folders(folder, folder)
    return Folders(_snapshot(name, None, PATTERNS, local), folder)


def _snapshot(
    name: str, revision: str | None, patterns: Iterable[str], local: bool = False
) -> Path:
    """The folder of a revision in the cache with the files of these patterns; `local`: as it is."""
    from huggingface_hub import snapshot_download

    patterns = list(patterns)
    return Path(
        snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local)
    )


def _weights(form: Form) -> tuple[str, ...]:
    return (form.single, form.index, form.shards)


def _patterns(form: Form) -> tuple[str, ...]:
    return (*PATTERNS, *_weights(form))


def _cached(name: str, revision: str | None, variant: str | None) -> Folders | None:
    """The folders of a model that was fetched before, if it is whole in some form."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        if folder := _whole(name, revision, variant):
            return _completed(name, revision, folder, local=True)
        known = SAFETENSORS_IN.get(name.lower()) if revision is variant is None else None
        beside = _whole(name, known, None) if known else None
        if known and beside:
            directory = _snapshot(name, None, PATTERNS, local=True)
            if _taken(name, known, directory, beside):
                return Folders(directory, beside)
    except LocalEntryNotFoundError:
        pass
    return None


def _is_here(name: str, form: Form | None) -> bool:
    """Whether the cache has main's weights of this form, so that no others need be fetched."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if form is None:
        return False
    try:
        found = _snapshot(name, None, _weights(form), local=True)
    except LocalEntryNotFoundError:
        return False
    return form.is_among(file.name for file in found.iterdir())


def _whole(name: str, revision: str | None, variant: str | None) -> Path | None:
    """The folder of a revision in the cache that has all weights in some form."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = _snapshot(name, revision, [CONFIG], local=True)
        form = choose((file.name for file in found.iterdir()), name, variant)
        if form is None:
            return None
        return _snapshot(name, revision, _weights(form), local=True)
    except (LocalEntryNotFoundError, FileNotFoundError):  # the second: not that variant
        return None


def no_connection(error: Exception) -> bool:
    """Whether a request failed before there was an answer."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return True
    if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests"):
        return True
    return isinstance(error, OSError) and error.errno not in _DISK
