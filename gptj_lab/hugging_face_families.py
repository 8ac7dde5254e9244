"""Which field of config.json is which of ModelConfig's, family by family; and what each leaves out.

Our fields are those of `gptj_lab.config.ModelConfig`, where they are explained.
"""

from typing import Any, NamedTuple


class Family(NamedTuple):
    """How one family writes its config.json.

    Attributes:
        title: as the papers call it.
        architecture: transformers' class.
        honoured: field of config.json, to our field.
        published: our fields where config.json is silent.
        special: fields of config.json that are read by a function of their own.
        expressed: our fields that those say.
        dropout: fields that are written as 0.
    """

    title: str
    architecture: str
    honoured: dict[str, str]
    published: dict[str, Any]
    special: frozenset[str]
    expressed: frozenset[str]
    dropout: tuple[str, ...]


_GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "n_positions": "context",
    "n_embd": "d_model",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_inner": "d_ff",
    "activation_function": "activation",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "tie_word_embeddings": "tied_embeddings",
}
_GPT_J = dict(
    positions="rotary_interleaved", rotary_base=10000.0, parallel=True, shared_layer_norm=True,
    qkv_bias=False, attn_out_bias=False, head_bias=True, tied_embeddings=False,
    scaled_attention=True, local_windows=(None,), activation="gelu_new", layer_norm_eps=1e-5,
    initializer_range=0.02, bos_token_id=None, eos_token_id=None, rotary_scaling=1.0,
    layer_scaled_attention=False,
)  # fmt: skip
_GPT_2 = _GPT_J | dict(
    positions="learned", d_rotary=0, rotary_base=0.0, parallel=False, shared_layer_norm=False,
    qkv_bias=True, attn_out_bias=True, head_bias=False, tied_embeddings=True,
)  # fmt: skip
_GPT2_DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
_NOTHING: frozenset[str] = frozenset()

_GPT_J_FAMILY = Family(
    title="GPT-J",
    architecture="GPTJForCausalLM",
    honoured=_GPT2_NAMES | {"rotary_dim": "d_rotary"},
    published=_GPT_J,
    special=_NOTHING,
    expressed=_NOTHING,
    dropout=_GPT2_DROPOUT,
)

FAMILIES = {
    "gptj": _GPT_J_FAMILY,
    "codegen": _GPT_J_FAMILY._replace(title="CodeGen", architecture="CodeGenForCausalLM"),
    "gpt_neox": Family(
        title="GPT-NeoX",
        architecture="GPTNeoXForCausalLM",
        honoured={
            "vocab_size": "vocab_size",
            "max_position_embeddings": "context",
            "hidden_size": "d_model",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "intermediate_size": "d_ff",
            "hidden_act": "activation",
            "layer_norm_eps": "layer_norm_eps",
            "initializer_range": "initializer_range",
            "bos_token_id": "bos_token_id",
            "eos_token_id": "eos_token_id",
            "tie_word_embeddings": "tied_embeddings",
            "use_parallel_residual": "parallel",
        },
        published=_GPT_J
        | dict(
            positions="rotary_half",
            shared_layer_norm=False,
            qkv_bias=True,
            attn_out_bias=True,
            head_bias=False,
            activation="gelu",
        ),  # fmt: skip
        special=frozenset(
            {
                "rotary_pct",
                "rotary_emb_base",
                "rope_parameters",
                "rope_scaling",
                "attention_bias",
                "head_dim",
            }
        ),
        expressed=frozenset(
            {"d_rotary", "rotary_base", "rotary_scaling", "qkv_bias", "attn_out_bias"}
        ),
        dropout=("attention_dropout", "hidden_dropout"),
    ),
    "gpt_neo": Family(
        title="GPT-Neo",
        architecture="GPTNeoForCausalLM",
        honoured={
            "vocab_size": "vocab_size",
            "max_position_embeddings": "context",
            "hidden_size": "d_model",
            "num_layers": "num_layers",
            "num_heads": "num_heads",
            "intermediate_size": "d_ff",
            "activation_function": "activation",
            "layer_norm_epsilon": "layer_norm_eps",
            "initializer_range": "initializer_range",
            "bos_token_id": "bos_token_id",
            "eos_token_id": "eos_token_id",
            "tie_word_embeddings": "tied_embeddings",
        },
        published=_GPT_2 | dict(qkv_bias=False, scaled_attention=False),
        special=frozenset({"attention_types", "attention_layers", "window_size"}),
        expressed=frozenset({"local_windows"}),
        dropout=("attention_dropout", "embed_dropout", "resid_dropout"),
    ),
    "gpt2": Family(
        title="GPT-2",
        architecture="GPT2LMHeadModel",
        honoured=_GPT2_NAMES
        | {
            "scale_attn_weights": "scaled_attention",
            "scale_attn_by_inverse_layer_idx": "layer_scaled_attention",
        },
        published=_GPT_2,
        special=_NOTHING,
        expressed=_NOTHING,
        dropout=_GPT2_DROPOUT,
    ),
}
