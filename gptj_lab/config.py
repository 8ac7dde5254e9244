"""ModelConfig: one frozen description of a network, from and to a Hugging Face config.

The GPT-J family is here; the other families of the design add fields when their network arrives.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu")

# What GPT-J's config.json may hold. First: fields that we honour, by our name for them.
_HONOURED = {
    "vocab_size": "vocab_size",
    "n_positions": "context",
    "n_embd": "d_model",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "rotary_dim": "d_rotary",
    "n_inner": "d_ff",
    "activation_function": "activation",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}
# Fields that change the computation unless they hold the value given here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": (False, None),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "add_cross_attention": (False, None),
    "rotary": (True, None),
    "scale_attn_weights": (True, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "chunk_size_feed_forward": (0, None),
}
# Fields that describe training, files or decoding defaults: they don't change the logits.
_IRRELEVANT = {
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "gradient_checkpointing", "summary_type",
    "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "task_specific_params", "tokenizer_class", "pad_token_id", "sep_token_id", "_name_or_path",
    "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
    "problem_type", "num_labels", "n_ctx", "finetuning_task", "prefix", "torchscript",
    "decoder_start_token_id", "cross_attention_hidden_size", "tie_encoder_decoder",
    "_attn_implementation", "_commit_hash", "model_revision",
    # decoding defaults that old files keep in config.json
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "tf_legacy_loss", "use_bfloat16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One description of a GPT-J network.

    Attributes:
        vocab_size: rows of the embedding and of the head.
        context: most positions that the model was trained on, in tokens.
        d_model: width of the residual stream.
        num_layers: number of blocks.
        num_heads: attention heads a block; they divide d_model.
        d_rotary: leading dimensions of each head that are rotated by position; even.
        d_ff: width of the MLP.
        activation: one of ACTIVATIONS ("gelu_new" is the tanh form).
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of new weights.
        bos_token_id, eos_token_id: special tokens of the tokenizer, if it has them.
    """

    vocab_size: int
    context: int
    d_model: int
    num_layers: int
    num_heads: int
    d_rotary: int
    d_ff: int
    activation: str
    layer_norm_eps: float
    initializer_range: float
    bos_token_id: int | None
    eos_token_id: int | None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "d_model", "num_layers", "num_heads", "d_ff"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: a whole number of at least 1 is needed")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, which doesn't divide d_model {self.d_model}: "
                "choose a divisor"
            )
        rotary = self.d_rotary
        if not isinstance(rotary, int) or rotary % 2 or not 2 <= rotary <= self.d_head:
            raise ValueError(
                f"d_rotary is {rotary!r}: an even number from 2 to the head's width "
                f"{self.d_head} is needed"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}: one of {ACTIVATIONS} is needed")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}: a number between 0 and 1 is needed")
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 0 <= value):
                raise ValueError(f"{name} is {value!r}: a token id or null is needed")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Exact number of parameters."""
        d, ff, v = self.d_model, self.d_ff, self.vocab_size
        block = 4 * d * d + 2 * d * ff + ff + d + 2 * d
        return v * d + self.num_layers * block + 2 * d + v * d + v

    @classmethod
    def from_hugging_face(cls, fields: dict[str, Any], where: str = "the config") -> "ModelConfig":
        """The config that a Hugging Face config.json describes.

        Raises:
            ValueError: an unknown architecture, a missing field, or a field that this network
                would not honour; the message names it.
        """
        kind = fields.get("model_type")
        if kind != "gptj":
            raise ValueError(f"model_type in {where} is {kind!r}: this version reads 'gptj' only")
        for name, value in fields.items():
            if name in _FIXED:
                if value not in _FIXED[name]:
                    raise ValueError(
                        f"{name} in {where} is {value!r}, which this network doesn't honour: "
                        f"only {_FIXED[name][0]!r} is supported"
                    )
            elif name not in _HONOURED and name not in _IRRELEVANT:
                raise ValueError(
                    f"{name} in {where} is a field that this network doesn't honour "
                    f"(its value is {value!r}): remove it if it doesn't change the computation"
                )
        ours: dict[str, Any] = {
            _HONOURED[name]: value for name, value in fields.items() if name in _HONOURED
        }
        if ours.get("d_ff") is None and isinstance(ours.get("d_model"), int):
            ours["d_ff"] = 4 * ours["d_model"]
        # Fields that Hugging Face leaves out when they hold GPT-J's own value.
        published = dict(
            activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.02,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        ours = published | ours
        missing = [hf for hf, name in _HONOURED.items() if name not in ours]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}: a GPT-J config has them")
        return cls(**ours)

    def to_hugging_face(self) -> dict[str, Any]:
        """The config.json fields of `transformers.GPTJConfig` for this network."""
        fields = {hf: getattr(self, ours) for hf, ours in _HONOURED.items()}
        return {
            "model_type": "gptj",
            "architectures": ["GPTJForCausalLM"],
            **fields,
            "tie_word_embeddings": False,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }

    @classmethod
    def from_file(cls, path: Path | str) -> "ModelConfig":
        """The config in a config.json file.

        Raises:
            ValueError: the file is not JSON, or as `from_hugging_face`.
        """
        path = Path(path)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a JSON file ({error}): copy it again") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path} holds a {type(fields).__name__}: a JSON object is needed")
        return cls.from_hugging_face(fields, str(path))
