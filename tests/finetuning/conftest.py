"""What the tests of runs share: a model that is small enough to train, and a cache of their own."""

import jax
import pytest

from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer


@pytest.fixture
def corpora(monkeypatch, tmp_path):
    """Tokenised texts lie in the test's own folder."""
    monkeypatch.setenv("GPTJ_LAB_CACHE", str(tmp_path / "corpora"))


@pytest.fixture(scope="module")
def model(tiny_config, tiny_tokenizer):
    """A model of one block."""
    config = tiny_config(num_layers=1, vocab_size=300)
    return LanguageModel(config, Transformer(config, key=jax.random.key(1)), tiny_tokenizer, "tiny")
