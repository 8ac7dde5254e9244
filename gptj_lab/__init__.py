"""gptj_lab: a Jupyter-centred research playground around GPT-J, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from gptj_lab import widgets

if TYPE_CHECKING:
    from gptj_lab import presets
    from gptj_lab.config import ModelConfig
    from gptj_lab.finetuning.methods import Full, LastBlocks, LoRA, SoftPrompt
    from gptj_lab.finetuning.optimisers import Optimiser
    from gptj_lab.finetuning.run import Run, finetune
    from gptj_lab.generation.decoding import Completion
    from gptj_lab.language_model import LanguageModel, load
    from gptj_lab.mesh.planner import Plan, plan
    from gptj_lab.mesh.sharding import make_mesh as mesh

__all__ = [
    "Completion",
    "Full",
    "LanguageModel",
    "LastBlocks",
    "LoRA",
    "ModelConfig",
    "Optimiser",
    "Plan",
    "Run",
    "SoftPrompt",
    "finetune",
    "load",
    "mesh",
    "plan",
    "presets",
    "widgets",
]
__version__ = "0.1.0"

# Imported when first used: the command line answers at once, and nothing touches a device.
_HOME = {
    "Completion": "gptj_lab.generation.decoding",
    "Full": "gptj_lab.finetuning.methods",
    "LanguageModel": "gptj_lab.language_model",
    "LastBlocks": "gptj_lab.finetuning.methods",
    "LoRA": "gptj_lab.finetuning.methods",
    "ModelConfig": "gptj_lab.config",
    "Optimiser": "gptj_lab.finetuning.optimisers",
    "Plan": "gptj_lab.mesh.planner",
    "Run": "gptj_lab.finetuning.run",
    "SoftPrompt": "gptj_lab.finetuning.methods",
    "finetune": "gptj_lab.finetuning.run",
    "load": "gptj_lab.language_model",
    "presets": "gptj_lab.presets",
    "plan": "gptj_lab.mesh.planner",
}


def __getattr__(name: str) -> Any:
    if name == "mesh":  # a package that can be called
        return importlib.import_module("gptj_lab.mesh")
    if name not in _HOME:
        raise AttributeError(f"gptj_lab has no {name!r}: it has {', '.join(__all__)}")
    home = importlib.import_module(_HOME[name])
    return home if home.__name__ == f"gptj_lab.{name}" else getattr(home, name)
