"""Path patching: which head tells which, directly."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.edits import place
from gptj_lab.lens.inputs import Prompt
from gptj_lab.lens.interventions import Interventions
from gptj_lab.lens.prompts import Pair, traced_pair
from gptj_lab.lens.sweeps import CHUNK_BYTES, Chunk, Progress, each, goes_on, largest, store, use

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

Receiver = tuple[int, int, str]


@dataclasses.dataclass(frozen=True)
class PathPatching:
    """Each head as a sender to the same receivers.

    Attributes:
        receivers: "logits", or (layer, head, "q" | "k" | "v") of each.
        recovered: float64 [layers, heads], of the logit difference: 0 is the corrupt prompt's, 1
            the clean one's. 0 where a sender lies behind the receivers, NaN where a sweep was
            cancelled.
        pair: the prompts, answers and logits that it compares.
    """

    receivers: str | tuple[Receiver, ...]
    recovered: Float[np.ndarray, "layers heads"]
    pair: Pair

    def __repr__(self) -> str:
        to = "the logits" if self.receivers == "logits" else f"{len(self.receivers)} receivers"
        said = f"paths to {to}: what brings most of the answer back (1: all of it, 0: none)"
        return "\n".join([said, *largest(self.recovered, "head")])


def senders(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt,
    receivers: str | Sequence[Receiver] = "logits", *, freeze_mlps: bool = False,
    answer: str | int | None = None, instead: str | int | None = None, position: int = -1,
    progress: Progress | None = None, chunk_bytes: int = CHUNK_BYTES,
) -> PathPatching:  # fmt: skip
    """What each head's clean result does through its direct paths to the receivers alone.

    The corrupt prompt runs with one head's z from the clean run and all other heads' z held as
    they were; the receivers' inputs that come out go into another, otherwise free, corrupt run.
    (Wang et al. 2022, with clean and corrupt as in activation patching; swap the prompts to
    measure what noise does.)

    Args:
        model: any LanguageModel.
        clean, corrupt: prompts of as many tokens, as text or ids.
        receivers: "logits", or a list of (layer, head, "q" | "k" | "v").
        freeze_mlps: whether MLPs are held, too; else a path may lead through them, as in the paper.
        answer, instead, position, progress, chunk_bytes: as in `patching.positions`.

    Raises:
        ValueError: as `pair`; a receiver that doesn't exist.
    """
    config = model.config
    held = ["blocks.*.attn.z"] + ["blocks.*.mlp_out"] * freeze_mlps
    compared, *values = traced_pair(model, clean, corrupt, answer, instead, position, held)
    base, clean_rows = _held(Interventions.none(model, len(compared.clean)), *values)
    reached = _reached(base, receivers)
    sites = tuple(sorted({f"blocks.{layer}.attn.{part}" for layer, _, part in reached}))
    last = max((layer for layer, _, _ in reached), default=config.num_layers)
    total = last * config.num_heads

    def send(cell: int) -> Interventions:
        layer, head = divmod(cell, config.num_heads)
        return use(base, clean_rows[layer], "attn.z", layer, head=head)

    grid = np.zeros((config.num_layers, config.num_heads))
    flat = grid.reshape(-1)
    flat[:total] = np.nan
    for chunk in each(
        model, compared.corrupt, base, send, total, position=compared.position, sites=sites,
        chunk_bytes=chunk_bytes,
    ):  # fmt: skip
        done = chunk.start + len(chunk.logits)
        logits = _received(model, compared, chunk, reached, chunk_bytes) if reached else None
        flat[chunk.start : done] = compared.recovered(chunk.logits if logits is None else logits)
        if not goes_on(progress, done, total):
            break
    named = "logits" if not reached else tuple(reached)
    return PathPatching(named, grid, compared)


def _held(
    none: Interventions, clean: dict[str, np.ndarray], corrupt: dict[str, np.ndarray]
) -> tuple[Interventions, list[int]]:
    """Everything held at the corrupt run's values, and the rows of the clean run's z."""
    layers = range(none.config.num_layers)
    flat = [
        {name: value.reshape(len(value), -1) for name, value in values.items()}
        for values in (clean, corrupt)
    ]
    base, clean_rows = store(none, np.stack([flat[0][f"blocks.{i}.attn.z"] for i in layers]))
    base, held = store(base, np.stack(list(flat[1].values())))
    for row, name in zip(held, flat[1], strict=True):
        layer, site = place(name)
        base = use(base, row, site, layer)
    return base, clean_rows


def _reached(base: Interventions, receivers: str | Sequence[Receiver]) -> list[Receiver]:
    if receivers == "logits":
        return []
    if isinstance(receivers, str) or not receivers:
        raise ValueError(
            f"receivers is {receivers!r}: 'logits', or a list of (layer, head, 'q' | 'k' | 'v')"
        )
    for layer, head, part in receivers:
        base.check_layer(layer)
        base.check_head(head)
        if part not in ("q", "k", "v"):
            raise ValueError(f"a head receives through 'q', 'k' or 'v', not {part!r}")
        if layer == 0:
            raise ValueError(f"the receiver {(layer, head, part)} has no head before it")
    return [(int(layer), int(head), part) for layer, head, part in receivers]


def _received(
    model: "LanguageModel", compared: Pair, chunk: Chunk, reached: list[Receiver], chunk_bytes: int
) -> np.ndarray:
    """Logits [rows, vocab] of the corrupt prompt with the receivers' inputs of each row."""
    base = Interventions.none(model, len(compared.corrupt))
    count, rows = len(chunk.logits), {}
    for site, values in chunk.values.items():
        base, rows[site] = store(base, values.reshape(count, base.seq, -1))

    def make(row: int) -> Interventions:
        made = base
        for layer, head, part in reached:
            site = f"blocks.{layer}.attn.{part}"
            made = use(made, rows[site][row], f"attn.{part}", layer, head=head)
        return made

    chunks = each(
        model, compared.corrupt, base, make, count, position=compared.position,
        chunk_bytes=chunk_bytes,
    )  # fmt: skip
    return np.concatenate([part.logits for part in chunks])
