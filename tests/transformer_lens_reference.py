"""TransformerLens on the very weights of a LanguageModel: an independent reference for the lens.

It is in the extra `reference`, not in `test`: a minute and 300 MB, wandb and datasets among them.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest


def bridge_of(model):
    """A TransformerBridge with the model's weights; skips the test where it isn't installed."""
    pytest.importorskip("transformer_lens")
    return _bridge(model)


@functools.cache
def _bridge(model):
    bridge = new_bridge(model)
    bridge.cfg.default_prepend_bos = False  # a text's tokens are those of our tokenizer
    return bridge.eval()


def new_bridge(model):
    """A TransformerBridge that nobody else has, to be changed as one likes."""
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(Path(folder) / "tokenizer.json"), eos_token="<|endoftext|>"
        )
        return TransformerBridge.boot_transformers(
            folder, hf_model=theirs.eval(), tokenizer=tokenizer, device="cpu"
        )


def cache_of(model, token_ids):
    """Logits [seq, vocab] and every activation of TransformerLens by its hook's name."""
    import torch

    bridge = bridge_of(model)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(torch.tensor(np.asarray(token_ids)[None]))
    return logits[0].numpy(), {
        name: value[0].numpy() for name, value in cache.items() if torch.is_tensor(value)
    }
