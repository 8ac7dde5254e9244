"""The GPT family's published shapes by name, for calculators and for networks from scratch.

>>> from gptj_lab import presets
>>> presets.named("gpt-j-6b").num_parameters
6050882784
"""

import difflib
from pathlib import Path
from types import MappingProxyType

from gptj_lab.config import ModelConfig

_PACKAGE = Path(__file__).parent
# Where the embedded model lies: in a wheel inside the package, in a clone beside it.
POCKET = (_PACKAGE / "pocket", _PACKAGE.parent / "data" / "pocket")
_END_OF_TEXT = 50256  # of GPT-2's tokenizer


def _gpt_2(
    d_model: int, num_layers: int, num_heads: int, context: int, family: str = "gpt2", **more
) -> ModelConfig:
    """A model with GPT-2's vocabulary, its MLP four times as wide as the residual stream."""
    return ModelConfig.of_family(
        family, vocab_size=50257, context=context, d_model=d_model, num_layers=num_layers,
        num_heads=num_heads, d_ff=4 * d_model, bos_token_id=_END_OF_TEXT,
        eos_token_id=_END_OF_TEXT, **more,
    )  # fmt: skip


def _gpt_neo(d_model: int, num_layers: int, num_heads: int) -> ModelConfig:
    return _gpt_2(d_model, num_layers, num_heads, 2048, "gpt_neo", local_windows=(None, 256))


def _gpt_neox(
    d_model: int, num_layers: int, num_heads: int, vocab_size: int, activation: str = "gelu"
) -> ModelConfig:
    """A quarter of each head is rotated (rotary_pct 0.25)."""
    return ModelConfig.of_family(
        "gpt_neox", vocab_size=vocab_size, context=2048, d_model=d_model, num_layers=num_layers,
        num_heads=num_heads, d_ff=4 * d_model, d_rotary=d_model // num_heads // 4,
        activation=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def _codegen(d_model: int, num_layers: int, num_heads: int, d_rotary: int) -> ModelConfig:
    return ModelConfig.of_family(
        "codegen", vocab_size=51200, context=2048, d_model=d_model, num_layers=num_layers,
        num_heads=num_heads, d_ff=4 * d_model, d_rotary=d_rotary, bos_token_id=1,
        eos_token_id=_END_OF_TEXT,
    )  # fmt: skip


PRESETS = MappingProxyType({
    "gpt-j-6b": ModelConfig.of_family(
        "gptj", vocab_size=50400, context=2048, d_model=4096, num_layers=28, num_heads=16,
        d_ff=16384, d_rotary=64, bos_token_id=_END_OF_TEXT, eos_token_id=_END_OF_TEXT,
    ),
    "codegen-350m-mono": _codegen(1024, 20, 16, 32),
    "codegen-2b-mono": _codegen(2560, 32, 32, 64),
    "codegen-6b-mono": _codegen(4096, 33, 16, 64),
    "codegen-16b-mono": _codegen(6144, 34, 24, 64),
    "gpt-neox-20b": _gpt_neox(6144, 44, 64, 50432, "gelu_fast"),
    "pythia-14m": _gpt_neox(128, 6, 4, 50304),
    "pythia-31m": _gpt_neox(256, 6, 8, 50304),
    "pythia-70m": _gpt_neox(512, 6, 8, 50304),
    "pythia-160m": _gpt_neox(768, 12, 12, 50304),
    "pythia-410m": _gpt_neox(1024, 24, 16, 50304),
    "pythia-1b": _gpt_neox(2048, 16, 8, 50304),
    "pythia-1.4b": _gpt_neox(2048, 24, 16, 50304),
    "pythia-2.8b": _gpt_neox(2560, 32, 32, 50304),
    "pythia-6.9b": _gpt_neox(4096, 32, 32, 50432),
    "pythia-12b": _gpt_neox(5120, 36, 40, 50688),
    "gpt-neo-125m": _gpt_neo(768, 12, 12),
    "gpt-neo-1.3b": _gpt_neo(2048, 24, 16),
    "gpt-neo-2.7b": _gpt_neo(2560, 32, 20),
    "gpt2": _gpt_2(768, 12, 12, 1024),
    "gpt2-medium": _gpt_2(1024, 24, 16, 1024),
    "gpt2-large": _gpt_2(1280, 36, 20, 1024),
    "gpt2-xl": _gpt_2(1600, 48, 25, 1024),
    # Table 2.1 of Brown et al. 2020. It prints 24 heads of 128 for XL and a width of 5140 for 13B,
    # which can't be: heads times their width make d_model. The sparse attention of every other
    # layer was not published exactly: these attend to everything.
    "gpt3-small": _gpt_2(768, 12, 12, 2048),
    "gpt3-medium": _gpt_2(1024, 24, 16, 2048),
    "gpt3-large": _gpt_2(1536, 24, 16, 2048),
    "gpt3-xl": _gpt_2(2048, 24, 16, 2048),
    "gpt3-2.7b": _gpt_2(2560, 32, 32, 2048),
    "gpt3-6.7b": _gpt_2(4096, 32, 32, 2048),
    "gpt3-13b": _gpt_2(5120, 40, 40, 2048),
    "gpt3-175b": _gpt_2(12288, 96, 96, 2048),
})  # fmt: skip


def named(name: str) -> ModelConfig:
    """The config of a published model, by its name in PRESETS or on the hub, in any case.

    Raises:
        ValueError: no preset has that name; the message lists the nearest ones.
    """
    key = name.rpartition("/")[2].lower()
    if key in PRESETS:
        return PRESETS[key]
    near = difflib.get_close_matches(key, PRESETS, n=3, cutoff=0.0)
    raise ValueError(f"no published shape is named {name!r}: the nearest are {', '.join(near)}")
