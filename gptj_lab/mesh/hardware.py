"""Machines by the names that users know: how many devices, how much memory, how fast."""

import dataclasses
import difflib
import os
import re

_GIB = 1024**3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine or slice, as JAX sees it.

    Attributes:
        name: as it was asked for.
        chip: the kind of device, in words.
        devices: JAX devices (a v2 or v3 chip is two of them, any other chip is one).
        memory: bytes of one device that a program can use.
        peak_flops: bfloat16 operations a second of one device (float16 on a T4), or None.
        bandwidth: bytes a second that one device reads from its memory, or None if not known.
        topology: the slice as the TPU compiler names it, or None.
        half: the 16-bit format that it computes in.
    """

    name: str
    chip: str
    devices: int
    memory: int
    peak_flops: float | None
    bandwidth: float | None
    topology: str | None
    half: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class _Chip:
    """One JAX device of a kind, and which slices of it the TPU compiler can be asked about."""

    words: str
    memory: int
    peak_flops: float
    bandwidth: float
    devices_of: dict[int, int]  # number in the slice's name: JAX devices
    topologies: dict[int, str]  # JAX devices: the compiler's name


def _same(*sizes: int) -> dict[int, int]:
    return {size: size for size in sizes}


def _half(*sizes: int) -> dict[int, int]:
    return {size: size // 2 for size in sizes}


_GRIDS = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CORES = {8: "2x2", 32: "4x4", 128: "8x8", 256: "8x16", 512: "16x16"}  # two devices a chip
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}

# Memory: what the TPU compiler (libtpu 0.0.42) says is available to a program on one device; it
# keeps 0.25 to 0.52 GiB for itself. Peak and bandwidth of a chip: cloud.google.com/tpu/docs/v3,
# /v4, /v5e, /v5p, /v6e (read 2026-11); those of v2: Jouppi et al. 2020, "A domain-specific
# supercomputer for training deep neural networks", table 3. v2 and v3 have two devices a chip.
_CHIPS = {
    "v2": _Chip("TPU v2 core", int(7.48 * _GIB), 46e12 / 2, 700e9 / 2,
                _same(8, 32, 128, 256, 512), _CORES),
    "v3": _Chip("TPU v3 core", int(15.48 * _GIB), 123e12 / 2, 900e9 / 2,
                _same(8, 32, 128, 256, 512), _CORES),
    # The number in v4-8 and v5p-8 counts cores, of which JAX joins two into a device. The compiler
    # is asked about single v4 cores only (15.25 GiB each), so v4 has no topology here.
    "v4": _Chip("TPU v4 chip", int(30.5 * _GIB), 275e12, 1200e9, _half(8, 16, 32, 64, 128), {}),
    "v5e": _Chip("TPU v5e chip", int(15.75 * _GIB), 197e12, 819e9,
                 _same(1, 4, 8, 16, 32, 64, 128, 256), {1: "2x2", **_GRIDS}),
    "v5p": _Chip("TPU v5p chip", int(95.74 * _GIB), 459e12, 2765e9,
                 _half(8, 16, 32, 64, 128), _CUBES),
    "v6e": _Chip("TPU v6e chip", int(31.25 * _GIB), 918e12, 1638e9,
                 _same(1, 4, 8, 16, 32, 64, 128, 256), {1: "2x2", **_GRIDS}),
}  # fmt: skip
# 15,360 MiB as nvidia-smi tells; peak (tensor cores, float16) and bandwidth: NVIDIA's T4 data
# sheet. It has no bfloat16 in hardware.
_T4 = Hardware(
    name="colab-t4", chip="NVIDIA T4", devices=1, memory=15 * _GIB, peak_flops=65e12,
    bandwidth=320e9, topology=None, half="float16",
)  # fmt: skip
_ALIASES = {
    "colab-v5e-1": "v5e-1", "colab-v6e-1": "v6e-1", "kaggle-v5e-8": "v5e-8", "kaggle-v3-8": "v3-8",
    "v4": "v4-8", "v5p": "v5p-8",
}  # fmt: skip
NAMES = (*_ALIASES, "colab-t4", "v2-8", "v3-8", "v3-256", "v4-8", "v5e-8", "v5p-8", "laptop")


def find(name: str) -> Hardware:
    """The machine of that name: one of NAMES, or another slice such as "v5e-16" or "v3-32".

    Raises:
        TypeError, ValueError: there is none; the message gives the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"hardware is a {type(name).__name__}: a name like 'colab-v5e-1' is needed")
    if name == "laptop":
        return _laptop()
    if name == _T4.name:
        return _T4
    found = re.fullmatch(r"(v\d[ep]?)-(\d{1,4})", _ALIASES.get(name, name))
    chip = _CHIPS.get(found[1]) if found else None
    if found is None or chip is None:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0) or ["colab-v5e-1"]
        raise ValueError(
            f"hardware is {name!r}: did you mean {near[0]!r}? Known are {', '.join(NAMES)}, "
            "and slices such as v5e-16"
        )
    if int(found[2]) not in chip.devices_of:
        sizes = ", ".join(f"{found[1]}-{size}" for size in chip.devices_of)
        raise ValueError(f"hardware is {name!r}: there is no slice of that size, only {sizes}")
    devices = chip.devices_of[int(found[2])]
    grid = chip.topologies.get(devices)
    return Hardware(
        name=name, chip=chip.words, devices=devices, memory=chip.memory,
        peak_flops=chip.peak_flops, bandwidth=chip.bandwidth,
        topology=grid and f"{found[1]}:{grid}",
    )  # fmt: skip


def larger(hardware: Hardware) -> list[Hardware]:
    """Slices of the same chip with more devices, smallest first."""
    kind = re.search(r"v\d[ep]?(?=-|$)", hardware.name)
    if kind is None:
        return []
    slices = [find(f"{kind[0]}-{size}") for size in _CHIPS[kind[0]].devices_of]
    return [slice_ for slice_ in slices if slice_.devices > hardware.devices]


def _laptop() -> Hardware:
    """This machine: its accelerators as JAX tells, or else the memory that is free now."""
    import jax

    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit:
        return Hardware(
            name="laptop", chip=device.device_kind, devices=jax.local_device_count(), memory=limit,
            peak_flops=None, bandwidth=None, topology=None,
        )  # fmt: skip
    return Hardware(
        name="laptop", chip=f"CPU, {os.cpu_count()} cores", devices=1, memory=_free_memory(),
        peak_flops=None, bandwidth=None, topology=None,
    )  # fmt: skip


def _free_memory() -> int:
    """Bytes of main memory that a new program can have without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        raise ValueError(
            "hardware is 'laptop', but this system doesn't tell its memory: name a machine, "
            f"such as {NAMES[0]!r}"
        ) from None
