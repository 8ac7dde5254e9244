"""Adapters begun with PiSSA or OLoRA: what PEFT takes out of the base when it loads one."""

from __future__ import annotations

import numpy as np

from gptj_lab.checkpoints.families import Tensor


def taken_out(
    start: str, rank: int, strength: float, weight: np.ndarray, tensor: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """(a0, b0): from the matrix PEFT takes `strength * b0 @ a0` away.

    PiSSA (Meng et al. 2024) is the product of the largest singular values; OLoRA (Büyükakyüz 2024)
    that of the first rows and columns of the QR decomposition. PEFT computes both anew from the
    base whenever it loads such an adapter. Of QR it doesn't turn the matrices of GPT-2, which lie
    as [in, out], and so don't we.

    Args:
        weight: [d_out, d_in], its rows in the file's order.

    Raises:
        ValueError: the rank is above the matrix's own, or PEFT itself can't load it.
    """
    if rank > min(weight.shape):
        raise ValueError(
            f"{tensor.name} of {weight.shape[0]} x {weight.shape[1]} has no {start} of rank {rank}"
        )
    if start == "pissa":
        if strength <= 0:
            raise ValueError(
                f"{tensor.name} has an adapter of pissa with lora_alpha 0 or below, which has no "
                "square root: PEFT itself can't load it"
            )
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        root = np.sqrt(values[:rank] / strength)
        return root[:, None] * right[:rank], left[:, :rank] * root
    lies = weight.T if tensor.conv1d else weight
    if tensor.conv1d and lies.shape[0] != lies.shape[1]:
        raise ValueError(
            f"{tensor.name} lies as [in, out], for which PEFT's olora makes an adapter of the "
            "wrong shape: merge it where it was trained, merge_and_unload"
        )
    orthogonal, upper = np.linalg.qr(lies)
    first, second = orthogonal[:, :rank], upper[:rank]
    return (first.T, second.T) if tensor.conv1d else (second, first)
