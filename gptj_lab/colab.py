"""What a notebook asks of Colab: the machine, Google Drive, a token, a text, a download.

Elsewhere, such as on Kaggle or a laptop, the same calls do what can be done there, or say in a
sentence what can't.
"""

import os
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path

from gptj_lab.finetuning import samples
from gptj_lab.mesh import planner

CONTENT = Path("/content")  # the folder that Colab shows under Files; it ends with the session
# What JAX calls a chip, and what gptj_lab.plan calls the machine that has one.
_HARDWARE = {
    "TPU v5 lite": "colab-v5e-1", "TPU v6 lite": "colab-v6e-1", "Tesla T4": "colab-t4",
}  # fmt: skip
_FORMATS = ("float32", "bfloat16", "int8")


def runtime() -> str:
    """What `gptj_lab.plan` calls this machine; says what it is, and in which format the 6B fits.

    Raises:
        RuntimeError: the chip is there and can't be used.
    """
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise RuntimeError(
            f"JAX can't use the chip of this machine ({str(error).splitlines()[0]}). Another "
            "notebook may hold it: Runtime > Manage sessions shows and ends them"
        ) from error
    first = devices[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    each = "" if memory is None else f", {memory / 1e9:.1f} GB each"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax"))
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"{len(devices)} x {first.device_kind} ({first.platform}){each}; "
          f"{versions}, Python {python}")  # fmt: skip
    name = _HARDWARE.get(first.device_kind, "laptop")
    if first.platform == "cpu":
        print(f"This is a CPU: quick enough for pocket. For GPT-J-6B: {_how_to_get_a_tpu()}.")
    elif name != "laptop":
        plans = {each: planner.plan("gpt-j-6b", name, weights=each) for each in _FORMATS}
        fits = " or ".join(repr(each) for each, plan in plans.items() if plan.fits)
        print(f"GPT-J-6B fits with WEIGHTS = {fits}." if fits else "GPT-J-6B doesn't fit: pocket.")
    if name == "colab-t4":
        print("A T4 has no bfloat16 in hardware: float16 is quicker.")
    return name


def _how_to_get_a_tpu() -> str:
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return (
            "Settings > Accelerator > TPU. If a TPU is chosen there already, this image doesn't "
            "see it: Settings > Environment > Always use latest environment"
        )
    return "Runtime > Change runtime type > v5e-1 TPU"


def model(name: str) -> str:
    """The name or path of a model, for `gptj_lab.load`; mounts the Drive if it lies there.

    For a name on the hub, the token is taken from Colab's secret HF_TOKEN, if there is one.

    Raises:
        FileNotFoundError: it is a path, and nothing lies there.
        RuntimeError: the Drive can't be mounted.
    """
    if name == "pocket":
        return name
    found = _lying(name)
    if found is not None:
        return str(found)
    if Path(name).expanduser().is_absolute() or name.startswith("."):
        raise FileNotFoundError(_absence("MODEL", name))
    _tell_of_token()
    return name


def folder(name: str | Path) -> Path:
    """The absolute path of a folder to write into; mounts the Drive if it lies there.

    A relative one lies in /content on Colab, wherever the notebook has changed to.

    Raises:
        ValueError: it has no name.
        RuntimeError: the Drive can't be mounted.
    """
    if not str(name):
        raise ValueError("FOLDER is empty: name a folder, such as my_run")
    path = Path(name).expanduser()
    path = path if path.is_absolute() else _home() / path
    _mount_for(path)
    return path


def data(name: str, keep: Path) -> Path:
    """Where the text to train on lies: a file or a folder.

    Args:
        name: a sample's name, a path, a file in /content, or "upload". If there is no such file in
            /content, Colab asks for it in the browser, as it does for "upload" and for no name.
        keep: the folder for what is uploaded. Beside the run, on a Drive, another session has it
            too, and nobody is asked again.

    Raises:
        FileNotFoundError: there is none; or nothing was chosen in the browser.
        RuntimeError: the Drive can't be mounted.
    """
    if name in samples.names():
        return samples.path(name)
    if name in ("upload", ""):
        return keep if keep.is_dir() else _upload(keep)
    found = _lying(name) or _lying(str(keep / name))
    if found is not None:
        return found
    if Path(name).expanduser().is_absolute() or not _on_colab():
        raise FileNotFoundError(_absence("DATA", name))
    print(f"There is no {name} in {_home()}: choose it on your computer.")
    return _upload(keep)


def download(path: Path, name: str | None = None) -> None:
    """Hands a file, or a folder as a zip, to the browser; elsewhere says where it lies.

    Args:
        name: of the zip, without ".zip"; by default the folder's.
    """
    if path.is_dir():
        # Not beside the folder: the browser reads it later, when a Drive may be unmounted.
        path = Path(shutil.make_archive(str(_home() / (name or path.name)), "zip", path))
    if not _on_colab():
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB) is ready to be copied.")
        return
    from google.colab import files  # pyright: ignore[reportMissingImports]

    files.download(str(path))
    print(f"Your browser downloads {path.name}, {path.stat().st_size / 1e6:.2f} MB.")


def flush() -> None:
    """Waits until Google has all that was written to the Drive, and unmounts it.

    Colab uploads in the background: what a session wrote last is lost if it ends before that.
    """
    if not _mounted():
        return
    from google.colab import drive  # pyright: ignore[reportMissingImports]

    print("Waiting until your Drive has everything ...")
    try:
        drive.flush_and_unmount()
    except Exception as error:  # Colab raises ValueError, NotImplementedError, OSError, its own
        print(
            f"Colab could not finish the upload ({error}). Leave this session open until "
            "drive.google.com shows the files."
        )
        return
    print("Your Drive has everything. It is unmounted now; Runtime > Run all mounts it again.")


def _on_colab() -> bool:
    try:
        import google.colab  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def _home() -> Path:
    return CONTENT if CONTENT.is_dir() else Path.cwd()


def _lying(name: str) -> Path | None:
    """The absolute path of what lies here under that name."""
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_absolute():
        _mount_for(path)
        return path if path.exists() else None
    for place in (_home(), Path.cwd()):
        if (place / path).exists():
            return place / path
    return None


def _absence(what: str, name: str) -> str:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else _home() / path
    there = next(folder for folder in path.parents if folder.is_dir())
    names = sorted(entry.name for entry in there.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return (
        f"{what} is {name!r}, but nothing lies there. In {there} there are: {shown or 'no files'}"
    )


def _mounted() -> bool:
    drive = CONTENT / "drive"
    return os.path.ismount(drive) or (drive / "My Drive").is_dir()


def _mount_for(path: Path) -> None:
    """Mounts the Drive if a path lies there and it isn't mounted: each mount asks for consent."""
    mountpoint = CONTENT / "drive"
    if not path.is_relative_to(mountpoint) or _mounted():
        return
    try:
        from google.colab import drive  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(
            f"{path} lies on a Google Drive, which Colab alone can mount: give another folder"
        ) from None
    if mountpoint.is_dir() and any(mountpoint.iterdir()):
        raise RuntimeError(
            f"{mountpoint} holds files though your Drive isn't mounted, so they lie on this "
            f"session's disk only: rename it (!mv {mountpoint} {CONTENT / 'not_on_drive'}), then "
            "run this cell again"
        )
    try:
        drive.mount(str(mountpoint))
    except Exception as error:  # ValueError, NotImplementedError or Colab's MessageError
        raise RuntimeError(
            f"your Google Drive could not be mounted ({error}). Run this cell again and allow the "
            f"access that Colab asks for, or give a folder in {CONTENT} (it ends with the session)"
        ) from error


def _upload(keep: Path) -> Path:
    """The folder that now holds what was chosen in the browser."""
    if not _on_colab():
        raise FileNotFoundError("DATA is 'upload', which only Colab can do: give a path instead")
    from google.colab import files  # pyright: ignore[reportMissingImports]

    chosen = files.upload()
    if not chosen:
        raise FileNotFoundError("no file was chosen: run this cell again, or give a path as DATA")
    aside = keep.with_name(keep.name + ".part")  # a session that ends in here leaves no half text
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, content in chosen.items():
        (aside / Path(name).name).write_bytes(content)
    shutil.rmtree(keep, ignore_errors=True)
    return aside.rename(keep)


def _tell_of_token() -> None:
    """Says whether the hub will be asked with a token; huggingface_hub reads Colab's secret."""
    import huggingface_hub

    if not _on_colab():
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        token = huggingface_hub.get_token()
    if token:
        print("The Hugging Face hub is asked with your token (HF_TOKEN).")
        return
    told = str(caught[0].message).strip().splitlines()[0] if caught else "There is no HF_TOKEN."
    print(
        f"{told} Public models load without one. For a private model, add HF_TOKEN to Colab's "
        "Secrets (the key at the left), give this notebook access, and restart the session."
    )
