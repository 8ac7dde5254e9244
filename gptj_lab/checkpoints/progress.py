"""A bar with bytes and seconds left, for work on more bytes than one waits for without asking."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

_SMALL = 500_000_000  # bytes that are read within about a second


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A function to call with each number of bytes done.

    The bar is shown in terminals and notebooks only, and not for small models.
    """
    if total < _SMALL or not watched():
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        yield bar.update


def watched() -> bool:
    """Whether somebody may look at a bar: in a terminal or a notebook, and without TQDM_DISABLE."""
    if os.environ.get("TQDM_DISABLE"):  # tqdm's own bars for notebooks don't heed it (4.70)
        return False
    return _in_notebook() or sys.stderr.isatty()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
