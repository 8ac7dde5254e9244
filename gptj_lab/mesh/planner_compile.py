"""Asks the real TPU compiler what a job needs; libtpu compiles here, no TPU is needed.

The compiler runs in a process of its own: libtpu can be loaded only once, and not beside a JAX
that already holds a device. `python -m gptj_lab.mesh.planner_compile` is that process.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from typing import Any

from jax.sharding import Mesh

from gptj_lab.config import ModelConfig
from gptj_lab.mesh.planner import Plan, gigabytes
from gptj_lab.mesh.planner_memory import Setting

_GIB = 1024**3
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # don't ask Google's metadata server which TPU this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another program may hold the TPU
}
# Training steps compile in a fifth of the time with little effort; the 6B's LoRA step then needed
# 1.4 % more memory (9.24 instead of 9.11 GB).
_OPTIONS = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the TPU compiler said of one program.

    Attributes:
        program: "decode", "prefill" or "train".
        peak: bytes on the fullest device at the fullest moment; where the compiler refused, what
            it said that it would need, or None if it gave no number.
        fits: whether it compiled.
        message: why not, in the compiler's words.
        exchanges: what devices exchange, as (place, kind, mesh axes, how often, bytes of the
            results on one device, all together). Places are those of `exchanged`; what stands in
            a block happens once for each block.
    """

    program: str
    peak: int | None
    fits: bool
    message: str = ""
    exchanges: tuple[tuple[str, str, str, int, int], ...] = ()

    def __str__(self) -> str:
        if self.fits and self.peak is not None:
            lines = [f"{self.program}: fits, peak {gigabytes(self.peak)}"]
            lines += [
                f"  {place}: {count} {kind} over {axes}, {gigabytes(size)}"
                for place, kind, axes, count, size in self.exchanges
            ]
            return "\n".join(lines)
        needs = "" if self.peak is None else f", would need {gigabytes(self.peak)}"
        return f"{self.program}: refused{needs}: {self.message}"


def compile_plan(plan: Plan, *, seconds: float = 1800) -> list[Compiled]:
    """What the TPU compiler says of each program of a plan's job; takes a minute or several.

    Raises:
        ValueError: the hardware is no TPU slice that the compiler knows.
        OSError: libtpu is not installed, or the compiler failed or took longer than `seconds`.
    """
    if plan.hardware.topology is None:
        raise ValueError(
            f"the TPU compiler can't be asked about {plan.hardware.name}: name a TPU slice, "
            "such as colab-v5e-1, v3-8, v5p-8 or v6e-1"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise OSError(
            "libtpu, the TPU compiler, is not installed: pip install 'gptj_lab[tpu]' "
            "(in an environment of its own; no TPU is needed)"
        )
    question = {
        "topology": plan.hardware.topology,
        "setting": dataclasses.asdict(plan.setting),
    }
    try:
        run = subprocess.run(
            [sys.executable, "-m", "gptj_lab.mesh.planner_compile"], input=json.dumps(question),
            capture_output=True, text=True, timeout=seconds, env=os.environ | ENVIRONMENT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(f"the TPU compiler was not done after {seconds:.0f} seconds") from None
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise OSError(f"the TPU compiler failed: {last[0]}")
    answers = json.loads(run.stdout.splitlines()[-1])
    for answer in answers:
        answer["exchanges"] = tuple(map(tuple, answer["exchanges"]))
    return [Compiled(**answer) for answer in answers]


def bytes_wanted(message: str) -> int | None:
    """The bytes that an out-of-memory message of the TPU compiler says it would need."""
    for pattern in (r"total memory required[^(]*\(([\d.]+)([KMGT])\)", r"Used ([\d.]+)([KMGT]) of"):
        if found := re.search(pattern, message):
            return round(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])))
    return None


def exchanged(program: str, mesh: Mesh) -> list[tuple[str, str, str, int, int]]:
    """The exchanges in the text of a compiled training step, added up by place.

    The places are "a block, forward", "a block, backward", "a piece of the loss" (there and back)
    and "the rest"; the compiler may join several sums into one collective, which counts once.
    """
    from gptj_lab.mesh.planner_programs import BLOCK, LOSS
    from gptj_lab.mesh.report import collectives

    sums: dict[tuple[str, str, str], list[int]] = {}
    for each in collectives(program, mesh):
        place = "the rest"
        if LOSS in each.where:
            place = "a piece of the loss"
        elif BLOCK in each.where:
            back = "transpose" in each.where or "remat" in each.where
            place = "a block, backward" if back else "a block, forward"
        sums.setdefault((place, each.kind, " and ".join(each.axes)), []).append(each.bytes)
    return [(*key, len(sizes), sum(sizes)) for key, sizes in sorted(sums.items())]


def _answers(topology: str, setting: Setting) -> list[Compiled]:
    """In the process of its own: compiles every program of the job."""
    import numpy as np
    from jax.experimental import topologies

    from gptj_lab.mesh import planner_programs as programs

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    count = setting.data * setting.model  # one chip is asked for as one of four: v5e:2x2
    grid = np.array(devices[:count]).reshape(setting.data, setting.model)
    mesh = Mesh(grid, ("data", "model"))
    shape = (setting.config, mesh, setting.weights, setting.batch, setting.context)
    if setting.job == "generate":
        steps = programs.generate_programs(*shape)
    else:
        rank = setting.rank if setting.job == "lora" else None
        steps = {"train": programs.training_program(*shape, rank=rank, remat=setting.remat)}
    return [_compiled(name, program, mesh) for name, program in steps.items()]


def _compiled(name: str, program: Any, mesh: Mesh | None = None) -> Compiled:
    import jax

    lowered = program.step.lower(*program.arguments)
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        return Compiled(name, bytes_wanted(message), False, message.splitlines()[0])
    peak = int(compiled.memory_analysis().peak_memory_in_bytes)
    exchanges = []
    if mesh is not None and mesh.size > 1 and name == "train":
        exchanges = exchanged(str(compiled.as_text()), mesh)
    return Compiled(name, peak, True, exchanges=tuple(exchanges))


def _main() -> None:
    question = json.load(sys.stdin)
    fields = question["setting"]
    lists = {name: tuple(v) for name, v in fields["config"].items() if isinstance(v, list)}
    config = ModelConfig(**(fields["config"] | lists))
    setting = Setting(**(fields | {"config": config}))
    answers = _answers(question["topology"], setting)
    print(json.dumps([dataclasses.asdict(answer) for answer in answers]), flush=True)
    os._exit(0)  # libtpu's threads were seen to keep a finished process for minutes


if __name__ == "__main__":
    _main()
