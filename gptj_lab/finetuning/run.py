"""A run: fine-tuning that can be watched, paused, stopped, left, and gone on with."""

from __future__ import annotations

import atexit
import math
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from gptj_lab.chat_templates import ChatTemplate
from gptj_lab.checkpoints import huggingface
from gptj_lab.checkpoints.training_state import TrainingStates
from gptj_lab.finetuning import (
    continuing,
    export,
    fitting,
    lora,
    methods,
    publishing,
    settings,
    soft_prompts,
)
from gptj_lab.finetuning import corpus as corpora
from gptj_lab.finetuning.control import ACTIVE, Control, Interrupted, Status, interrupts
from gptj_lab.finetuning.corpus import Corpus, HubDataset
from gptj_lab.finetuning.loop import Loop, like
from gptj_lab.finetuning.lora import LoRA
from gptj_lab.finetuning.methods import Method, SoftPrompt
from gptj_lab.finetuning.optimisers import Optimiser
from gptj_lab.finetuning.packing import Packing
from gptj_lab.finetuning.recording import Recording
from gptj_lab.finetuning.settings import Settings
from gptj_lab.finetuning.telling import Aloud, Quiet, unless_gone
from gptj_lab.finetuning.trainer import Trainer
from gptj_lab.language_model import LanguageModel

_TOO_LARGE = (
    "the device's memory doesn't suffice for a step: take a smaller batch or context, "
    "remat='nothing kept', accumulate, or LoRA on weights='int8'"
)
_IN_AN_EXCEPTION = (
    "in memory only, as out=FOLDER wasn't given: it is this exception's `run` (in a notebook: "
    "import sys; run = sys.last_value.run); run.train() goes on, run.model has the weights so far"
)
_NEEDED = {
    "model": "gptj_lab.load(...) gives one",
    "method": "gptj_lab.LoRA(), Full(), LastBlocks() or SoftPrompt() is needed",
    "optimiser": "gptj_lab.Optimiser(name=...) is needed",
    "prompts": "a text or a list of texts is needed",
    "held_out": "a share, or sources of text, is needed",
}


class Run:
    """A fine-tuning run; make it with `gptj_lab.finetune`.

    Its numbers can be read at any time from any thread. `pause`, `resume`, `stop` and `checkpoint`
    return at once and are obeyed within one step; calling one twice is as calling it once.

    Attributes:
        base: the model before.
        corpus: what it trains on and is measured on.
        settings: a dict for JSON, as run.json has it.
    """

    def __init__(
        self, model: LanguageModel, corpus: Corpus, chosen: Settings, held_out: float | None = None
    ):
        """Prepares everything; where `chosen.out` holds a state, goes back to it.

        Raises:
            BlockingIOError: another process has the folder.
            ValueError: the settings don't suit the model, the text, or the run in the folder.
        """
        chosen.check(model)
        self.base, self.corpus = model, corpus
        self.settings: dict[str, Any] = chosen.record(model, corpus, held_out)
        self._chosen, self._control = chosen, Control()
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._states = self._open()
        try:
            recording = Recording(chosen.out)
            if recording.settings is not None and chosen.out is not None:
                settings.agree(recording.settings, self.settings, chosen.out)
            tuned = model.twin()
            tuned.chat_template = corpus.template or model.chat_template
            trainer = Trainer(
                tuned, chosen.method, chosen.optimiser, steps=chosen.steps, seed=chosen.seed,
                dtype=chosen.dtype, remat=chosen.remat,
            )  # fmt: skip
            self._loop = Loop(trainer, corpus, chosen, recording, self._control)
            self._resume(recording)
            told = continuing.sentences(model, chosen.method)
            self.notes[:0] = [sentence for sentence in told if sentence not in self.notes]
        except BaseException:
            self._close()
            raise

    def __repr__(self) -> str:
        return (
            f"Run({self.settings['method']['kind']} of {self.base.name!r}, {self.status}, step "
            f"{self.step:,} of {self.steps:,})"
        )

    @property
    def status(self) -> Status:
        """What it does: ready, compiling, running, paused, stopped, finished or failed."""
        return self._control.status

    @property
    def step(self) -> int:
        """Steps that are done and recorded."""
        return self._loop.step

    @property
    def weights_step(self) -> int:
        """The step that the model's weights are of: before `step` where a failure put them back."""
        return self._loop.weights_step

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self._loop.steps

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dict a step: step, loss, rate, gradient_norm, tokens_per_second, seconds, memory_bytes.

        The loss is in nats a token, before the step; seconds are those of the run so far.
        """
        return self._loop.history

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Dicts of step, held_out_loss, loss (training's mean since the last), samples, best."""
        return self._loop.evaluations

    @property
    def notes(self) -> list[str]:
        """Sentences about what happened."""
        return self._loop.notes

    @property
    def base_loss(self) -> float | None:
        """The base's held-out loss in nats a token: where the loss should start."""
        return self._loop.base_loss

    @property
    def seconds_left(self) -> float | None:
        """Until the last step; None before the first."""
        return self._loop.seconds_left

    @property
    def tokens_per_second(self) -> float | None:
        """Of the last steps, padding not counted; None before the first."""
        return self._loop.pace.tokens_per_second

    @property
    def error(self) -> str | None:
        """Why it failed."""
        return self._loop.error

    @property
    def model(self) -> LanguageModel:
        """The model as it is now, on arrays of its own: safe to use while the run goes on."""
        return self._loop.trainer.snapshot()

    def best(self) -> LanguageModel:
        """The model of the lowest held-out loss, see `best_state`."""
        return self.best_state()[1]

    def best_state(self) -> tuple[int, LanguageModel]:
        """(step, model) of the lowest held-out loss, of a run that has ended.

        Of a run with a folder: the lowest of the states there, which are saved where it evaluates
        unless `save_every` says otherwise; without one: of all evaluations. Step 0 is the model
        before, if none was better.

        Raises:
            ValueError: the run goes on, or nothing was held out.
        """
        if self.status in ACTIVE:
            raise ValueError(f"the run is {self.status}: stop it first, or wait for its end")
        trainer = self._loop.trainer
        if self._chosen.out is None:
            if self._loop.best is None:
                raise ValueError("no evaluation is there: hold out some text, and train")
            step, kept = self._loop.best
            return step, trainer.model_of_kept(kept)
        with TrainingStates(self._chosen.out / "states", keep=self._chosen.keep) as states:
            state = states.restore_best(like(trainer))
        lowest = math.inf if state is None or state.measure is None else state.measure
        measured = [row["held_out_loss"] for row in self.evaluations if row["step"]]
        unsaved = state is None and any(
            loss is not None and self.base_loss is not None and loss < self.base_loss
            for loss in measured
        )
        if self.base_loss is not None and self.base_loss < lowest and not unsaved:
            return 0, trainer.model_of_kept(None)
        if state is None:
            raise ValueError("no state was measured: hold out some text, and save where evaluated")
        return state.step, trainer.model_of(state.arrays)

    def first(self) -> LanguageModel:
        """The model before the first step: the base, with what the method adds to it."""
        return self._loop.trainer.model_of_kept(None)

    def start(self) -> None:
        """Begins or goes on in a thread of its own; nothing where it is finished or has failed."""
        if self.status in ("finished", "failed") or not self._control.begin():
            return
        if self._thread is not None:
            self._thread.join()  # it has ended, or is about to
        self._thread = threading.Thread(
            target=self._work, args=(Quiet(),), name="finetune", daemon=True
        )
        atexit.register(_end, weakref.ref(self))
        self._thread.start()

    def pause(self) -> None:
        """Waits after the step that is under way, until `resume` or `stop`."""
        self._control.wish("pause")

    def resume(self) -> None:
        """Goes on after `pause`, or after `stop`."""
        if self.status == "stopped":
            self.start()
        self._control.wish("go")

    def stop(self) -> None:
        """Ends after the step that is under way; its state is saved where there is a folder."""
        self._control.wish("stop")

    def checkpoint(self) -> None:
        """Saves the state after the step that is under way; of a run that has ended, now.

        Raises:
            ValueError: the run has no folder.
            OSError: the run has ended and its state can't be saved.
        """
        if self._chosen.out is None:
            raise ValueError("the run has no folder to save its state in: give finetune out=...")
        if not self._control.wish_to_save():
            with TrainingStates(self._chosen.out / "states", keep=self._chosen.keep) as states:
                self._loop.save_to(states)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the run has ended, or `timeout` seconds; whether it has ended.

        Raises:
            Exception: what went wrong in the run, if it is no failure that `error` tells.
        """
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise crash
        return self.status in ("stopped", "finished", "failed")

    def save(self, directory: Path | str, *, best: bool = False) -> int:
        """The step whose weights it writes, as an adapter in PEFT's format or a whole model.

        Args:
            directory: becomes an adapter's, or a Hugging Face directory.
            best: of the lowest held-out loss (`best_state`), not of the last step.

        Raises:
            OSError: it can't be written; files that were there stay whole.
            ValueError: there is no best model.
        """
        step, model = self.best_state() if best else (self.weights_step, self.model)
        self.write(model, directory)
        return step

    def write(self, model: LanguageModel, directory: Path | str) -> None:
        """Writes what was trained of a model that the run gave (`model`, `best`, `first`).

        An adapter is written together with those that the base has besides, as one.

        Raises:
            OSError: it can't be written; files that were there stay whole.
        """
        method = self._chosen.method
        if isinstance(method, LoRA):
            export.save_adapter(model, directory, lora.names(model))
        elif isinstance(method, SoftPrompt):
            soft_prompts.save(model, directory)
        else:
            model.save(directory)

    def push(self, repo_id: str, **settings: Any) -> publishing.Push:
        """Uploads what was trained to the hub with a model card: see finetuning.publishing.push."""
        return publishing.push(self, repo_id, **settings)

    def train(self, say: Callable[[str], object] = print) -> None:
        """Trains in the calling thread until the end.

        Raises:
            Interrupted: a KeyboardInterrupt, after Ctrl-C (or a notebook's stop button): the step
                under way is finished and the state saved before; its `run` is this one.
            SystemExit: the same after SIGTERM, with its exit code.
        """
        if self.status in ("finished", "failed") or not self._control.begin():
            return
        say = unless_gone(say)
        first = jax.process_index() == 0  # of several processes the others are quiet
        for sentence in self._beginning() if first else ():
            say(sentence)
        with interrupts(self.stop) as came:
            self._work(Aloud(say) if first else Quiet())
        self.wait()
        if came and came[0] == signal.SIGINT:
            raise Interrupted(self._ended(in_memory=_IN_AN_EXCEPTION), self)
        if came or self.status == "stopped":
            say(self._ended(in_memory="in run.model; run.train() goes on"))
        if came:
            raise SystemExit(128 + came[0])

    def _ended(self, in_memory: str) -> str:
        """Where a run that was stopped or interrupted stands, and how to go on."""
        out, done = self._chosen.out, f"after step {self.step:,} of {self.steps:,}"
        if self.status == "failed":
            return f"failed {done}: {self.error}"
        kept = f"saved in {out}: the same call goes on from there"
        return f"{self.status} {done}; the state is {kept if out is not None else in_memory}"

    def _beginning(self) -> Iterator[str]:
        """What is known before the first step."""
        chosen, model = self._chosen, self.base
        yield from self.corpus.doctor(steps=chosen.steps, batch=chosen.batch).sentences
        yield str(
            methods.estimate(
                model, chosen.method, batch=chosen.batch, context=self.corpus.train.context,
                optimiser=chosen.optimiser, remat=chosen.remat, dtype=chosen.dtype,
            )
        )  # fmt: skip
        sentence = self._loop.measuring.sentence()
        yield from () if sentence is None else (sentence,)
        yield from self.notes

    def _open(self) -> TrainingStates | None:
        out = self._chosen.out
        if out is None:
            return None
        try:
            return TrainingStates(out / "states", keep=self._chosen.keep)
        except OSError as error:
            raise huggingface.cannot_write(out, error) from error

    def _close(self) -> None:
        states, self._states = self._states, None
        if states is not None:
            states.close()

    def _resume(self, recording: Recording) -> None:
        state = None if self._states is None else self._states.restore(like(self._loop.trainer))
        if state is not None:
            self._loop.go_on_from(state)
            before = (recording.settings or {}).get("steps", self.steps)
            self.notes.append(f"resumed from step {state.step:,} in {self._chosen.out}")
            if state.step > self.steps:
                self.notes.append(
                    f"it has more steps than the {self.steps:,} that it is to have: none is left"
                )
            elif before != self.steps:
                self.notes.append(
                    f"the run was to have {before:,} steps and has {self.steps:,} now: the "
                    "learning rate follows the new number"
                )
        try:
            recording.begin(self.settings, 0 if state is None else state.step)
        except OSError as error:
            assert self._chosen.out is not None
            raise huggingface.cannot_write(self._chosen.out, error) from error

    def _work(self, teller: Quiet) -> None:
        """Trains until the end, in whatever thread."""
        status: Status = "failed"
        try:
            self._states = self._states or self._open()
            status = self._loop.run(teller, self._states)
        except BaseException as error:
            full = "RESOURCE_EXHAUSTED" in str(error)
            self._loop.error = _TOO_LARGE if full else f"{type(error).__name__}: {error}"
            self._crash = MemoryError(_TOO_LARGE) if full else error
        finally:
            teller.close()
            self._loop.recording.close()
            try:
                self._close()
            except OSError as error:
                status, self._loop.error = "failed", str(error)
                self.notes.append(str(error))
            self._control.end(status)


def _end(reference: weakref.ref[Run]) -> None:
    """Stops a run at the interpreter's end, so that its state is saved."""
    run = reference()
    if run is not None and run.status in ACTIVE:
        run.stop()
        run.wait(60)


def finetune(
    model: LanguageModel,
    data: Any,
    *,
    method: Method = LoRA(),  # noqa: B008  (frozen)
    steps: int = 200,
    out: Path | str | None = None,
    optimiser: Optimiser = Optimiser(),  # noqa: B008
    batch: int = 8,
    context: int | None = None,
    held_out: Any = 0.05,
    packing: Packing = "documents",
    evaluate_every: int | None = None,
    save_every: int | None = None,
    keep: int = 2,
    prompts: str | Sequence[str] = (),
    sample_tokens: int = 40,
    seed: int = 0,
    dtype: str | None = None,
    remat: str | None = None,
    patience: int | None = None,
    adapter: Path | str | None = None,
    best: bool = False,
    strict: bool = False,
    text_field: str | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    system_field: str | None = None,
    context_field: str | None = None,
    me: str | None = None,
    encoding: str | None = None,
    template: str | Path | ChatTemplate | None = None,
    loss_on: str = "answers",
    wait: bool = True,
    say: Callable[[str], object] = print,
) -> Run:
    """Fine-tunes a model on a text, and returns the Run; `model` itself stays as it is.

    Where `out` holds a state of the same run, it goes on from there, bit for bit as if it had never
    been interrupted. A run that fails (a loss that is no number any more, a full disk) is returned
    too: its `error` says why, its `model` has the last good weights.

    Args:
        data: paths, texts, rows (whatever `finetuning.corpus.prepare` takes), or a Corpus.
        method: what is trained: LoRA, Full, LastBlocks or SoftPrompt.
        steps: of the whole run, those of earlier sittings included.
        out: a folder for the state and the record of the run; None keeps neither.
        optimiser: and learning rate; by default AdamW with a rate that suits the method.
        batch: windows a step.
        context: predictions a window; by default the model's context, at most 512.
        held_out: the share of the text that is measured on only, or sources of such text.
        packing: "documents" or "plain", see finetuning.packing.Windows.
        evaluate_every, save_every: steps; by default a tenth of all, and as often as evaluated.
        keep: how many of the newest states stay on the disk; the best stays beside them.
        prompts: texts to be continued at each evaluation, always with the same random numbers.
        sample_tokens: tokens of such a continuation.
        seed: of new weights, of the order of the data and of dropout.
        dtype: of the activations: "float32", "bfloat16" or "float16"; by default the model's, on
            one CPU with products of bfloat16 (several times as fast; evaluation has none).
        remat: a name of finetuning.loss.REMAT, to spend time and save memory.
        patience: stop when so many evaluations bring no lower held-out loss.
        adapter: train this one further: a PEFT folder, or the name of an adapter that the model
            has. Its rank and matrices stay; of `method`, LoRA(), only the dropout counts. Without
            it a model with adapters gets a new one on top. What `save` writes is in both cases one
            adapter of all that the model has, which works on the base alone.
        best: the model of the lowest held-out loss is wanted in the end: refuse to begin where
            nothing is held out to measure it by.
        strict: refuse bad lines of the data instead of skipping and noting them.
        text_field: the field of a row that holds its text, where it isn't one that is known.
        prompt_field, answer_field, system_field, context_field: the fields of a prompt, its
            answer, and what goes into the prompt, likewise.
        me: whose words are the assistant's in an exported chat (WhatsApp, Telegram, ...).
        encoding: of text files that aren't UTF-8, such as "cp1251".
        template: what makes text of prompts and answers, saved with the result so that
            `model.chat` and transformers make the same: "plain" (a line break and "Answer:"),
            "chat" (User:, Assistant:), "chatml", "alpaca", "tokenizer" (the model's own), "none"
            (rows as they are), a form such as "### {question}\\n{answer}", or a .jinja file. By
            default the model's own, else plain for pairs and chat for conversations.
        loss_on: "answers", with the token that ends each, or "all" of the text.
        wait: train in the calling thread, tell `say` a line an evaluation and show a bar; Ctrl-C
            saves, stops and raises KeyboardInterrupt. False trains in a thread and says nothing:
            read the Run.

    Raises:
        TypeError, ValueError: an argument is out of range, or another than the run in `out` was
            begun with; the message names it.
        FileNotFoundError: a path of `data` leads nowhere.
        BlockingIOError: another process trains in `out`.
        OSError: `out` can't be written, or its disk is full.
        Interrupted: a KeyboardInterrupt after Ctrl-C or a notebook's stop button, so that no later
            cell goes on with a half-trained model: the state is saved, its sentence says how to go
            on, its `run` is the Run.
    """
    for name, value, kind in (
        ("model", model, LanguageModel), ("method", method, Method),
        ("optimiser", optimiser, Optimiser), ("prompts", prompts, Iterable),
        ("held_out", held_out, int | float | str | Path | HubDataset | Iterable),
    ):  # fmt: skip
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}: {_NEEDED[name]}")
    model, method = continuing.beginning(model, method, adapter)
    share = float(held_out) if isinstance(held_out, int | float) else None
    chosen = Settings.of(
        method=method, optimiser=methods.tuned(optimiser, model, method), steps=steps, batch=batch,
        seed=seed, dtype=dtype, remat=remat, evaluate_every=evaluate_every, save_every=save_every,
        keep=keep, patience=patience, prompts=prompts, sample_tokens=sample_tokens, out=out,
    )  # fmt: skip
    if isinstance(data, Corpus):
        corpus, share = fitting.corpus_of(data, model, context), None
        fitting.room(corpus.train.context, model, method)
    else:
        corpus = corpora.prepare(
            data, model.tokenizer, context=fitting.room(context, model, method), held_out=held_out,
            packing=packing, strict=strict, text_field=text_field, prompt_field=prompt_field,
            answer_field=answer_field, system_field=system_field, context_field=context_field,
            me=me, encoding=encoding, template=template, loss_on=loss_on,
            own_template=model.chat_template,
        )  # fmt: skip
    if patience is not None and not len(corpus.held_out):
        raise ValueError(
            f"patience is {patience}, but nothing is held out to be patient about: give more text, "
            "or held_out="
        )
    if best and not len(corpus.held_out):
        raise ValueError(
            "the best model is wanted, but nothing is held out to tell which it is: give more "
            "text, or held_out= (--held-out), or take the last"
        )
    run = Run(model, corpus, chosen, share)
    if wait:
        run.train(say)
    else:
        run.start()
    return run
