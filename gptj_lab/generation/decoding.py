"""From prompts to text: prefill, then tokens in chunks on the device, stop strings on the host."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gptj_lab import end_tokens as ends
from gptj_lab.config import ModelConfig
from gptj_lab.generation import sampling, setting_names
from gptj_lab.generation.finite import NotFiniteError
from gptj_lab.mesh import sharding
from gptj_lab.model.cache import Cache, LayerCache, OneRow, empty_cache
from gptj_lab.model.transformer import Transformer
from gptj_lab.names import DATA, MODEL
from gptj_lab.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

CHUNK = 32  # most tokens that the device makes before Python looks at them
ALTERNATIVES = 10  # tokens reported at every position
_LATENCY = 0.1  # seconds that a chunk should take, so that text flows and Stop is prompt
_SHORTEST_PROMPT, _SHORTEST_CACHE = 32, 256  # lengths are rounded up to these, doubled as needed


class Token(NamedTuple):
    """One token and what the model thought of it, before temperature and every other setting.

    Log-probabilities are in nats. `alternatives` are the likeliest tokens in its place, best first.
    """

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    Attributes:
        text: without the stop string or the end token that ended it.
        token_ids: every token made; the last may belong to what ended the text.
        logprobs: of each token under the model itself, in nats.
        alternatives: for each token the likeliest ones in its place: (token id, logprob), best
            first.
        finish_reason: "stop", "length", "end_of_text" or "cancelled".
        prompt: what was continued.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    logprobs: list[float] = field(repr=False)
    alternatives: list[tuple[tuple[int, float], ...]] = field(repr=False)
    finish_reason: str
    prompt: str = field(repr=False)


class Row:
    """One text being written: a prompt and one of its samples.

    Attributes:
        prompt_ids, prompt_tokens: the tokens of the prompt; the second is None unless asked for.
        tokens: what was made so far.
        text: what was made so far, never half a character, nothing that may become a stop string.
        finish_reason: None while it goes on.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str,
        ids: list[int],
        stop: Sequence[str],
        end_tokens: Sequence[int] | None = None,
    ):
        self.prompt, self.prompt_ids = prompt, ids
        self.prompt_tokens: list[Token] | None = None
        self.tokens: list[Token] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._ends = frozenset(model.end_tokens if end_tokens is None else end_tokens)
        self._stop = stop
        self._decoder = StreamDecoder(model.tokenizer)
        self._decoded = ""

    def push(self, token: Token, limit: int) -> None:
        """Takes one token; `limit` is the number at which the text is long enough."""
        self.tokens.append(token)
        if token.id in self._ends:
            self._finish("end_of_text")
            return
        self._decoded += self._decoder.push(token.id)
        if self._stopped():
            return
        if len(self.tokens) >= limit:
            self._finish("length")
            return
        held = max((_overlap(self._decoded, stop) for stop in self._stop), default=0)
        self.text = self._decoded[: len(self._decoded) - held]

    def cancel(self) -> None:
        if self.finish_reason is None:
            self._finish("cancelled")

    def completion(self) -> Completion:
        return Completion(
            self.text,
            [token.id for token in self.tokens],
            [token.logprob for token in self.tokens],
            [token.alternatives for token in self.tokens],
            self.finish_reason or "cancelled",
            self.prompt,
        )

    def _finish(self, reason: str) -> None:
        self._decoded += self._decoder.flush()
        if not self._stopped():
            self.text, self.finish_reason = self._decoded, reason

    def _stopped(self) -> bool:
        places = [self._decoded.find(stop) for stop in self._stop]
        first = min((place for place in places if place >= 0), default=None)
        if first is None:
            return False
        self.text, self.finish_reason = self._decoded[:first], "stop"
        return True


class Decoding:
    """Prompts being continued, a chunk of tokens at a time: `advance` until it returns False.

    Nothing runs between two calls, so that whoever holds it can show, wait, or stop. One row of
    `rows` for each sample of each prompt, samples of a prompt side by side.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] | None = (),
        end_tokens: ends.EndTokens | None = None,
        seed: int = 0,
        samples: int = 1,
        keep_end: bool = False,
        add_special_tokens: bool = True,
        prompt_logprobs: bool = False,
        **sampling_settings: Any,
    ):
        """Checks everything; the device begins to work at the first `advance`.

        Args:
            max_new_tokens: tokens to make at most; fewer where the context is full before.
            stop: texts that end a completion; they are not part of it. None stands for none.
            end_tokens: tokens that end a completion, as ids or as the text of one token each, in
                place of `model.end_tokens`; with [] it never ends by itself.
            seed: the same seed gives a prompt the same text, alone or in a batch.
            samples: completions of each prompt.
            keep_end: of a prompt too long for the context, keep the end; otherwise it is refused.
            add_special_tokens: put before a prompt what the tokenizer puts there (a bos_token); a
                chat template says itself what stands there.
            prompt_logprobs: fill `prompt_tokens` of the rows.
            sampling_settings: temperature, top_k, ...: as of `sampling.make_settings`.

        Raises:
            TypeError, ValueError: the message names the argument, its value and the fix.
        """
        config = model.config
        setting_names.check(sampling_settings, _setting_names())
        several = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes | bytearray)
        prompts = list(prompts) if several else [prompts]  # pyright: ignore[reportAssignmentType]
        for prompt in prompts:
            _check_prompt(prompt)
        stop = [stop] if isinstance(stop, str) else list(stop or ())
        limit = _whole("max_new_tokens", max_new_tokens)
        samples = _whole("samples", samples)
        if not prompts:
            raise ValueError("there is no prompt: give a text, or a list of them")
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop holds {text!r}: non-empty texts are needed")
        if end_tokens is None:
            self._ends = tuple(model.end_tokens)
        else:
            self._ends = ends.chosen(end_tokens, model.tokenizer, config.vocab_size)
        self._settings = sampling.make_settings(config.vocab_size, **sampling_settings)
        self._model = model
        self._prompts = [
            _prompt_ids(model, prompt, limit, keep_end, add_special_tokens) for prompt in prompts
        ]
        self._virtual = model.virtual_tokens  # of a soft prompt: read before each prompt
        self._samples = samples
        self._prompt_logprobs = prompt_logprobs
        self.rows = [
            Row(model, prompt, ids, stop, self._ends)
            for prompt, ids in zip(prompts, self._prompts, strict=True)
            for _ in range(samples)
        ]
        room = config.context - len(self._virtual)
        self._limits = [min(limit, room - len(row.prompt_ids)) for row in self.rows]
        self._keys = [sampling.row_key(seed, sample) for sample in range(samples)]
        self._steps = 1
        self._state: _State | None = None

    def advance(self) -> bool:
        """Makes some more tokens; whether a row still goes on.

        Raises:
            NotFiniteError: the logits are NaN or infinite, so no token is better than another.
        """
        if self.done:
            return False
        begun = time.perf_counter()
        first = self._state is None
        state = self._prefill() if self._state is None else self._state
        made = np.array([len(row.tokens) for row in self.rows], np.int32)
        goes_on = np.array([row.finish_reason is None for row in self.rows])
        left = np.array(self._limits, np.int32) - made
        steps = int(min(self._steps, CHUNK, left[goes_on].max()))
        fill = state.rows - len(self.rows)
        arrays, out = _chunk(
            self._form,
            self._weights,
            state.arrays,
            self._settings,
            state.keys,
            np.pad(goes_on, (0, fill)),
            np.pad(made, (0, fill)),
            state.prompt_lengths,
            np.int32(steps),
            np.array(_padded_ends(self._ends), np.int32),
            dtype=self._model.dtype,
            mesh=self._model.mesh,
        )
        self._state = state._replace(arrays=arrays)
        ids, logprobs, top_ids, top_logprobs = jax.device_get(out)
        for i, row in enumerate(self.rows):
            for step in range(steps):
                if row.finish_reason is None:
                    if not np.isfinite(logprobs[i, step]):
                        self._refuse(f"at new token {len(row.tokens) + 1}")
                    token = _token(
                        ids[i, step], logprobs[i, step], top_ids[i, step], top_logprobs[i, step]
                    )
                    row.push(token, self._limits[i])
        # The first chunk is one token, soon seen; its time may be that of the compiler.
        seconds = (time.perf_counter() - begun) / steps
        if jax.process_count() > 1:  # every process has to choose the same number
            seconds = _LATENCY / CHUNK
        self._steps = 2 if first else max(1, min(4 * self._steps, int(_LATENCY / seconds), CHUNK))
        return not self.done

    def complete(self) -> list[Completion]:
        """Goes on until every row has finished; one completion for each."""
        while self.advance():
            pass
        return self.completions()

    @property
    def done(self) -> bool:
        """Whether every row has finished."""
        return all(row.finish_reason is not None for row in self.rows)

    def cancel(self) -> None:
        """Ends every row that still goes on, with what it has."""
        for row in self.rows:
            row.cancel()
        self._state = None

    def completions(self) -> list[Completion]:
        """One for each row; a row that was not finished counts as cancelled."""
        return [row.completion() for row in self.rows]

    def _prefill(self) -> _State:
        config, model = self._model.config, self._model
        self._form, self._weights = _split(model.network)
        virtual = len(self._virtual)
        lengths = [virtual + len(ids) for ids in self._prompts]
        width = min(_bucket(max(lengths), _SHORTEST_PROMPT), config.context)
        longest = max(
            virtual + len(row.prompt_ids) + limit
            for row, limit in zip(self.rows, self._limits, strict=True)
        )
        room = min(_bucket(max(longest, width), _SHORTEST_CACHE), config.context)
        smallest = 1 if model.mesh is None else model.mesh.shape[DATA]  # `data` divides the rows
        batch, rows = _bucket(len(self._prompts), smallest), _bucket(len(self.rows), smallest)
        ids = np.zeros((batch, width), np.int32)
        for i, prompt in enumerate(self._prompts):
            ids[i, : lengths[i]] = [*self._virtual, *prompt]
        prompt_lengths = np.ones(batch, np.int32)
        prompt_lengths[: len(lengths)] = lengths
        cache, logits, counts, thoughts = _prefill(
            self._form, self._weights, ids, prompt_lengths,
            config=config, room=room, dtype=model.dtype, every_position=self._prompt_logprobs,
            mesh=model.mesh,
        )  # fmt: skip
        owner = np.zeros(rows, np.int32)
        owner[: len(self.rows)] = np.repeat(np.arange(len(self._prompts)), self._samples)
        if rows != batch or self._samples > 1:
            cache, logits, counts = _gather((cache, logits, counts), owner, mesh=model.mesh)
        if thoughts is not None:
            logprobs, top_ids, top_logprobs = jax.device_get(thoughts)
            for prompt, row in enumerate(logprobs[: len(self._prompts)]):
                if not np.isfinite(row[virtual : lengths[prompt] - 1]).all():
                    self._refuse("at a token of the prompt")
            for i, row in enumerate(self.rows):
                p = i // self._samples
                row.prompt_tokens = [Token(row.prompt_ids[0], float("nan"), ())] + [
                    _token(token, logprobs[p, j], top_ids[p, j], top_logprobs[p, j])
                    for j, token in enumerate(row.prompt_ids[1:], virtual)
                ]
        keys = jnp.stack([self._keys[i % self._samples] for i in range(rows)])
        arrays = (cache, logits, counts, jnp.zeros_like(counts))
        return _State(rows, arrays, keys, prompt_lengths[owner])

    def _refuse(self, where: str) -> NoReturn:
        self.cancel()
        raise NotFiniteError(self._model.dtype, where)


class _State(NamedTuple):
    """What lives on the device between two chunks, for `rows` rows, a power of two."""

    rows: int
    arrays: tuple[Cache, jax.Array, jax.Array, jax.Array]  # cache, logits, prompt and own counts
    keys: jax.Array
    prompt_lengths: np.ndarray


def stream(model: LanguageModel, prompt: str, **settings: Any) -> Iterator[str]:
    """The text as it comes; closing the iterator stops the work. Settings as of `Decoding`."""
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt is of the type {type(prompt).__name__}: give stream one str")
    if settings.get("samples", 1) != 1:
        raise ValueError(f"samples is {settings['samples']}: stream gives one text, use generate")
    return pieces(Decoding(model, prompt, **settings))


def pieces(decoding: Decoding) -> Iterator[str]:
    """The text of a decoding's first row as it comes; closing the iterator stops the work."""
    shown = 0
    row = decoding.rows[0]
    try:
        while row.finish_reason is None:
            decoding.advance()
            if piece := row.text[shown:]:
                shown = len(row.text)
                yield piece
    finally:
        decoding.cancel()


# --- On the device ---


@dataclass(frozen=True, eq=False)
class _Form:
    """A network without its weights; one object for all that are alike, so compared at once.

    A chunk's call spends 0.4 to 0.9 ms less than with NNX's graph, hashed and compared anew.
    """

    structure: Any

    def of(self, weights: list[jax.Array]) -> Any:  # a Transformer
        return jax.tree.unflatten(self.structure, weights)


_form = functools.cache(_Form)


def _split(network: Transformer) -> tuple[_Form, list[jax.Array]]:
    weights, structure = jax.tree.flatten(network)
    return _form(structure), weights


@functools.partial(
    jax.jit, static_argnames=("form", "config", "room", "dtype", "every_position", "mesh")
)
def _prefill(
    form: _Form,
    weights: list[jax.Array],
    ids: jax.Array,
    lengths: jax.Array,
    *,
    config: ModelConfig,
    room: int,
    dtype: str,
    every_position: bool,
    mesh: jax.sharding.Mesh | None,
) -> Any:
    """The cache, the logits after each prompt, the prompts' token counts, what it thought."""
    network = form.of(weights)
    batch, width = ids.shape
    vocab = config.vocab_size
    ids = sharding.constrain(ids, mesh, DATA)
    cache = sharding.constrain(empty_cache(config, batch, room, dtype), mesh, DATA, MODEL)
    x, cache = network.hidden(ids, cache=cache, dtype=dtype)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    logits = network.unembed(last)[:, 0]
    inside = jnp.arange(width)[None, :] < lengths[:, None]
    rows = jnp.broadcast_to(jnp.arange(batch)[:, None], ids.shape)
    counts = jnp.zeros((batch, vocab), jnp.int32).at[rows, ids].add(inside.astype(jnp.int32))
    thoughts = None
    if every_position:
        flat = network.unembed(x)[:, :-1].reshape(batch * (width - 1), vocab)
        top = sampling.top_alternatives(flat, min(ALTERNATIVES, vocab))
        logprobs = sampling.log_probability(flat, ids[:, 1:].reshape(-1))
        thoughts = jax.tree.map(
            lambda a: a.reshape(batch, width - 1, *a.shape[1:]), (logprobs, *top)
        )
    return *_on_mesh(cache, (logits, counts), mesh), sharding.constrain(thoughts, mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _gather(tree: Any, rows: jax.Array, *, mesh: jax.sharding.Mesh | None) -> Any:
    cache, logits, counts = jax.tree.map(lambda a: a[rows], tree)
    return _on_mesh(cache, (logits, counts), mesh)


def _on_mesh(cache: Cache, per_row: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """The cache cut over rows and heads, what is one vector a row over the rows."""
    return (
        sharding.constrain(cache, mesh, DATA, MODEL),
        *sharding.constrain(per_row, mesh, DATA),
    )


@functools.partial(jax.jit, static_argnames=("form", "dtype", "mesh"), donate_argnums=(2,))
def _chunk(
    form: _Form,
    weights: list[jax.Array],
    arrays: tuple[Cache, jax.Array, jax.Array, jax.Array],
    settings: sampling.SamplingSettings,
    keys: jax.Array,
    goes_on: jax.Array,
    made: jax.Array,
    prompt_lengths: jax.Array,
    steps: jax.Array,
    ends: jax.Array,
    *,
    dtype: str,
    mesh: jax.sharding.Mesh | None,
) -> Any:
    """`steps` tokens for each row, fewer if all rows have come to the end of their text.

    A row also ends where its logits hold NaN or +infinity: then the log-probability of the token
    isn't finite. (What is banned has -infinity only in the scores.)
    """
    network = form.of(weights)
    cache, logits, prompt_counts, counts = arrays
    batch, vocab = logits.shape
    top = min(ALTERNATIVES, vocab)
    every_row = jnp.arange(batch)
    alone = batch == 1 and mesh is None
    if alone:
        cache = tuple(OneRow(*(kept[0] for kept in layer)) for layer in cache)
    out = (
        jnp.zeros((batch, CHUNK), jnp.int32),
        jnp.zeros((batch, CHUNK), jnp.float32),
        jnp.zeros((batch, CHUNK, top), jnp.int32),
        jnp.zeros((batch, CHUNK, top), jnp.float32),
    )

    def step(carry: Any) -> Any:
        i, goes_on, cache, logits, counts, out = carry
        scores = sampling.process_logits(logits, settings, prompt_counts, counts)
        token = sampling.sample(keys, made + i, scores, settings)
        told = (
            token,
            sampling.log_probability(logits, token),
            *sampling.top_alternatives(logits, top),
        )
        out = tuple(
            jax.lax.dynamic_update_index_in_dim(a, new, i, 1)
            for a, new in zip(out, told, strict=True)
        )
        counts = counts.at[every_row, token].add(1)
        positions = (prompt_lengths + made + i)[:, None]
        logits, cache = network(token[:, None], positions=positions, cache=cache, dtype=dtype)
        cache, logits, counts = _on_mesh(cache, (logits[:, 0], counts), mesh)
        ended = (token[:, None] == ends[None, :]).any(-1) | ~jnp.isfinite(told[1])
        return i + 1, goes_on & ~ended, cache, logits, counts, out

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < steps) & carry[1].any()

    _, _, cache, logits, counts, out = jax.lax.while_loop(
        unfinished, step, (jnp.int32(0), goes_on, cache, logits, counts, out)
    )
    if alone:
        cache = tuple(LayerCache(*(kept[None] for kept in layer)) for layer in cache)
    return (cache, logits, prompt_counts, counts), sharding.constrain(out, mesh)


# --- Small things ---


def _token(token_id: Any, logprob: Any, top_ids: np.ndarray, top_logprobs: np.ndarray) -> Token:
    pairs = zip(top_ids.tolist(), top_logprobs.tolist(), strict=True)
    return Token(int(token_id), float(logprob), tuple(pairs))


def _bucket(size: int, smallest: int = 1) -> int:
    """The next of smallest, 2 smallest, 4 smallest, ...: few lengths, so few compilations."""
    while smallest < size:
        smallest *= 2
    return smallest


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _padded_ends(ends: Sequence[int]) -> list[int]:
    """The end tokens, filled up to few lengths with what no token is."""
    return [*ends, *[-1] * (_bucket(len(ends), 4) - len(ends))]


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: a whole number of at least 1 is needed")
    return value


def _setting_names() -> list[str]:
    """The names that `generate` takes."""
    own = inspect.signature(Decoding).parameters.values()
    further = list(inspect.signature(sampling.make_settings).parameters)[1:]
    return [each.name for each in own if each.kind == each.KEYWORD_ONLY] + further


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, bytes | bytearray):
        raise TypeError("the prompt is bytes: give a str, for example prompt.decode()")
    if not isinstance(prompt, str):
        shown = "None" if prompt is None else f"of the type {type(prompt).__name__}"
        raise TypeError(f"the prompt is {shown}: give a str, or a list of them")


def _prompt_ids(
    model: LanguageModel, prompt: str, limit: int, keep_end: bool, special: bool
) -> list[int]:
    """The prompt's tokens, cut from the front if that was asked for."""
    ids = model.tokenizer.encode(prompt, add_special_tokens=special)
    if not ids:
        raise ValueError(
            f"the prompt is empty: give some text, or {model.tokenizer.end_of_text!r} to begin a "
            "new document"
        )
    context = model.config.context - len(model.virtual_tokens)
    if len(ids) >= context and not keep_end:
        raise ValueError(
            f"the prompt is {len(ids)} tokens, {len(ids) - context + 1} too many for a context of "
            f"{context} that shall hold a new token too: shorten it, or pass keep_end=True to keep "
            "its end"
        )
    if keep_end and len(ids) + limit > context:
        # A token that every text begins with stays.
        begin = len(model.tokenizer.before) if special else 0
        kept = max(context - limit, context // 2) - begin
        return [*ids[:begin], *ids[len(ids) - kept :]]
    return ids
