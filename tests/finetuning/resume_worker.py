"""A fine-tuning process to be killed: `resume_worker.py JSON`; it says on stdout where it is.

Keys: model (a directory), text (a file), out, steps, save_every; and hold: at which place of which
save (from 1) it stops to wait for its end, such as ["rename", 2]. Lines: "batch HASH" for each
batch taken, "inside PLACE" where it holds, "done {...}" with what came out.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from flax import nnx

import gptj_lab
from gptj_lab.checkpoints import seals
from gptj_lab.checkpoints.training_state import TrainingStates
from gptj_lab.finetuning import pipeline
from gptj_lab.finetuning.control import Interrupted

JOB = json.loads(sys.argv[1])
PLACE, NUMBER = JOB.get("hold") or (None, 0)
saves = 0


def digest(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def hold(place: str) -> None:
    """Waits to be killed, if this is the place and the save."""
    if place == PLACE and saves == NUMBER:
        print(f"inside {place}", flush=True)
        time.sleep(600)


def tell_batches() -> None:
    take = pipeline.Batches.__next__

    def told(self):
        batch = take(self)
        print(f"batch {digest(batch.tokens)}", flush=True)
        return batch

    pipeline.Batches.__next__ = told


def open_places() -> None:
    """Makes each place of a save one where `hold` is asked."""
    save, prune = TrainingStates.save, TrainingStates._prune
    seal, measured, rename, rmtree = seals.seal, seals._measured, os.rename, shutil.rmtree
    files = 0

    def in_save(self, *given, **more):
        global saves
        nonlocal files
        self.wait()
        saves, files = saves + 1, 0
        hold("begin")
        save(self, *given, **more)
        if PLACE == "writing" and saves == NUMBER:  # goes on: Orbax writes meanwhile
            print("inside writing", flush=True)

    def in_seal(folder):
        hold("seal")
        seal(folder)
        hold("sealed")

    def in_measured(file):
        nonlocal files
        files += 1
        if files == 4:
            hold("hashing")
        return measured(file)

    def in_rename(old, new):
        if Path(old).name.startswith(".saving-"):
            hold("rename")
        rename(old, new)

    def in_prune(self):
        hold("prune")
        prune(self)

    def in_rmtree(path, *given, **more):
        if Path(path).name.startswith(".removing-") and PLACE == "removing" and saves == NUMBER:
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            hold("removing")
        rmtree(path, *given, **more)

    TrainingStates.save, TrainingStates._prune = in_save, in_prune
    seals.seal, seals._measured, os.rename, shutil.rmtree = (
        in_seal,
        in_measured,
        in_rename,
        in_rmtree,
    )


def main() -> None:
    tell_batches()
    open_places()
    model = gptj_lab.load(JOB["model"])
    try:
        run = gptj_lab.finetune(
            model, JOB["text"], method=gptj_lab.LoRA(rank=2, dropout=0.2), steps=JOB["steps"],
            batch=2, context=16, save_every=JOB["save_every"], evaluate_every=8, held_out=0.1,
            out=JOB["out"], seed=3, say=lambda line: None,
        )  # fmt: skip
    except Interrupted as interrupted:
        run = interrupted.run
    weights = {
        ".".join(map(str, path)): digest(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(run.model.network, nnx.Param))
    }
    told = {"status": run.status, "step": run.step, "notes": run.notes, "weights": weights}
    print("done", json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
