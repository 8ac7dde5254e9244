"""The fields of config.json in five families, to the fields of ModelConfig and back.

Plain dictionaries on both sides. A field that would change the computation and that the network
doesn't honour is refused by name, never ignored.
"""

import math
from collections.abc import Mapping, Set
from typing import Any, NamedTuple


class _Family(NamedTuple):
    title: str  # as the papers call it
    architecture: str  # transformers' class
    honoured: dict[str, str]  # field of config.json: our field
    published: dict[str, Any]  # our fields where config.json is silent
    special: frozenset[str]  # fields of config.json that are read by a function of their own
    expressed: frozenset[str]  # our fields that those say
    dropout: tuple[str, ...]  # written as 0


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
}
_GPT_J = dict(
    positions="rotary_interleaved", rotary_base=10000.0, parallel=True, shared_layer_norm=True,
    qkv_bias=False, attn_out_bias=False, head_bias=True, tied_embeddings=False,
    scaled_attention=True, local_windows=(None,), activation="gelu_new", layer_norm_eps=1e-5,
    initializer_range=0.02, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
_GPT_2 = _GPT_J | dict(
    positions="learned", d_rotary=0, rotary_base=0.0, parallel=False, shared_layer_norm=False,
    qkv_bias=True, attn_out_bias=True, head_bias=False, tied_embeddings=True,
)  # fmt: skip
_GPT2_DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
_NOTHING: frozenset[str] = frozenset()

_FAMILIES = {
    "gptj": _Family(
        title="GPT-J",
        architecture="GPTJForCausalLM",
        honoured=_GPT2_NAMES | {"rotary_dim": "d_rotary"},
        published=_GPT_J,
        special=_NOTHING,
        expressed=_NOTHING,
        dropout=_GPT2_DROPOUT,
    ),
    "codegen": _Family(
        title="CodeGen",
        architecture="CodeGenForCausalLM",
        honoured=_GPT2_NAMES | {"rotary_dim": "d_rotary"},
        published=_GPT_J,
        special=_NOTHING,
        expressed=_NOTHING,
        dropout=_GPT2_DROPOUT,
    ),
    "gpt_neox": _Family(
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
                "rope_theta",
                "partial_rotary_factor",
                "rope_parameters",
                "attention_bias",
            }
        ),  # fmt: skip
        expressed=frozenset({"d_rotary", "rotary_base", "qkv_bias", "attn_out_bias"}),
        dropout=("attention_dropout", "hidden_dropout"),
    ),
    "gpt_neo": _Family(
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
    "gpt2": _Family(
        title="GPT-2",
        architecture="GPT2LMHeadModel",
        honoured=_GPT2_NAMES
        | {"tie_word_embeddings": "tied_embeddings", "scale_attn_weights": "scaled_attention"},
        published=_GPT_2,
        special=_NOTHING,
        expressed=_NOTHING,
        dropout=_GPT2_DROPOUT,
    ),
}
TITLES = {model_type: family.title for model_type, family in _FAMILIES.items()}

# How config.json says that the matrices are int8, each with its `_scale` beside it.
INT8 = {"quant_method": "gptj_lab_int8", "bits": 8, "symmetric": True, "per": "output channel"}
# Fields that change the computation unless they hold a value given here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": (False, None),  # where a family's table doesn't honour it
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "add_cross_attention": (False, None),
    "rotary": (True, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None, INT8),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "chunk_size_feed_forward": (0, None),
}
# Fields that describe training, files or decoding defaults: they don't change the logits.
_IRRELEVANT = {
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "gradient_checkpointing", "summary_type",
    "attention_dropout", "embed_dropout", "resid_dropout", "hidden_dropout", "classifier_dropout",
    "attention_probs_dropout_prob", "hidden_dropout_prob",
    "reorder_and_upcast_attn",  # order and precision only: our scores are float32 in any case
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
_MOST_LAYERS = 10_000  # of an attention_types that is written out layer by layer
_WINDOW = 256  # tokens; GPT-Neo's own, where config.json is silent


def published(family: str) -> dict[str, Any]:
    """Our fields as the family's published models have them, without the sizes.

    Raises:
        ValueError: a family that we don't know.
    """
    if family not in _FAMILIES:
        raise ValueError(f"family is {family!r}: one of {', '.join(_FAMILIES)} is needed")
    return {"family": family, **_FAMILIES[family].published}


def to_ours(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of ModelConfig that a config.json describes, their values not yet checked.

    Raises:
        ValueError: an unknown architecture, a missing field, or a field that the network would
            not honour; the message names it.
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        known = ", ".join(map(repr, _FAMILIES))
        raise ValueError(f"model_type in {where} is {kind!r}: this version reads {known} only")
    family = _FAMILIES[kind]
    for name, value in fields.items():
        if name in family.honoured or name in family.special:
            continue
        if name in _FIXED:
            if value not in _FIXED[name]:
                raise ValueError(
                    f"{name} in {where} is {value!r}, which this network doesn't honour in a "
                    f"{family.title}: only {_FIXED[name][0]!r} is supported"
                )
        elif name not in _IRRELEVANT:
            raise ValueError(
                f"{name} in {where} is a field that this network doesn't honour in a "
                f"{family.title} (its value is {value!r}): remove it if it doesn't change the "
                "computation"
            )
    ours = published(kind)
    ours |= {name: fields[theirs] for theirs, name in family.honoured.items() if theirs in fields}
    if kind != "gpt_neox" and ours.get("d_ff") is None:  # NeoX always says it
        width = ours.get("d_model")
        ours["d_ff"] = 4 * width if isinstance(width, int) else 0
    if isinstance(ours["eos_token_id"], list):
        ours["eos_token_id"] = tuple(ours["eos_token_id"])
    missing = [theirs for theirs, name in family.honoured.items() if name not in ours]
    if kind == "gpt_neo" and "attention_types" not in fields:
        missing.append("attention_types")
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: a {family.title} config has them")
    if kind == "gpt_neox":
        ours |= _rotary_fraction(fields, where, ours)
        ours["qkv_bias"] = ours["attn_out_bias"] = fields.get("attention_bias", True)
    if kind == "gpt_neo":
        ours["local_windows"] = _windows(fields, where, ours["num_layers"])
    return ours


def to_file(ours: Mapping[str, Any], windows: tuple[int | None, ...]) -> dict[str, Any]:
    """The config.json of a network with our fields, and `windows` for each of its layers.

    Raises:
        ValueError: a field whose value a config.json of the family can't say.
    """
    kind = ours["family"]
    family = _FAMILIES[kind]
    said = set(family.honoured.values()) | family.expressed
    for name, value in family.published.items():
        if name not in said and ours[name] != value:
            raise ValueError(
                f"{name} is {ours[name]!r}, which a {family.title} config.json can't say "
                f"(it means {value!r}): set it to that, or keep this network in memory"
            )
    fields = {
        "model_type": kind,
        "architectures": [family.architecture],
        **{theirs: ours[name] for theirs, name in family.honoured.items()},
    }
    if isinstance(ours["eos_token_id"], tuple):
        fields["eos_token_id"] = list(ours["eos_token_id"])
    if "tie_word_embeddings" not in fields:
        fields["tie_word_embeddings"] = False
    if kind == "gpt_neox":
        if ours["qkv_bias"] != ours["attn_out_bias"]:
            raise ValueError(
                f"qkv_bias is {ours['qkv_bias']} and attn_out_bias {ours['attn_out_bias']}: a "
                "GPT-NeoX config.json has one attention_bias for both, so make them equal"
            )
        # The older names: transformers 4 and 5 both read them.
        fields["rotary_pct"] = _fraction(ours["d_rotary"], ours["d_model"] // ours["num_heads"])
        fields["rotary_emb_base"] = ours["rotary_base"]
        fields["attention_bias"] = ours["qkv_bias"]
    if kind == "gpt_neo":
        sizes = {window for window in windows if window is not None} or {_WINDOW}
        if len(sizes) > 1:
            raise ValueError(
                f"local_windows has the sizes {sorted(sizes)}: a GPT-Neo config.json has one "
                "window_size, so make them equal"
            )
        types = ["global" if window is None else "local" for window in windows]
        fields |= {"attention_types": [[types, 1]], "window_size": sizes.pop()}
    return fields | dict.fromkeys(family.dropout, 0.0)


def updated(
    before: Mapping[str, Any], now: Mapping[str, Any], kind: str, changed: Set[str]
) -> dict[str, Any]:
    """A config.json with the fields of another for what changed, and everything else as it was.

    Args:
        before, now: both of the family `kind`, and such that `to_ours` reads them.
        changed: our fields that `now` says otherwise.
    """
    family = _FAMILIES[kind]
    fields = dict(before)
    if changed & family.expressed:  # they have several spellings, of which one is written
        fields = {name: value for name, value in fields.items() if name not in family.special}
        fields |= {name: now[name] for name in family.special if name in now}
    theirs = {name for name, ours in family.honoured.items() if ours in changed}
    return fields | {name: now[name] for name in theirs if name in now}


def _rotary_fraction(fields: Mapping[str, Any], where: str, ours: dict[str, Any]) -> dict[str, Any]:
    """d_rotary and rotary_base of a GPT-NeoX: transformers 4 and 5 write them differently."""
    rope = fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters in {where} is {rope!r}: a JSON object is needed")
    for name, value in rope.items():
        kind = name in ("rope_type", "type")
        if (kind and value != "default") or not (
            kind or name in ("rope_theta", "partial_rotary_factor")
        ):
            raise ValueError(
                f"{name} of rope_parameters in {where} is {value!r}, which this network doesn't "
                "honour: only rotary positions of the type 'default' are supported"
            )
    fraction = _agreed(where, 0.25, {
        "rope_parameters.partial_rotary_factor": rope.get("partial_rotary_factor"),
        "partial_rotary_factor": fields.get("partial_rotary_factor"),
        "rotary_pct": fields.get("rotary_pct"),
    })  # fmt: skip
    base = _agreed(where, 10000.0, {
        "rope_parameters.rope_theta": rope.get("rope_theta"),
        "rope_theta": fields.get("rope_theta"),
        "rotary_emb_base": fields.get("rotary_emb_base"),
    })  # fmt: skip
    if not 0 < fraction <= 1:
        raise ValueError(
            f"rotary_pct in {where} is {fraction!r}: more than 0 and up to 1 is needed"
        )
    width, heads = ours["d_model"], ours["num_heads"]
    sized = isinstance(width, int) and isinstance(heads, int) and heads > 0
    return {"d_rotary": int(width // heads * fraction) if sized else 0, "rotary_base": base}


def _agreed(where: str, default: float, named: dict[str, Any]) -> float:
    """The one number that all the names give which are present."""
    given = {name: value for name, value in named.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} in {where} is {value!r}: a number is needed")
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name} {value}" for name, value in given.items())
        raise ValueError(f"{where} has {said}: they mean the same, so make them equal")
    return float(next(iter(given.values()), default))


def _fraction(part: int, whole: int) -> float:
    """A fraction of which transformers' int(whole * fraction) makes `part` again."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, 1)


def _windows(fields: Mapping[str, Any], where: str, num_layers: Any) -> tuple[int | None, ...]:
    """The window of each layer of a GPT-Neo, from attention_types and window_size."""
    types = fields["attention_types"]
    window = fields.get("window_size", _WINDOW)
    try:
        runs = [(list(kinds), count) for kinds, count in types]
        known = all(kind in ("global", "local") for kinds, _ in runs for kind in kinds)
        total = sum(len(kinds) * count for kinds, count in runs)
    except (TypeError, ValueError):
        runs, known, total = [], False, 0
    if not known or total != num_layers or not 0 < total <= _MOST_LAYERS:
        raise ValueError(
            f"attention_types in {where} is {types!r:.200}: pairs like [['global', 'local'], 6] "
            f"are needed, which describe {num_layers!r} layers together"
        )
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window_size in {where} is {window!r}: a number of tokens is needed")
    layers = [kind for kinds, count in runs for _ in range(count) for kind in kinds]
    if fields.get("attention_layers", layers) != layers:
        raise ValueError(
            f"attention_layers in {where} isn't what attention_types says: remove the wrong one"
        )
    return tuple(window if kind == "local" else None for kind in layers)
