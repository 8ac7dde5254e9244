"""The names of the settings of `generate`, and what to write in place of transformers' own."""

import difflib
from collections.abc import Iterable, Sequence

# Of transformers' GenerationConfig (5.24): what stands here for the same.
_ELSEWHERE = {
    "do_sample": "temperature=0 always takes the likeliest token (do_sample=False), above 0 draws",
    "max_length": "max_new_tokens counts the new tokens alone",
    "max_tokens": "write max_new_tokens",
    "num_return_sequences": "write samples",
    "n": "write samples",
    "eos_token_id": "write end_tokens, ids or texts of tokens",
    "stop_strings": "write stop",
    "stopping_criteria": "write stop or end_tokens, or close the iterator of stream",
    "streamer": "use model.stream",
    "logit_bias": "write token_bias, a dict of token id to number",
    "sequence_bias": "token_bias, a dict of token id to number, weighs single tokens",
    "bad_words_ids": "ban takes the ids of single tokens",
    "suppress_tokens": "write ban",
    "generator": "write seed",
    "output_scores": "every completion has logprobs and alternatives",
    "output_logits": "every completion has logprobs; model.logits gives all",
    "output_attentions": "use model.trace",
    "output_hidden_states": "use model.trace",
    "return_dict_in_generate": "every completion has text, token_ids, logprobs and alternatives",
    "skip_special_tokens": "an end token is never part of a completion's text",
}  # fmt: skip
_ABSENT = (
    "num_beams", "num_beam_groups", "early_stopping", "length_penalty", "diversity_penalty",
    "penalty_alpha", "dola_layers", "assistant_model", "prompt_lookup_num_tokens", "epsilon_cutoff",
    "eta_cutoff", "guidance_scale", "no_repeat_ngram_size", "encoder_repetition_penalty",
    "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "logits_processor", "prefix_allowed_tokens_fn", "top_h",
)  # fmt: skip
_NEEDLESS = ("pad_token_id", "bos_token_id", "attention_mask", "use_cache", "cache_implementation")


def check(given: Iterable[str], known: Sequence[str]) -> None:
    """Refuses a name that isn't known, with what takes its place.

    Raises:
        TypeError: the message names the setting, the one to write instead, and all that are known.
    """
    for name in given:
        if name in known:
            continue
        if name in _ELSEWHERE:
            advice = _ELSEWHERE[name]
        elif name in _ABSENT:
            advice = "there is nothing like it here, leave it out"
        elif name in _NEEDLESS:
            advice = "it isn't needed here, leave it out"
        elif near := difflib.get_close_matches(name, known, 1):
            advice = f"do you mean {near[0]}?"
        else:
            advice = "leave it out"
        raise TypeError(
            f"generate has no setting {name!r}: {advice} (its settings: {', '.join(known)})"
        )
