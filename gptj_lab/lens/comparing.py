"""What differs between two prompts, or between a model and what a fine-tune made of it."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs, passes
from gptj_lab.lens.prompts import check_same_length
from gptj_lab.model.transformer import Transformer

_ROWS = 256  # positions whose distribution over the vocabulary exists at a time


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two runs side by side, a and b; differences are b - a.

    Attributes:
        tokens, other_tokens: of a and of b as a person should see them.
        token_ids, other_token_ids: their ids.
        distances: float32 [layers, heads, seq], the Jensen-Shannon distance of the head's two
            patterns at each query: 0 if equal, 1 if they share no key (the root of the divergence
            in bits; Endres and Schindelin 2003).
        nll, other_nll: float32 [seq - 1], -log p of each token after the first given those before,
            in nats.
        kl: float32 [seq], KL divergence of b's next-token distribution from a's, in nats:
            sum of p_a (log p_a - log p_b).
    """

    tokens: tuple[str, ...]
    other_tokens: tuple[str, ...]
    token_ids: Int[np.ndarray, "seq"]
    other_token_ids: Int[np.ndarray, "seq"]
    distances: Float[np.ndarray, "layers heads seq"]
    nll: Float[np.ndarray, "rest"]
    other_nll: Float[np.ndarray, "rest"]
    kl: Float[np.ndarray, "seq"]

    @property
    def moved(self) -> Float[np.ndarray, "layers heads"]:
        """How far each head moved: its mean distance over the queries that have a choice of key."""
        if self.distances.shape[2] == 1:
            return self.distances[..., 0]
        return self.distances[..., 1:].mean(-1)

    @property
    def nll_difference(self) -> Float[np.ndarray, "rest"]:
        """What b finds less likely than a, in nats a token: positive where b is worse."""
        return self.other_nll - self.nll

    def heads_moved(self, count: int = 10) -> list[tuple[int, int, float]]:
        """The heads that moved most: layer, head, distance."""
        order = np.argsort(-self.moved, axis=None, kind="stable")[:count]
        places = zip(*np.unravel_index(order, self.moved.shape), strict=True)
        return [(int(i), int(j), float(self.moved[i, j])) for i, j in places]

    def __repr__(self) -> str:
        lines = ["heads that moved most (Jensen-Shannon distance of their patterns, 0 to 1)"]
        lines += [f"  L{i}H{j:<3} {distance:.4f}" for i, j, distance in self.heads_moved(5)]
        lines.append(f"KL of the next-token distributions: {self.kl.mean():.4f} nats a token")
        if len(self.nll):
            worse = self.nll_difference.mean()
            lines.append(f"-log p of the tokens: {worse:+.4f} nats a token, b minus a")
        return "\n".join(lines)


def compare_prompts(
    model: LanguageModel, prompt: inputs.Prompt, other: inputs.Prompt
) -> Comparison:
    """Two prompts of as many tokens, token by token.

    Raises:
        ValueError: the prompts have different numbers of tokens; the message shows both.
    """
    first, second = inputs.token_ids_of(model, prompt), inputs.token_ids_of(model, other)
    check_same_length(model, first.tolist(), second.tolist(), ("first", "second"))
    return _compare(model, model, first, second)


def compare_models(model: LanguageModel, other: LanguageModel, prompt: inputs.Prompt) -> Comparison:
    """Two models of the same shape on one prompt, such as a base and its fine-tune.

    They may lie in other dtypes, as int8, and on other meshes.

    Raises:
        ValueError: their layers, heads or vocabulary differ, or the prompt's tokens do.
    """
    check_same_shape(model, other)
    ids = inputs.token_ids_of(model, prompt)
    if isinstance(prompt, str) and list(ids) != list(other.tokenizer.encode(prompt)):
        raise ValueError(
            f"the models' tokenizers make different tokens of {prompt!r}: compare models with the "
            "same tokenizer, or give token ids"
        )
    return _compare(model, other, ids, inputs.token_ids_of(other, ids))


def check_same_shape(model: LanguageModel, other: LanguageModel) -> None:
    """Nothing, if both have as many layers, heads and tokens in the vocabulary.

    Raises:
        TypeError: the other isn't a model.
        ValueError: they don't; the message names what differs.
    """
    if not hasattr(other, "network"):
        raise TypeError(f"other is {other!r}: a LanguageModel is needed, gptj_lab.load(...)")
    for field in ("num_layers", "num_heads", "vocab_size"):
        mine, theirs = getattr(model.config, field), getattr(other.config, field)
        if mine != theirs:
            raise ValueError(
                f"the models differ in {field}, {mine} and {theirs}: only models of one shape can "
                "be compared head by head"
            )


def _compare(model, other, ids, other_ids) -> Comparison:
    residuals, final = _residuals(model, ids)
    other_residuals, other_final = _residuals(other, other_ids)
    distances = []
    for layer in range(model.config.num_layers):
        patterns = _pattern(model, layer, residuals[layer], len(ids))
        others = _pattern(other, layer, other_residuals[layer], len(ids))
        distances.append(inputs.host(jensen_shannon_distance(patterns, others)))
    nll, other_nll, kl = [], [], []
    rows = zip(_logprobs(model, final), _logprobs(other, other_final), strict=True)
    for start, (logprobs, others) in zip(range(0, len(ids), _ROWS), rows, strict=False):
        end = min(start + _ROWS, len(ids))
        mine, theirs = logprobs[: end - start], others[: end - start]
        kl.append(np.maximum((np.exp(mine) * (mine - theirs)).sum(-1), 0))
        nll.append(_of_next(mine, ids[start + 1 : end + 1]))
        other_nll.append(_of_next(theirs, other_ids[start + 1 : end + 1]))
    return Comparison(
        tokens=inputs.display(model, ids), other_tokens=inputs.display(other, other_ids),
        token_ids=ids, other_token_ids=other_ids, distances=np.stack(distances),
        nll=np.concatenate(nll), other_nll=np.concatenate(other_nll), kl=np.concatenate(kl),
    )  # fmt: skip


def _of_next(logprobs: np.ndarray, following: np.ndarray) -> np.ndarray:
    return -logprobs[np.arange(len(following)), following]


@jax.jit
def jensen_shannon_distance(
    p: Float[Array | np.ndarray, "*rows keys"], q: Float[Array | np.ndarray, "*rows keys"]
) -> Float[Array, "*rows"]:
    """The root of the Jensen-Shannon divergence in bits, of distributions over the last axis."""
    both = jnp.stack([p, q])
    middle = both.mean(0, keepdims=True)
    there = both > 0
    ratio = jnp.where(there, both, 1) / jnp.where(there, middle, 1)
    divergences = jnp.sum(both * jnp.log2(ratio), axis=-1)
    return jnp.sqrt(jnp.clip(divergences.mean(0), 0, 1))


def _residuals(model: LanguageModel, ids) -> tuple[list[jax.Array], jax.Array]:
    """Each block's resid_pre [batch, padded, d_model], and the residual after the last."""
    *read, left = passes.streams(model.network, inputs.padded(model, ids), model.dtype)
    return read, left


def _pattern(model, layer, residual, length) -> Float[np.ndarray, "heads seq kv_seq"]:
    """One layer's pattern, made again from the residual: all layers' at once may not fit."""
    block = model.network.blocks[layer]
    pattern = inputs.host(passes.inside(block, residual, "attn.pattern"))[0]
    return pattern[:, :length, :length].astype(np.float32)


def _logprobs(model: LanguageModel, final: jax.Array) -> Iterator[Float[np.ndarray, "rows vocab"]]:
    """Next-token logprobs, some positions at a time."""
    for start in range(0, final.shape[1], _ROWS):
        yield inputs.host(_unembedded(model.network, final[:, start : start + _ROWS]))


@jax.jit
def _unembedded(network: Transformer, residual) -> Float[Array, "rows vocab"]:
    return jax.nn.log_softmax(network.unembed(residual)[0], axis=-1)
