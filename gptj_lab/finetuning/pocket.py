"""The recipe of the embedded model: folders of stories and Python code, to a GPT-J."""

import contextlib
import dataclasses
import functools
import json
import lzma
import math
import random
import re
import signal
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from optax import contrib

from gptj_lab.checkpoints import huggingface
from gptj_lab.config import ModelConfig
from gptj_lab.finetuning import code_corpus
from gptj_lab.finetuning.loss import next_token_loss
from gptj_lab.finetuning.mixture import CODE, Phase, Plan, Source, mixed_windows, read_plan
from gptj_lab.language_model import LanguageModel
from gptj_lab.model.transformer import Transformer
from gptj_lab.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

# Modules of the standard library that are never trained on.
HELD_OUT_MODULES = (
    "bisect", "calendar", "colorsys", "fractions", "heapq",
    "queue", "sched", "shlex", "statistics", "textwrap",
)  # fmt: skip
# Folders that are tests, other people's packages, or tables rather than code.
_NOT_CODE = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings",
    "pydoc_data", "__phello__",
}  # fmt: skip
_SHINGLE = 10  # words that a training paragraph and a validation text may not share in a row
_SAMPLE_BYTES = 24_000  # of each held-out text, scored while training
_VOCABULARY_BYTES = 24_000_000  # of text that the tokenizer is trained on
_PART_TOKENS = 2_048  # that gradients are computed of at a time: a pause waits no longer


# --- Text ---


def split_documents(text: str) -> list[str]:
    """The documents of a file: between <|endoftext|>, and from each `# Title:` line on."""
    pieces = (
        piece for part in text.split(END_OF_TEXT) for piece in re.split(r"(?m)^(?=# Title:)", part)
    )
    return [piece.strip() + "\n" for piece in pieces if piece.strip()]


def held_out_documents() -> list[str]:
    """The source of HELD_OUT_MODULES in the running interpreter."""
    return [(_library() / f"{name}.py").read_text("utf-8") for name in HELD_OUT_MODULES]


Folders = Path | str | Sequence[Path | str]


def _folders(text_dir: Folders) -> list[Path]:
    folders = [text_dir] if isinstance(text_dir, Path | str) else text_dir
    return [Path(folder) for folder in folders]


def validation_documents(text_dir: Folders) -> list[str]:
    """The documents of every *_val.txt in the folders."""
    files = [file for folder in _folders(text_dir) for file in sorted(folder.glob("*_val.txt"))]
    return [doc for file in files for doc in split_documents(file.read_text("utf-8"))]


def story_documents(text_dir: Folders, source: Source | None = None) -> list[str]:
    """The folders' documents to train on, or those of one source's files, however long they are.

    A paragraph that shares ten words in a row with a validation text is left out: the tales of
    one collection are printed again in another.

    Raises:
        FileNotFoundError: there is no text to train on.
    """
    source = Source(files=("*",)) if source is None else source
    folders = _folders(text_dir)
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    files = [file for file in files if not file.stem.endswith("_val") and source.has(file)]
    unseen = {shingle for doc in validation_documents(folders) for shingle in _shingles(doc)}
    stories = [
        _without(unseen, doc) for file in files for doc in split_documents(file.read_text("utf-8"))
    ]
    stories = [story for story in stories if story.strip()]
    if not stories:
        raise FileNotFoundError(
            f"{', '.join(map(str, folders))} holds no text to train on in {source.files}: give a "
            "folder of *.txt files in UTF-8 (names ending in _val.txt are held out)"
        )
    return stories


def code_documents(seed: int = 0, code_dir: Path | str | None = None) -> list[str]:
    """The standard library's modules that may be trained on, in an order drawn from the seed.

    With a folder, the documents of its *.txt files too (of code_corpus.py). Modules that share
    ten telling lines with a held-out one are left out.
    """
    modules = [path.read_text("utf-8") for path in _code_files(seed)]
    if code_dir is not None:
        packages = [
            document
            for file in sorted(Path(code_dir).glob("*.txt"))
            for document in split_documents(file.read_text("utf-8"))
        ]
        if not packages:
            raise FileNotFoundError(f"{code_dir} holds no *.txt files: make them by code_corpus")
        random.Random(seed).shuffle(packages)
        modules += packages
    return code_corpus.without(held_out_documents(), modules)


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _code_files(seed: int) -> list[Path]:
    """The standard library's modules that may be trained on, in an order drawn from the seed."""
    held_out = {f"{name}.py" for name in HELD_OUT_MODULES}
    names = sorted(
        path.relative_to(_library()).as_posix()
        for path in _library().rglob("*.py")
        if not _NOT_CODE & set(path.relative_to(_library()).parts[:-1])
    )
    names = [name for name in names if name not in held_out]
    random.Random(seed).shuffle(names)
    return [path for name in names if _is_text(path := _library() / name)]


def _is_text(path: Path) -> bool:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and END_OF_TEXT not in text


def _shingles(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    return zip(*(words[i:] for i in range(_SHINGLE)), strict=False)


def _without(unseen: set[tuple[str, ...]], text: str) -> str:
    parts = text.split("\n\n")
    return "\n\n".join(part for part in parts if unseen.isdisjoint(_shingles(part)))


def _prepare(
    out: Path, plan: Plan, settings: dict[str, Any]
) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and the memory-mapped tokens of each source, made once.

    A tokenizer that lies in out/tokenizer is taken as it is.
    """
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        base = settings["start_from"]
        made = _vocabulary(plan, settings) if base is None else Tokenizer.from_directory(base)
        made.save(folder)
    tokenizer = Tokenizer.from_directory(folder)
    (out / "tokens").mkdir(exist_ok=True)
    tokens = {}
    for name in plan.names:
        path = out / "tokens" / f"{name}.npy"
        if not path.exists():
            longest = None if name == CODE else plan.sources[name].longest
            _save_tokens(path, tokenizer, _documents(plan, settings, name), longest)
        tokens[name] = np.load(path, mmap_mode="r")
    return tokenizer, tokens


def _documents(plan: Plan, settings: dict[str, Any], name: str) -> list[str]:
    if name == CODE:
        return code_documents(settings["seed"], settings["code_dir"])
    return story_documents(settings["text_dir"], plan.sources[name])


def _vocabulary(plan: Plan, settings: dict[str, Any]) -> Tokenizer:
    """A BPE of documents that are drawn from each source in its mean share of the phases."""
    texts: list[str] = []
    for name, share in plan.shares().items():
        chosen = _documents(plan, settings, name)
        random.Random(settings["seed"]).shuffle(chosen)
        texts += _first(chosen, _VOCABULARY_BYTES * share)
    return train_bpe(texts, settings["vocab_size"])


def _size(documents: Iterable[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _first(documents: Iterable[str], wanted: float) -> list[str]:
    """Documents from the first on, as far as they fit into `wanted` bytes."""
    chosen: list[str] = []
    for document in documents:
        size = len(document.encode())
        if size <= wanted:
            chosen.append(document)
            wanted -= size
    return chosen


def _save_tokens(
    path: Path, tokenizer: Tokenizer, documents: Sequence[str], longest: int | None = None
) -> None:
    """Saves the documents' tokens, <|endoftext|> around each; without those that are longer."""
    end = np.array([_end(tokenizer)], np.uint16)
    pieces = [end]
    for start in range(0, len(documents), 256):
        for ids in tokenizer.encode_all(documents[start : start + 256]):
            if longest is None or len(ids) <= longest:
                pieces += [np.asarray(ids, np.uint16), end]
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        np.save(file, np.concatenate(pieces))
    aside.rename(path)


def _end(tokenizer: Tokenizer) -> int:
    end = tokenizer.end_of_text_id
    if end is None:
        raise ValueError(f"the tokenizer has no {END_OF_TEXT}: train it with train_bpe")
    return end


# --- Training ---


def _say(line: str) -> None:
    print(line, flush=True)


def _optimiser() -> optax.GradientTransformation:
    """Muon (Jordan 2024) on the blocks' matrices, Adam at a tenth of its rate on the rest.

    The embedding has the whole rate: a row of it learns only where its token stands.
    Its updates are for a learning rate of 1: each step scales them by the rate it is given.
    """

    def matrices(params: Any) -> Any:
        def kind(path: Any, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
            inside = "blocks" in jax.tree_util.keystr(path) and leaf.ndim == 2
            return contrib.MuonDimensionNumbers(1, 0) if inside else None  # [d_out, d_in]

        return jax.tree_util.tree_map_with_path(kind, params)

    def tenfold(updates: Any, params: Any) -> Any:
        def each(path: Any, update: jax.Array) -> jax.Array:
            return 10 * update if "embed" in jax.tree_util.keystr(path) else update

        return jax.tree_util.tree_map_with_path(each, updates)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        contrib.muon(
            1.0,
            weight_decay=0.01,
            adam_learning_rate=0.1,
            adam_b2=0.95,
            muon_weight_dimension_numbers=matrices,
        ),
        optax.stateless(tenfold),
    )


def _make_steps(
    graph: Any, optimiser: optax.GradientTransformation, products: str
) -> tuple[Any, Any]:
    """Two compiled functions: gradients added to those of other rows, and the step by them."""

    def loss_of(params: Any, rows: jax.Array) -> jax.Array:
        return next_token_loss(nnx.merge(graph, params), rows, products=products)

    @functools.partial(jax.jit, donate_argnums=1)
    def add_gradients(params: Any, total: Any, rows: jax.Array, share: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, rows)
        return jax.tree.map(lambda t, g: t + share * g, total, gradients), share * loss

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def update(
        params: Any, moments: Any, average: Any, gradients: Any, rate: jax.Array, keep: jax.Array
    ) -> Any:
        updates, moments = optimiser.update(gradients, moments, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        return params, moments, average, jax.tree.map(jnp.zeros_like, gradients)

    return add_gradients, update


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """The rows in alike parts of _PART_TOKENS tokens, as far as their number allows."""
    wanted = max(1, _PART_TOKENS // (rows.shape[1] - 1))
    size = max(n for n in range(1, len(rows) + 1) if len(rows) % n == 0 and n <= wanted)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _States:
    """Saved training states below `out`: the newest two, and the last before the rate fell."""

    def __init__(self, out: Path):
        self._newest = self._manager(out / "states", 2)
        self._steady = self._manager(out / "steady", 1)

    @staticmethod
    def _manager(path: Path, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        return ocp.CheckpointManager(path.resolve(), options=options)

    @property
    def step(self) -> int | None:
        return self._newest.latest_step()

    @property
    def steady_step(self) -> int | None:
        return self._steady.latest_step()

    def save(self, step: int, state: Any, *, steady: bool = False) -> None:
        manager = self._steady if steady else self._newest
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(_named(state)))

    def restore(self, like: Any, *, steady: bool = False) -> Any:
        """The saved state, in the shapes of `like`."""
        manager = self._steady if steady else self._newest
        named = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        found = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(named))
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in sorted(found)])

    def forget_after(self, step: int) -> None:
        for saved in self._newest.all_steps():
            if saved > step:
                self._newest.delete(saved)

    def close(self) -> None:
        self._newest.close()
        self._steady.close()


def _named(state: Any) -> dict[str, Any]:
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _config(settings: dict[str, Any], tokenizer: Tokenizer) -> ModelConfig:
    end = _end(tokenizer)
    return ModelConfig.of_family(
        "gptj",
        vocab_size=settings["vocab_size"], context=settings["context"],
        d_model=settings["d_model"], num_layers=settings["num_layers"],
        num_heads=settings["num_heads"], d_rotary=settings["d_rotary"],
        d_ff=4 * settings["d_model"], activation="gelu_new", layer_norm_eps=1e-5,
        initializer_range=0.02, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip


def _new(settings: dict[str, Any], tokenizer: Tokenizer) -> tuple[Any, Any]:
    """The graph and the state at step 0: (parameters, moments, average, [step, tokens seen])."""
    config, start_from = _config(settings, tokenizer), settings["start_from"]
    seen = 0
    if start_from is None:
        network = Transformer(config, key=jax.random.key(settings["seed"]))
    else:
        found, network = huggingface.read(Path(start_from), "float32")
        if dataclasses.replace(found, context=config.context) != config:
            raise ValueError(f"{start_from} holds {found}, the run needs {config}: change one")
        measured = Path(start_from) / "metrics.json"
        if measured.exists():
            seen = json.loads(measured.read_text("utf-8"))["tokens"]
    graph, params = nnx.split(network)
    average = jax.tree.map(jnp.copy, params)
    return graph, (params, _optimiser().init(params), average, np.array([0, seen], np.int64))


def _agree(out: Path, settings: dict[str, Any]) -> None:
    """Writes settings.json, or compares it with that of the state which is there."""
    path = out / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        return
    saved = json.loads(path.read_text("utf-8"))
    for name, value in settings.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{name} is {value!r} but the state in {out} was trained with "
                f"{saved.get(name)!r}: give the same value or another folder"
            )


def train_pocket(
    text_dir: Folders,
    out_dir: Path | str,
    *,
    steps: int,
    decay_steps: int | None = None,
    max_minutes: float = math.inf,
    save_every_minutes: float = 6.0,
    batch: int = 16,
    d_model: int = 256,
    num_layers: int = 6,
    num_heads: int = 8,
    d_rotary: int = 16,
    context: int = 256,
    vocab_size: int = 4096,
    code_share: float = 0.2,
    code_dir: Path | str | None = None,
    plan: Path | str | None = None,
    peak_lr: float = 0.02,
    warmup_steps: int = 100,
    average: float = 0.999,
    products: str = "bfloat16",
    seed: int = 0,
    start_from: Path | str | None = None,
    export_to: Path | str | None = None,
    say: Callable[[str], None] = _say,
) -> int:
    """Trains until `steps`, going on from what `out_dir` holds.

    The learning rate warms up, stays, and falls linearly to nothing over the last `decay_steps`
    (a fifth of `steps` by default). A finished run is extended by asking for more steps: it goes
    on from the state saved before the rate fell. While a file `out_dir`/pause is there, it waits.

    Args:
        text_dir: a folder of *.txt files, or several.
        max_minutes: stop and save after so long; call again to go on.
        code_share: of each step's windows, those of Python code. Stories and code have epochs of
            their own, so that none of either is left out.
        code_dir: a folder of *.txt files of Python, beside the standard library.
        plan: a JSON file of sources and phases (see mixture.py) in place of batch and code_share.
            What it says of steps that lie ahead may change between two calls.
        average: of the weights' running mean, what the mean keeps in a step (less at the
            beginning: a tenth of the steps seen counts). The mean is saved beside the weights.
        products: "bfloat16" or "float32" operands of matrix products; float32 is quicker on a
            processor without instructions for bfloat16, and may change between two calls.
        start_from: a Hugging Face directory of the same shape (the context may differ) whose
            weights and tokenizer are the beginning; without it, both are made anew.
        export_to: a Hugging Face directory to be rewritten at every save, with the mean.

    Returns:
        The number of steps that the newest state has seen.

    Raises:
        FileNotFoundError: there is no text in `text_dir`.
        ValueError: `out_dir` holds a state of other settings; the message names the first.
        FloatingPointError: the loss is no longer a number; the last saved state stays.
    """
    folders, out = _folders(text_dir), Path(out_dir)
    falling = steps // 5 if decay_steps is None else decay_steps
    if steps < 1 or not 0 <= falling <= steps:
        raise ValueError(
            f"steps is {steps} and decay_steps {falling}: at least 1 step, and no longer a fall"
        )
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a directory: give a folder of *.txt files")
    mixing = _even(batch, context, code_share) if plan is None else read_plan(plan)
    mixing.at(steps - 1)
    out.mkdir(parents=True, exist_ok=True)
    base = None if start_from is None else str(Path(start_from).resolve())
    settings = dict(
        text_dir=[str(folder.resolve()) for folder in folders],
        code_dir=None if code_dir is None else str(Path(code_dir).resolve()),
        batch=None if plan else batch, code_share=None if plan else code_share,
        d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_rotary=d_rotary,
        context=context, vocab_size=vocab_size, peak_lr=peak_lr, warmup_steps=warmup_steps,
        average=average, seed=seed, start_from=base,
    )  # fmt: skip
    _agree(out, settings)
    tokenizer, tokens = _prepare(out, mixing, settings)
    lengths = {name: _bytes_per_token(tokenizer, each) for name, each in tokens.items()}
    for name, each in tokens.items():
        say(f"{name}: {len(each):,} tokens, {lengths[name]:.2f} bytes each")
    samples = {
        "tales": _head(validation_documents(folders)),
        "code": _head(held_out_documents()),
    }

    graph, state = _new(settings, tokenizer)
    add_gradients, update = _make_steps(graph, _optimiser(), products)
    states = _States(out)
    params, moments, mean_params, counts = _resume(states, out, steps, falling, state)
    gradients = jax.tree.map(jnp.zeros_like, params)
    step, seen = (int(each) for each in counts)
    if step:
        say(f"going on from step {step}")

    def now_state() -> Any:
        return params, moments, mean_params, np.array([step, seen], np.int64)

    def save() -> None:
        states.save(step, now_state())
        if export_to is None:
            return
        network = nnx.merge(graph, mean_params)
        scores = {
            name: bits_per_byte(network, tokenizer, texts, context=context)
            for name, texts in samples.items()
            if texts
        }
        shown = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        say(f"step {step}: saved; bits per byte on a sample of {shown}")
        _record(out, {"step": step, "tokens": seen, "sample_bits_per_byte": scores})
        measures = {"steps": step, "tokens": seen, "sample": scores}
        _write(
            Path(export_to), _config(settings, tokenizer), graph, mean_params, tokenizer, measures
        )

    begun = saved_at = told_at = time.monotonic()
    told_seen, losses = seen, []
    with _signals() as stop:
        try:
            while step < steps and not stop.is_set():
                if step == steps - falling:
                    states.save(step, now_state(), steady=True)
                fall = (steps - step) / falling if falling else 1.0
                rate = peak_lr * min((step + 1) / warmup_steps, 1.0, fall)
                parts = _parts(mixed_windows(mixing, tokens, seed=seed, step=step))
                total = 0.0
                for part in parts:
                    waited = _pause(out, stop)
                    begun, saved_at, told_at = begun + waited, saved_at + waited, told_at + waited
                    share = np.float32(1 / len(parts))
                    gradients, loss = add_gradients(params, gradients, part, share)
                    total += float(loss)
                keep = np.float32(min(average, (step + 1) / (step + 10)))
                params, moments, mean_params, gradients = update(
                    params, moments, mean_params, gradients, np.float32(rate), keep
                )
                phase = mixing.at(step)[1]
                step, seen = step + 1, seen + phase.tokens
                losses.append(total)
                if not math.isfinite(total):
                    raise FloatingPointError(
                        f"the loss is {total} at step {step}: lower peak_lr and begin in "
                        "another folder"
                    )
                now = time.monotonic()
                if now - told_at >= 10 or step == steps:
                    mean = sum(losses) / len(losses)
                    speed = (seen - told_seen) / (now - told_at)
                    size = sum(phase.rows[name] * lengths[name] for name in phase.rows)
                    line = {
                        "step": step, "tokens": seen, "loss": mean, "rate": rate,
                        "tokens_per_second": speed,
                        "bits_per_byte": mean / math.log(2) / size * sum(phase.rows.values()),
                    }  # fmt: skip
                    _record(out, line)
                    left = (steps - step) * phase.tokens / speed / 60
                    say(
                        f"step {step}  loss {mean:.3f}  bits per byte {line['bits_per_byte']:.3f}"
                        f"  {speed:,.0f} tokens/s  {left:.1f} minutes left"
                    )
                    losses.clear()
                    told_at, told_seen = now, seen
                if now - begun >= 60 * max_minutes:
                    stop.set()
                elif now - saved_at >= 60 * save_every_minutes:
                    save()
                    saved_at = told_at = time.monotonic()
                    told_seen = seen
            save()
        finally:
            states.close()
    if step < steps:
        say(f"stopped at step {step}; the state is saved: run the same command to go on")
    return step


def _even(batch: int, context: int, code_share: float) -> Plan:
    """One phase of all stories and code."""
    if not 0 <= code_share < 1:
        raise ValueError(f"code_share is {code_share}: a part of each step from 0 to below 1")
    code = round(batch * code_share)
    phase = Phase(until=1 << 40, context=context, rows={"stories": batch - code, CODE: code})
    return Plan(sources={"stories": Source(files=("*",))}, phases=[phase])


def _pause(out: Path, stop: threading.Event) -> float:
    """Waits while the file out/pause is there and nobody stops the run; the seconds waited."""
    begun = time.monotonic()
    while (out / "pause").exists() and not stop.is_set():
        time.sleep(0.5)
    return time.monotonic() - begun


def _resume(states: _States, out: Path, steps: int, falling: int, state: Any) -> Any:
    """The state to go on from; the one given if nothing is saved."""
    plan, path = {"steps": steps, "falling": falling}, out / "plan.json"
    if states.step is not None:
        # A rate that fell under another plan is not where this plan continues.
        old = json.loads(path.read_text("utf-8"))
        steady = old != plan and states.step > old["steps"] - old["falling"]
        state = states.restore(state, steady=steady)
        states.forget_after(int(state[-1][0]))
    path.write_text(json.dumps(plan), "utf-8")
    return state


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step is finished and saved."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _record(out: Path, line: dict[str, Any]) -> None:
    with (out / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(json.dumps(line) + "\n")


def _bytes_per_token(tokenizer: Tokenizer, tokens: np.ndarray) -> float:
    counts = np.bincount(tokens, minlength=tokenizer.vocab_size)
    end = _end(tokenizer)
    sizes = [0 if i == end else len(tokenizer.token_bytes(i)) for i in range(len(counts))]
    return float(counts @ np.asarray(sizes) / len(tokens))


def _head(texts: Sequence[str]) -> list[str]:
    """The beginnings of the texts, together _SAMPLE_BYTES long at most."""
    each = _SAMPLE_BYTES // max(1, len(texts))
    return [text[:each] for text in texts]


# --- Scores and export ---


def curves(out_dir: Path | str) -> dict[str, list[tuple[float, float]]]:
    """The run's curves of (tokens seen, bits per byte), in the order of training."""
    out = Path(out_dir)
    found: dict[str, dict[int, float]] = {}
    for line in (out / "history.jsonl").read_text("utf-8").splitlines():
        told = json.loads(line)
        scores = {"training": told["bits_per_byte"]} if "bits_per_byte" in told else {}
        for name, score in told.get("sample_bits_per_byte", {}).items():
            scores[f"held-out {name}"] = score
        for name, score in scores.items():  # what a resumed run went over again counts once
            found.setdefault(name, {})[told["tokens"]] = score
    return {name: sorted(points.items()) for name, points in found.items()}


@functools.partial(jax.jit, static_argnames="graph")
def _nats(graph: Any, params: Any, rows: jax.Array, counted: jax.Array) -> jax.Array:
    """The loss in nats of the tokens that are counted, bool [batch, context]."""
    logits, _ = nnx.merge(graph, params)(rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return jnp.where(counted, losses, 0.0).sum()


def bits_per_byte(
    network: Transformer, tokenizer: Tokenizer, texts: Iterable[str], *, context: int = 256
) -> float:
    """Bits that the network needs for a byte of the texts, each a document of its own.

    Windows of `context` tokens overlap by half, so that every token is scored once and, after the
    first window, with at least half a window before it. The first is predicted from <|endoftext|>.
    """
    end = _end(tokenizer)
    half = context // 2
    graph, params = nnx.split(network)
    rows: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    size = 0
    for text in texts:
        size += len(text.encode())
        ids = np.asarray([end, *tokenizer.encode(text)], np.int32)
        done = 1  # ids[:done] are scored; the first is given
        while done < len(ids):
            start = max(0, done - 1 - half)
            piece = ids[start : start + context + 1]
            row = np.full(context + 1, end, np.int32)
            row[: len(piece)] = piece
            place = start + 1 + np.arange(context)
            rows.append(row)
            counted.append((place >= done) & (place < len(ids)))
            done = start + len(piece)
    if not size:
        raise ValueError("the texts are empty: bits per byte needs at least one byte")
    total = 0.0
    group = 16
    for i in range(0, len(rows), group):
        lacking = max(0, i + group - len(rows))
        some = np.stack(rows[i : i + group] + [rows[0]] * lacking)
        mask = np.stack(counted[i : i + group] + [np.zeros(context, bool)] * lacking)
        total += float(_nats(graph, params, some, mask))
    return total / (size * math.log(2))


def export(
    out_dir: Path | str, target: Path | str, *, averaged: bool | None = None
) -> dict[str, Any]:
    """Writes the newest state as a Hugging Face directory with metrics.json; returns its content.

    The weights are float16, and those are what the bits per byte are measured on.

    Args:
        averaged: whether the weights are the running mean; None takes what needs fewer bits per
            byte of the held-out samples, mean or last weights.

    Raises:
        FileNotFoundError: `out_dir` holds no state.
    """
    out = Path(out_dir)
    if not (out / "settings.json").is_file():
        raise FileNotFoundError(f"{out} holds no training run: give the --out of train-pocket")
    settings = json.loads((out / "settings.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_directory(out / "tokenizer")
    graph, state = _new(settings, tokenizer)
    states = _States(out)
    try:
        if states.step is None:
            raise FileNotFoundError(f"{out} holds no saved state yet: train for some minutes more")
        last, _, mean, counts = states.restore(state)
    finally:
        states.close()
    texts = {"tales": validation_documents(settings["text_dir"]), "code": held_out_documents()}

    def scores(params: Any, texts: dict[str, list[str]]) -> dict[str, float]:
        rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params)
        network, context = nnx.merge(graph, rounded), settings["context"]
        return {
            name: bits_per_byte(network, tokenizer, documents, context=context)
            for name, documents in texts.items()
            if documents
        }

    if averaged is None:
        samples = {name: _head(documents) for name, documents in texts.items()}
        mean_bits, last_bits = (sum(scores(each, samples).values()) for each in (mean, last))
        averaged = mean_bits <= last_bits
    params = mean if averaged else last
    measures: dict[str, Any] = {
        "steps": int(counts[0]),
        "tokens": int(counts[1]),
        "averaged": averaged,
        "held_out_modules": list(HELD_OUT_MODULES),
    }
    for name, found in scores(params, texts).items():
        data = "".join(texts[name]).encode()
        measures[name] = {
            "bits_per_byte": found,
            "xz_bits_per_byte": 8 * len(lzma.compress(data, preset=9)) / len(data),
            "bytes": len(data),
        }
    _write(Path(target), _config(settings, tokenizer), graph, params, tokenizer, measures)
    return measures


def _write(
    target: Path,
    config: ModelConfig,
    graph: Any,
    params: Any,
    tokenizer: Tokenizer,
    measures: dict[str, Any],
) -> None:
    """Replaces the files of a Hugging Face directory; others in it (a model card) stay."""
    half = jax.tree.map(lambda x: x.astype(jnp.float16), params)
    with huggingface.replacing(target) as aside:
        LanguageModel(config, nnx.merge(graph, half), tokenizer).save(aside)
        for name, content in (("metrics", measures), ("generation_config", _sampling(tokenizer))):
            (aside / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _sampling(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: what shows the model at its best (docs/pocket_run.md has figures)."""
    end = _end(tokenizer)
    return {
        "bos_token_id": end, "eos_token_id": end, "do_sample": True, "temperature": 0.7,
        "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.1,
    }  # fmt: skip
