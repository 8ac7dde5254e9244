"""Colab's secrets: there is one if SECRET says so; SECRET_FAILS names what goes wrong."""

from google.colab import _calls, errors


class NotebookAccessError(Exception):
    pass


class SecretNotFoundError(errors.Error):
    pass


class TimeoutException(errors.Error):
    pass


def get(key: str) -> str:
    _calls.record("userdata.get", key)
    wrong = {
        "access": NotebookAccessError(f"Notebook does not have access to secret {key}"),
        "timeout": TimeoutException(
            f"Requesting secret {key} timed out. Secrets can only be fetched when running from "
            "the Colab UI."
        ),
    }
    if (failure := _calls.answer("SECRET_FAILS")) in wrong:
        raise wrong[failure]
    if not (secret := _calls.answer("SECRET")):
        raise SecretNotFoundError(f"Secret {key} does not exist.")
    return secret
