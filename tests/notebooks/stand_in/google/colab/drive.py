"""Google Drive: a folder that is linked where it is mounted, and every call written down."""

from pathlib import Path

from google.colab import _calls, errors

_NAMES = ("MyDrive", "My Drive")  # as Colab shows it, and its other name


def mount(mountpoint: str, force_remount: bool = False) -> None:
    """Each mount asks in the browser, even where the Drive is mounted already."""
    there = Path(mountpoint)
    _calls.record("drive.mount", mountpoint)
    if answer := _calls.answer("DRIVE_REFUSES"):
        raise errors.MessageError(answer)
    if (there / _NAMES[0]).is_symlink():
        print(f"Drive already mounted at {there}")
        return
    if there.is_dir() and any(there.iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    there.mkdir(exist_ok=True)
    cloud = Path(_calls.answer("DRIVE"))
    cloud.mkdir(exist_ok=True)
    for name in _NAMES:
        (there / name).symlink_to(cloud)


def flush_and_unmount() -> None:
    mounted = [link for link in _calls.mountpoint().glob("*") if link.is_symlink()]
    _calls.record("drive.flush_and_unmount")
    if answer := _calls.answer("FLUSH_FAILS"):
        raise ValueError(answer)
    for link in mounted:
        link.unlink()
