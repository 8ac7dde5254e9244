"""What int8 weights cost in quality, and how fast they generate.

python benchmarks/int8.py quality [--model pocket] --text FILE
python benchmarks/int8.py speed DIRECTORY [--tokens 32]

`quality` prints Markdown: bits per byte, and the mean KL divergence from float32's distribution,
of the same model in bfloat16 and int8. `speed` loads a directory as int8 in this process and
prints bytes resident and tokens a second.
"""

import argparse
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gptj_lab
from gptj_lab.finetuning.pocket import bits_per_byte
from gptj_lab.generation.decoding import Decoding
from gptj_lab.language_model import LanguageModel


def log_probabilities(model: LanguageModel, rows: np.ndarray) -> jax.Array:
    """float32 [batch, seq, vocab], in nats."""
    return jax.nn.log_softmax(model.logits(rows).astype(jnp.float32))


def quality(name: str, text: Path, most_bytes: int) -> None:
    document = text.read_text("utf-8")[:most_bytes]
    exact = gptj_lab.load(name, weights="float32")
    context = min(exact.config.context, 512)
    ids = exact.tokenizer.encode(document)
    rows = np.array(ids[: len(ids) // context * context]).reshape(-1, context)
    print(f"{name} on {len(document.encode()):,} bytes of {text.name}, windows of {context}\n")
    print("| weights | bits per byte | KL from float32, nats a token | same likeliest token |")
    print("|---|---|---|---|")
    for weights in ("float32", "bfloat16", "int8"):
        model = gptj_lab.load(name, weights=weights)
        bits = bits_per_byte(model.network, model.tokenizer, [document], context=context)
        divergence, same = [], []
        for start in range(0, len(rows), 8):
            some = rows[start : start + 8]
            p, q = log_probabilities(exact, some), log_probabilities(model, some)
            divergence.append(float((jnp.exp(p) * (p - q)).sum(-1).mean()))
            same.append(float((p.argmax(-1) == q.argmax(-1)).mean()))
        print(f"| {weights} | {bits:.4f} | {np.mean(divergence):.2e} | {np.mean(same):.2%} |")


def speed(directory: Path, tokens: int) -> None:
    begun = time.perf_counter()
    model = gptj_lab.load(directory, weights="int8")
    jax.block_until_ready(jax.tree.leaves(model.network))
    loaded = time.perf_counter()
    print(f"{model}: loaded in {loaded - begun:.0f} s, {_resident() / 1e9:.2f} GB resident")
    run = Decoding(model, "Once upon a time", max_new_tokens=tokens, temperature=0)
    run.advance()
    run.advance()
    begun, made = time.perf_counter(), len(run.rows[0].tokens)
    print(f"the first {made} tokens after {begun - loaded:.1f} s, with compiling", flush=True)
    while run.advance():
        pass
    made = len(run.rows[0].tokens) - made
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{made} more tokens at {made / seconds:.2f} a second")
    print(f"{_resident() / 1e9:.2f} GB resident, {peak / 1e9:.2f} GB at most")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("quality")
    asked.add_argument("--model", default="pocket")
    asked.add_argument("--text", type=Path, required=True)
    asked.add_argument("--most-bytes", type=int, default=100_000)
    timed = commands.add_parser("speed")
    timed.add_argument("directory", type=Path)
    timed.add_argument("--tokens", type=int, default=32)
    chosen = parser.parse_args()
    if chosen.command == "quality":
        quality(chosen.model, chosen.text, chosen.most_bytes)
    else:
        speed(chosen.directory, chosen.tokens)


if __name__ == "__main__":
    main()
