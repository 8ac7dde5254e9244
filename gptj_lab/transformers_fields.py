"""What transformers' config classes know of config.json, without importing transformers.

The knowledge lies in transformers_fields.json, which `python tests/transformers_classes.py` makes
from the installed classes; a test holds the two together.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PATH = Path(__file__).with_suffix(".json")
# Read by other parts of transformers than a model's class: files, tokenizers, pipelines.
_ELSEWHERE = {
    "model_type", "architectures", "transformers_version", "torch_dtype", "_name_or_path",
    "name_or_path", "_commit_hash", "num_labels", "tokenizer_class", "task_specific_params",
    "prefix", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
}  # fmt: skip


class Known(NamedTuple):
    """What the class of one family knows.

    Attributes:
        aliases: other names of its fields.
        defaults: of every field.
        nullable: fields that may be null, which then means something else than the default.
        reads: the names that the modelling code asks a config for.
        changes: those of them that change what the network computes.
    """

    aliases: dict[str, str]
    defaults: dict[str, Any]
    nullable: frozenset[str]
    reads: frozenset[str]
    changes: frozenset[str]


def of(family: str) -> Known:
    """What transformers' class of the family knows."""
    told = _table()["families"][family]
    return Known(
        told["aliases"],
        told["defaults"],
        *(frozenset(told[name]) for name in ("nullable", "reads", "changes")),
    )


def settled(family: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as the class takes them: aliases under their own name, null as the default.

    An alias wins over the name it stands for. A null is kept where the class gives it a meaning
    of its own.
    """
    known = of(family)
    found = {name: value for name, value in fields.items() if name not in known.aliases}
    found |= {known.aliases[name]: v for name, v in fields.items() if name in known.aliases}
    return {
        name: known.defaults[name]
        if value is None and name in known.defaults and name not in known.nullable
        else value
        for name, value in found.items()
    }


def without_nulls(family: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json but for nulls that stand for the default of transformers' class.

    They load here; transformers itself refuses them.
    """
    known = of(family)

    def idle(name: str) -> bool:
        theirs = known.aliases.get(name, name)
        return theirs not in known.nullable and known.defaults.get(theirs) is not None

    return {name: value for name, value in fields.items() if value is not None or not idle(name)}


def passed_over(family: str, fields: Mapping[str, Any], more: frozenset[str]) -> list[str]:
    """The fields that say something, and that nothing in transformers reads for this family.

    Those that say nothing (false, null, empty), or what is another family's default, such as
    GPT-2's `summary_type` in a GPT-J's file, aren't among them.

    Args:
        more: names that the family reads beside its class's own fields.
    """
    known = of(family)
    read = known.defaults.keys() | known.aliases.keys() | known.reads | more | _ELSEWHERE
    read |= set(_table()["generation"])
    others = [told["defaults"] for told in _table()["families"].values()]
    return sorted(
        name
        for name, value in fields.items()
        if name not in read
        and value not in (None, False, "", [], {})
        and not any(name in other and same(other[name], value) for other in others)
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; 1 and True are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(_PATH.read_text(encoding="utf-8"))
