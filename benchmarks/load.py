"""Peak memory and seconds of loading a GPT-J whose random weights are made here.

python benchmarks/load.py make DIRECTORY [--d-model 4096 --layers 28 --heads 16 --dtype bfloat16]
python benchmarks/load.py measure DIRECTORY [--weights bfloat16 float32] [--rounds 3]

`make` writes a sharded Hugging Face directory, one tensor in memory at a time (GPT-J-6B in
bfloat16: 12 GB); run again after a stop, it goes on. `measure` loads it, or any other directory
that gptj_lab.load takes, in a new process each time and prints Markdown. What must hold:
peak <= 1.15 x what stays resident + the largest tensor.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from gptj_lab import ModelConfig
from gptj_lab.checkpoints import families, huggingface
from gptj_lab.checkpoints.filling import parameter_shapes
from gptj_lab.checkpoints.safetensors_files import Entry
from gptj_lab.checkpoints.stored import DTYPES
from gptj_lab.tokenizer import Tokenizer

_CHILD = """
import json, resource, sys, time
import jax
from flax import nnx
import gptj_lab, gptj_lab.language_model

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

jax.device_put(0.0).block_until_ready()
begun, before = time.perf_counter(), resident()
model = gptj_lab.load(sys.argv[1], weights=sys.argv[2])
leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(model.network)))
with open("/proc/self/status") as file:  # ru_maxrss would count the process that started this one
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
print(json.dumps({
    "seconds": time.perf_counter() - begun, "before": before, "after": resident(), "peak": peak,
    "weights": sum(leaf.nbytes for leaf in leaves), "largest": max(leaf.size for leaf in leaves),
}))
"""


def make(
    directory: Path, *, d_model: int, layers: int, heads: int, vocab: int, dtype: str,
    max_shard_bytes: int = huggingface.MAX_SHARD_BYTES,
) -> ModelConfig:  # fmt: skip
    """Writes a GPT-J with random weights (std 0.02; norms about 1) and GPT-2's tokenizer."""
    config = ModelConfig.of_family(
        "gptj",
        vocab_size=vocab, context=2048, d_model=d_model, num_layers=layers, num_heads=heads,
        d_rotary=min(64, d_model // heads), d_ff=4 * d_model,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    tensors = families.tensors(config, parameter_shapes(config)).values()
    entries = [_random(tensor, dtype) for tensor in tensors]
    huggingface.write_entries(directory, config, entries, dtype, max_shard_bytes)
    Tokenizer.gpt2().save(directory)
    return config


def _random(tensor: families.Tensor, dtype: str) -> Entry:
    name, shape = tensor.name, tensor.shape

    def values() -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(name.encode()))
        out = np.empty(shape, DTYPES[dtype])
        for row in np.array_split(out, max(1, math.prod(shape) // 10_000_000)):
            row[...] = random.standard_normal(row.shape, np.float32) * np.float32(0.02)
            if tensor.paths[0][-1] == "scale":
                row += DTYPES[dtype].type(1)
        return out

    return Entry(name, shape, DTYPES[dtype], values)


def measure(directory: Path, weights: str) -> dict[str, float]:
    """Bytes and seconds of loading once, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(directory), weights],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(run.stdout)


def bound(measured: dict[str, float], weights: str, stored: str = "bfloat16") -> float:
    """The most bytes that loading may reach: 1.15 x what stays resident, and one tensor.

    The tensor counts in the wider of the two dtypes: the pages of the file that are mapped while
    it is read are resident too (a .bin is read twice, the first time for its checksum).
    """
    kept = "float32" if weights == "int8" else weights
    width = max(DTYPES[kept].itemsize, DTYPES[stored].itemsize)
    return 1.15 * measured["after"] + measured["largest"] * width


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("directory", type=Path)
    for name, value in (("d-model", 4096), ("layers", 28), ("heads", 16), ("vocab", 50400)):
        making.add_argument(f"--{name}", type=int, default=value)
    making.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    making.add_argument("--max-shard-bytes", type=int, default=huggingface.MAX_SHARD_BYTES)
    measuring = commands.add_parser("measure")
    measuring.add_argument("directory", type=Path)
    measuring.add_argument("--weights", nargs="+", default=["bfloat16", "float32"])
    measuring.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.command == "make":
        begun = time.perf_counter()
        config = make(
            chosen.directory, d_model=chosen.d_model, layers=chosen.layers, heads=chosen.heads,
            vocab=chosen.vocab, dtype=chosen.dtype, max_shard_bytes=chosen.max_shard_bytes,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        print(f"{config.num_parameters:,} parameters written in {seconds:.0f} s")
        return
    print("| weights | GB of weights | resident before | after | peak | allowed | seconds |")
    print("|---|---|---|---|---|---|---|")
    for weights in chosen.weights:
        runs = [measure(chosen.directory, weights) for _ in range(chosen.rounds)]
        worst = max(runs, key=lambda run: run["peak"])
        figures = [worst[key] for key in ("weights", "before", "after", "peak")]
        row = [f"{value / 1e9:.2f}" for value in (*figures, bound(worst, weights))]
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"| {weights} | {' | '.join(row)} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
