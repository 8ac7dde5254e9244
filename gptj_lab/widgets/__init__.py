"""One composite view a tool, for a notebook."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptj_lab.widgets.playground import Playground

__all__ = ["Playground"]


def __getattr__(name: str) -> Any:
    if name != "Playground":
        raise AttributeError(f"gptj_lab.widgets has no {name!r}: it has {', '.join(__all__)}")
    from gptj_lab.widgets.playground import Playground

    return Playground
