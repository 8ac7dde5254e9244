"""Stand-in until branch states is merged."""

import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass
class State:
    step: int
    arrays: Any
    record: dict
    notes: list


class TrainingStates:
    def __init__(self, folder, *, keep=2):
        self.folder, self.keep = Path(folder), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder} is in use by another process") from None

    @property
    def steps(self):
        return sorted(int(p.stem) for p in self.folder.glob("*.npz"))

    def save(self, step, arrays, record, *, measure=None):
        leaves = [np.asarray(x) for x in jax.tree.leaves(arrays)]
        with open(self.folder / "tmp", "wb") as file:
            np.savez(file, record=json.dumps(record), **{f"a{i}": x for i, x in enumerate(leaves)})
        os.rename(self.folder / "tmp", self.folder / f"{step}.npz")

    def restore(self, like):
        if not self.steps:
            return None
        step = self.steps[-1]
        found = np.load(self.folder / f"{step}.npz")
        leaves, tree = jax.tree.flatten(like)
        arrays = [jax.device_put(found[f"a{i}"], x.sharding) for i, x in enumerate(leaves)]
        return State(step, jax.tree.unflatten(tree, arrays), json.loads(str(found["record"])), [])

    def restore_best(self, like):
        return self.restore(like)

    def wait(self):
        pass

    def close(self):
        self._lock.close()
