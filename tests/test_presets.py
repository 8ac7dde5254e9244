"""The published shapes, each with its exact parameter count from another source."""

import pytest

import gptj_lab
from gptj_lab import presets

# GPT-J: Hugging Face's file. Pythia and NeoX-20B: their model cards. GPT-2 and GPT-Neo: the weights
# on the hub. CodeGen and GPT-3 publish rounded sizes only; transformers' class counts them exactly.
PUBLISHED = {
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-neo-2.7b": 2_651_307_520,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
ROUNDED = {  # table 2.1 of Brown et al. 2020
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 175e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert presets.named(name).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_gpt_3_has_the_papers_rounded_sizes(name):
    assert presets.named(name).num_parameters == pytest.approx(ROUNDED[name], rel=0.025)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_transformers_counts_the_same_in_its_class(name):
    torch = pytest.importorskip("torch")
    import transformers

    fields = presets.named(name).to_hugging_face()
    kind = getattr(transformers, fields["architectures"][0])
    with torch.device("meta"):
        model = kind(kind.config_class(**fields))
    assert sum(p.numel() for p in model.parameters()) == presets.named(name).num_parameters


def test_the_published_count_of_gpt_j_holds_the_copies_of_eight_shards():
    """6,053,381,344 = Hugging Face's, and what the original release replicates."""
    config = presets.named("gpt-j-6b")
    layers, d, shards = config.num_layers, config.d_model, 8
    copies = shards - 1
    layer_norms = copies * 2 * d  # scale and offset
    mlp_out_bias = copies * d  # every shard adds its own
    embedding_bias = shards * d  # which Hugging Face folds into the embedding
    replicated = layers * (layer_norms + mlp_out_bias) + layer_norms + embedding_bias
    assert replicated == 2_498_560
    assert config.num_parameters + replicated == 6_053_381_344
    assert config.num_parameters + d == 6_050_886_880  # the original's own, without copies


def test_names_are_those_of_the_hub_too():
    assert presets.named("EleutherAI/gpt-j-6B") is gptj_lab.presets.named("gpt-j-6b")
    assert presets.named("Salesforce/codegen-350M-mono").d_rotary == 32
    with pytest.raises(ValueError, match="'pythia-13b': the nearest are .*pythia-12b"):
        presets.named("pythia-13b")
