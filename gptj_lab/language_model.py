"""LanguageModel: config, weights and tokenizer together, the object that people hold."""

from __future__ import annotations

import copy
import errno
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float

from gptj_lab import chat_templates, end_tokens, presets
from gptj_lab.checkpoints import hub, huggingface, mesh_transformer
from gptj_lab.checkpoints.companions import Companions, carry
from gptj_lab.checkpoints.convert import tokenizer_of
from gptj_lab.checkpoints.filling import fill
from gptj_lab.checkpoints.weights import tensors
from gptj_lab.config import ModelConfig
from gptj_lab.mesh import distributed, report, sharding
from gptj_lab.mesh.report import MeshReport
from gptj_lab.model import sites
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA
from gptj_lab.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptj_lab.generation.decoding import Completion
    from gptj_lab.lens.trace import Trace

# Whose names people know without their owner.
_OWNERS = {
    "gpt-j-6b": "EleutherAI", "gpt-neo-125m": "EleutherAI", "pythia-70m": "EleutherAI",
    "gpt2": "openai-community", "gpt2-medium": "openai-community",
    "gpt2-large": "openai-community", "gpt2-xl": "openai-community",
    "distilgpt2": "distilbert",
}  # fmt: skip


@functools.partial(jax.jit, static_argnames=("dtype", "wanted"))
def _forward(network: Transformer, token_ids, dtype, wanted):
    site = sites.Collector(wanted)
    logits, _ = network(token_ids, site=site, dtype=dtype)
    return logits, site.values


class LanguageModel:
    """A network with its weights and its tokenizer.

    Attributes:
        config: the shape of the network.
        network: the Flax NNX module.
        tokenizer: text to token ids and back.
        name: what it was loaded as.
        mesh: the devices that the weights are cut over; None where there is one.
        end_tokens: the ids of the tokens that end a text, all that config.json,
            generation_config.json and the tokenizer name; what is set here counts from then on.
        chat_template: what makes a prompt of a chat's messages; None if the model has none.
        companions: the small files that lay beside the weights; none if it was made in memory.
        replaced: by adapter, which weights it put in place of the base's (finetuning/replaced.py).
    """

    def __init__(
        self,
        config: ModelConfig,
        network: Transformer,
        tokenizer: Tokenizer,
        name: str = "",
        mesh: jax.sharding.Mesh | None = None,
        companions: Companions | None = None,
    ):
        self.config = config
        self.network = network if mesh is None else sharding.place(network, config, mesh)
        self.tokenizer = tokenizer.within(config.vocab_size)
        self.name = name
        self.mesh = mesh
        self.companions = companions or Companions()
        generation = self.companions.files.get("generation_config.json")
        self.end_tokens = end_tokens.declared(config, generation, self.tokenizer, name)
        self.replaced: dict[str, Any] = {}
        self.chat_template = self._template_of_files()

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.config.num_parameters:,} parameters, "
            f"{self.config.num_layers} layers, d_model {self.config.d_model}, {self.weights})"
        )

    @functools.cached_property
    def sampling_defaults(self) -> Mapping[str, float]:
        """The sampling settings of generation_config.json: temperature, top_p, ...; or none.

        The command line, Playground and TuneBoard begin with them. `generate` and `stream` don't,
        unless they are given: model.generate(prompt, **model.sampling_defaults).
        """
        from gptj_lab.generation import defaults

        return defaults.declared(self.companions.files.get("generation_config.json"), self.name)

    @property
    def dtype(self) -> str:
        """The dtype of the activations, and of the weights that are not int8."""
        return str(self.network.embed[...].dtype)

    @property
    def weights(self) -> str:
        """The dtype of the blocks' matrices: "int8", or that of everything."""
        return str(self.network.blocks[0].attn.q.weight[...].dtype)

    def logits(
        self, token_ids: Sequence[Sequence[int]] | Array | np.ndarray
    ) -> Float[Array, "batch seq vocab"]:
        """Float32 logits of the next token at every position.

        On a mesh they stay cut over `data` and, by vocabulary, over `model`. A soft prompt's
        virtual tokens come before each row by themselves, unless the rows begin with them.

        Raises:
            ValueError: not a [batch, seq] array of whole numbers, ids outside the vocabulary, or
                rows longer than the context.
        """
        ids = self._checked(token_ids)
        return self._run(ids, ())[0][:, ids.shape[1] - np.shape(token_ids)[1] :]

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Completion]:
        """Completions of one prompt or several, the samples of each prompt side by side.

        The settings are those of `gptj_lab.generation.decoding.Decoding` (max_new_tokens, stop,
        end_tokens, seed, samples, keep_end) and of `gptj_lab.generation.sampling.make_settings`
        (temperature, top_k, top_p, min_p, typical_p, repetition_penalty, frequency_penalty,
        presence_penalty, token_bias, ban).

        A completion ends at any of `model.end_tokens`, all that the model's files name together;
        end_tokens=[...] names others instead, and end_tokens=[] none.

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

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, stream: bool = False, **settings: Any
    ) -> Any:
        """The answer to a chat's messages: its text, or with `stream` its pieces as they come.

        It ends at the model's end tokens, or where the template's next turn would begin.

        Args:
            messages: dicts of "role" (system, user, assistant, tool) and "content", the last not
                the assistant's; or a text, which is one of a user.
            settings: those of `generate` (max_new_tokens is 256 by default), without samples; and
                `template`, in place of `model.chat_template`: a name such as "chatml", a form such
                as "### {question}\\n{answer}", or a .jinja file. With keep_end=True the oldest
                turns of a chat too long for the context are left out.

        Raises:
            TypeError, ValueError: the model has no template, a message isn't one, or a setting.
        """
        from gptj_lab.generation import chatting

        answer = chatting.chat(self, messages, **settings)
        return answer if stream else "".join(answer)

    def stream_chat(
        self, messages: str | Sequence[Mapping[str, Any]], **settings: Any
    ) -> Iterator[str]:
        """The answer to a chat's messages as it comes: see `chat`."""
        return self.chat(messages, stream=True, **settings)

    def trace(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        sites: str | Sequence[str] | None = None,
    ) -> Trace:
        """What every place of the network held while it read one prompt: site to value.

        Args:
            prompt: a text, or token ids.
            sites: patterns of the sites to list ("blocks.*.attn.pattern"); by default all. Only
                residuals are kept; the values of others are made when they are read.

        Raises:
            ValueError: a pattern that names no site, or a prompt that doesn't fit the context.
        """
        from gptj_lab.lens.trace import Trace

        return Trace.of(self, prompt, sites)

    def placement(self, batch: int = 1, seq: int = 128) -> MeshReport:
        """Which device holds which slice of which weight, and what one block exchanges.

        Args:
            batch, seq: rows (filled up until `data` divides them) and tokens a row for which the
                block is compiled.

        Raises:
            ValueError: the model doesn't lie on a mesh.
        """
        if self.mesh is None:
            raise ValueError(
                f"{self.name or 'the model'} doesn't lie on a mesh: load it with "
                "mesh=gptj_lab.mesh(...)"
            )
        batch += -batch % self.mesh.shape[DATA]
        return report.describe(self.network, self.mesh, batch, seq, self.dtype)

    @property
    def virtual_tokens(self) -> list[int]:
        """The ids of the soft prompt that comes before every text: from vocab_size on; or none."""
        table = self.network.soft_prompt
        first = self.config.vocab_size
        return [] if table is None else list(range(first, first + table.shape[0]))

    def twin(self) -> LanguageModel:
        """Another model on the same arrays: what is set in one doesn't change the other."""
        other = copy.copy(self)
        other.network = jax.tree.map(lambda leaf: leaf, self.network)
        return other

    def save(self, directory: Path | str) -> None:
        """Writes a Hugging Face directory that `load` and transformers read.

        int8 matrices are written in the form of compressed-tensors (int-quantized, a scale a row).
        transformers (5.24 and 4.57 were tried) reads them where the package compressed-tensors is
        installed, best with dtype="float32", and refuses them elsewhere; a GPT-2's it refuses in
        any case, as it has no int8 for their Conv1D. For transformers alone load the model with
        weights="float32", or `gptj-lab convert --dtype float32`.

        What lay beside the weights that were loaded (tokenizer, chat template,
        generation_config.json, model card) comes along as it was, and of config.json the fields
        that still hold. Of an earlier model in `directory` only texts for people stay, a README.md
        with another text as README.previous.md; an adapter is moved to adapter.previous.

        Raises:
            ValueError: it has LoRA adapters or a soft prompt, for which such a directory has no
                place; or `directory` is empty (TypeError: isn't a path).
            OSError: it can't be written; files that were there stay whole.
        """
        directory = huggingface.folder(directory)
        blocks = self.network.blocks
        if any(linear.adapters for block in blocks for linear in block.matrices().values()):
            raise ValueError(
                "the model has LoRA adapters: save finetuning.lora.merged(model), or the adapters "
                "alone with finetuning.export.save_adapter"
            )
        if self.network.soft_prompt is not None:
            raise ValueError(
                "the model has a soft prompt, for which such a directory has no place: save it "
                "with finetuning.soft_prompts.save, and soft_prompts.without(model) here"
            )
        network = self.network
        if self.mesh is not None and jax.process_count() > 1:  # the first process writes
            network = jax.tree.map(distributed.gather, network)
        if self.mesh is None or jax.process_index() == 0:
            with huggingface.replacing(directory) as aside:
                huggingface.write(aside, self.config, network, companions=self.companions)
                carry(self.companions, self.tokenizer, aside)
                if self.chat_template != self._template_of_files():  # else carried, or left
                    chat_templates.write(self.chat_template, aside)
        if self.mesh is not None:
            distributed.wait_for_all(f"{directory} is saved")

    def _template_of_files(self) -> chat_templates.ChatTemplate | None:
        special = chat_templates.special_tokens(self.tokenizer)
        return chat_templates.of_files(self.companions.files, special)

    def _run(self, token_ids: np.ndarray, wanted: tuple[str, ...]):
        if self.mesh is None:
            return _forward(self.network, token_ids, self.dtype, wanted)
        padded = sharding.put_batch(token_ids, self.mesh)
        out = _forward(self.network, padded, self.dtype, wanted)
        rows = len(token_ids)
        return out if rows == len(padded) else jax.tree.map(lambda value: value[:rows], out)

    def _checked(self, token_ids) -> np.ndarray:
        try:
            ids = np.asarray(token_ids)
        except ValueError:
            raise ValueError("token_ids has rows of unequal length: pad them") from None
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"token_ids has shape {ids.shape} and dtype {ids.dtype}: "
                "whole numbers as [batch, seq], at least one, are needed"
            )
        virtual = np.array(self.virtual_tokens, int)
        if len(virtual) and not (ids[:, : len(virtual)] == virtual[: ids.shape[1]]).all():
            ids = np.concatenate([np.tile(virtual, (len(ids), 1)), ids], axis=1)
        plain = ids[:, len(virtual) :]
        if plain.size and not 0 <= plain.min() <= plain.max() < self.config.vocab_size:
            raise ValueError(
                f"token_ids reaches from {plain.min()} to {plain.max()}: "
                f"ids from 0 to {self.config.vocab_size - 1} are in the vocabulary"
            )
        if ids.shape[1] > self.config.context:
            more = f", {len(virtual)} of them the soft prompt's" if len(virtual) else ""
            raise ValueError(
                f"token_ids has {ids.shape[1]} tokens a row{more}, "
                f"{ids.shape[1] - self.config.context} more than the context of "
                f"{self.config.context}: keep the end of the text"
            )
        return ids.astype(np.int32)


def load(
    name: str | Path = "pocket",
    weights: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: ModelConfig | None = None,
) -> LanguageModel:
    """A language model: the embedded "pocket", a directory here, or a hub name.

    A directory is Hugging Face's (safetensors, torch's .bin or Flax's msgpack), or a step folder of
    GPT-J's original release. Each tensor goes from its file to its device before the next is read.

    Its end tokens are all that config.json, generation_config.json and the tokenizer name together
    (transformers takes generation_config.json's alone); set `model.end_tokens`, or give
    `generate(end_tokens=)` others. A damaged generation_config.json is told and passed over.

    Args:
        name: "pocket", a path, or "owner/name" on the hub.
        weights: dtype of weights and activations: "float32", "bfloat16" or "float16"; or "int8",
            which quantises the blocks' matrices while they are read (a quarter of float32's). By
            default float32, or int8 where the weights lie so.
        mesh: the devices to cut it over, of `gptj_lab.mesh(data=, model=)`; by default one.
        revision: branch, tag, commit or pull request ("refs/pr/40") on the hub; its main branch by
            default, and for GPT-J-6B, which has no safetensors there, those of the pull request in
            `hub.SAFETENSORS_IN`.
        variant: of the weights, such as "fp16" for model.fp16.safetensors; by default the plain
            files, or the only variant where there are none. The dtype is `weights`.
        config: the shape of an original release that has no configuration json by it; by default
            that of GPT-J-6B.

    Raises:
        FileNotFoundError: nothing is found under that name; the message says where it was sought.
        ValueError: what is found can't be read as one of the families of ModelConfig, or can't be
            cut over the mesh; the message names the field or tensor.
    """
    directory, weights_in = find(str(name), revision, variant)
    companions = Companions.read(directory)
    if mesh_transformer.is_release(directory):
        mesh_transformer.refuse_variant(directory, variant)
        config, stored = mesh_transformer.tensors(directory, config)
        tokenizer = tokenizer_of(directory, config) or Tokenizer.from_directory(directory)
    elif config is not None:
        raise ValueError(f"{directory} has a config.json: `config` is for original releases only")
    else:
        config, stored = huggingface.read_config(directory), tensors(weights_in, variant)
        tokenizer = Tokenizer.from_directory(directory)
    if weights is None:
        quantised = any(tensor.dtype == np.int8 for tensor in stored.values())
        weights = "int8" if quantised else "float32"
    place = None if mesh is None else sharding.placing(config, mesh)
    network = fill(config, stored, str(weights_in), weights, place)
    return LanguageModel(config, network, tokenizer, str(name), mesh, companions)


def find(name: str, revision: str | None = None, variant: str | None = None) -> hub.Folders:
    """The folder of "pocket", of a path, or of a hub name, which is fetched if need be.

    Args:
        variant: of the weights to fetch from the hub.

    Raises:
        FileNotFoundError: there is none; the message says where it was sought.
        ValueError: a revision of something that doesn't lie on the hub; or of a hub name several
            variants and no plain weights.
    """
    path = _path(name)
    if revision is not None and (name == "pocket" or path.is_dir()):
        raise ValueError(f"revision is {revision!r}, but {name} doesn't come from the hub")
    if name == "pocket":
        for directory in presets.POCKET:
            if (directory / "config.json").is_file():
                return hub.Folders(directory, directory)
        raise FileNotFoundError(
            "the pocket model is not in this copy of gptj_lab: train it with "
            "`gptj-lab train-pocket`, or load another model"
        )
    if path.is_dir():
        return hub.Folders(path, path)
    if path.is_file():
        raise FileNotFoundError(f"{name} is a file: give its folder, {str(path.parent)!r}")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        owner = _OWNERS.get(name.lower())
        meant = f"did you mean {owner + '/' + name.lower()!r}?" if owner else (
            "a hub name is 'owner/name', such as 'EleutherAI/gpt-j-6b' or 'openai-community/gpt2'"
        )  # fmt: skip
        raise FileNotFoundError(
            f"{name!r} is not the embedded 'pocket', not a directory here, and not a hub name: "
            + meant
        )
    return hub.fetch(name, revision, variant)


def _path(name: str) -> Path:
    """The path of that name.

    Raises:
        FileNotFoundError: no path can have it.
    """
    try:
        if not name or "\0" in name:
            raise ValueError("it is empty" if not name else "it holds a NUL character")
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(
                f"{name[:40]!r}... has {len(name)} characters, more than a path can have: give "
                "'pocket', the folder of a checkpoint, or a hub name"
            ) from None
    except (ValueError, RuntimeError) as error:  # of expanduser: no such user
        raise FileNotFoundError(
            f"{name!r:.80} can't be a path ({error}): give 'pocket', the folder of a checkpoint, "
            "or a hub name"
        ) from None
    return Path(name).expanduser()
