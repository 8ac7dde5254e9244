"""A slow network in NumPy's float64, written from the papers: what the lens is held against."""

import math

import numpy as np
from flax import nnx

from gptj_lab.model import int8
from gptj_lab.model.int8 import Int8Weight


def weights_of(model) -> dict[str, np.ndarray]:
    """Every weight of a LanguageModel by its path, as float64."""
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model.network)):
        value = leaf[...]
        if isinstance(value, Int8Weight):
            value = int8.dequantize(np.asarray(value.values), np.asarray(value.scale))
        found[".".join(map(str, path))] = np.asarray(value).astype(np.float64)
    return found


class Float64Network:
    """Forward pass of one row of tokens; every quantity that a test asks for is in `self`.

    Attributes after `run`: embed, position_embed, final, logits, and per layer the lists q, k
    (rotated), v, z [seq, heads, d_head], scores, pattern [heads, seq, seq], heads [heads, seq,
    d_model] (what each wrote), mlp [seq, d_model] (without its bias).
    """

    def __init__(self, model):
        self.config, self.w = model.config, weights_of(model)

    def norm(self, name, x, bias=True):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt(
            (centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps
        )
        return normal * self.w[f"{name}.scale"] + (self.w[f"{name}.bias"] if bias else 0)

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    @property
    def head_bias(self):
        return self.w.get("head.bias", self.w.get("head_bias", 0))

    @property
    def unembedding(self):
        return self.w["embed"] if self.config.tied_embeddings else self.w["head.weight"]

    def heads_of(self, matrix):
        """[heads, d_head, d_model] of a matrix whose rows are heads side by side."""
        return matrix.reshape(self.config.num_heads, self.config.d_head, -1)

    def out_of(self, layer):
        """W_O as [heads, d_model, d_head]."""
        return self.heads_of(self.w[f"blocks.{layer}.attn.out.weight"].T).swapaxes(1, 2)

    def rotated(self, x, places):
        """x [seq, heads, d_head], turned by complex numbers."""
        pairs = self.config.d_rotary // 2
        if not pairs:
            return x
        if self.config.positions == "rotary_interleaved":
            first, second = 2 * np.arange(pairs), 2 * np.arange(pairs) + 1
        else:
            first, second = np.arange(pairs), pairs + np.arange(pairs)
        speed = self.config.rotary_base ** (-2 * np.arange(pairs) / self.config.d_rotary)
        speed = speed / self.config.rotary_scaling
        turn = np.exp(1j * np.asarray(places)[:, None, None] * speed)
        both = (x[..., first] + 1j * x[..., second]) * turn
        x = x.copy()
        x[..., first], x[..., second] = both.real, both.imag
        return x

    def run(self, ids, embed=None, shift=0):
        config, ids = self.config, np.asarray(ids)
        self.q, self.k, self.v, self.z, self.scores, self.pattern = [], [], [], [], [], []
        self.heads, self.mlp, self.resid_pre = [], [], []
        self.embed = self.w["embed"][ids] if embed is None else embed
        x = self.embed
        self.position_embed = None
        if config.positions == "learned":
            self.position_embed = self.w["position_embed"][: len(ids)]
            x = x + self.position_embed
        for layer in range(config.num_layers):
            self.resid_pre.append(x)
            x = self._block(layer, x, np.arange(len(ids)) + shift)
        self.final = x
        self.logits = self.norm("final_ln", x) @ self.unembedding.T + self.head_bias
        return self

    def _block(self, layer, x, places):
        config, name = self.config, f"blocks.{layer}"
        normal = self.norm(f"{name}.ln", x)
        q, k, v = (
            self.linear(f"{name}.attn.{part}", normal).reshape(len(x), config.num_heads, -1)
            for part in "qkv"
        )
        q, k = self.rotated(q, places), self.rotated(k, places)
        scores = np.einsum("qhd,khd->hqk", q, k)
        if config.scaled_attention:
            scores = scores / math.sqrt(config.d_head)
        if config.layer_scaled_attention:
            scores = scores / (layer + 1)
        distance = places[:, None] - places[None]
        window = config.local_window(layer) or len(x)
        masked = np.where((distance >= 0) & (distance < window), scores, -np.inf)
        pattern = np.exp(masked - masked.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        z = np.einsum("hqk,khd->qhd", pattern, v)
        heads = np.einsum("qhd,hmd->hqm", z, self.out_of(layer))
        attended = heads.sum(0) + self.w.get(f"{name}.attn.out.bias", 0)
        read = x if config.parallel else x + attended
        if not config.shared_layer_norm:
            normal = self.norm(f"{name}.ln2", read)
        hidden = activate(config.activation, self.linear(f"{name}.mlp.fc_in", normal))
        mlp = hidden @ self.w[f"{name}.mlp.fc_out.weight"].T
        for kept, value in (
            (self.q, q), (self.k, k), (self.v, v), (self.z, z), (self.scores, scores),
            (self.pattern, pattern), (self.heads, heads), (self.mlp, mlp),
        ):  # fmt: skip
            kept.append(value)
        return x + attended + mlp + self.w[f"{name}.mlp.fc_out.bias"]


def activate(name, x):
    if name == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    if name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    raise NotImplementedError(name)
