"""Which tokens of the prompt a logit depends on: gradient x input, and integrated gradients.

Both follow the logit back to the token embeddings. Gradient x input is the first-order share of
each token at the prompt itself; integrated gradients (Sundararajan et al. 2017) average the
gradient along the straight line from a baseline to the prompt, so that the shares add up to the
logit's rise over the baseline (completeness).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs
from gptj_lab.lens.interventions import bucket
from gptj_lab.mesh import sharding
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer

_ROWS = 8  # points of the path that are run together
BASELINES = ("mean", "zero")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenScores:
    """What each token of the prompt contributes to a logit, or to a difference of two.

    Attributes:
        tokens: the prompt's tokens as a person should see them; `token_ids` their ids.
        scores: float32 [seq], in logits; exactly 0 after `position`.
        gradients: float32 [seq, d_model], of the logit by the embedding (averaged over the path).
        position, token, other: as in `attribution.Attribution`.
        method: "gradient x input" or "integrated gradients".
        value: the logit (or difference) of the prompt.
        baseline: the same of the baseline; None for gradient x input, which has none.
    """

    tokens: tuple[str, ...]
    token_ids: Int[np.ndarray, "seq"]
    scores: Float[np.ndarray, "seq"]
    gradients: Float[np.ndarray, "seq d_model"]
    position: int
    token: int
    other: int | None
    method: str
    value: float
    baseline: float | None

    @property
    def total(self) -> float:
        """The sum of the scores, in logits."""
        return float(self.scores.astype(np.float64).sum())

    @property
    def completeness_gap(self) -> float | None:
        """How far the sum is from value - baseline, in logits; None where nothing is promised."""
        return None if self.baseline is None else self.total - (self.value - self.baseline)

    def __repr__(self) -> str:
        lines = [f"{self.method}: logit {self.value:+.4f} after position {self.position}"]
        lines += [f"  {t:<16} {s:+9.4f}" for t, s in zip(self.tokens, self.scores, strict=True)]
        said = f"  {'sum':<16} {self.total:+9.4f}"
        if self.baseline is not None:
            rise = self.value - self.baseline
            said += f"   the logit rises by {rise:+.4f}: {self.completeness_gap:+.1e} off"
        return "\n".join([*lines, said])


def gradient_x_input(
    model: LanguageModel,
    prompt: inputs.Prompt,
    token: str | int,
    other: str | int | None = None,
    position: int = -1,
) -> TokenScores:
    """Each token's embedding times the logit's gradient by it; arguments as `attribute` has them.

    Raises:
        ValueError: as `attribution.attribute`.
    """
    asked = _Question(model, prompt, token, other, position)
    values, gradients = asked.follow(asked.embedded()[None])
    return asked.scores("gradient x input", gradients[0], asked.embedded(), values[0], None)


def integrated_gradients(
    model: LanguageModel,
    prompt: inputs.Prompt,
    token: str | int,
    other: str | int | None = None,
    position: int = -1,
    *,
    baseline: str | int = "mean",
    steps: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """Each token's share of what the logit rises by from a baseline prompt to this one.

    Args:
        model, prompt, token, other, position: as `attribution.attribute` has them.
        baseline: what stands in every token's place at the start: "mean" is the mean embedding of
            the vocabulary, "zero" is nothing (where LayerNorms divide by almost nothing: take more
            steps), a token's id that token's embedding. Learned positions stay as they are.
        steps: points on the line, of Gauss and Legendre's rule; the repr says how far off the sum
            is with them.
        progress: called with the points done and all.

    Raises:
        ValueError: as `attribution.attribute`, an unknown baseline, or steps below 1.
    """
    asked = _Question(model, prompt, token, other, position)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}: a whole number of at least 1 is needed")
    end, start = asked.embedded(), asked.baseline(baseline)
    nodes, shares = np.polynomial.legendre.leggauss(steps)
    places, shares = (nodes + 1) / 2, shares / 2
    mean = np.zeros(end.shape, np.float64)
    for first in range(0, steps, _ROWS):
        along = places[first : first + _ROWS, None, None].astype(np.float32)
        _, gradients = asked.follow(start + along * (end - start))
        mean += np.einsum("n,nsd->sd", shares[first : first + _ROWS], gradients)
        if progress is not None:
            progress(min(first + _ROWS, steps), steps)
    values, _ = asked.follow(np.stack([end, start]))
    gradients = mean.astype(np.float32)
    return asked.scores("integrated gradients", gradients, end - start, values[0], values[1])


class _Question:
    """A prompt and the logit that is asked about, ready to be followed back."""

    def __init__(self, model, prompt, token, other, position):
        self.model = model
        self.ids = inputs.token_ids_of(model, prompt)
        self.position = inputs.position_of(position, len(self.ids))
        self.token = inputs.token_id_of(model, token)
        self.other = None if other is None else inputs.token_id_of(model, other, "other")
        self.length = bucket(len(self.ids), model.config.context)

    def embedded(self) -> Float[np.ndarray, "padded d_model"]:
        """The embeddings of the prompt, filled up with token 0 to the program's length."""
        ids = np.pad(self.ids, (0, self.length - len(self.ids)))
        return self._rows(ids)

    def baseline(self, baseline: str | int) -> Float[np.ndarray, "padded d_model"]:
        """The embeddings that integrated gradients start from."""
        shape = (self.length, self.model.config.d_model)
        if baseline == "zero":
            return np.zeros(shape, np.float32)
        if baseline == "mean":
            table = self.model.network.embed[...]
            return np.broadcast_to(inputs.host(jnp.mean(table.astype(jnp.float32), 0)), shape)
        if isinstance(baseline, str):
            raise ValueError(
                f"baseline is {baseline!r}: one of {BASELINES}, or the id of a token, is needed"
            )
        return self._rows(np.full(self.length, inputs.token_id_of(self.model, baseline)))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(inputs.host(self.model.network.embed[...][ids]), np.float32)

    def follow(
        self, embedded: Float[np.ndarray, "rows padded d_model"]
    ) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows padded d_model"]]:
        """The logit of each row of embeddings, and its gradient by them."""
        rows = len(embedded)
        room = (1 if rows == 1 else _ROWS) - rows  # two programs, whatever the number of rows
        filled = np.pad(embedded, ((0, room), (0, 0), (0, 0)))
        if self.model.mesh is not None:
            filled = _on_mesh(filled, self.model.mesh)
        second = self.token if self.other is None else self.other
        pair = np.array([self.token, second], np.int32)
        minus = np.float32(self.other is not None)
        network = self.model.network
        found = _followed(network, filled, self.position, pair, minus, self.model.dtype)
        values, gradients = inputs.host(found)
        return values[:rows], gradients[:rows]

    def scores(self, method, gradients, difference, value, baseline) -> TokenScores:
        """What the gradients say of each token."""
        length = len(self.ids)
        products = gradients.astype(np.float64) * difference
        return TokenScores(
            tokens=inputs.display(self.model, self.ids), token_ids=self.ids,
            scores=products[:length].sum(1).astype(np.float32), gradients=gradients[:length],
            position=self.position, token=self.token, other=self.other, method=method,
            value=float(value), baseline=None if baseline is None else float(baseline),
        )  # fmt: skip


def _on_mesh(rows: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    room = -len(rows) % mesh.shape[sharding.DATA]
    spec = jax.sharding.PartitionSpec(sharding.DATA)
    filled = np.pad(rows, ((0, room), (0, 0), (0, 0)))
    return sharding.put(filled, jax.sharding.NamedSharding(mesh, spec))


@functools.partial(jax.jit, static_argnames="dtype")
def _followed(
    network: Transformer, embedded: Float[Array, "rows seq d_model"], position, pair, minus, dtype
):
    unread = jnp.zeros(embedded.shape[:2], jnp.int32)

    def logit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        site = sites.intervene({"embed": lambda _: x})
        final, _ = network.hidden(unread, site=site, dtype=dtype)
        final = jax.lax.dynamic_slice_in_dim(final, position, 1, axis=1)
        logits = network.unembed(final)[:, 0][:, pair]
        values = logits[:, 0] - minus * logits[:, 1]
        return values.sum(), values  # rows don't see each other: the sum's gradient is each one's

    (_, values), gradients = jax.value_and_grad(logit, has_aux=True)(embedded)
    return values, gradients
