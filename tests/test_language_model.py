"""LanguageModel and load: the same logits after a round trip, and what they refuse."""

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

import gptj_lab
from gptj_lab.config import ModelConfig
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import Tokenizer


def make(vocab_size):
    config = ModelConfig.of_family(
    "gptj",
        vocab_size=vocab_size, context=8, d_model=16, num_layers=2, num_heads=2, d_rotary=4,
        d_ff=32, activation="gelu_new", layer_norm_eps=1e-5, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    network = Transformer(config, key=jax.random.key(0))
    return gptj_lab.LanguageModel(config, network, Tokenizer(inner), "tiny")


@pytest.fixture(scope="module")
def model():
    return make(260)


def test_saved_and_loaded_gives_the_same_logits(model, tmp_path):
    model.save(tmp_path)
    again = gptj_lab.load(tmp_path)
    assert (again.logits([[1, 2, 3]]) == model.logits([[1, 2, 3]])).all()
    assert gptj_lab.load(tmp_path, weights="bfloat16").dtype == "bfloat16"


def test_a_disk_that_is_full_at_the_tokenizer_leaves_all_old_files_whole(
    model, tmp_path, monkeypatch
):
    model.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, directory):
        (directory / "tokenizer.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make(300).save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_trace_names_the_sites_that_were_asked_for(model):
    trace = model.trace("hello", sites=["blocks.*.attn.pattern"])
    assert list(trace) == ["blocks.0.attn.pattern", "blocks.1.attn.pattern"]
    np.testing.assert_allclose(trace["blocks.1.attn.pattern"].sum(-1), 1, rtol=1e-5)
    assert trace["blocks.0.attn.pattern"].shape == (2, 5, 5)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 260]], "from 1 to 260"),
        ([[-1]], "from -1"),
        ([[0] * 11], "3 more than the context of 8"),
        ([1, 2], "shape"),
        ([[]], "shape"),
        ([[0.5]], "float64"),
        ([[1], [1, 2]], "unequal length"),
    ],
)
def test_token_ids_that_do_not_fit(model, ids, words):
    with pytest.raises(ValueError, match=words):
        model.logits(ids)


def test_tokenizer_larger_than_the_embedding():
    with pytest.raises(ValueError, match="256 tokens, the embedding only 100"):
        make(100)


def test_unknown_model_name():
    with pytest.raises(FileNotFoundError, match="'gpt-jay' is not the embedded"):
        gptj_lab.load("gpt-jay")


@pytest.fixture(scope="module", params=["codegen", "gpt_neox", "gpt_neo", "gpt2"])
def relative(request, tiny_config, tiny_tokenizer):
    """A LanguageModel of each family beside GPT-J."""
    sizes = {
        name: getattr(tiny_config(), name)
        for name in ("vocab_size", "context", "d_model", "num_heads", "d_ff", "initializer_range")
    }
    more = {
        "codegen": {"d_rotary": 4},
        "gpt_neox": {"d_rotary": 4, "parallel": False},
        "gpt_neo": {"local_windows": (None, 3)},
        "gpt2": {},
    }
    config = ModelConfig.of_family(request.param, num_layers=2, **sizes, **more[request.param])
    network = Transformer(config, key=jax.random.key(1))
    return gptj_lab.LanguageModel(config, network, tiny_tokenizer, request.param)


def test_every_family_generates_what_its_logits_say(relative):
    prompt = "the cat sat on"
    done = relative.generate(prompt, max_new_tokens=6, temperature=0.0)[0]
    ids = [*relative.tokenizer.encode(prompt), *done.token_ids]
    best = np.asarray(relative.logits([ids])).argmax(-1)[0]
    assert len(done.token_ids) == 6
    assert list(done.token_ids) == best[-7:-1].tolist()


def test_every_family_traces_every_site_and_is_saved(relative, tolerance, tmp_path):
    trace = relative.trace("the dog", sites=["*"])
    assert trace.keys() == set(sites.all_of(relative.config))
    ids = [relative.tokenizer.encode("the dog")]
    plain = relative.logits(ids)
    # XLA fuses another program where every value is kept: the last bits may differ.
    np.testing.assert_allclose(
        trace["logits"], plain[0], atol=tolerance["float32"] * float(abs(plain).max())
    )
    relative.save(tmp_path)
    again = gptj_lab.load(tmp_path)
    assert again.config == relative.config
    assert (again.logits(ids) == plain).all()
