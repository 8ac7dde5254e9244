"""One process of a test's run: `worker.py JSON`; prints one line of JSON with what it found.

Keys: port, processes, process, devices (of this process), directory, mesh [data, model], and do:
"compare" (loss, tokens), "train" (also a step, and logits), "save", "finetune" (a run, and the run
gone on with from its folder), "die" (the victim is killed while all work) or "idle" (it is killed
while the others wait for nothing).
"""

import json
import os
import signal
import sys
import time

JOB = json.loads(sys.argv[1])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={JOB['devices']}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

import gptj_lab  # noqa: E402
from gptj_lab.mesh import distributed, sharding  # noqa: E402

PROMPTS = ["the cat sat", "a dog", "on the log and"]


def compare(model, train: bool) -> dict:
    """The loss on some tokens, before and after a step of gradient descent, and its tokens."""
    graph, params = nnx.split(model.network)
    ids = np.random.default_rng(5).integers(0, model.config.vocab_size, (4, 12), np.int32)
    tokens = ids if model.mesh is None else sharding.put_batch(ids, model.mesh)

    @jax.jit
    def loss(params, tokens):
        logprobs = jax.nn.log_softmax(nnx.merge(graph, params)(tokens)[0][:, :-1])
        return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()

    losses = [float(loss(params, tokens))]
    if train:
        slope = jax.jit(jax.grad(loss))(params, tokens)
        params = jax.tree.map(lambda weight, g: weight - 0.05 * g, params, slope)
        losses.append(float(loss(params, tokens)))
    done = model.generate(PROMPTS, max_new_tokens=12, temperature=0.0)
    done += model.generate(PROMPTS, max_new_tokens=12, top_k=40, seed=3)
    return {
        "losses": losses,
        "tokens": [one.token_ids for one in done],
        "logits": float(np.abs(distributed.gather(model.logits(ids[:3]))).sum()) if train else 0.0,
        "reasons": [one.finish_reason for one in done],
    }


def finetuned(model, out) -> dict:
    """The losses of a run of 4 steps, then of 6 in the same folder."""
    rows = [{"text": f"the cat {'sat and ' * i}sat on the mat"} for i in range(30)]
    for steps in (4, 6):
        run = gptj_lab.finetune(
            model, rows, method=gptj_lab.LoRA(rank=2, dropout=0.2), steps=steps, batch=4,
            context=16, held_out=0.2, evaluate_every=2, out=out, dtype="float32",
            optimiser=gptj_lab.Optimiser(learning_rate=0.01, schedule="constant"),
        )  # fmt: skip
    return {
        "status": run.status,
        "notes": run.notes,
        "losses": [row["loss"] for row in run.history],
        "held_out": [row["held_out_loss"] for row in run.evaluations],
    }


def main() -> None:
    given = (f"127.0.0.1:{JOB['port']}", JOB["processes"], JOB["process"])
    given = () if JOB.get("slurm") else given
    distributed.start(*given, join_seconds=JOB.get("join", 60), heartbeat_seconds=10)
    data, model_axis = JOB["mesh"]
    model = gptj_lab.load(JOB["directory"], mesh=gptj_lab.mesh(data=data, model=model_axis))
    found = {"process": jax.process_index(), "devices": jax.device_count()}
    if JOB["do"] in ("compare", "train"):
        found |= compare(model, JOB["do"] == "train")
    elif JOB["do"] == "save":
        model.save(JOB["to"])
        found["files"] = sorted(os.listdir(JOB["to"]))
    elif JOB["do"] == "finetune":
        found |= finetuned(model, JOB["to"])
    else:
        ids = np.zeros((2, 8), np.int32)
        jax.block_until_ready(model.logits(ids))
        if JOB["process"] == JOB.get("victim", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if JOB["do"] == "idle":
            time.sleep(300)
        while True:
            jax.block_until_ready(model.logits(ids))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
