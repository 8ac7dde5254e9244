"""gptj_lab: a Jupyter-centred research playground around GPT-J, in JAX."""

from gptj_lab.config import ModelConfig
from gptj_lab.language_model import LanguageModel, load

__all__ = ["LanguageModel", "ModelConfig", "load"]
__version__ = "0.1.0"
