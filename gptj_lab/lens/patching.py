"""Activation patching: where the clean prompt's values bring the clean answer back."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from gptj_lab.lens.edits import HEADS, OUTSIDE, WIDE
from gptj_lab.lens.inputs import Prompt, token_ids_of
from gptj_lab.lens.interventions import Interventions, Positions
from gptj_lab.lens.prompts import Pair, traced_pair
from gptj_lab.lens.sweeps import CHUNK_BYTES, Progress, each, goes_on, largest, store, use

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Patching:
    """A grid of patches.

    Attributes:
        site: what was patched: "resid_pre", "attn.z", ...
        axes: names of the grid's axes: ("layers", "seq") or ("layers", "heads").
        recovered: float64, of the logit difference: 0 is the corrupt prompt's, 1 the clean one's;
            NaN where a sweep was cancelled.
        pair: the prompts, answers and logits that it compares.
    """

    site: str
    axes: tuple[str, str]
    recovered: Float[np.ndarray, "layers columns"]
    pair: Pair

    def __repr__(self) -> str:
        said = f"{self.site} patched: what brings most of the answer back (1: all of it, 0: none)"
        column = "head" if self.axes[1] == "heads" else "position"
        return "\n".join([said, *largest(self.recovered, column)])

    @property
    def complete(self) -> bool:
        """Whether every cell was computed."""
        return not np.isnan(self.recovered).any()


def positions(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt, site: str = "resid_pre", *,
    answer: str | int | None = None, instead: str | int | None = None, position: int = -1,
    progress: Progress | None = None, chunk_bytes: int = CHUNK_BYTES,
) -> Patching:  # fmt: skip
    """The clean value at each layer and position put into the corrupt run, one cell at a time.

    Args:
        model: any LanguageModel.
        clean, corrupt: prompts of as many tokens, as text or ids.
        site: one of edits.STREAMS ("resid_pre", "resid_post", "attn_out", "mlp_out", ...) or
            edits.HEADS (all heads of a layer together).
        answer, instead: of the clean and the corrupt prompt, a token or its id; by default the
            likeliest next token of each.
        position: token after which the answer is read.
        progress: called with cells done and in total after each chunk; False cancels.
        chunk_bytes: about how much memory a chunk of patches may take.

    Raises:
        ValueError: as `pair`; a site that doesn't exist; a NaN (its site is named).
    """
    compared, base, rows = _prepared(model, clean, corrupt, answer, instead, position, site)
    # Before the first token that differs both runs are the same, after the answer nothing counts.
    first, last = compared.first_difference, compared.position
    columns = max(last + 1 - first, 0)
    recovered = np.zeros((len(rows), len(compared.clean)))

    def make(cell: int) -> Interventions:
        layer, column = divmod(cell, columns)
        return use(base, rows[layer], site, layer, first + column)

    cells = recovered[:, first : last + 1]
    cells[:] = _sweep(model, compared, base, make, (len(rows), columns), progress, chunk_bytes)
    return Patching(site, ("layers", "seq"), recovered, compared)


def heads(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt, site: str = "attn.z",
    where: Positions = None, *, answer: str | int | None = None,
    instead: str | int | None = None, position: int = -1, progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Patching:  # fmt: skip
    """The clean value of each head put into the corrupt run, one head at a time.

    Args:
        site: "attn.z" (what a head has read), "attn.q", "attn.k" or "attn.v".
        where: positions to patch; all by default. The other arguments and the errors are those
            of `positions`.
    """
    if site not in HEADS:
        raise ValueError(f"{site} has no heads: one of {', '.join(HEADS)} is needed")
    compared, base, rows = _prepared(model, clean, corrupt, answer, instead, position, site)

    def make(cell: int) -> Interventions:
        layer, head = divmod(cell, model.config.num_heads)
        return use(base, rows[layer], site, layer, where, head)

    shape = (model.config.num_layers, model.config.num_heads)
    grid = _sweep(model, compared, base, make, shape, progress, chunk_bytes)
    return Patching(site, ("layers", "heads"), grid, compared)


def _prepared(
    model: "LanguageModel", clean: Prompt, corrupt: Prompt, answer: str | int | None,
    instead: str | int | None, position: int, site: str,
) -> tuple[Pair, Interventions, list[int]]:  # fmt: skip
    """The pair, interventions that hold the clean values at a site, and the row of each layer."""
    none = Interventions.none(model, len(token_ids_of(model, clean)))
    none.check_site(site)
    name = site if site in OUTSIDE else f"blocks.*.{site}"
    compared, values, _ = traced_pair(model, clean, corrupt, answer, instead, position, [name])
    flat = np.stack([value.reshape(len(value), -1) for value in values.values()])
    return compared, *store(none, flat, wide=site in WIDE)


def _sweep(
    model: "LanguageModel", compared: Pair, base: Interventions, make, shape: tuple[int, int],
    progress: Progress | None, chunk_bytes: int,
) -> Float[np.ndarray, "layers columns"]:  # fmt: skip
    total = shape[0] * shape[1]
    recovered = np.full(total, np.nan)
    for chunk in each(
        model, compared.corrupt, base, make, total, position=compared.position,
        chunk_bytes=chunk_bytes,
    ):  # fmt: skip
        done = chunk.start + len(chunk.logits)
        recovered[chunk.start : done] = compared.recovered(chunk.logits)
        if not goes_on(progress, done, total):
            break
    return recovered.reshape(shape)
