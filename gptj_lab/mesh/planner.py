"""Will it fit, and how fast could it be: a plan for a model, a machine and a job.

On paper at once; `planner_compile` puts the same question to the TPU compiler.
"""

import dataclasses
import difflib
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_lab import presets
from gptj_lab.config import ModelConfig
from gptj_lab.mesh import hardware as machines
from gptj_lab.mesh.planner_memory import JOBS, WEIGHTS, Setting, needed
from gptj_lab.mesh.planner_speed import tokens_per_second

_MOST_MODEL = 8  # widest `model` axis that is chosen unasked: GPT-J's own


@dataclasses.dataclass(frozen=True)
class Advice:
    """One change that was planned again and fits; `change` holds arguments of `plan`."""

    sentence: str
    change: Mapping[str, Any]

    def __str__(self) -> str:
        return self.sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job needs on one device of a machine, and what to change if it doesn't fit.

    Attributes:
        name: of the model.
        setting: the job and its mesh.
        hardware: the machine.
        bytes: on one device, by kind: weights, optimiser, gradients, activations, cache,
            workspace.
        tokens_per_second: a ceiling for all sequences together (see planner_speed), or None where
            the machine's speed is not known.
        advice: changes that would fit; empty where the plan fits.
    """

    name: str
    setting: Setting
    hardware: machines.Hardware
    bytes: Mapping[str, int]
    tokens_per_second: float | None
    advice: tuple[Advice, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(self.bytes.values())

    @property
    def memory(self) -> int:
        """Bytes that one device has for a program."""
        return self.hardware.memory

    @property
    def utilisation(self) -> float:
        """Share of a device's memory that is needed; above 1 it doesn't fit."""
        return self.total / self.memory

    @property
    def fits(self) -> bool:
        """Whether the job fits on every device, as far as paper can tell (about 10 %)."""
        return self.total <= self.memory

    def __str__(self) -> str:
        rows = [f"  {name:<12} {value:>9}" for name, value in self._rows()]
        return "\n".join((self._title(), *rows, *self._sentences()))

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{html.escape(value)}"
            "</td></tr>"
            for name, value in self._rows()
        )
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self._sentences())
        return (
            f"<table><caption>{html.escape(self._title())}</caption>{cells}</table><ul>{lines}</ul>"
        )

    def _title(self) -> str:
        setting = self.setting
        mesh = f"data={setting.data} x model={setting.model}"
        rank = f" of rank {setting.rank}" if setting.job == "lora" else ""
        return (
            f"{self.name} in {setting.weights}, {setting.job}{rank}, batch {setting.batch} x "
            f"{setting.context} tokens, on {self.hardware.name} ({self.hardware.devices} x "
            f"{self.hardware.chip}, {mesh})"
        )

    def _rows(self) -> list[tuple[str, str]]:
        kinds = [(kind, gigabytes(size)) for kind, size in self.bytes.items() if size]
        return [*kinds, ("needed", gigabytes(self.total)), ("device has", gigabytes(self.memory))]

    def _sentences(self) -> list[str]:
        if self.fits:
            narrow = "; paper is good to about 10 %, so ask the compiler (--compile)"
            verdict = f"It fits: {self.utilisation:.0%} of each device's memory"
            lines = [verdict + (narrow if self.utilisation > 0.9 else "") + "."]
        else:
            lines = [f"It does not fit: {self.utilisation:.0%} of each device's memory."]
        if self.fits and self.tokens_per_second is not None:
            bound = (
                "memory bandwidth allows"
                if self.setting.job == "generate"
                else "40 % of peak arithmetic allows"
            )
            lines.append(f"Speed: {bound} {self.tokens_per_second:,.0f} tokens/s in all.")
        return lines + [str(advice) for advice in self.advice]


def plan(
    config_or_name: Any,
    /,
    hardware: str = "colab-v5e-1",
    job: str = "generate",
    *,
    weights: str | None = None,
    batch: int | None = None,
    context: int | None = None,
    data: int | None = None,
    model: int | None = None,
    rank: int = 8,
    remat: bool = True,
) -> Plan:
    """Whether a job fits on a machine, what it needs by kind, and what to change if it doesn't.

    Args:
        config_or_name: a ModelConfig, a LanguageModel, "gpt-j-6b", "pocket", or a Hugging
            Face directory.
        hardware: a name, such as "colab-v5e-1", "kaggle-v3-8", "v3-256" or "laptop".
        job: "generate" (reads a prompt of the whole context, then token by token), "lora"
            (adapters on q and v), "finetune" or "pretrain" (AdamW on every weight).
        weights: "float32", "bfloat16", "float16" or, not for training every weight, "int8". By
            default the machine's 16-bit format (float16 on a T4, else bfloat16), and float32 for
            pretraining.
        batch: sequences in a step on all devices together; by default one for each data replica.
        context: tokens of a sequence; by default the model's own.
        data, model: devices along the mesh's axes `data` and `model`; by default up to 8
            along `model`, the others along `data`.
        rank: of the LoRA adapters.
        remat: whether training recomputes whole blocks.

    Raises:
        TypeError, ValueError: the message names the argument, its value and the fix.
    """
    name, config = _named(config_or_name)
    first = on_paper(
        name, config, hardware, job, weights=weights, batch=batch, context=context, data=data,
        model=model, rank=rank, remat=remat,
    )  # fmt: skip
    if first.fits:
        return first
    from gptj_lab.mesh.planner_advice import advise

    return dataclasses.replace(first, advice=advise(first))


def on_paper(
    name: str,
    config: ModelConfig,
    hardware: str,
    job: str,
    *,
    weights: str | None,
    batch: int | None,
    context: int | None,
    data: int | None,
    model: int | None,
    rank: int,
    remat: bool,
) -> Plan:
    """As `plan`, without advice."""
    machine = machines.find(hardware)
    _one_of("job", job, JOBS)
    weights = weights if weights is not None else "float32" if job == "pretrain" else machine.half
    _one_of("weights", weights, tuple(WEIGHTS))
    if weights == "int8" and job in ("finetune", "pretrain"):
        raise ValueError(
            f"weights is 'int8', job {job!r}: int8 weights can't be trained: "
            "use job='lora', or bfloat16"
        )
    data, width = _mesh(config, machine, data, model)
    batch = _whole("batch", data if batch is None else batch)
    if batch % data:
        raise ValueError(f"batch is {batch}, data {data}: a multiple of data is needed")
    context = _whole("context", config.context if context is None else context)
    if context > config.context:
        raise ValueError(f"context is {context}: the model has {config.context} positions at most")
    setting = Setting(
        config=config, job=job, weights=weights, batch=batch, context=context, data=data,
        model=width, rank=_whole("rank", rank), remat=remat,
    )  # fmt: skip
    return Plan(
        name=name, setting=setting, hardware=machine, bytes=needed(setting),
        tokens_per_second=tokens_per_second(setting, machine),
    )  # fmt: skip


def gigabytes(size: int) -> str:
    """Bytes in units that fit them, decimal."""
    for unit, power in (("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:,.2f} {unit}"
    return f"{size / 1000:,.2f} kB"


def _named(model: Any) -> tuple[str, ModelConfig]:
    """A name to show and the config, of anything that `plan` takes."""
    if isinstance(model, ModelConfig):
        return f"a model of {model.num_parameters:,} parameters", model
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig):
        return getattr(model, "name", "") or "the model", config
    if not isinstance(model, str | Path):
        raise TypeError(
            f"model is a {type(model).__name__}: a ModelConfig, a LanguageModel or a name is needed"
        )
    name = str(model)
    folders = presets.POCKET if name == "pocket" else (Path(name).expanduser(),)
    for folder in folders:
        if (folder / "config.json").is_file():
            return name, ModelConfig.from_file(folder / "config.json")
    try:
        return name.rpartition("/")[2].lower(), presets.named(name)
    except ValueError as error:
        raise ValueError(
            f"model is {name!r}, which is not 'pocket' and no directory with a config.json; {error}"
        ) from None


def _mesh(
    config: ModelConfig, machine: machines.Hardware, data: int | None, width: int | None
) -> tuple[int, int]:
    """Devices along data and along model."""
    devices = machine.devices
    cut = {"num_heads": config.num_heads, "d_ff": config.d_ff, "vocab_size": config.vocab_size}
    if width is None:
        if data is not None:
            width = devices // min(_whole("data", data), devices)
        else:
            sizes = range(1, min(devices, _MOST_MODEL) + 1)
            width = max(
                size
                for size in sizes
                if devices % size == 0 and not any(value % size for value in cut.values())
            )
    width = _whole("model", width)
    data = devices // width if data is None else _whole("data", data)
    if max(data, 1) * width != devices:
        raise ValueError(
            f"data x model is {data} x {width}, but {machine.name} has {devices} devices: "
            f"choose two numbers whose product is {devices}"
        )
    for field, value in cut.items():
        if value % width:
            fitting = [d for d in range(1, devices + 1) if value % d == 0 and devices % d == 0]
            raise ValueError(
                f"model is {width}, which doesn't divide {field} {value}: "
                f"of {machine.name}'s {devices} devices {', '.join(map(str, fitting))} do"
            )
    return data, width


def _one_of(what: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0) or known[:1]
        raise ValueError(
            f"{what} is {value!r}: did you mean {near[0]!r}? Known are {', '.join(known)}"
        )


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is {value!r}: a whole number of at least 1 is needed")
    return value
