"""The Explorer without a view: two runs, what was changed in one, and all that is asked of them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from gptj_lab.lens import comparing
from gptj_lab.lens.interventions import bucket
from gptj_lab.lens.prompts import parting
from gptj_lab.widgets import explorer_edits, explorer_encoding
from gptj_lab.widgets.explorer_reading import Reading, log_softmax

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel
    from gptj_lab.lens.affine_lens import AffineLens

RUNS = ("a", "after", "b")
_AWAKE: list[weakref.ref[Session]] = []  # the sessions that hold arrays, the latest last
_MOST_AWAKE = 4  # a cell that is run again leaves its old view to ipywidgets for good
DIFFERENCES = {"b-a": ("b", "a"), "after-a": ("after", "a")}


def first_run(of: str) -> str:
    """The run itself, of a difference the first of its two."""
    return DIFFERENCES.get(of, (of,))[0]


class Session:
    """Run A, perhaps B beside it, and A again with interventions ("after").

    Attributes:
        model: of A. `other`: of B, the same model where B is a second prompt.
        tuned: a tuned lens of these weights, if there is one.
        number: counts the runs; a view's answer belongs to one of them.
        a, b, after: the runs; `after` is A itself while nothing is changed. Of the sessions before
            the last few they are let go, and read again when they are asked for.
        edits: what is changed in `after`, as explorer_edits.checked returns it.
        past: what they were before, for undo; a new run has no past.
        prompt, prompt_b: texts; prompt_b is "" where there is no second one.
        made: how many of A's tokens at its end were generated.
        notes: sentences for whoever looks at A.
        effects: scores of heads that a sweep found, by name.
    """

    def __init__(
        self,
        model: LanguageModel,
        other: LanguageModel | None = None,
        steer: Float[np.ndarray, "d_model"] | None = None,
        tuned: AffineLens | None = None,
    ):
        if other is not None:
            _check_comparable(model, other)
        self.model, self.other, self.steer, self.tuned = model, other or model, steer, tuned
        self.two_models = other is not None
        self.number = 0
        self.edits: list[explorer_edits.Edit] = []
        self.past: list[list[explorer_edits.Edit]] = []
        self.effects: dict[str, np.ndarray] = {}
        self._differences: dict[str, np.ndarray] = {}
        self._weights: list[weakref.ref] = []
        self._ids: tuple[np.ndarray, np.ndarray | None]
        self._runs: tuple[Reading, Reading | None, Reading] | None = None

    # --- Running ---

    def run(self, prompt: str, prompt_b: str = "", ids: Sequence[int] | None = None) -> None:
        """Reads A, and B where there is one; the edits stay as far as they fit.

        Args:
            ids: A's tokens if they aren't those of the prompt alone, but go on after it.

        Raises:
            ValueError: a prompt that is no text, is empty or too long, or a NaN inside the model;
                everything stays as it was.
        """
        own = self.tokens(prompt)
        made = 0 if ids is None else len(ids) - len(own)
        if ids is not None and list(ids[: len(own)]) != own.tolist():
            raise ValueError("the tokens don't begin with those of the prompt: give its own ids")
        ids_a = own if ids is None else self.model._checked([ids])[0]
        if self.two_models and prompt_b:
            raise ValueError(
                "B is a second model already: compare two prompts in an Explorer of their own"
            )
        ids_b = self.tokens(prompt_b, "the second prompt") if prompt_b else ids_a
        a = Reading(self.model, ids_a)
        b = Reading(self.other, ids_b) if self.two_models or prompt_b else None
        kept = [edit for edit in self.edits if explorer_edits.fits(edit, len(ids_a))]
        if b is None or len(b) != len(a):
            kept = [edit for edit in kept if not edit["kind"].startswith("patch")]
        dropped = len(self.edits) - len(kept)
        after = Reading(self.model, ids_a, self._interventions(kept, a, b)) if kept else a
        self._runs, self.edits = (a, b, after), kept
        self._ids = ids_a, None if b is None else ids_b
        self.prompt, self.prompt_b, self.made = prompt, prompt_b, made
        self.number += 1
        self.past.clear()
        self.effects.clear()
        self._differences.clear()
        self._weights = [weakref.ref(leaf) for leaf in self._leaves()]
        self.notes = self._notes(dropped)

    def tokens(self, text: Any, what: str = "the prompt") -> Int[np.ndarray, "seq"]:
        """The ids of a text that fits the context.

        Raises:
            ValueError: it is no text, is empty or has too many tokens.
        """
        if not isinstance(text, str):
            raise ValueError(f"{what} is a {type(text).__name__}: a text is needed")
        ids = self.model.tokenizer.encode(text)
        if not ids:
            raise ValueError(f"{what} is empty: type at least one letter")
        return self.model._checked([ids])[0]

    def edit(self, edits: Any) -> None:
        """Changes what is changed in A; the same program runs, whatever it is.

        Raises:
            ValueError: an edit that can't be made; everything stays as it was.
        """
        wanted = explorer_edits.checked(edits, self.model.config, len(self.a))
        if wanted == self.edits:
            return
        made = self._interventions(wanted, self.a, self.b)
        after = Reading(self.model, self.a.ids, made) if wanted else self.a
        self._runs, self.edits = (self.a, self.b, after), wanted
        self._differences.pop("after-a", None)

    def stale(self) -> str:
        """A sentence if the weights are no longer those that were read, else ""."""
        now = self._leaves()
        same = len(now) == len(self._weights) and all(
            ref() is leaf for ref, leaf in zip(self._weights, now, strict=True)
        )
        if same:
            return ""
        return (
            "The model's weights have changed since this was computed, so what you see is stale: "
            "run again to read the text with the new ones."
        )

    @property
    def a(self) -> Reading:
        return self._read()[0]

    @property
    def b(self) -> Reading | None:
        return self._read()[1]

    @property
    def after(self) -> Reading:
        return self._read()[2]

    def rest(self) -> None:
        """Lets the arrays go; they are read again when they are asked for."""
        self._runs = None
        self._differences.clear()

    def _read(self) -> tuple[Reading, Reading | None, Reading]:
        if self._runs is None:
            if stale := self.stale():
                raise ValueError(stale)
            ids, ids_b = self._ids
            a = Reading(self.model, ids)
            b = None if ids_b is None else Reading(self.other, ids_b)
            made = self._interventions(self.edits, a, b) if self.edits else None
            self._runs = a, b, a if made is None else Reading(self.model, ids, made)
        if not _AWAKE or _AWAKE[-1]() is not self:
            _AWAKE[:] = [ref for ref in _AWAKE if ref() not in (None, self)] + [weakref.ref(self)]
            for ref in _AWAKE[:-_MOST_AWAKE]:
                if (older := ref()) is not None:
                    older.rest()
            del _AWAKE[:-_MOST_AWAKE]
        return self._runs

    def _leaves(self) -> list[Any]:
        models = [self.model] if self.other is self.model else [self.model, self.other]
        return [leaf for model in models for leaf in jax.tree.leaves(model.network)]

    def _interventions(self, edits, a: Reading, b: Reading | None):
        return explorer_edits.interventions(edits, a, b, self.steer)

    # --- What is asked ---

    def reading(self, of: Any) -> Reading:
        """The run that is called "a", "after" or "b".

        Raises:
            ValueError: another name, or no B.
        """
        if of not in RUNS:
            raise ValueError(f"of is {of!r}: one of {', '.join(RUNS)} is needed")
        if of == "b" and self.b is None:
            raise ValueError("there is no B: give a second prompt, or Explorer(compare=)")
        found = {"a": self.a, "after": self.after, "b": self.b}[of]
        assert found is not None
        return found

    @property
    def aligned(self) -> bool:
        """Whether A and B have as many tokens, so that a position means the same in both."""
        return self.b is not None and len(self.b) == len(self.a)

    def matrix(self, layer: int, of: Any) -> Float[np.ndarray, "heads seq kv_seq"]:
        """Patterns of a layer, or the difference "b-a" or "after-a" of two.

        Raises:
            ValueError: another name, no B, or a difference of texts of unequal length.
        """
        if of not in DIFFERENCES:
            return self.reading(of).pattern(layer)
        first, second = (self.reading(name) for name in DIFFERENCES[of])
        if len(first) != len(second):
            raise ValueError(
                f"A has {len(second)} tokens, B {len(first)}: only texts of as many tokens can be "
                "subtracted"
            )
        return first.pattern(layer) - second.pattern(layer)

    def thumbnails(self, of: Any) -> Float[np.ndarray, "layers heads tiles kv_tiles"]:
        """Every head's pattern pooled to at most 32 x 32: the value of largest magnitude."""
        if of not in DIFFERENCES:
            return self.reading(of).thumbnails
        if of not in self._differences:
            layers = range(self.model.config.num_layers)
            size = explorer_encoding.THUMBNAIL
            small = [explorer_encoding.pool(self.matrix(layer, of), size) for layer in layers]
            self._differences[of] = np.stack(small)
        return self._differences[of]

    def scores(self, of: Any) -> Float[np.ndarray, "scores layers heads"]:
        """explorer_scores.SCORES of every head of a run."""
        return self.reading(of).scores

    def next_tokens(self, position: int, top: int = 10) -> dict[str, Any]:
        """The likeliest next tokens of all runs together, and what each run says of them.

        Returns:
            ids int32 [n], likeliest in A first; logprobs and logits of each run, float32 [n];
            kl from A's distribution to each other's, in nats; sums of the probabilities.
        """
        runs = {"a": self.a}
        if self.edits:
            runs["after"] = self.after
        if self.b is not None:
            runs["b"] = self.b
        logits = {
            name: run.logits[min(position, len(run) - 1)] for name, run in runs.items()
        }  # of texts of unequal length the last token's stands for those that aren't there
        logprobs = {name: log_softmax(row) for name, row in logits.items()}
        ids = np.unique(np.concatenate([_largest(row, top) for row in logits.values()]))
        ids = ids[np.argsort(-logprobs["a"][ids], kind="stable")].astype(np.int32)
        return {
            "ids": ids,
            "logprobs": {name: row[ids] for name, row in logprobs.items()},
            "logits": {name: row[ids] for name, row in logits.items()},
            "kl": {name: kl(logprobs["a"], row) for name, row in logprobs.items() if name != "a"},
            "sums": {name: float(np.exp(row).sum()) for name, row in logprobs.items()},
        }

    def moved(self) -> Float[np.ndarray, "layers heads"]:
        """How far each head of B reads from how it reads in A: 0 the same, 1 nothing in common.

        The mean over the queries after the first of the Jensen-Shannon distance (root of bits).

        Raises:
            ValueError: no B, or one of another length.
        """
        if "moved" not in self.effects:
            self.matrix(0, "b-a")  # refuses what can't be compared
            size = bucket(len(self.a), self.model.config.context) - len(self.a)
            far = []
            for layer in range(self.model.config.num_layers):
                pair = [
                    np.pad(self.reading(name).pattern(layer), ((0, 0), (0, size), (0, size)))
                    for name in ("a", "b")
                ]
                distance = np.asarray(comparing.jensen_shannon_distance(*pair))[:, : len(self.a)]
                far.append(distance[:, 1:].mean(-1) if len(self.a) > 1 else distance[:, 0])
            self.effects["moved"] = np.stack(far).astype(np.float32)
        return self.effects["moved"]

    def divergence(self) -> Float[np.ndarray, "seq"]:
        """KL from A's next-token distribution to B's after each token, in nats."""
        other = self.reading("b")
        return np.array(
            [kl(self.a.logprobs(i), other.logprobs(i)) for i in range(len(self.a))], np.float32
        )

    def check(self, layer: Any, head: Any) -> tuple[int, int]:
        """A layer and a head that are there, as whole numbers."""
        config = self.model.config
        return (
            explorer_edits.index("layer", layer, config.num_layers),
            explorer_edits.index("head", head, config.num_heads),
        )

    def _notes(self, dropped: int) -> list[str]:
        notes, seq = [], len(self.a)
        if self.prompt.endswith(" "):
            notes.append(
                "The prompt ends with a space. Most tokens begin with one, so the text goes on "
                "better without it."
            )
        how = explorer_encoding.mode(seq)
        if how == "head":
            notes.append(f"{seq} tokens: attention is fetched for one head at a time.")
        elif how == "pooled":
            notes.append(
                f"{seq} tokens: the matrix has {explorer_encoding.POOL} x {explorer_encoding.POOL} "
                "cells, each the largest of several weights; exact ones come for a cell you hold."
            )
        if dropped:
            word = "intervention doesn't" if dropped == 1 else "interventions don't"
            notes.append(f"{dropped} {word} fit the new text: dropped.")
        if self.b is not None and not self.aligned:
            notes.append(
                f"A has {seq} tokens, B {len(self.b)}: they are shown side by side, but not "
                "subtracted, and can't be patched into each other. "
                f"{parting(self.model, self.a.ids.tolist(), self.b.ids.tolist())}."
            )
        nll = -self.a.token_logprobs[1:]
        if len(nll) > 7 and nll.mean() > 0.95 * math.log(self.model.config.vocab_size):
            notes.append(
                f"The model gives this text {nll.mean():.1f} nats a token, as much as guessing: "
                "were its weights loaded, is it in its language?"
            )
        return notes


def kl(p: Float[np.ndarray, "vocab"], q: Float[np.ndarray, "vocab"]) -> float:
    """KL divergence in nats of two distributions, given as log-probabilities."""
    return max(0.0, float(np.sum(np.exp(p) * (p - q), dtype=np.float64)))


def _largest(row: Float[np.ndarray, "vocab"], count: int) -> Int[np.ndarray, "count"]:
    count = min(count, len(row))
    return np.argpartition(-row, count - 1)[:count]


def _check_comparable(model: LanguageModel, other: LanguageModel) -> None:
    comparing.check_same_shape(model, other)
    sample = "The cat's naïve 123 \n\tdef f(x):"
    if model.tokenizer.encode(sample) != other.tokenizer.encode(sample):
        raise ValueError(
            "the models' tokenizers make different tokens of the same text: compare models with "
            "one tokenizer"
        )
