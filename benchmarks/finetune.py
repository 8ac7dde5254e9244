"""A fine-tuning step of ours beside PyTorch's and FlaxGPTJ's, on the same weights and batch.

    python benchmarks/finetune.py [--rounds 9] [--flax /path/to/python]

Each contender is a process of its own that takes turns with the others: a round is a few steps of
every one, in a random order. Prints Markdown: medians over the rounds, ratios to torch's best,
CPU seconds of a step and the peak memory of the process. Quote ratios; single times are noise.

FlaxGPTJ needs an environment of its own, as transformers 5 has no Flax any more:
    python -m venv flax && flax/bin/pip install transformers==4.57.6 jax==0.10.2 flax optax
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATE, DECAY, CLIP, RANK, ALPHA = 1e-4, 0.01, 1.0, 8, 16.0
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
CONTENDERS = {  # kind of worker, its dtype, its environment
    "gptj_lab float32": ("ours", "float32", {}),
    "gptj_lab float32, huge pages": ("ours", "float32", HUGE),
    "gptj_lab bfloat16 products": ("ours", "bfloat16", {}),
    "gptj_lab bfloat16 products, huge pages": ("ours", "bfloat16", HUGE),
    "torch float32": ("torch", "float32", {}),
    "torch bfloat16 autocast": ("torch", "bfloat16", {}),
    "torch bfloat16 autocast, huge pages": ("torch", "bfloat16", HUGE),
    "FlaxGPTJ float32": ("flax", "float32", {}),
}


def tokens(batch: int, seq: int, vocab: int):
    """The same rows for everyone, [batch, seq + 1]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab, (batch, seq + 1)).astype(np.int32)


def ours(asked: argparse.Namespace):
    """The step of gptj_lab's loop: Trainer, as `gptj_lab.finetune` runs it."""
    import numpy as np

    import gptj_lab
    from gptj_lab.finetuning import methods
    from gptj_lab.finetuning.optimisers import Optimiser
    from gptj_lab.finetuning.packing import Batch
    from gptj_lab.finetuning.trainer import Trainer

    model = gptj_lab.load(asked.model)
    method = methods.Full() if asked.method == "full" else methods.LoRA(rank=RANK, alpha=ALPHA)
    optimiser = Optimiser(
        learning_rate=RATE, schedule="constant", warmup_steps=0, weight_decay=DECAY, clip=CLIP
    )
    trainer = Trainer(model, method, optimiser, steps=10**6, products=asked.dtype)
    rows = tokens(asked.batch, asked.seq, model.config.vocab_size)
    ones = np.ones((asked.batch, asked.seq), np.int32)
    batch = Batch(
        tokens=rows, segments=ones, positions=np.cumsum(ones, 1, dtype=np.int32) - 1,
        weights=ones.astype(np.float32),
    )  # fmt: skip
    return lambda: trainer.measures(trainer.step(trainer.put(batch))).loss


def torch_(asked: argparse.Namespace):
    """transformers' GPT-J with torch's fused AdamW, and peft's LoRA."""
    import contextlib

    import torch
    import transformers

    model = transformers.GPTJForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    rows = torch.tensor(tokens(asked.batch, asked.seq, model.config.vocab_size)).long()
    if asked.method == "lora":
        import peft

        model = peft.get_peft_model(
            model,
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"]),
        )
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [v for v in trained if v.ndim > 1], "weight_decay": DECAY},
        {"params": [v for v in trained if v.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=RATE, fused=True)

    def cast():
        if asked.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        with cast():
            logits = model(rows[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), rows[:, 1:].flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        return loss.item()

    return step


def flax(asked: argparse.Namespace):
    """FlaxGPTJ of transformers 4.57.6 with optax.adamw, as its examples train."""
    import jax
    import jax.numpy as jnp
    import optax
    from safetensors.numpy import load_file
    from transformers import FlaxGPTJForCausalLM, GPTJConfig

    config = GPTJConfig.from_pretrained(asked.model)
    network = FlaxGPTJForCausalLM(config, _do_init=False)
    params: dict = {}
    for name, value in load_file(Path(asked.model) / "model.safetensors").items():
        *path, last = name.split(".")
        if last == "weight":
            norm = path[-1].startswith("ln_")
            last = "scale" if norm else "embedding" if path[-1] == "wte" else "kernel"
            value = value.T if last == "kernel" else value
        inside = params
        for part in path:
            inside = inside.setdefault(part, {})
        inside[last] = jnp.asarray(value)
    rows = jnp.asarray(tokens(asked.batch, asked.seq, config.vocab_size))
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    rule = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY, mask=matrices)
    )
    state = rule.init(params)

    def loss_of(params):
        logits = network(rows[:, :-1], params=params, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    @jax.jit
    def update(params, state):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    donated = jax.jit(update, donate_argnums=(0, 1))

    def step() -> float:
        nonlocal params, state
        params, state, loss = donated(params, state)
        return float(loss)

    return step


def work(asked: argparse.Namespace) -> None:
    """In a contender's process: steps on demand, their times as a line of JSON."""
    step = {"ours": ours, "torch": torch_, "flax": flax}[asked.worker](asked)
    losses = [step(), step()]  # compiled, warm
    print(json.dumps({"losses": losses}), flush=True)
    for line in sys.stdin:
        count = int(line)
        step()  # what the system took away from a process that waited comes back, uncounted
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        told = {"seconds": seconds / count, "cpu": cpu / count, "peak": peak}
        print(json.dumps(told), flush=True)


class Contender:
    """A worker's process, and what it said."""

    def __init__(self, name: str, asked: argparse.Namespace, folder: str, method: str):
        kind, dtype, environment = CONTENDERS[name]
        self.name, self.told = name, []
        python = asked.flax if kind == "flax" else sys.executable
        self._process = subprocess.Popen(
            [
                python, __file__, "--worker", kind, "--dtype", dtype, "--method", method,
                "--model", folder, "--batch", str(asked.batch), "--seq", str(asked.seq),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
            | environment,
        )  # fmt: skip
        self.losses = self._answer()["losses"]

    def run(self, steps: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.told.append(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")

    def median(self, what: str) -> float:
        return statistics.median(told[what] for told in self.told)


def compare(asked: argparse.Namespace, folder: str, method: str) -> None:
    names = [
        name
        for name, (kind, _, _) in CONTENDERS.items()
        if (kind != "flax" or (asked.flax and method == "full"))
        and (not asked.only or any(only in name for only in asked.only))
    ]
    contenders = [Contender(name, asked, folder, method) for name in names]
    expected = contenders[0].losses
    exact = "float32" in contenders[0].name
    for contender in contenders:
        room = 1e-4 if exact and "float32" in contender.name else 2e-2
        for mine, other in zip(expected, contender.losses, strict=True):
            assert abs(mine - other) < room * mine, (contender.name, contender.losses, expected)
    for _ in range(asked.rounds):
        for contender in random.sample(contenders, len(contenders)):
            contender.run(asked.steps)
    read = asked.batch * asked.seq
    rivals = [contender for contender in contenders if "torch" in contender.name]
    best = min((c.median("seconds") for c in rivals), default=contenders[0].median("seconds"))
    cheapest = min((c.median("cpu") for c in rivals), default=contenders[0].median("cpu"))
    for each in contenders:
        each.close()
        print(
            f"| {method} | {each.name} | {read / each.median('seconds'):,.0f} "
            f"| {best / each.median('seconds'):.2f} | {each.median('cpu'):.2f} "
            f"| {cheapest / each.median('cpu'):.2f} | {each.told[-1]['peak'] / 1e9:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6, help="of a contender in a turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--methods", nargs="+", default=["full", "lora"])
    parser.add_argument("--only", nargs="+", help="contenders whose names contain one of these")
    parser.add_argument("--flax", help="a python with transformers 4.57.6, jax and flax")
    parser.add_argument("--worker", choices=("ours", "torch", "flax"), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked)
        return
    import gptj_lab

    print(
        f"Batch {asked.batch} x {asked.seq}, medians of {asked.rounds} rounds of {asked.steps} "
        "steps; the first two losses of all agree.\n"
    )
    print(
        "| method | | tokens/s | x torch's best | CPU s a step | CPU x torch's best "
        "| peak GB of the process |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        gptj_lab.load(asked.model).save(folder)
        config = Path(folder) / "config.json"
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # dropout off
        config.write_text(json.dumps(json.loads(config.read_text()) | still))
        for method in asked.methods:
            compare(asked, folder, method)
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
