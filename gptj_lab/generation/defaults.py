"""The sampling settings that a model's generation_config.json asks for."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptj_lab.generation.sampling import make_settings
from gptj_lab.notices import tell

# Fields of transformers' GenerationConfig that mean the same in `generate`.
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def declared(content: bytes | None, name: str = "") -> Mapping[str, float]:
    """The settings that the file names, by their names in `generate`; none without a file.

    `"do_sample": false` is temperature 0, whatever else is there, as in transformers. A value that
    `generate` refuses is told in one line and left out. (transformers cuts to the 50 likeliest
    tokens where a file samples and names no top_k; here nothing is cut that the file doesn't name.)

    Args:
        content: of generation_config.json; None if there is none. What isn't a JSON object names
            nothing: that was told with the end tokens.
        name: what the model was loaded as, to tell it.
    """
    try:
        fields: Any = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        fields = {}
    found: dict[str, float] = {}
    if isinstance(fields, dict):
        fields = {key: value for key, value in fields.items() if value is not None}
        place = f"{name or 'the model'}: generation_config.json"
        for key in _FIELDS:
            if key in fields and _accepted(key, fields[key], place):
                found[key] = fields[key]
        sampled = fields.get("do_sample", True)
        if not isinstance(sampled, bool):
            tell(
                f"{place}: do_sample is {sampled!r}: true or false is needed, so it is passed over"
            )
        elif not sampled:
            found["temperature"] = 0
    return MappingProxyType(found)


def _accepted(key: str, value: Any, place: str) -> bool:
    try:
        make_settings(1, **{key: value})
    except (TypeError, ValueError) as error:
        tell(f"{place}: {error}, so it is passed over")
        return False
    return True
