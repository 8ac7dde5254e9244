"""Trace: what every place of the network held while it read one prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from gptj_lab.config import ModelConfig
from gptj_lab.lens import inputs, passes, trace_files
from gptj_lab.lens.edits import place
from gptj_lab.model import sites as network_sites

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_KEPT_BYTES = 256 * 2**20  # of values that were made again; the latest is kept whatever its size
_STACK_BYTES = 4 * 2**30  # the most that `stacked` puts into memory at once

# The axes of each site's value, one prompt's.
_AXES = {
    "attn.q": ("seq", "heads", "d_head"),
    "attn.k": ("kv_seq", "heads", "d_head"),
    "attn.v": ("kv_seq", "heads", "d_head"),
    "attn.z": ("seq", "heads", "d_head"),
    "attn.scores": ("heads", "seq", "kv_seq"),
    "attn.pattern": ("heads", "seq", "kv_seq"),
    "mlp.pre": ("seq", "d_ff"),
    "mlp.post": ("seq", "d_ff"),
    "logits": ("seq", "vocab"),
}


class NoSuchSite(KeyError, ValueError):
    """A site that the network doesn't have; the message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class Trace(Mapping[str, np.ndarray]):
    """One prompt's pass through a network: a mapping from each site to its value.

    Kept are the residuals only (what each block reads, and what the last one leaves). Everything
    inside a block is made again from what the block read, one block at a time, when it is asked
    for: patterns of all layers at 2,048 tokens would be gigabytes. Values are NumPy arrays without
    the batch axis and without padding, in the dtype of the activations; `axes` names their axes.

    Attributes:
        config: the shape of the network.
        model_name: what the model was loaded as.
        token_ids: int32 [seq].
        tokens: the tokens as a person should see them.
        residuals: [layers + 1, seq, d_model]; row i is what block i reads, the last what leaves.
        names: the sites that iterating gives, in the order of the computation.
        values_kept: of a trace from a file, what was saved beside the residuals.
    """

    def __init__(
        self,
        config: ModelConfig,
        token_ids: Int[np.ndarray, "seq"],
        tokens: Sequence[str],
        residuals: Float[np.ndarray, "rows seq d_model"],
        *,
        names: Sequence[str],
        values: Mapping[str, np.ndarray] | None = None,
        model: LanguageModel | None = None,
        model_name: str = "",
    ):
        self.config, self.model_name = config, model_name
        self.token_ids, self.tokens, self.residuals = token_ids, tuple(tokens), residuals
        self.values_kept, self._model = dict(values or {}), model
        self.names = tuple(name for name in names if name in self)
        self._made: OrderedDict[str, np.ndarray] = OrderedDict()

    @classmethod
    def of(
        cls, model: LanguageModel, prompt: inputs.Prompt, sites: str | Sequence[str] | None = None
    ) -> Trace:
        """The trace of a text or of token ids by any model, on one device or a mesh.

        Args:
            model: a later fine-tuning of it doesn't change what is read here.
            prompt: a text, or token ids.
            sites: patterns of the sites to list ("blocks.*.attn.pattern"); by default all.

        Raises:
            ValueError: a pattern that names no site (the message lists the nearest), or a prompt
                without tokens or longer than the context.
        """
        names = match(["*"] if sites is None else sites, model.config)
        ids = inputs.token_ids_of(model, prompt)
        model = model.twin()  # whatever is trained later
        return cls(
            model.config, ids, inputs.display(model, ids), passes.residuals(model, ids),
            names=names, model=model, model_name=model.name,
        )  # fmt: skip

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in network_sites.all_of(self.config):
            match([name], self.config)  # says why, unless it is a pattern of several
            raise NoSuchSite(f"{name!r} is a pattern: read one site, or use stacked(...)")
        if name in self.values_kept:
            return self.values_kept[name]
        layer, site = place(name)
        if site == "resid_pre":
            return self.residuals[layer]
        if site == "resid_post":
            return self.residuals[layer + 1]
        if name not in self._made:
            self._made[name] = passes.value(self.model(name), name, self.token_ids, self.residuals)
        self._made.move_to_end(name)
        while len(self._made) > 1 and sum(v.nbytes for v in self._made.values()) > _KEPT_BYTES:
            self._made.popitem(last=False)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        if name not in network_sites.all_of(self.config):
            return False
        return self._model is not None or name in self.values_kept or _is_residual(str(name))

    def __repr__(self) -> str:
        held = self.residuals.nbytes + sum(value.nbytes for value in self.values_kept.values())
        return (
            f"Trace({len(self.tokens)} tokens of {self.model_name or 'a model'}, {len(self)} sites,"
            f" {held / 2**20:.1f} MiB kept)"
        )

    @property
    def logits(self) -> Float[np.ndarray, "seq vocab"]:
        """`model.logits` of these tokens, to the last bit if filled up to the bucket's length."""
        return self["logits"]

    def axes(self, name: str) -> tuple[str, ...]:
        """The names of a site's axes, as in gptj_lab.names.AXES: ("heads", "seq", "kv_seq").

        Raises:
            ValueError: a site that doesn't exist; the message lists the nearest.
        """
        if name not in network_sites.all_of(self.config):
            match([name], self.config)
        return _AXES.get(place(name)[1], ("seq", "d_model"))

    def stacked(self, site: str) -> np.ndarray:
        """A block's site over all layers: stacked("resid_post") is [layers, seq, d_model].

        Raises:
            ValueError: a site that blocks don't have, or more than 4 GiB of values.
        """
        names = [f"blocks.{layer}.{site}" for layer in range(self.config.num_layers)]
        first = self[names[0]]
        if first.nbytes * len(names) > _STACK_BYTES:
            raise ValueError(
                f"{site} of {len(names)} layers at {len(self.tokens)} tokens is "
                f"{first.nbytes * len(names) / 2**30:.1f} GiB: read one layer at a time, "
                f'trace["{names[0]}"]'
            )
        return np.stack([self[name] for name in names])

    def first_nan(self) -> str | None:
        """The first site, in the order of the computation, whose value holds a NaN; or None."""
        for name in network_sites.all_of(self.config):
            layer, _ = place(name)
            if name.startswith("blocks.") and not np.isnan(self.residuals[layer + 1]).any():
                continue  # a NaN inside a block would have reached its end
            if np.isnan(self[name]).any():
                return name
        return None

    def model(self, wanted: str = "the model") -> LanguageModel:
        """The model with the weights that it had when the trace was taken.

        Raises:
            ValueError: the trace was loaded without it.
        """
        if self._model is None:
            raise ValueError(
                f"{wanted} is not in the file, and the trace was loaded without its model: "
                "Trace.load(file, model) makes it again"
            )
        return self._model

    def save(self, file: Path | str, sites: str | Sequence[str] = ()) -> None:
        """Writes tokens, residuals and the values of some more sites as one safetensors file.

        Args:
            file: replaced if it is there, once the new one is whole.
            sites: patterns of the sites whose values shall be readable without the model.

        Raises:
            ValueError: a pattern that names no site, or a trace loaded without its model.
            OSError: it can't be written; a file that was there stays whole.
        """
        trace_files.write(self, Path(file), match(sites, self.config) if sites else [])

    @classmethod
    def load(cls, file: Path | str, model: LanguageModel | None = None) -> Trace:
        """The trace in a file.

        Args:
            file: written by `save`.
            model: the one that it is a trace of; without, only what was saved can be read.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or no trace, or a trace of another model.
        """
        return trace_files.read(cls, Path(file), model)


def match(patterns: str | Sequence[str], config: ModelConfig) -> list[str]:
    """As `gptj_lab.model.sites.match`; the error is a KeyError too, as a mapping's should be."""
    try:
        return network_sites.match(patterns, config)
    except ValueError as error:
        raise NoSuchSite(str(error)) from None


def _is_residual(name: str) -> bool:
    return place(name)[1] in ("resid_pre", "resid_post")
