"""Cold start, prefill and decode beside transformers on torch, alternating in one run.

python benchmarks/generate.py [--rounds 5] [--models pocket large] [--skip-cold]

Prints Markdown: medians, and ratios to torch's best. Quote ratios; single times are noise.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gptj_lab
from gptj_lab import ModelConfig
from gptj_lab.generation.decoding import Decoding
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import Tokenizer

PROMPT, NEW = 128, 64  # tokens
LARGE = ModelConfig.of_family(
    "gptj",
    vocab_size=50400, context=2048, d_model=1024, num_layers=12, num_heads=4, d_rotary=64,
    d_ff=4096, activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
    bos_token_id=50256, eos_token_id=50256,
)  # fmt: skip


def read_bandwidth() -> float:
    """Bytes a second that a float32 matrix-vector product reads."""
    weights = jnp.ones((16384, 16384), jnp.float32)
    vector = jnp.ones(16384, jnp.float32)
    product = jax.jit(lambda w, v: w @ v)
    product(weights, vector).block_until_ready()
    begun = time.perf_counter()
    product(weights, vector).block_until_ready()
    return weights.nbytes / (time.perf_counter() - begun)


def ours(model: LanguageModel, batch: int) -> tuple[float, float]:
    """Seconds of prefill with one token, and seconds a token after it."""
    prompt = _prompt(model)
    run = Decoding(model, [prompt] * batch, max_new_tokens=NEW, temperature=0, end_tokens=[])
    begun = time.perf_counter()
    run.advance()
    first = time.perf_counter()
    while run.advance():
        pass
    made = len(run.rows[0].tokens)
    assert made == NEW, made
    return first - begun, (time.perf_counter() - first) / (NEW - 1)


def theirs(model, ids: list[int], batch: int) -> tuple[float, float]:
    """The same of transformers' generate."""
    import torch

    rows = torch.tensor([ids] * batch)
    seconds = []
    with torch.inference_mode():
        for new in (1, NEW):
            begun = time.perf_counter()
            out = model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=new,
                min_new_tokens=new, do_sample=False, pad_token_id=0,
            )  # fmt: skip
            seconds.append(time.perf_counter() - begun)
            assert out.shape[1] == len(ids) + new
    return seconds[0], (seconds[1] - seconds[0]) / (NEW - 1)


def _prompt(model: LanguageModel) -> str:
    """A text of exactly PROMPT tokens."""
    ids = model.tokenizer.encode("the old man and the little girl went to the house " * 40)
    text = model.tokenizer.decode(ids[:PROMPT])
    assert len(model.tokenizer.encode(text)) == PROMPT
    return text


def compare(name: str, model: LanguageModel, rounds: int, bandwidths: list[float]) -> None:
    import torch
    from transformers import GPTJForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        float32 = GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        bfloat16 = GPTJForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = model.tokenizer.encode(_prompt(model))
    for batch in (1, 8):
        kinds = {
            "gptj_lab float32": lambda: ours(model, batch),  # noqa: B023
            "torch float32": lambda: theirs(float32, ids, batch),  # noqa: B023
            "torch bfloat16": lambda: theirs(bfloat16, ids, batch),  # noqa: B023
        }
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for kind in kinds.values():  # compile, warm up
            kind()
        for _ in range(rounds):
            bandwidths.append(read_bandwidth())
            for kind, measure in kinds.items():
                times[kind].append(measure())
        medians = {
            kind: [statistics.median(column) for column in zip(*rows, strict=True)]
            for kind, rows in times.items()
        }
        torch_best = [min(medians[k][i] for k in kinds if "torch" in k) for i in (0, 1)]
        for kind, (first, each) in medians.items():
            print(
                f"| {name} | {batch} | {kind} "
                f"| {PROMPT * batch / first:,.0f} | {batch / each:,.0f} "
                f"| {torch_best[0] / first:.2f} | {torch_best[1] / each:.2f} |",
                flush=True,
            )
        if batch == 1:
            read = 4 * (
                model.config.num_parameters - model.config.vocab_size * model.config.d_model
            )
            reached = read / medians["gptj_lab float32"][1]
            print(
                f"<!-- {name}: decode at batch 1 reads {reached / 1e9:.1f} GB/s of weights, "
                f"{reached / statistics.median(bandwidths):.2f} of the measured bandwidth -->",
                flush=True,
            )


_COLD = """
import gptj_lab
model = gptj_lab.load()
next(iter(model.stream("Once upon a time", temperature=0)))
"""


def cold_start(rounds: int) -> None:
    """Seconds from process start to the first token of the pocket model."""
    with tempfile.TemporaryDirectory() as cache:
        without, within = dict(os.environ), dict(os.environ)
        without.pop("JAX_COMPILATION_CACHE_DIR", None)
        within |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        code = [sys.executable, "-c", _COLD]
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        subprocess.run(code, env=within, check=True)
        for _ in range(rounds):
            for kind, environment in (("without", without), ("with", within)):
                begun = time.perf_counter()
                subprocess.run(code, env=environment, check=True)
                seconds[kind].append(time.perf_counter() - begun)
    for kind, values in seconds.items():
        print(
            f"Cold start to the first token {kind} the persistent compilation cache: median "
            f"{statistics.median(values):.1f} s of {rounds} "
            f"({', '.join(f'{value:.1f}' for value in values)})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["pocket", "large"])
    parser.add_argument("--skip-cold", action="store_true")
    chosen = parser.parse_args()
    if not chosen.skip_cold:
        cold_start(3)
    bandwidths: list[float] = []
    print(
        f"\nPrompt of {PROMPT} tokens, {NEW} made greedily; medians of {chosen.rounds} rounds. "
        "Prefill includes the first token.\n"
    )
    print(
        "| model | batch | | prefill tokens/s | decode tokens/s | prefill x torch's best "
        "| decode x torch's best |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in chosen.models:
        if name == "pocket":
            model = gptj_lab.load("pocket")
        else:
            network = Transformer(LARGE, key=jax.random.key(0))
            model = LanguageModel(LARGE, network, Tokenizer.gpt2(), name)
        compare(
            f"{name}, {model.config.num_parameters / 1e6:.1f} M", model, chosen.rounds, bandwidths
        )
    print(f"\nRead bandwidth measured between: median {np.median(bandwidths) / 1e9:.1f} GB/s")
    print(f"{Path('/proc/cpuinfo').read_text().count('processor')} cores, jax {jax.__version__}")


if __name__ == "__main__":
    main()
