"""Special and added tokens, as the files beside a tokenizer name them.

Source: transformers 5.24, PreTrainedTokenizerBase._from_pretrained: `added_tokens_decoder` of
tokenizer_config.json says all; where it isn't there, special_tokens_map.json, added_tokens.json and
the added tokens of tokenizer.json do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as Added

from gptj_lab import json_files

Special = dict[str, "Added | str | None"]  # the token of each role; None where one is ruled out
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA, _OLDER = "extra_special_tokens", "additional_special_tokens"  # the older name of it
_OWN = "model_specific_special_tokens"


def special_tokens(
    folder: Path, settings: Mapping[str, Any], serialized: Mapping[str, Any] | None
) -> tuple[Special, list[Added | str], dict[int, Added]]:
    """(token of each role, special tokens without one, added tokens by id).

    Raises:
        ValueError: a file that holds something else than tokens where they should be.
    """
    place = folder / "tokenizer_config.json"
    said = {name: value for name, value in settings.items() if _is_about_tokens(name)}
    if said.get(_EXTRA) in (None, [], {}, ""):
        _rename(said)
    _gather_own(place, said)
    if settings.get("added_tokens_decoder") is None:
        said, added = _legacy(folder, said, serialized)
    else:
        added = {
            _id(place, number): _token(place, "added_tokens_decoder", token, typed=True)
            for number, token in _object(place, settings["added_tokens_decoder"]).items()
        }
    if _EXTRA not in said:  # a list beside what was an object, or one of special_tokens_map.json
        _rename(said)
    extra, own = said.pop(_EXTRA, None), said.pop(_OWN, None)
    own = {} if own is None else dict(_own(place, _OWN, own))
    if isinstance(extra, Mapping):
        own, extra = {**extra, **own}, None
    # What the files name one by one comes before what an object names; a role keeps its place.
    said = {role: value for role, value in said.items() if role in ROLES or _is_one(value)} | own
    named: Special = {
        role: _token(place, role, value) if value not in (None, "") else None
        for role, value in said.items()
    }
    by_text = {token.content: token for token in added.values()}
    named |= {role: by_text.get(str(t), t) for role, t in named.items() if role in ROLES and t}
    if not isinstance(extra, list | None):
        raise ValueError(f"{place}: {_EXTRA} is {extra!r}: a list is needed")
    return named, [_token(place, _EXTRA, token) for token in extra or []], added


def _is_about_tokens(name: str) -> bool:
    return name in (_EXTRA, _OLDER, _OWN) or name.endswith("_token")


def _is_one(value: Any) -> bool:
    """Whether this is a token, as it has to be written for a role that isn't of `ROLES`."""
    typed = isinstance(value, Mapping) and value.get("__type") == "AddedToken"
    return typed or isinstance(value, str | Added)


def _rename(said: dict[str, Any]) -> None:
    if _OLDER in said:
        said[_EXTRA] = said.pop(_OLDER)


def _gather_own(place: Path, said: dict[str, Any]) -> None:
    """Puts the roles of the model's own that tokenizer_config.json names into one object.

    They take the place of model_specific_special_tokens, if there are any.
    """
    names = [name for name, value in said.items() if _is_own(name) and isinstance(value, str)]
    own = {name: said.pop(name) for name in names}
    if isinstance(said.get(_EXTRA), Mapping):
        own |= _own(place, _EXTRA, said.pop(_EXTRA))
    if own:
        said[_OWN] = own


def _is_own(name: str) -> bool:
    return name.endswith("_token") and name not in ROLES


def _own(place: Path, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: {name} is {value!r}: an object of roles and tokens is needed")
    return value


def _legacy(
    folder: Path, said: dict[str, Any], serialized: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[int, Added]]:
    """The same from the files that came before added_tokens_decoder."""
    added: dict[int, Added] = {}
    place = folder / "special_tokens_map.json"
    if place.is_file():
        for name, value in json_files.read_file(place).items():
            if isinstance(value, Mapping) and name != _EXTRA:
                value = _special(place, name, value)
            elif isinstance(value, list):
                value = [_special(place, name, token) for token in value]
                known = list(said.get(name) or []) if name == _EXTRA else []
                value = known + [each for each in value if each not in known]
            said[name] = value
        if isinstance(said.get(_EXTRA), Mapping):
            said[_OWN] = dict(said.get(_OWN) or {}) | dict(said.pop(_EXTRA))
    place = folder / "added_tokens.json"
    if place.is_file():
        listed = said.get(_EXTRA) or []
        special = {str(said[role]) for role in ROLES if said.get(role)} | set(map(str, listed))
        for text, number in json_files.read_file(place).items():
            is_special = text in special
            added[_id(place, number)] = Added(text, normalized=not is_special, special=is_special)
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
