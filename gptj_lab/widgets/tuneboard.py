"""The TuneBoard: a text, a method, a run that goes on by itself, and what it has changed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from gptj_lab.finetuning import continuing, methods
from gptj_lab.finetuning import corpus as corpora
from gptj_lab.finetuning.control import ACTIVE
from gptj_lab.finetuning.corpus import Corpus
from gptj_lab.finetuning.methods import Estimate
from gptj_lab.finetuning.run import Run, finetune
from gptj_lab.finetuning.settings import fingerprint
from gptj_lab.language_model import LanguageModel
from gptj_lab.widgets import theme, tuneboard_answers, tuneboard_form, tuneboard_runs
from gptj_lab.widgets.explorer import Explorer
from gptj_lab.widgets.playground import Playground
from gptj_lab.widgets.tuneboard_curves import Curves
from gptj_lab.widgets.tuneboard_data import Preparation, Upload
from gptj_lab.widgets.tuneboard_result import Result

if TYPE_CHECKING:
    from gptj_lab.plots.picture import Picture

_SETTINGS = tuple(
    name
    for name in inspect.signature(finetune).parameters
    if name not in ("model", "data", "wait", "say")
)
_PATIENCE = 2.0  # seconds that a picture waits for the text
# The runs of this kernel: a cell that is run again finds the run that it began.
_RUNS: weakref.WeakSet[Run] = weakref.WeakSet()


class TuneBoard(anywidget.AnyWidget):
    """Fine-tuning as one view: data, method and its cost, the run, samples, before and after.

    Everything that the view does can be done without it: `read`, `change`, `estimate`, `start`,
    `pause`, `resume`, `stop`, `checkpoint`, `wait`; read `run`, `runs`, `data`, `code()`; compare
    with `playground()` and `explorer()`; leave a picture with `pin()`.

    The run trains in a thread of its own, the browser pulls what it shows at most twice a second:
    closing the tab stops nothing, and a board that is shown again, or `TuneBoard(run)`, goes on.

    Args:
        model: what is tuned, or a Run to watch. If a run of this model is under way in this kernel,
            the board shows that one.
        data: paths, texts, rows, or a Corpus; may be dropped into the view instead.
        settings: of `gptj_lab.finetune`.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range.
    """

    _esm = theme.script("tuneboard")
    _css = theme.style("tuneboard")

    about = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, model: LanguageModel | Run, data: Any = None, **settings: Any):
        unknown = [name for name in settings if name not in _SETTINGS]
        if unknown:
            raise TypeError(f"TuneBoard has no setting {unknown[0]!r}: {', '.join(_SETTINGS)}")
        self.runs: list[Run] = []
        self.model = model.base if isinstance(model, Run) else model
        self.settings: dict[str, Any] = settings
        self.source = data
        self._curves: weakref.WeakKeyDictionary[Run, Curves] = weakref.WeakKeyDictionary()
        self._upload = Upload()
        self._result: Result | None = None
        self._opened: dict[str, Playground | Explorer] = {}
        self.note = ""
        self._preparation = Preparation()
        active = [run for run in _RUNS if run.status in ACTIVE]
        found = [run for run in active if _is_of(run, self.model)]
        for run in [model] if isinstance(model, Run) else found[:1]:
            self._attach(run, settings)
        self._form = tuneboard_form.form_of(self.settings)
        self.settings = tuneboard_form.settings_of(self._form, self.settings)
        self.set_trait("about", tuneboard_answers.about(self))
        super().__init__()
        self._prepare()
        self.on_msg(self._receive)

    # --- Without the view ---

    def read(self, source: Any) -> None:
        """Takes another text: anything that `gptj_lab.finetuning.corpus.prepare` takes.

        It is read in a thread; what is wrong with it is told by `wait_for_data` and the view.
        """
        self._read(source)
        self._changed()

    def change(self, **settings: Any) -> None:
        """Changes settings of `gptj_lab.finetune` for the next run.

        Raises:
            TypeError, ValueError: a setting is unknown or out of range; nothing changes.
        """
        unknown = [name for name in settings if name not in _SETTINGS]
        if unknown:
            raise TypeError(f"there is no setting {unknown[0]!r}: {', '.join(_SETTINGS)}")
        self._change(tuneboard_form.form_of(self.settings | settings), self.settings | settings)
        self._changed()

    def wait_for_data(self) -> Corpus:
        """The corpus, when it is read.

        Raises:
            ValueError: there is none, or it can't be read; the message says why.
        """
        corpus = self._preparation.wait()
        if corpus is None:
            raise ValueError(
                self._preparation.error
                or "there is no text yet: give the board data, or drop a file into it"
            )
        return corpus

    @property
    def estimate(self) -> Estimate:
        """Parameters, memory and operations of the next run, before it starts."""
        settings = self.settings
        model, method = self._beginning
        return methods.estimate(
            model, method, batch=settings["batch"], context=self.context,
            optimiser=settings["optimiser"], remat=settings.get("remat"),
            dtype=settings.get("dtype"),
        )  # fmt: skip

    @property
    def told(self) -> list[str]:
        """What becomes of the adapters and the soft prompt that the model has already."""
        return list(continuing.sentences(*self._beginning))

    @property
    def _beginning(self) -> tuple[LanguageModel, methods.Method]:
        settings = self.settings
        return continuing.beginning(self.model, settings["method"], settings.get("adapter"))

    @property
    def context(self) -> int:
        """Tokens of a window of the next run."""
        corpus = self._preparation.corpus
        if isinstance(self.source, Corpus) and corpus is not None:
            return corpus.train.context
        method = self.settings["method"]  # as finetune chooses it
        virtual = method.length if isinstance(method, methods.SoftPrompt) else 0
        return self.settings["context"] or max(1, min(self.model.config.context - virtual, 512))

    @property
    def rate(self) -> float | None:
        """The learning rate of the next run."""
        settings = self.settings
        return methods.tuned(settings["optimiser"], self.model, settings["method"]).learning_rate

    @property
    def run(self) -> Run | None:
        """The newest run."""
        return self.runs[-1] if self.runs else None

    def start(self) -> Run:
        """Begins a run of these settings in the background; it becomes `run`.

        Raises:
            ValueError: there is no text, it can't be read, or a run is under way.
        """
        self._idle("another run")
        run = self._begin(self.wait_for_data())
        self._changed()
        return run

    def pause(self) -> None:
        """The run halts within a step and keeps everything; `resume()` goes on."""
        self._running().pause()

    def resume(self) -> None:
        """The run goes on where it was paused or stopped."""
        self._running().resume()

    def stop(self) -> None:
        """The run ends within a step; what was learnt stays, in its folder too."""
        self._running().stop()

    def checkpoint(self) -> None:
        """The run saves its state within a step; it needs a folder (`out`)."""
        self._running().checkpoint()

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the run has ended, or after so many seconds."""
        self._running().wait(timeout)

    @property
    def data(self) -> dict[str, np.ndarray]:
        """The newest run's measures: float64 [steps] each, and "evaluations", a dictionary of
        float64 [evaluations]: step, held_out_loss, loss; NaN where nothing is known.
        """
        return tuneboard_runs.arrays(self._running())

    def code(self) -> str:
        """The Python that makes the same run without the board."""
        return tuneboard_form.code(
            self.model.name, self.source, self.settings, is_corpus=isinstance(self.source, Corpus)
        )

    def csv(self) -> str:
        """The newest run's history, a line a step."""
        return tuneboard_runs.csv(self._running())

    def json(self) -> str:
        """All runs with settings, history, evaluations and notes."""
        return tuneboard_runs.json_of(self.runs)

    @property
    def result(self) -> Result:
        """The newest run's model beside its base: `scale`, `best`, `model`, `merged()`."""
        return self._result_of(self._running())

    def playground(self, prompt: str | None = None, **settings: Any) -> Playground:
        """A Playground that continues each prompt with the tuned model and with its base."""
        return self._playground(self._running(), prompt, **settings)

    def explorer(self, prompt: str | None = None, **settings: Any) -> Explorer:
        """An Explorer of the base with the tuned model as its B, on one prompt."""
        return self._explorer(self._running(), prompt, **settings)

    def pin(self) -> None:
        """Leaves a picture of the newest run's curves as an output of its own, with alt text.

        Raises:
            ValueError: there is no run, or it has made no step.
        """
        from IPython.display import display

        display(tuneboard_runs.picture(self._running(), self._curves_of(self._running())))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        data = dict(data) | {"text/plain": tuneboard_answers.summary(self)}
        picture = self._picture()
        if picture is not None:
            data |= {"image/png": picture.png(60_000), "text/plain": picture.alt}
            metadata = dict(metadata) | {"image/png": {"alt": picture.alt}}
        return data, metadata

    def _picture(self) -> Picture | None:
        """The newest run's curves; before its first step what it will need, and the text."""
        if self.run is not None and self.run.history:
            return tuneboard_runs.picture(self.run, self._curves_of(self.run))
        corpus = self._preparation.wait(_PATIENCE)
        settings = self.settings
        report = corpus and corpus.doctor(steps=settings["steps"], batch=settings["batch"])
        try:
            return tuneboard_runs.picture_before(
                self.model.name or "a model", self.estimate, report or None
            )
        except ValueError:  # the settings don't suit the model: the view says why
            return None

    # --- With the view ---

    def _receive(self, _: Any, message: Any, buffers: Any) -> None:
        """One message of the view; whatever goes wrong is shown there, in a sentence."""
        request = str(message.get("req", "")) if isinstance(message, dict) else ""
        try:
            for content, arrays in tuneboard_answers.answers(self, message, buffers or []):
                self.send(content | {"req": request}, arrays)
        except Exception as error:  # out of memory, for example: the kernel has to live on
            text = str(error)
            if isinstance(error, KeyError):
                text = f"the request lacks {text}"
            elif not isinstance(error, TypeError | ValueError | OSError):
                text = f"It failed: {type(error).__name__}: {text}"
            self.send({"op": "error", "req": request, "text": text[:1000]}, [])

    def _changed(self) -> None:
        """Tells a view that a script changed what it shows."""
        if self.comm is not None:
            self.send({"op": "changed", "req": ""}, [])

    # --- What changes the board ---

    def _change(self, form: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        settings = tuneboard_form.settings_of(form, before)
        names = ("held_out", "packing", *tuneboard_form.OF_READING)
        of_data = [settings.get(name) != self.settings.get(name) for name in names]
        old = self.context
        self.settings, self._form = settings, tuneboard_form.form_of(settings)
        is_text = self.source is not None and not isinstance(self.source, Corpus)
        if is_text and (any(of_data) or old != self.context):
            self._prepare()

    def _read(self, source: Any) -> None:
        self._idle("another text")
        self.source = source
        self._prepare()

    def _prepare(self) -> None:
        if isinstance(self.source, Corpus):
            self._preparation.take(self.source)
        elif self.source is not None:
            self._tokenise(self.source)

    def _tokenise(self, source: Any) -> None:
        settings = self.settings
        context, tokenizer, own = self.context, self.model.tokenizer, self.model.chat_template
        reading = {name: settings[name] for name in tuneboard_form.OF_READING if name in settings}

        def make() -> Corpus:
            return corpora.prepare(
                source, tokenizer, context=context, held_out=settings["held_out"],
                packing=settings["packing"], own_template=own, **reading,
            )  # fmt: skip

        self._preparation.begin(make)

    def _begin(self, corpus: Corpus) -> Run:
        self._idle("another run")
        settings = {
            name: value
            for name, value in self.settings.items()
            if name not in tuneboard_form.OF_THE_DATA
        }
        run = finetune(self.model, corpus, wait=False, say=_quiet, **settings)
        self._keep(run)
        return run

    def _attach(self, run: Run, settings: Mapping[str, Any]) -> None:
        """Shows a run that began elsewhere, with its text and its settings."""
        self.model = run.base
        self._keep(run)
        if run.corpus is not None and self.source is None:
            self.source = run.corpus
        self.settings = tuneboard_form.settings_of_run(run.settings) | dict(settings)
        self.note = "This board shows a run that began before it."

    def _keep(self, run: Run) -> None:
        if run not in self.runs:
            self.runs.append(run)
        _RUNS.add(run)

    def _idle(self, wanted: str) -> None:
        if self.run is not None and self.run.status in ACTIVE:
            raise ValueError(f"a run is {self.run.status}: stop it before {wanted}")

    def _running(self) -> Run:
        if self.run is None:
            raise ValueError("there is no run yet: press Start, or call start()")
        return self.run

    def _curves_of(self, run: Run) -> Curves:
        return self._curves.setdefault(run, Curves())

    def _result_of(self, run: Run) -> Result:
        if self._result is None or self._result.run is not run:
            self._result = Result(run)
        self._result.refresh()
        return self._result

    def _playground(self, run: Run, prompt: str | None = None, **settings: Any) -> Playground:
        result = self._result_of(run)
        names = (f"tuned, {result.step:,} steps" + ", the best" * result.best, "base")
        shown: dict[str, Any] = {"compare": result.base, "names": names} | settings
        return Playground(result.model, self._prompt(prompt), **shown)

    def _explorer(self, run: Run, prompt: str | None = None, **settings: Any) -> Explorer:
        result = self._result_of(run)
        return Explorer(result.base, self._prompt(prompt), result.model, **settings)

    def _prompt(self, prompt: str | None) -> str:
        prompts = self.settings.get("prompts") or ("Once upon a time",)
        return prompts[0] if prompt is None else prompt


def _is_of(run: Run, model: LanguageModel) -> bool:
    """Whether a run tunes that model, or the same loaded once more."""
    if run.base is model:
        return True
    base = run.settings["base"]
    return base["name"] == model.name and base["fingerprint"] == fingerprint(model)


def _quiet(*_: Any) -> None:
    """The board shows what a run says."""
