"""Special and added tokens, as the files beside a tokenizer name them.

Source: transformers 5.24, PreTrainedTokenizerBase._from_pretrained: `added_tokens_decoder` of
tokenizer_config.json says all; where it isn't there, special_tokens_map.json, added_tokens.json and
the added tokens of tokenizer.json do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as Added

Special = dict[str, "Added | str | None"]  # the token of each role; None where one is ruled out
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")  # the second is its older name


def special_tokens(
    folder: Path, settings: Mapping[str, Any], serialized: Mapping[str, Any] | None
) -> tuple[Special, list[Added | str], dict[int, Added]]:
    """(token of each role, special tokens without one, added tokens by id).

    Raises:
        ValueError: a file that holds something else than tokens where they should be.
    """
    said = {name: value for name, value in settings.items() if _is_about_tokens(name)}
    _rename(said)
    if settings.get("added_tokens_decoder") is None:
        said, added = _legacy(folder, said, serialized)
    else:
        place = folder / "tokenizer_config.json"
        added = {
            _id(place, number): _token(place, "added_tokens_decoder", token, typed=True)
            for number, token in _object(place, settings["added_tokens_decoder"]).items()
        }
    place = folder / "tokenizer_config.json"
    extra = said.pop("extra_special_tokens", None)
    if isinstance(extra, Mapping):  # roles of the model's own
        said, extra = said | dict(extra), None
    named: Special = {}
    for role, value in said.items():
        if role in ROLES or isinstance(value, str | Added | Mapping):  # others only end in "_token"
            named[role] = _token(place, role, value) if value not in (None, "") else None
    by_text = {token.content: token for token in added.values()}
    named |= {role: by_text.get(str(t), t) for role, t in named.items() if role in ROLES and t}
    if not isinstance(extra, list | None):
        raise ValueError(f"{place}: extra_special_tokens is {extra!r}: a list is needed")
    return named, [_token(place, "extra_special_tokens", token) for token in extra or []], added


def _is_about_tokens(name: str) -> bool:
    return name in _LISTS or (name.endswith("_token") and not name.startswith("add_"))


def _rename(said: dict[str, Any]) -> None:
    older = said.pop(_LISTS[1], None)
    if older is not None and not said.get(_LISTS[0]):
        said[_LISTS[0]] = older


def _legacy(
    folder: Path, said: dict[str, Any], serialized: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[int, Added]]:
    """The same from the files that came before added_tokens_decoder."""
    added: dict[int, Added] = {}
    place = folder / "special_tokens_map.json"
    if place.is_file():
        for name, value in _object(place, _json(place)).items():
            if isinstance(value, Mapping) and name != _LISTS[0]:
                value = _special(place, name, value)
            elif isinstance(value, list):
                value = [_special(place, name, token) for token in value]
                known = list(said.get(name) or []) if name == _LISTS[0] else []
                value = known + [each for each in value if each not in known]
            said[name] = value
    place = folder / "added_tokens.json"
    if place.is_file():
        listed = said.get(_LISTS[0]) or []
        special = {str(said[role]) for role in ROLES if said.get(role)} | set(map(str, listed))
        for text, number in _object(place, _json(place)).items():
            is_special = text in special
            added[_id(place, number)] = Added(text, normalized=not is_special, special=is_special)
    _rename(said)  # only now: transformers doesn't look at the older name for the above
    for token in (serialized or {}).get("added_tokens") or []:
        place = folder / "tokenizer.json"
        facts = dict(_object(place, token))
        added[_id(place, facts.pop("id", None))] = _token(place, "added_tokens", facts, typed=True)
    return said, added


def _token(place: Path, name: str, value: Any, *, typed: bool = False) -> Any:
    """A token as it is written: a text, or an object with its flags.

    Args:
        typed: a text alone is no token here.
    """
    if isinstance(value, Added) or (isinstance(value, str) and value and not typed):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
        flags = {flag: bool(on) for flag, on in value.items() if flag in _FLAGS}
        return Added(value["content"], **flags)
    raise ValueError(f"{place}: {name} is {value!r}: the text of a token is needed, or its fields")


_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def _special(place: Path, name: str, value: Any) -> Any:
    return _token(place, name, {**value, "special": True} if isinstance(value, Mapping) else value)


def _id(place: Path, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {value!r} is no token id: a whole number is needed") from None


def _object(place: Path, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place} holds a {type(value).__name__} where an object is needed")
    return value


def _json(place: Path) -> Any:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}): copy it again") from None
