"""ModelConfig: one frozen description of a network, from and to a Hugging Face config.

GPT-J, CodeGen, GPT-NeoX, GPT-Neo and GPT-2 (and so GPT-3) differ in its fields only, so that a
lesson can switch one with `dataclasses.replace` and see what it does.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_lab import hugging_face_config, json_files

# By transformers' names, of which several mean one function up to rounding (model/activations.py).
ACTIVATIONS = (
    "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu",
    "gelu_python", "gelu_10", "quick_gelu", "relu", "relu2", "relu6", "leaky_relu", "silu", "swish",
    "hardswish", "mish", "sigmoid", "tanh", "laplace", "linear",
)  # fmt: skip
MOST_LAYERS = 10_000
POSITIONS = ("rotary_interleaved", "rotary_half", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One description of a network.

    Attributes:
        family: Hugging Face's model_type, in whose form the weights are read and written: "gptj",
            "codegen", "gpt_neox", "gpt_neo" or "gpt2". The computation doesn't depend on it.
        vocab_size: rows of the embedding and of the head.
        context: most positions that the model was trained on, in tokens.
        d_model: width of the residual stream.
        num_layers: number of blocks.
        num_heads: attention heads a block; they divide d_model.
        d_ff: width of the MLP.
        positions: "rotary_interleaved" (pairs x0 x1, x2 x3, as in GPT-J), "rotary_half" (pairs of
            the first and the second half, as in GPT-NeoX) or "learned" (added to the embedding).
        d_rotary: leading dimensions of each head that are rotated; even; 0 if learned.
        rotary_base: the slowest pair turns by rotary_base^(2 / d_rotary - 1) radians a token
            (10000 in Su et al. 2021); 0 if learned.
        rotary_scaling: positions are divided by it before they turn anything (linear scaling of
            Chen et al. 2023, "position interpolation"); 1 for none.
        parallel: attention and MLP read the same residual; else the MLP reads attention's sum.
        shared_layer_norm: one LayerNorm a block for both (parallel blocks only), else two.
        qkv_bias, attn_out_bias, head_bias: whether these products add a bias.
        tied_embeddings: the head is the transposed embedding; it may have a bias all the same.
        scaled_attention: scores are divided by sqrt(d_head).
        layer_scaled_attention: those of block i are divided by i + 1, too (Stanford's Mistral).
        local_windows: tokens that a layer's attention sees (its own included), None for all; the
            pattern is repeated over the layers: (None, 256) alternates. Kept in its shortest form.
        activation: one of ACTIVATIONS.
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of new weights.
        bos_token_id: the token that texts begin with, if there is one.
        eos_token_id: the token that ends a text, a tuple of several that do, or None.
    """

    family: str
    vocab_size: int
    context: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    positions: str
    d_rotary: int
    rotary_base: float
    rotary_scaling: float
    parallel: bool
    shared_layer_norm: bool
    qkv_bias: bool
    attn_out_bias: bool
    head_bias: bool
    tied_embeddings: bool
    scaled_attention: bool
    layer_scaled_attention: bool
    local_windows: tuple[int | None, ...]
    activation: str
    layer_norm_eps: float
    initializer_range: float
    bos_token_id: int | None
    eos_token_id: int | tuple[int, ...] | None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "d_model", "num_layers", "num_heads", "d_ff"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: a whole number of at least 1 is needed")
            most = MOST_LAYERS if name == "num_layers" else 2**31 - 1
            if value > most:
                raise ValueError(f"{name} is {value!r:.40}: at most {most} is possible")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, which doesn't divide d_model {self.d_model}: "
                "choose a divisor"
            )
        hugging_face_config.published(self.family)  # refuses an unknown one
        self._check_switches()
        self._check_positions()
        self._check_windows()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}: one of {ACTIVATIONS} is needed")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}: a number between 0 and 1 is needed")
        self._check_tokens()

    def _check_switches(self) -> None:
        for name in (
            "parallel", "shared_layer_norm", "qkv_bias", "attn_out_bias", "head_bias",
            "tied_embeddings", "scaled_attention", "layer_scaled_attention",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}: true or false is needed")
        if self.shared_layer_norm and not self.parallel:
            raise ValueError(
                "shared_layer_norm is True in sequential blocks, whose MLP reads another residual "
                "than attention: set parallel=True, or shared_layer_norm=False"
            )

    def _check_tokens(self) -> None:
        if self.bos_token_id is not None and not _is_token(self.bos_token_id):
            raise ValueError(f"bos_token_id is {self.bos_token_id!r}: a token id or null is needed")
        ends = self.eos_token_id
        several = isinstance(ends, tuple)
        if ends is not None and not all(map(_is_token, ends if several else (ends,))):
            raise ValueError(
                f"eos_token_id is {ends!r}: a token id, a list of token ids or null is needed"
            )

    def _check_positions(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"positions is {self.positions!r}: one of {POSITIONS} is needed")
        rotary, base = self.d_rotary, self.rotary_base
        scaling = self.rotary_scaling
        if (
            isinstance(scaling, bool)
            or not isinstance(scaling, (int, float))
            or not 0 < scaling < math.inf
        ):
            raise ValueError(f"rotary_scaling is {scaling!r}: a number above 0 is needed")
        if self.positions == "learned":
            if rotary != 0 or base != 0 or scaling != 1:
                raise ValueError(
                    f"d_rotary is {rotary!r}, rotary_base {base!r} and rotary_scaling {scaling!r}, "
                    "but positions are learned: set both to 0 and the last to 1"
                )
            return
        if not isinstance(rotary, int) or rotary % 2 or not 2 <= rotary <= self.d_head:
            raise ValueError(
                f"d_rotary is {rotary!r}: an even number from 2 to the head's width "
                f"{self.d_head} is needed"
            )
        if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 < base < math.inf:
            raise ValueError(f"rotary_base is {base!r}: a number above 1 is needed")

    def _check_windows(self) -> None:
        windows = self.local_windows
        good = isinstance(windows, tuple) and windows
        if not good or any(
            window is not None
            and (isinstance(window, bool) or not isinstance(window, int) or window < 1)
            for window in windows
        ):
            raise ValueError(
                f"local_windows is {windows!r}: a tuple of token counts or None is needed, "
                "(None,) for attention to everything before"
            )
        windows = windows[: self.num_layers]
        for size in range(1, len(windows) + 1):
            repeats = len(windows) % size == 0 or len(windows) == self.num_layers
            if repeats and all(w == windows[i % size] for i, w in enumerate(windows)):
                # One spelling, so that configs of the same network are equal.
                object.__setattr__(self, "local_windows", windows[:size])
                return

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def family_title(self) -> str:
        """The family as its papers call it, such as "GPT-NeoX"."""
        return hugging_face_config.TITLES[self.family]

    def local_window(self, layer: int) -> int | None:
        """Tokens that attention sees in this layer, its own included; None if all."""
        return self.local_windows[layer % len(self.local_windows)]

    def score_divisor(self, layer: int) -> float:
        """What the products of queries and keys are divided by in this layer."""
        divisor = math.sqrt(self.d_head) if self.scaled_attention else 1.0
        return divisor * (layer + 1) if self.layer_scaled_attention else divisor

    @property
    def num_parameters(self) -> int:
        """Exact number of parameters."""
        d, ff, v = self.d_model, self.d_ff, self.vocab_size
        norms = 2 * d if self.shared_layer_norm else 4 * d
        attention = 4 * d * d + 3 * d * self.qkv_bias + d * self.attn_out_bias
        block = norms + attention + 2 * d * ff + ff + d
        embeddings = v * d + self.context * d * (self.positions == "learned")
        head = v * d * (not self.tied_embeddings) + v * self.head_bias
        return embeddings + self.num_layers * block + 2 * d + head

    @classmethod
    def of_family(cls, family: str, **fields: Any) -> "ModelConfig":
        """The config of a network of the family: its published constants, with `fields` over them.

        Sizes (vocab_size, context, d_model, num_layers, num_heads, d_ff, and d_rotary where the
        family rotates) have to be given; every other field may be.

        Raises:
            ValueError: an unknown family, a missing size, or a value that doesn't fit.
            TypeError: a field that ModelConfig doesn't have.
        """
        fields = hugging_face_config.published(family) | fields
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in fields]
        if missing:
            raise ValueError(f"a config of family {family!r} needs {', '.join(missing)} too")
        return cls(**fields)

    @classmethod
    def from_hugging_face(cls, fields: dict[str, Any], where: str = "the config") -> "ModelConfig":
        """The config that a Hugging Face config.json describes.

        Raises:
            ValueError: an unknown architecture, a missing field, or a field that this network
                would not honour; the message names it.
        """
        ours = hugging_face_config.to_ours(fields, where)
        try:
            return cls(**ours)
        except ValueError as error:
            told = hugging_face_config.in_file_words(str(error), ours["family"], where)
            raise ValueError(told) from None

    def to_hugging_face(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The config.json fields of transformers' config of this family.

        Args:
            before: the fields that this config was once read from. All that it says is kept, but
                for what means something else now.

        Raises:
            ValueError: a field whose value a config.json of the family can't say.
        """
        fields = self._to_file()
        if not before:
            return fields
        try:
            old = ModelConfig.from_hugging_face(dict(before))
        except ValueError:  # a config that this network was not read from
            return fields
        if old.family != self.family:
            return fields
        changed = {
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(old, field.name)
        }
        updated = hugging_face_config.updated(before, fields, self.family, changed)
        try:
            return updated if ModelConfig.from_hugging_face(updated) == self else fields
        except ValueError:  # another name of a field still says what it said
            return fields

    def _to_file(self) -> dict[str, Any]:
        ours = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        windows = tuple(self.local_window(layer) for layer in range(self.num_layers))
        return hugging_face_config.to_file(ours, windows)

    @classmethod
    def from_file(cls, path: Path | str) -> "ModelConfig":
        """The config in a config.json file.

        Raises:
            ValueError: the file is not JSON, or as `from_hugging_face`.
        """
        return cls.from_hugging_face(json_files.read_file(Path(path)), str(path))


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
