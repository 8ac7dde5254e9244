"""Adapters made one: several of a matrix, and those of q, k and v where a file fuses the three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptj_lab.checkpoints.families import Tensor
from gptj_lab.finetuning.lora import Pair, pair_of
from gptj_lab.mesh import distributed
from gptj_lab.model import int8
from gptj_lab.model.linear import Linear


def together(linear: Linear, names: Sequence[str]) -> Pair | None:
    """One adapter that adds to a matrix what those named add together; None where it has none.

    Ranks add up. Where one of them is DoRA, with `c` for magnitude / norms, they add
    (sum of share * (c - 1)) * weight and share * c * strength * b @ a: as a DoRA of the whole rank
    whose rows are 1 + that sum times as long.
    """
    there = [linear.adapters[name] for name in names if linear.has_adapter(name)]
    if not there:
        return None
    pairs = [pair_of(adapter) for adapter in there]
    if len(pairs) == 1 and (there[0].share is None or there[0].share[...] == 1):
        return pairs[0]
    longer = np.ones(len(pairs[0].b), np.float32)
    rows: list[Any] = []
    for adapter, pair in zip(there, pairs, strict=True):
        if pair.magnitude is None or adapter.norms is None or adapter.share is None:
            rows.append(pair.strength)
            continue
        share = float(distributed.gather(adapter.share[...]))
        own = pair.magnitude / distributed.gather(adapter.norms[...])
        longer = longer + share * (own - 1)
        rows.append((share * pair.strength * own)[:, None])
    resized = any(pair.magnitude is not None for pair in pairs)
    if resized:
        longer = np.where(np.abs(longer) < 1e-6, 1e-6, longer)  # a row of nothing has no direction
        rows = [row / longer[:, None] for row in rows]
    a = np.concatenate([pair.a for pair in pairs])
    strength = 1.0 if resized else _common_strength(pairs)
    b = np.concatenate(
        [pair.b * (row / strength) for pair, row in zip(pairs, rows, strict=True)], 1
    )
    biases = [p.bias * (p.strength / strength) for p in pairs if p.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    joined = Pair(a, b.astype(np.float32), strength, None, bias)
    if not resized:
        return joined
    return joined._replace(magnitude=longer * norms(weight_of(linear), joined))


def fused(tensor: Tensor, pairs: Sequence[Pair | None], linears: Sequence[Linear]) -> Pair:
    """The adapter of a tensor of a file, of those of the matrices in it.

    Where they differ it is of all their ranks together, with a block of `b` for each; where all
    read by the same `a`, of that rank.

    Args:
        tensor: whose `join` puts rows in the file's order.
        linears: the matrices.
    """
    if len(pairs) == 1 and pairs[0] is not None:
        return pairs[0]
    there = [pair for pair in pairs if pair is not None]
    strength = _common_strength(there)
    same = len(there) == len(pairs) and all(np.array_equal(p.a, there[0].a) for p in there)
    width = len(there[0].a) if same else sum(len(pair.a) for pair in there)
    parts, begun = [], 0
    for pair, linear in zip(pairs, linears, strict=True):
        part = np.zeros((linear.weight[...].shape[0], width), np.float32)
        if pair is not None:
            rank = len(pair.a)
            part[:, begun : begun + rank] = pair.b * np.float32(pair.strength / strength)
            begun += 0 if same else rank
        parts.append(part)
    a = there[0].a if same else np.concatenate([pair.a for pair in there])
    bias = magnitude = None
    if any(pair.bias is not None for pair in there):
        bias = tensor.join([
            np.zeros(linear.weight[...].shape[0], np.float32)
            if pair is None or pair.bias is None
            else pair.bias * np.float32(pair.strength / strength)
            for pair, linear in zip(pairs, linears, strict=True)
        ])  # fmt: skip
    if any(pair.magnitude is not None for pair in there):
        magnitude = tensor.join([
            norms(weight_of(linear), pair)
            if pair is None or pair.magnitude is None
            else pair.magnitude
            for pair, linear in zip(pairs, linears, strict=True)
        ])  # fmt: skip
    return Pair(a, tensor.join(parts), strength, magnitude, bias)


def _common_strength(pairs: Sequence[Pair]) -> float:
    """The strength of all of them; 1 where they differ, or where it is 0, which can't be divided
    by, or below."""
    strengths = {pair.strength for pair in pairs}
    strength = strengths.pop() if len(strengths) == 1 else 1.0
    return strength if strength > 0 else 1.0


def norms(weight: np.ndarray, pair: Pair | None) -> np.ndarray:
    """How long the rows of a matrix are with what the adapter adds to them."""
    low = 0 if pair is None else np.float32(pair.strength) * (pair.b @ pair.a)
    return np.linalg.norm(weight + low, axis=1)


def weight_of(linear: Linear) -> np.ndarray:
    """A matrix as float32 on the host."""
    weight = linear.weight[...]
    if isinstance(weight, int8.Int8Weight):
        return int8.dequantize(distributed.gather(weight.values), distributed.gather(weight.scale))
    return np.asarray(distributed.gather(weight), np.float32)
