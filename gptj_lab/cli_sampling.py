"""What `gptj-lab generate` and `gptj-lab chat` sample with where the user gives nothing."""

import sys
from typing import Any


def begin_with(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings given, and those of the model's generation_config.json, which are told."""
    others = {name: value for name, value in model.sampling_defaults.items() if name not in given}
    if others:
        options = " ".join(
            f"--{name.replace('_', '-')} {value:g}" for name, value in others.items()
        )
        print(f"[{options}, as generation_config.json of {model.name} says]", file=sys.stderr)
    return others | given
