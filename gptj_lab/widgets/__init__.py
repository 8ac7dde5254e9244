"""One composite view a tool, for a notebook."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptj_lab.widgets.explorer import Explorer
    from gptj_lab.widgets.meshview import MeshView
    from gptj_lab.widgets.playground import Playground
    from gptj_lab.widgets.tuneboard import TuneBoard

__all__ = ["Explorer", "MeshView", "Playground", "TuneBoard"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"gptj_lab.widgets has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"gptj_lab.widgets.{name.lower()}"), name)
