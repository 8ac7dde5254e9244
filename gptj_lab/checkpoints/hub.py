"""Fetching a model from the Hugging Face hub: the weights in one form only, the best there is."""

from pathlib import Path

from gptj_lab.checkpoints.companions import PATTERNS
from gptj_lab.checkpoints.weights import FORMS, Form, choose


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a model on the hub, fetched into huggingface_hub's cache if it isn't there.

    Without a network, what the cache has is taken.

    Args:
        revision: a branch, tag or commit; the main branch by default.

    Raises:
        FileNotFoundError: the hub doesn't have it or can't be reached, or it holds no weights.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    problem = "the hub can't be reached and nothing of it is in the local cache"
    try:
        siblings = HfApi().model_info(name, revision=revision).siblings or []
        form = choose(file.rfilename for file in siblings)
        if form is not None:
            wanted = _patterns(form)
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        problem = "it holds no weights as safetensors, .bin or msgpack"
    except HFValidationError as error:
        problem = str(error)
    except RevisionNotFoundError:
        problem = f"it has no revision {revision!r}"
    except HfHubHTTPError as error:
        problem = f"the hub answered: {error}"
        if cached := _cached(name, revision):
            return cached
    except Exception as error:  # huggingface_hub has had three HTTP libraries, each with its own
        if cached := _cached(name, revision):
            return cached
        if not no_connection(error):
            raise
    raise FileNotFoundError(
        f"{name} could not be loaded: {problem}. Check the name and the network, "
        "or give the path of a directory"
    )


def _patterns(form: Form) -> list[str]:
    return [*PATTERNS, form.single, form.index, form.shards]


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model that was fetched before, if it is whole in some form."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for form in FORMS:
        try:
            found = snapshot_download(
                name, revision=revision, allow_patterns=_patterns(form), local_files_only=True
            )
        except LocalEntryNotFoundError:
            continue
        if form.is_among(file.name for file in Path(found).iterdir()):
            return Path(found)
    return None


def no_connection(error: Exception) -> bool:
    """Whether a request failed before there was an answer."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError | OSError):
        return True
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
