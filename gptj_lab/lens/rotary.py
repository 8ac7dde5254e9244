"""An attention score as a sum over frequencies: what turns with the distance, and what doesn't.

Rotary positions turn each pair of a head's dimensions by position x frequency (Su et al. 2021), so
a query and a key meet in every pair at an angle that depends on their distance alone. GPT-J turns
64 of 256 dimensions; the other 192 never hear of positions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs
from gptj_lab.model import positions, sites
from gptj_lab.model.transformer import Transformer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RotaryScores:
    """The scores of one head on a prompt, split over the pairs of dimensions that turn together.

    Attributes:
        tokens: the prompt's tokens as a person should see them.
        layer, head: the head.
        pairs: float32 [pairs, seq, kv_seq], each pair's share of the score of a query (row) and a
            key, 1 / sqrt(d_head) included; also where the key comes after the query, which the
            network masks.
        rest: float32 [seq, kv_seq], the share of the dimensions that aren't rotated.
        frequencies: float32 [pairs], radians a token; fastest first.
        queries, keys: float32 [seq, d_head], before the rotation.
        interleaved: whether the pairs are (0, 1), (2, 3), ... as in GPT-J.
        factor: what dot products are multiplied with, 1 / sqrt(d_head) or 1.
    """

    tokens: tuple[str, ...]
    layer: int
    head: int
    pairs: Float[np.ndarray, "pairs seq kv_seq"]
    rest: Float[np.ndarray, "seq kv_seq"]
    frequencies: Float[np.ndarray, "pairs"]
    queries: Float[np.ndarray, "seq d_head"]
    keys: Float[np.ndarray, "kv_seq d_head"]
    interleaved: bool
    factor: float

    @property
    def total(self) -> Float[np.ndarray, "seq kv_seq"]:
        """The scores: the sum over all pairs and the rest."""
        return self.pairs.sum(0) + self.rest

    @property
    def wavelengths(self) -> Float[np.ndarray, "pairs"]:
        """Tokens in which each pair turns once around."""
        return (2 * np.pi / self.frequencies).astype(np.float32)

    def by_distance(self) -> Float[np.ndarray, "parts distances"]:
        """Mean share over all queries and keys that lie 0, 1, 2, ... tokens apart.

        One row a pair, and a last one for the dimensions that aren't rotated.
        """
        parts = np.concatenate([self.pairs, self.rest[None]])
        seq = len(self.tokens)
        columns = [
            np.trace(parts, offset=-distance, axis1=1, axis2=2) / (seq - distance)
            for distance in range(seq)
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def curve(
        self, query: int, key: int, distances: Real[np.ndarray, "distances"] | None = None
    ) -> Float[np.ndarray, "parts distances"]:
        """The shares of one query and one key, were they at other distances.

        Args:
            query, key: positions of the tokens in the prompt; negative ones count from the end.
            distances: tokens from the key to the query, by default 0 to the prompt's length.

        Raises:
            ValueError: there is no such token.
        """
        q = self.queries[inputs.position_of(query, len(self.tokens))]
        k = self.keys[inputs.position_of(key, len(self.tokens))]
        if distances is None:
            distances = np.arange(len(self.tokens))
        first, second = _dimensions(len(self.frequencies), self.interleaved)
        angles = np.asarray(distances, np.float64) * self.frequencies[:, None]
        # The query is turned by the angle, the key not at all: only the distance counts.
        along = q[first] * k[first] + q[second] * k[second]
        across = q[first] * k[second] - q[second] * k[first]
        pairs = along[:, None] * np.cos(angles) + across[:, None] * np.sin(angles)
        rest = (q[len(first) * 2 :] * k[len(first) * 2 :]).sum()
        parts = np.concatenate([pairs, np.full((1, angles.shape[1]), rest)])
        return (self.factor * parts).astype(np.float32)

    def __repr__(self) -> str:
        size = np.abs(self.by_distance()).mean(1)
        order = np.argsort(-size[:-1])[:5]
        lines = [f"rotary view of L{self.layer}H{self.head}: mean size of each share of a score"]
        lines += [
            f"  pair {i:<3} (a turn in {self.wavelengths[i]:.1f} tokens) {size[i]:.4f}"
            for i in order
        ]
        return "\n".join([*lines, f"  not rotated {size[-1]:.4f}"])


def rotary_scores(
    model: LanguageModel, prompt: inputs.Prompt, layer: int, head: int
) -> RotaryScores:
    """One head's scores on a prompt, split over frequencies and the dimensions that don't turn.

    Raises:
        ValueError: positions are learned, or a layer or head that isn't there.
    """
    config = model.config
    check_rotary(config)
    inputs.check_head(config, layer, head)
    ids = inputs.token_ids_of(model, prompt)
    rows = inputs.padded(model, ids)
    q, k = inputs.host(_queries_and_keys(model.network, rows, model.dtype, layer))
    q, k = q[: len(ids), head], k[: len(ids), head]
    factor = 1 / config.score_divisor(layer)
    interleaved = config.positions == "rotary_interleaved"
    first, second = _dimensions(config.d_rotary // 2, interleaved)
    pairs = np.einsum("qp,kp->pqk", q[:, first], k[:, first])
    pairs += np.einsum("qp,kp->pqk", q[:, second], k[:, second])
    places = np.arange(len(ids))
    return RotaryScores(
        tokens=inputs.display(model, ids), layer=layer, head=head,
        pairs=factor * pairs, rest=factor * (q[:, config.d_rotary :] @ k[:, config.d_rotary :].T),
        frequencies=frequencies(config), queries=turned(q, -places, config),
        keys=turned(k, -places, config), interleaved=interleaved, factor=factor,
    )  # fmt: skip


def frequencies(config: ModelConfig) -> Float[np.ndarray, "pairs"]:
    """Radians that each pair turns by a token, fastest first."""
    return np.asarray(_angles(jnp.ones((1, 1), jnp.int32), config)[0, 0])


def _angles(places: Int[Array, "rows seq"], config: ModelConfig) -> Float[Array, "rows seq pairs"]:
    return positions.rotary_angles(
        places, config.d_rotary, config.rotary_base, config.rotary_scaling
    )


def turned(
    x: Float[np.ndarray, "seq d_head"], places: Int[np.ndarray, "seq"], config: ModelConfig
) -> Float[np.ndarray, "seq d_head"]:
    """Queries or keys of one head rotated by their positions, which may be negative."""
    angles = _angles(jnp.asarray(places)[None], config)
    interleaved = config.positions == "rotary_interleaved"
    row = jnp.asarray(x)[None, :, None]
    return np.asarray(positions.rotate(row, angles, interleaved=interleaved))[0, :, 0]


def shift_difference(scores: RotaryScores, config: ModelConfig, shift: int) -> float:
    """The most that any score changes if all tokens stand `shift` positions later: rounding only.

    The angle between a query and a key depends on their distance alone, which a shift keeps.
    """
    places = np.arange(len(scores.tokens)) + shift
    q, k = turned(scores.queries, places, config), turned(scores.keys, places, config)
    return float(np.abs(scores.factor * (q @ k.T) - scores.total).max())


def check_rotary(config: ModelConfig) -> None:
    """Nothing, if the network rotates queries and keys; else a ValueError that says so."""
    if config.positions == "learned":
        raise ValueError(
            f"{config.family_title}'s positions are learned and added to the embedding, so no "
            "dimension is rotated: the rotary view is for GPT-J, CodeGen and GPT-NeoX"
        )


def _dimensions(pairs: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair the first and the second dimension of a head."""
    count = np.arange(pairs)
    return (2 * count, 2 * count + 1) if interleaved else (count, pairs + count)


@functools.partial(jax.jit, static_argnames=("dtype", "layer"))
def _queries_and_keys(
    network: Transformer, token_ids, dtype, layer
) -> tuple[Float[Array, "seq heads d_head"], Float[Array, "seq heads d_head"]]:
    names = [f"blocks.{layer}.attn.q", f"blocks.{layer}.attn.k"]
    seen = sites.Collector(names)
    network.hidden(token_ids, site=seen, dtype=dtype)
    q, k = (seen.values[name][0].astype(jnp.float32) for name in names)
    return q, k
