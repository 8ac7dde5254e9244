"""What a run was told: checked when it is made, written to run.json, compared when it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gptj_lab import versions
from gptj_lab.corpora import templates
from gptj_lab.finetuning import continuing
from gptj_lab.finetuning.corpus import Corpus
from gptj_lab.finetuning.loss import check_remat
from gptj_lab.finetuning.methods import Method
from gptj_lab.finetuning.optimisers import Optimiser
from gptj_lab.generation.decoding import Decoding
from gptj_lab.language_model import LanguageModel
from gptj_lab.mesh import distributed
from gptj_lab.model.linear import Strength

DTYPES = ("float32", "bfloat16", "float16")
_EVALUATIONS = 10  # in a run that doesn't say how often
# What may be another when a run goes on: the steps before are those that they would have been.
_FREE = (
    "out", "evaluate_every", "save_every", "keep", "prompts", "sample_tokens", "patience", "steps",
    "base.name",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The choices of a run; `gptj_lab.finetune` says what they mean.

    Raises:
        TypeError, ValueError: one is out of range; the message names it.
    """

    method: Method
    optimiser: Optimiser
    steps: int
    batch: int
    seed: int
    dtype: str | None
    remat: str | None
    evaluate_every: int
    save_every: int
    keep: int
    patience: int | None
    prompts: tuple[str, ...]
    sample_tokens: int
    out: Path | None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every", "save_every", "keep", "sample_tokens"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}: a number below 2**63 is needed")
        if self.patience is not None:
            whole("patience", self.patience, 1)
        if self.batch % self.optimiser.accumulate:
            raise ValueError(
                f"batch is {self.batch}, which accumulate {self.optimiser.accumulate} doesn't "
                "divide: change one of them"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: None or one of {', '.join(DTYPES)}")
        check_remat(self.remat)
        for folder in () if self.out is None else (self.out, *self.out.parents):
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"out is {self.out}, but {folder} is a file: name a folder")

    @classmethod
    def of(cls, *, steps: int, prompts: Any, out: Path | str | None, **others: Any) -> Settings:
        """The settings, with what was left open: how often to evaluate and to save."""
        whole("steps", steps, 1)
        every = others.pop("evaluate_every")
        every = max(1, round(steps / _EVALUATIONS)) if every is None else every
        saving = others.pop("save_every")
        return cls(
            steps=steps,
            prompts=(prompts,) if isinstance(prompts, str) else tuple(prompts),
            out=None if out is None else Path(out).expanduser(),
            evaluate_every=every,
            save_every=every if saving is None else saving,
            **others,
        )

    def check(self, model: LanguageModel) -> None:
        """Nothing, if the samples can be written, and the result can be saved.

        Raises:
            TypeError, ValueError: a prompt is empty, or too long for the context; or the method's
                result has no form on this model.
        """
        continuing.check(model, self.method)
        if self.prompts:
            Decoding(model, self.prompts, max_new_tokens=self.sample_tokens)

    def record(self, model: LanguageModel, corpus: Corpus, held_out: Any) -> dict[str, Any]:
        """All of them as a dict for JSON, and what the run starts from."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {
            "method": {"kind": type(self.method).__name__, **dataclasses.asdict(self.method)},
            "optimiser": dataclasses.asdict(self.optimiser),
            "out": None if self.out is None else str(self.out),
            "context": corpus.train.context,
            "packing": corpus.train.packing,
            "held_out": held_out,
            "corpus": corpus.name,
            **corpus.asked,
            "chat_template": corpus.template and templates.as_text(corpus.template),
            "base": {
                "name": model.name, "weights": model.weights, "fingerprint": fingerprint(model),
            },
        }  # fmt: skip
        return json.loads(json.dumps(fields))


def agree(saved: Mapping[str, Any], wanted: Mapping[str, Any], out: Path) -> None:
    """Nothing, if a run of the settings `saved` can go on with those `wanted`.

    Raises:
        ValueError: they differ; the sentence names the one that explains most.
    """
    before, now = dict(_flat(saved)), dict(_flat(wanted))
    for name in sorted(before.keys() | now.keys(), key=_by_weight):
        old, new = before.get(name), now.get(name)
        if old == new or name in _FREE or (name == "held_out" and None in (old, new)):
            continue
        if name in ("template", "loss_on", "chat_template") and name not in saved:
            continue  # of an older version; then the text differs too
        if name == "corpus":
            raise ValueError(
                f"the text is another than the run in {out} was begun with, or another version of "
                "gptj_lab split it in another way: give the same text, or begin anew in another "
                "folder; what the run has trained stays in that one"
            )
        if name == "method.kind" and "Continued" in (old, new):
            was = "with" if old == "Continued" else "without"
            raise ValueError(
                f"the run in {out} was begun {was} an adapter to train further (adapter=, "
                "--adapter): do the same, or give another folder"
            )
        if name == "base.fingerprint" and now.get("method.kind") == "Continued":
            raise ValueError(
                f"the adapter that is trained further, or the model below it, is another than the "
                f"run in {out} was begun with: give the same, or another folder"
            )
        if name == "base.fingerprint":
            raise ValueError(
                f"the model is another than the run in {out} was begun with: give the same, or "
                "another folder"
            )
        raise ValueError(
            f"{name} is {new!r}, but the run in {out} was begun with {old!r}: give the same value, "
            "or another folder"
        )


def fingerprint(model: LanguageModel) -> str:
    """A hash of the config and the beginning of every weight; the same on any mesh."""
    found = hashlib.blake2b(repr(model.config).encode(), digest_size=12)
    for path, leaf in nnx.to_flat_state(nnx.state(model.network, _counts)):
        found.update(".".join(map(str, path)).encode())
        for array in jax.tree.leaves(versions.value(leaf)):
            beginning = array[:1] if array.ndim else array
            found.update(np.ascontiguousarray(distributed.gather(beginning)).tobytes())
    return found.hexdigest()


def _counts(_: Any, leaf: Any) -> bool:
    return isinstance(leaf, nnx.Param | Strength)


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _by_weight(name: str) -> tuple[bool, bool, str]:
    """What decides which others there are comes first, the text, which follows them, last."""
    return name == "corpus", name not in ("method.kind", "optimiser.name"), name


def whole(name: str, value: Any, least: int) -> None:
    """Nothing, if a setting is a whole number of at least `least`; else a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        shown = "NaN" if isinstance(value, float) and math.isnan(value) else repr(value)
        raise ValueError(f"{name} is {shown}: a whole number of at least {least} is needed")
