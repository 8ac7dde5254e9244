"""LanguageModel: config, weights and tokenizer together, the object that people hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ModelConfig
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptj_lab.generation.decoding import Completion

_PACKAGE = Path(__file__).parent
# In a clone the embedded model lies beside the package, in a wheel inside it.
_POCKET = (_PACKAGE / "pocket", _PACKAGE.parent / "data" / "pocket")


@functools.partial(jax.jit, static_argnames=("graph", "dtype", "wanted"))
def _forward(graph, state, token_ids, dtype, wanted):
    site = sites.Collector(wanted)
    logits, _ = nnx.merge(graph, state)(token_ids, site=site, dtype=dtype)
    return logits, site.values


class LanguageModel:
    """A network with its weights and its tokenizer.

    Attributes:
        config: the shape of the network.
        network: the Flax NNX module.
        tokenizer: text to token ids and back.
        name: what it was loaded as.
    """

    def __init__(
        self, config: ModelConfig, network: Transformer, tokenizer: Tokenizer, name: str = ""
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only "
                f"{config.vocab_size} rows: use the tokenizer that belongs to these weights"
            )
        self.config = config
        self.network = network
        self.tokenizer = tokenizer
        self.name = name

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.config.num_parameters:,} parameters, "
            f"{self.config.num_layers} layers, d_model {self.config.d_model}, {self.dtype})"
        )

    @property
    def dtype(self) -> str:
        """The dtype of the weights and of the activations."""
        return str(self.network.embed.get_value().dtype)

    def logits(self, token_ids: Sequence[Sequence[int]] | Array) -> Float[Array, "batch seq vocab"]:
        """Float32 logits of the next token at every position.

        Raises:
            ValueError: not a [batch, seq] array of whole numbers, ids outside the vocabulary, or
                rows longer than the context.
        """
        return self._run(self._checked(token_ids), ())[0]

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Completion]:
        """Completions of one prompt or several, the samples of each prompt side by side.

        The settings are those of `gptj_lab.generation.decoding.Decoding` (max_new_tokens, stop,
        seed, samples, keep_end) and of `gptj_lab.generation.sampling.make_settings` (temperature,
        top_k, top_p, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty,
        token_bias, ban).

        Raises:
            TypeError, ValueError: the message names the setting, its value and the fix.
        """
        from gptj_lab.generation.decoding import Decoding

        return Decoding(self, prompts, **settings).complete()

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """The text after `prompt` as it comes, in pieces; closing the iterator stops the work.

        The settings are those of `generate`, without samples.
        """
        from gptj_lab.generation.decoding import stream

        return stream(self, prompt, **settings)

    def trace(self, prompt: str, sites: Sequence[str]) -> dict[str, Array]:  # noqa: F811
        """The values at the sites that the patterns name, for one prompt (batch axis dropped).

        Raises:
            ValueError: a pattern that names no site, or a prompt that doesn't fit the context.
        """
        from gptj_lab.model.sites import match

        wanted = tuple(match(sites, self.config))
        ids = self._checked([self.tokenizer.encode(prompt)])
        return {name: value[0] for name, value in self._run(ids, wanted)[1].items()}

    def save(self, directory: Path | str) -> None:
        """Writes a Hugging Face directory that `load` and transformers read.

        Raises:
            OSError: it can't be written; files that were there stay whole.
        """
        with huggingface.replacing(directory) as aside:
            huggingface.write(aside, self.config, self.network)
            self.tokenizer.save(aside)

    def _run(self, token_ids: Array, wanted: tuple[str, ...]):
        graph, state = nnx.split(self.network)
        return _forward(graph, state, token_ids, self.dtype, wanted)

    def _checked(self, token_ids) -> Array:
        try:
            ids = np.asarray(token_ids)
        except ValueError:
            raise ValueError("token_ids has rows of unequal length: pad them") from None
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"token_ids has shape {ids.shape} and dtype {ids.dtype}: "
                "whole numbers as [batch, seq], at least one, are needed"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(
                f"token_ids reaches from {ids.min()} to {ids.max()}: "
                f"ids from 0 to {self.config.vocab_size - 1} are in the vocabulary"
            )
        if ids.shape[1] > self.config.context:
            raise ValueError(
                f"token_ids has {ids.shape[1]} tokens a row, {ids.shape[1] - self.config.context} "
                f"more than the context of {self.config.context}: keep the end of the text"
            )
        return jnp.asarray(ids, jnp.int32)


def load(name: str | Path = "pocket", weights: str = "float32") -> LanguageModel:
    """A language model: the embedded "pocket", a local Hugging Face directory, or a hub name.

    Args:
        name: "pocket", a path, or "owner/name" on the hub.
        weights: dtype of weights and activations: "float32", "bfloat16" or "float16".

    Raises:
        FileNotFoundError: nothing is found under that name; the message says where it was sought.
        ValueError: what is found can't be read as one of the families of ModelConfig; the message
            names the field or tensor.
    """
    directory = _find(str(name))
    config, network = huggingface.read(directory, weights)
    return LanguageModel(config, network, Tokenizer.from_directory(directory), str(name))


def _find(name: str) -> Path:
    if name == "pocket":
        for directory in _POCKET:
            if (directory / "config.json").is_file():
                return directory
        raise FileNotFoundError(
            "the pocket model is not in this copy of gptj_lab: train it with "
            "`gptj-lab train-pocket`, or load another model"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise FileNotFoundError(
            f"{name!r} is not the embedded 'pocket', not a directory here, and not a hub name "
            "like 'EleutherAI/gpt-j-6b'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        problem = "the hub can't be reached and nothing of it is in the local cache"
    except HFValidationError as error:
        problem = str(error)
    except HfHubHTTPError as error:
        problem = f"the hub answered: {error}"
    raise FileNotFoundError(
        f"{name} could not be loaded: {problem}. Check the name and the network, "
        "or give the path of a directory"
    )
