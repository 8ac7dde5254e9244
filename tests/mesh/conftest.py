"""The suite's tiny model on one device and on meshes of the eight host devices."""

import jax
import pytest

import gptj_lab
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer


@pytest.fixture(scope="session")
def on_mesh(tiny_config, tiny_tokenizer):
    """A function: the model of a config (random weights of one seed) on a mesh, or on none."""
    made = {}

    def make(data=None, model=None, **fields) -> LanguageModel:
        key = (data, model, *sorted(fields.items()))
        if key not in made:
            config = tiny_config(**fields)
            network = Transformer(config, key=jax.random.key(1))
            mesh = gptj_lab.mesh(data=data, model=model) if data else None
            made[key] = LanguageModel(config, network, tiny_tokenizer, "tiny", mesh)
        return made[key]

    return make
