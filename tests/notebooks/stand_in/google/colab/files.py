"""Colab's picker and downloads: whoever uses the notebook chooses a file of their own."""

import os
from pathlib import Path

from google.colab import _calls


def upload() -> dict[str, bytes]:
    """The files that were chosen, none if that was cancelled; Colab writes them here too."""
    _calls.record("files.upload")
    if not _calls.answer("CHOSEN_FILE"):
        return {}
    chosen = Path(_calls.answer("CHOSEN_FILE"))
    Path(chosen.name).write_bytes(chosen.read_bytes())
    return {chosen.name: chosen.read_bytes()}


def download(filename: str) -> None:
    """The browser reads the file later, so it must not lie on a Drive that may be unmounted."""
    if not os.path.exists(filename):
        raise FileNotFoundError(f"Cannot find file: {filename}")
    if Path(filename).is_relative_to(_calls.mountpoint()):
        raise RuntimeError("a download from the Drive ends when the Drive is unmounted")
    _calls.record("files.download", filename)
