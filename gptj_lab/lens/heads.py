"""What kind of reader each head is: its scores on a text, or on random tokens that repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.lens import attention, passes
from gptj_lab.lens.trace import Trace
from gptj_lab.mesh import distributed
from gptj_lab.model.sites import Collector
from gptj_lab.model.transformer import Block

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

# The names of the scores, in the order in which they are shown; see lens/attention.py.
SCORES = ("entropy", "sink_mass", "previous_token", "duplicate_token", "induction")


def scores(trace: Trace) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """The SCORES of every head on the traced text.

    No pattern leaves its device: one layer's is made at a time. NaN where the text has no token
    that a score is about (duplicate_token, induction: no token comes twice).

    Raises:
        ValueError: the trace was loaded without its model.
    """
    model, seq = trace.model("the patterns"), len(trace.token_ids)
    layers = []
    for block, stream in zip(model.network.blocks, trace.residuals, strict=False):
        rows = passes.rows_of(model, stream)
        ids = np.pad(trace.token_ids, (0, rows.shape[1] - seq))
        layers.append(jax.tree.map(distributed.gather, _scores(block, rows, ids, seq)))
    return {name: np.stack([layer[name] for layer in layers]) for name in SCORES}


def scores_on_repeats(
    model: LanguageModel, length: int = 32, samples: int = 4, seed: int = 0
) -> dict[str, Float[np.ndarray, "layers heads"]]:
    """The mean SCORES of every head on random tokens that come twice in the same order.

    Nothing but the repeat helps to predict them, so the induction score is free of what words mean
    (Olsson et al. 2022).

    Args:
        model: any, on one device or a mesh.
        length: tokens before they repeat; the text is twice as long.
        samples: texts to take the mean of.
        seed: of the random tokens.

    Raises:
        ValueError: as `repeated_tokens`, or samples below 1.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least 1 is needed")
    found = [
        scores(Trace.of(model, repeated_tokens(model, length, seed + sample)))
        for sample in range(samples)
    ]
    return {name: np.mean([each[name] for each in found], axis=0) for name in SCORES}


def repeated_tokens(model: LanguageModel, length: int, seed: int = 0) -> Int[np.ndarray, "seq"]:
    """Random tokens, all different, twice one after the other.

    Raises:
        ValueError: twice `length` is more than the context, or there are fewer tokens.
    """
    most = min(model.config.context // 2, model.tokenizer.vocab_size)
    if not 1 < length <= most:
        raise ValueError(
            f"length is {length}: 2 to {most} tokens can repeat within a context of "
            f"{model.config.context}"
        )
    ids = np.random.default_rng(seed).permutation(model.tokenizer.vocab_size)[:length]
    return np.tile(ids, 2).astype(np.int32)


def strongest(
    scores: Mapping[str, Float[np.ndarray, "layers heads"]], name: str, count: int = 5
) -> list[tuple[int, int, float]]:
    """The heads with the highest scores of a kind: layer, head, score; NaN is left out.

    Raises:
        ValueError: there is no such score.
    """
    if name not in scores:
        raise ValueError(f"there is no score {name!r}: one of {', '.join(scores)} is needed")
    values = np.asarray(scores[name])
    order = np.argsort(-values, axis=None, kind="stable")  # NaN comes last
    places = [np.unravel_index(index, values.shape) for index in order[:count]]
    found = [(int(layer), int(head), float(values[layer, head])) for layer, head in places]
    return [each for each in found if not np.isnan(each[2])]


@jax.jit
def _scores(
    block: Block,
    x: Float[Array, "rows seq d_model"],
    token_ids: Int[Array | np.ndarray, "seq"],
    length: int | Array,
) -> dict[str, Array]:
    """The scores of a block's heads; tokens from `length` on are padding."""
    collect = Collector(["attn.pattern"])
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    block(x, positions, None, collect)
    pattern = collect.values["attn.pattern"][0]
    queries = jnp.arange(x.shape[1]) < length
    return {
        "entropy": attention.entropy(pattern, queries),
        "sink_mass": attention.sink_mass(pattern, queries),
        "previous_token": attention.previous_token_score(pattern, queries),
        "duplicate_token": attention.duplicate_token_score(pattern, token_ids, queries),
        "induction": attention.induction_score(pattern, token_ids, queries),
    }
