"""gptj_lab: a Jupyter-centred research playground around GPT-J, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from gptj_lab import widgets

if TYPE_CHECKING:
    from gptj_lab.config import ModelConfig
    from gptj_lab.generation.decoding import Completion
    from gptj_lab.language_model import LanguageModel, load
    from gptj_lab.mesh.planner import Plan, plan

__all__ = ["Completion", "LanguageModel", "ModelConfig", "Plan", "load", "plan", "widgets"]
__version__ = "0.1.0"

# Imported when first used: the command line answers at once, and nothing touches a device.
_HOME = {
    "Completion": "gptj_lab.generation.decoding",
    "LanguageModel": "gptj_lab.language_model",
    "ModelConfig": "gptj_lab.config",
    "Plan": "gptj_lab.mesh.planner",
    "load": "gptj_lab.language_model",
    "plan": "gptj_lab.mesh.planner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"gptj_lab has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
