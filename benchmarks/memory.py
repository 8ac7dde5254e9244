"""Peak memory of the fine-tuning loop's own step on a TPU, as the TPU compiler says.

    python benchmarks/memory.py --job lora --weights int8 --batch 4 --context 2048

Needs libtpu (pip install 'gptj_lab[tpu]' in an environment of its own), no TPU. What is compiled
are `finetuning.loss.gradients`, an Optax chain of `finetuning.optimisers` and the guard against
NaN, block by block, as the loop runs them; the planner compiles its blocks as one scan, which is
quicker.
"""

import argparse
import dataclasses
import functools
import json
import os
import time

from gptj_lab.mesh.planner_compile import ENVIRONMENT

os.environ |= ENVIRONMENT

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from gptj_lab import presets  # noqa: E402
from gptj_lab.finetuning import loss, methods  # noqa: E402
from gptj_lab.finetuning.optimisers import Optimiser  # noqa: E402
from gptj_lab.finetuning.packing import Batch  # noqa: E402
from gptj_lab.mesh import planner_programs as programs  # noqa: E402
from gptj_lab.mesh.optimizer import optimizer_shardings  # noqa: E402

_OPTIONS = {"exec_time_optimization_effort": -1.0}  # a fifth of the time, 1 % more memory


def main() -> None:
    asked = _arguments()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=asked.topology).devices
    grid = np.array(devices[: asked.data * asked.model]).reshape(asked.data, asked.model)
    mesh = jax.sharding.Mesh(grid, ("data", "model"))
    begun = time.perf_counter()
    step, arguments = training_step(asked, mesh)
    lowered = step.lower(*arguments)
    answer = vars(asked) | {"lowered_seconds": round(time.perf_counter() - begun)}
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS)
        memory = compiled.memory_analysis()
        answer |= {"peak": memory.peak_memory_in_bytes, "temporary": memory.temp_size_in_bytes}
    except jax.errors.JaxRuntimeError as error:
        answer |= {"refused": str(error)[:400]}
    answer["seconds"] = round(time.perf_counter() - begun)
    print(json.dumps(answer), flush=True)
    os._exit(0)  # libtpu's threads were seen to keep a finished process for minutes


def training_step(asked: argparse.Namespace, mesh: jax.sharding.Mesh):
    """The jitted step and the shapes, with their places, that it is called with."""
    config = dataclasses.replace(presets.named("gpt-j-6b"), num_layers=asked.layers)
    rank = asked.rank if asked.job == "lora" else None
    network = programs.on_mesh(programs.abstract_network(config, asked.weights, rank), mesh)
    method = methods.Full() if rank is None else methods.LoRA(rank=rank, name="lora")
    graph, trained, frozen = methods.split(network, method)
    place = functools.partial(programs.placed, config=config, mesh=mesh)
    trained = place(trained, dtype="float32")
    frozen = place(frozen, dtype="bfloat16" if asked.weights == "int8" else asked.weights)
    optimiser = Optimiser(name=asked.optimiser, learning_rate=1e-4, weight_decay=0.1)
    rule = optimiser.transformation(1000, trained)
    moments = jax.eval_shape(rule.init, trained)
    moments = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        moments, optimizer_shardings(moments, trained),
    )  # fmt: skip
    shape = (asked.batch, asked.context)
    rows = functools.partial(programs.rows, mesh)
    batch = Batch(
        tokens=rows((shape[0], shape[1] + 1), jnp.int32), segments=rows(shape, jnp.int32),
        positions=rows(shape, jnp.int32), weights=rows(shape, jnp.float32),
    )  # fmt: skip

    def step(trained, moments, frozen, batch):
        value, gradients = loss.gradients(
            graph, trained, frozen, batch, dtype="bfloat16", remat=asked.remat,
            accumulate=asked.accumulate,
        )  # fmt: skip
        sound = jnp.isfinite(value + optax.global_norm(gradients))  # as the trainer's guard
        updates, after = rule.update(gradients, moments, trained)
        new = (optax.apply_updates(trained, updates), after)
        kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, (trained, moments))
        return *kept, value

    return jax.jit(step, donate_argnums=(0, 1)), (trained, moments, frozen, batch)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=("lora", "finetune"), default="lora")
    parser.add_argument("--weights", choices=("int8", "bfloat16"), default="int8")
    parser.add_argument("--topology", default="v5e:2x2", help="one chip is asked for as one of it")
    parser.add_argument("--remat", choices=tuple(loss.REMAT), default="nothing kept")
    parser.add_argument("--optimiser", choices=("adamw", "adafactor", "lion"), default="adamw")
    for name, number in (
        ("batch", 1), ("context", 2048), ("data", 1), ("model", 1), ("layers", 28), ("rank", 8),
        ("accumulate", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=number)
    return parser.parse_args()


if __name__ == "__main__":
    main()
