"""A folder that one process has to itself; the system frees it when the process ends, however."""

import os
from pathlib import Path

import filelock


def take(folder: Path) -> filelock.BaseFileLock:
    """The lock of `folder`, held until it is released or the process ends, by SIGKILL too.

    Raises:
        BlockingIOError: it is taken; the sentence names the process that has it.
    """
    lock, holder = filelock.FileLock(folder / "lock", thread_local=False), folder / "holder"
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise BlockingIOError(
            f"{_who(holder)} has the run in {folder} open: stop it first, or take another folder"
        ) from None
    holder.write_text(f"{os.getpid()}\n", "utf-8")
    return lock


def _who(holder: Path) -> str:
    try:
        process = int(holder.read_text("utf-8"))
    except (OSError, ValueError):
        return "another process"
    return "this very process" if process == os.getpid() else f"process {process}"
