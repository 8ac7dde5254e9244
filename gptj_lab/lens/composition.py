"""How strongly heads are wired to one another, from the weights alone; singular values.

What a head reads and writes are low-rank matrices (Elhage et al. 2021): OV = W_O W_V moves what
stands at a token, QK = W_Q^T W_K compares two. All are taken as the residual stream sees them:
the LayerNorm's scale belongs to what reads, and the mean, which every LayerNorm takes off, to
nobody. Biases and rotations by position are left out.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import inputs, weights
from gptj_lab.model.transformer import Block

_EXACT = jax.lax.Precision.HIGHEST
MODES = ("q", "k", "v")
_CHUNK = 1024  # rows of the vocabulary that are summed at a time


def composition_scores(
    model: LanguageModel, mode: str, progress: Callable[[int, int], None] | None = None
) -> Float[np.ndarray, "layers heads layers heads"]:
    """How much of what a head writes another head reads: ||A B|| / (||A|| ||B||), 0 to 1.

    `scores[i, a, j, b]`, for i < j, is the composition of head b of layer j with head a of layer i,
    through the later head's queries ("q"), keys ("k") or values ("v"); all others are 0.
    A = QK of the later head (or its OV for "v"), B = OV of the earlier one, in Frobenius norms.

    Args:
        progress: called with the layers done and all.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: one of {MODES} is needed")
    config = model.config
    scores = np.zeros((config.num_layers, config.num_heads) * 2, np.float32)
    writers: list[Float[Array, "heads d_model d_head"]] = []
    for later, block in enumerate(model.network.blocks):
        reader, writer = _reader(block, mode), _writer(block)
        for earlier, written in enumerate(writers):
            scores[earlier, :, later] = inputs.host(_composed(reader, written)).T
        writers.append(writer)
        if progress is not None:
            progress(later + 1, config.num_layers)
    return scores


def head_singular_values(
    model: LanguageModel, kind: str
) -> Float[np.ndarray, "layers heads d_head"]:
    """The singular values of each head's "ov" or "qk" matrix, largest first.

    The [d_model, d_model] matrix has no more than d_head of them; it is never made.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("ov", "qk"):
        raise ValueError(f"kind is {kind!r}: 'ov' or 'qk' is needed")
    rows = []
    for block in model.network.blocks:
        small = inputs.host(_core(block, kind))
        rows.append(np.linalg.svd(small.astype(np.float64), compute_uv=False))
    return np.stack(rows).astype(np.float32)


def singular_values(model: LanguageModel, name: str) -> Float[np.ndarray, "rank"]:
    """The singular values of a weight by its path ("blocks.3.mlp.fc_in", "embed"), largest first.

    Raises:
        ValueError: no matrix has that path; the message lists all.
    """
    known = _matrices(model)
    if name not in known:
        raise ValueError(f"no matrix is named {name!r}: there are {', '.join(known)}")
    return np.linalg.svd(inputs.host(known[name]()), compute_uv=False)


def copying_scores(model: LanguageModel) -> Float[np.ndarray, "layers heads"]:
    """Of each head, how far it raises the token that it reads: 1 copies, -1 suppresses.

    The sum of the eigenvalues of the full OV circuit (embedding, normalised without its LayerNorm's
    bias, to logits) over the sum of their sizes (Elhage et al. 2021). The [vocab, vocab] matrix's
    eigenvalues other than 0 are those of a [d_head, d_head] one.
    """
    ends = weights.Ends(model.network)
    middle = _embedded_to_unembedded(ends, model.config.layer_norm_eps)
    rows = []
    for block in model.network.blocks:
        small = inputs.host(_through(block, middle)).astype(np.float64)
        values = np.linalg.eigvals(small)
        sizes = np.abs(values).sum(-1)
        rows.append(values.real.sum(-1) / np.where(sizes > 0, sizes, 1))
    return np.stack(rows).astype(np.float32)


def reads(block: Block, name: str) -> Float[Array, "heads d_head d_model"]:
    """W_Q, W_K or W_V ("q", "k", "v") of each head as the residual stream sees it."""
    matrix = weights.matrix(getattr(block.attn, name))
    matrix = matrix * jnp.broadcast_to(weights.gain(block.ln)[None], matrix.shape)
    matrix = matrix - matrix.mean(1, keepdims=True)
    return matrix.reshape(block.attn.num_heads, -1, matrix.shape[1])


def writes(block: Block) -> Float[Array, "heads d_model d_head"]:
    """W_O of each head, without the mean over d_model."""
    matrix = weights.matrix(block.attn.out)
    matrix = matrix - matrix.mean(0, keepdims=True)
    return matrix.reshape(matrix.shape[0], block.attn.num_heads, -1).swapaxes(0, 1)


def _triangle(tall: Float[Array, "heads d_model d_head"]) -> Float[Array, "heads d_head d_head"]:
    """R of QR: it can stand for the matrix in any norm, and is small."""
    return jnp.linalg.qr(tall, mode="r")


@functools.partial(jax.jit, static_argnames="mode")
def _reader(block: Block, mode) -> Float[Array, "heads d_head d_model"]:
    """A small factor with the norms of the later head's QK (turned to be read) or OV."""
    if mode == "v":
        outer = writes(block)
    else:
        outer = reads(block, "k" if mode == "q" else "q").swapaxes(1, 2)
    return jnp.einsum("hrd,hdm->hrm", _triangle(outer), reads(block, mode), precision=_EXACT)


@jax.jit
def _writer(block: Block) -> Float[Array, "heads d_model d_head"]:
    read = _triangle(reads(block, "v").swapaxes(1, 2))
    return jnp.einsum("hmd,hrd->hmr", writes(block), read, precision=_EXACT)


@jax.jit
def _composed(
    reader: Float[Array, "later d_head d_model"], writer: Float[Array, "earlier d_model d_head"]
) -> Float[Array, "later earlier"]:
    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(x * x, axis=(-2, -1)))

    both = norm(jnp.einsum("brm,ame->bare", reader, writer, precision=_EXACT))
    size = norm(reader)[:, None] * norm(writer)[None]
    return both / jnp.where(size > 0, size, 1)


@functools.partial(jax.jit, static_argnames="kind")
def _core(block: Block, kind) -> Float[Array, "heads d_head d_head"]:
    """A small matrix with the singular values of OV or QK."""
    left = writes(block) if kind == "ov" else reads(block, "q").swapaxes(1, 2)
    right = reads(block, "v" if kind == "ov" else "k").swapaxes(1, 2)
    return jnp.einsum("hrd,hsd->hrs", _triangle(left), _triangle(right), precision=_EXACT)


@jax.jit
def _through(block: Block, middle) -> Float[Array, "heads d_head d_head"]:
    return jnp.einsum("hdm,mn,hne->hde", reads(block, "v"), middle, writes(block), precision=_EXACT)


@jax.jit
def _embedded_to_unembedded(ends: weights.Ends, eps) -> Float[Array, "d_model d_model"]:
    """The sum over tokens of normalised embedding times the unembedding's row."""
    embed = ends.embed[...]
    gain = weights.gain(ends.final_ln)

    def one(start: jax.Array) -> jax.Array:
        ids = start + jnp.arange(_CHUNK)
        there = (ids < embed.shape[0])[:, None]
        x = jnp.take(embed, ids, axis=0, mode="clip").astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
        rows = weights.unembedding_rows(ends, ids)
        rows = rows * jnp.broadcast_to(gain[None], rows.shape)
        return jnp.einsum("vm,vn->mn", jnp.where(there, x, 0), rows, precision=_EXACT)

    starts = jnp.arange(0, embed.shape[0], _CHUNK)
    zero = jnp.zeros((embed.shape[1],) * 2, jnp.float32)
    return jax.lax.scan(lambda total, start: (total + one(start), None), zero, starts)[0]


def _matrices(model: LanguageModel) -> dict[str, Callable[[], jax.Array]]:
    """Every matrix of the network by its path, made float32 when called."""
    network = model.network
    found = {"embed": lambda: network.embed[...].astype(jnp.float32)}
    for i, block in enumerate(network.blocks):
        for part, name in (
            ("attn", "q"), ("attn", "k"), ("attn", "v"), ("attn", "out"),
            ("mlp", "fc_in"), ("mlp", "fc_out"),
        ):  # fmt: skip
            linear = getattr(getattr(block, part), name)
            found[f"blocks.{i}.{part}.{name}"] = functools.partial(weights.matrix, linear)
    if network.head is not None:
        found["head"] = functools.partial(weights.matrix, network.head)
    return found
