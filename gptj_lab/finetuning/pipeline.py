"""The order of a run's windows: shuffled, cut over hosts, and resumable bit for bit (Grain)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gptj_lab.finetuning.packing import Batch, Windows

_ENDLESS = 1 << 40  # windows


class Batches:
    """An endless iterator of batches: every window once an epoch, each epoch in another order.

    The order is a pure function of the seed; the state is the number of batches taken. All hosts
    together see, row for row, what one host alone would see, so a run may resume on another
    number of hosts.
    """

    def __init__(
        self, windows: Windows, batch: int, *, seed: int, name: str, host: int = 0, hosts: int = 1
    ):
        """Starts at step 0; `name` says what the windows were made of, see `state`.

        Raises:
            ValueError: no window, or rows that the hosts can't share evenly.
        """
        if not len(windows):
            raise ValueError("the corpus holds no window to train on: give it text")
        if batch < 1 or batch % hosts or not 0 <= host < hosts:
            raise ValueError(
                f"batch {batch} can't be cut for host {host} of {hosts}: give a multiple of {hosts}"
            )
        self._name = f"{name}, batch {batch}, seed {seed}"
        import grain  # takes seconds to import

        rows = batch // hosts
        mine = slice(host * rows, (host + 1) * rows)
        epochs = 1 + _ENDLESS // len(windows)  # repeat() without a number overflows at batch 1
        order = grain.MapDataset.range(len(windows)).seed(seed).shuffle().repeat(epochs)
        self._iterator: Any = iter(
            order.batch(batch)
            .map(lambda numbers: windows.batch(np.asarray(numbers)[mine]))
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Where the iterator stands, as a dict for JSON: Grain's state, and what it is of."""
        return {"of": self._name, "grain": self._iterator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            ValueError: the state is of another text, tokenizer, packing, batch or seed.
        """
        if state.get("of") != self._name:
            raise ValueError(
                f"the saved data order is of [{state.get('of')}], this run's is of "
                f"[{self._name}]: resume with the same data and settings, or start anew"
            )
        self._iterator.set_state(state["grain"])


def once(windows: Windows, batch: int, *, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
    """Every window once, in order; the last batch is filled with rows of weight 0.

    Raises:
        ValueError: rows that the hosts can't share evenly.
    """
    if batch < 1 or batch % hosts or not 0 <= host < hosts:
        raise ValueError(
            f"batch {batch} can't be cut for host {host} of {hosts}: give a multiple of {hosts}"
        )
    rows = batch // hosts
    for first in range(0, len(windows), batch):
        numbers = first + host * rows + np.arange(rows)
        yield windows.batch(np.where(numbers < len(windows), numbers, -1))
