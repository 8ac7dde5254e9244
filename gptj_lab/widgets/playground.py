"""The Playground: a prompt, its continuation token by token, and what else could have come."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from gptj_lab.generation.decoding import ALTERNATIVES, Completion, Decoding, Row, Token
from gptj_lab.widgets import theme
from gptj_lab.widgets.tokens import token_name, token_names

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_SHOWN: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 0,
    "max_new_tokens": 64,
    "seed": 0,
}
_SHOWN_IF_SET = ("min_p", "typical_p", "repetition_penalty")  # have a control where they are set
_PIECE = 128  # tokens a message: a few tens of kilobytes
# One string for the process: anywidget keeps a copy for every file that it is given.
_SCRIPT = theme.script("playground")


class Playground(anywidget.AnyWidget):
    """A prompt box whose tokens are coloured by probability, with ten alternatives to each.

    Everything that the view does can be done without it: set `prompt` and `settings`, call
    `run()`, read `completion`, `code()`, or leave a picture with `pin()`.

    The browser pulls: it asks for a chunk of tokens, paints it, asks for the next. The kernel is
    idle in between, so that Stop works in every notebook, and the cell has to have finished.

    Args:
        prompt: the first text in the box.
        autorun: generate at once, so that the saved notebook shows a picture.
        compare: a second model (the base of a fine-tune): each prompt is continued by it too, with
            the same settings and seed, beside the first's text.
        names: what both are called in the view; by default their own names.
        settings: as of `LanguageModel.generate`, without samples; where they say nothing, the
            model's `sampling_defaults` count.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range.
    """

    _esm = _SCRIPT
    _css = theme.style("playground")

    model_name = traitlets.Unicode().tag(sync=True)
    model_b_name = traitlets.Unicode().tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        model: LanguageModel,
        prompt: str = "",
        *,
        autorun: bool = False,
        compare: LanguageModel | None = None,
        names: tuple[str, str] | None = None,
        **settings: Any,
    ):
        # Checked now, by what will use them, not at the first click.
        half = max(1, model.config.context // 2)
        shown = _SHOWN | {"max_new_tokens": min(_SHOWN["max_new_tokens"], half)}
        shown |= dict(model.sampling_defaults) | settings
        Decoding(model, "x", **shown)
        if "samples" in settings:
            raise TypeError("samples: the Playground shows one text; use model.generate")
        self._model = model
        self._models = {"a": model} | ({} if compare is None else {"b": compare})
        self._decodings: dict[str, Decoding] = {}
        self._of = "a"  # whose text is being made
        self._request: str | None = None
        self._sent = 0
        name, name_b = names or (model.name, compare.name or "model B" if compare else "")
        super().__init__(
            model_name=name, model_b_name=name_b if compare else "", prompt=prompt, settings=shown
        )
        self.on_msg(self._receive)
        if autorun:
            self.run()

    # --- Without the view ---

    def run(self) -> Completion:
        """Generates with `prompt` and `settings`, to the end.

        Raises:
            TypeError, ValueError: the prompt or a setting is refused; the message says why.
        """
        for of in self._models:
            self._begin(self.prompt, self.settings, of)
            self._decodings[of].complete()
        return self._decodings["a"].completions()[0]

    @property
    def completion(self) -> Completion | None:
        """What was generated last; None before the first run."""
        return self._completion("a")

    @property
    def completion_b(self) -> Completion | None:
        """What the second model made of the same prompt; None without one."""
        return self._completion("b")

    def _completion(self, of: str) -> Completion | None:
        return self._decodings[of].completions()[0] if of in self._decodings else None

    def code(self) -> str:
        """The Python that gives the same text."""
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"model.generate({self.prompt!r}{settings})[0].text"

    def pin(self) -> None:
        """Leaves a picture of the last run as an output of its own, with its text beside it.

        Raises:
            ValueError: nothing was generated yet.
        """
        from IPython.display import display

        if self._row is None:
            raise ValueError("there is nothing to pin: press Generate, or call run(), first")
        display(
            {"image/png": self._picture(), "text/plain": self._summary()},
            raw=True,
            metadata={"image/png": {"alt": self._summary()}},
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        data = dict(data) | {"text/plain": self._summary()}
        if self._row is not None:
            data["image/png"] = self._picture()
            metadata = dict(metadata) | {"image/png": {"alt": self._summary()}}
        return data, metadata

    # --- With the view ---

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        """One message of the view; whatever goes wrong is shown there, in a sentence."""
        request = str(message.get("req", "")) if isinstance(message, dict) else ""
        try:
            self._answer(message, request)
        except Exception as error:  # out of memory, for example: the kernel has to live on
            self.cancel()  # what was made stays, also for pin()
            text = str(error)
            if not isinstance(error, TypeError | ValueError | KeyError):
                text = f"The model stopped: {type(error).__name__}: {text}"[:1000]
            self.send({"op": "error", "req": request, "text": text})

    def _answer(self, message: dict[str, Any], request: str) -> None:
        match message["op"]:
            case "hello":
                for of in self._decodings if self._request is None else ():
                    self._of = of
                    row = self._decodings[of].rows[0]
                    self._send_tokens(request, "prompt", row.prompt_tokens or [], old=True)
                    self._send_tokens(request, "output", row.tokens, old=True)
            case "start":
                settings = _numbers(message["settings"], self.settings)
                self.cancel()
                self._begin(message["prompt"], self.settings | settings, message.get("of", "a"))
                self._request = request
                self.send({"op": "started", "req": request, "notes": self._notes()})
            case "next" if request == self._request:
                self._next(request)
            case "cancel" if request == self._request:
                self.cancel()

    def cancel(self) -> None:
        """Stops a run that goes on; what was made stays."""
        if self._decoding is not None:
            self._decoding.cancel()
        self._request = None

    @property
    def _decoding(self) -> Decoding | None:
        return self._decodings.get(self._of)

    def _begin(self, prompt: str, settings: dict[str, Any], of: str = "a") -> None:
        if not isinstance(prompt, str):
            raise TypeError(f"the prompt is a {type(prompt).__name__}: a str is needed")
        if of not in self._models:
            raise ValueError(f"of is {of!r}: the models here are {', '.join(self._models)}")
        decoding = Decoding(self._models[of], prompt, prompt_logprobs=True, **settings)
        if of == "a":
            self._decodings.clear()
        self._decodings[of], self._of = decoding, of
        self._sent, self._request = 0, None
        with self.hold_sync():
            self.prompt, self.settings = prompt, settings

    def _next(self, request: str) -> None:
        assert self._decoding is not None and self._row is not None
        self._decoding.advance()
        row = self._row
        if not self._sent:
            self._send_tokens(request, "prompt", row.prompt_tokens or [])
        new = row.tokens[self._sent :]
        self._sent = len(row.tokens)
        if row.finish_reason is not None:
            self._request = None
        self._send_tokens(request, "output", new)

    def _send_tokens(
        self, request: str, where: str, tokens: Sequence[Token], old: bool = False
    ) -> None:
        pieces = [tokens[i : i + _PIECE] for i in range(0, len(tokens), _PIECE)] or [[]]
        for piece in pieces:
            last = piece is pieces[-1]
            ids, logprobs, other_ids, other_logprobs = _arrays(piece)
            shown = {*ids.tolist(), *other_ids.reshape(-1).tolist()}
            message = {
                "op": "tokens",
                "req": request,
                "of": self._of,
                "where": where,
                "last": last,  # the view asks on after the last piece only
                "names": token_names(self._model.tokenizer, shown),
                "old": old,
                "finish_reason": self._row.finish_reason if last and self._row else None,
            }
            buffers = [a.tobytes() for a in (ids, logprobs, other_ids, other_logprobs)]
            self.send(message, buffers)

    def _notes(self) -> list[str]:
        """What the user should know before reading the answer."""
        assert self._row is not None
        notes = []
        if self.prompt.endswith(" "):
            notes.append(
                "The prompt ends with a space. Most tokens begin with one, so the text goes on "
                "better without it."
            )
        context, used = self._model.config.context, len(self._row.prompt_ids)
        if used + self.settings["max_new_tokens"] > context:
            notes.append(
                f"The prompt takes {used} of the context's {context} tokens: {context - used} "
                f"can be made, not {self.settings['max_new_tokens']}."
            )
        whole = len(self._model.tokenizer.encode(self.prompt))
        if used < whole:
            notes.append(f"The first {whole - used} tokens of the prompt were left out.")
        return notes

    # --- The still picture ---

    @property
    def _row(self) -> Row | None:
        """Of the text that is being made, or was made last."""
        return None if self._decoding is None else self._decoding.rows[0]

    def _names(self) -> dict[str, str]:
        return {"a": self.model_name, "b": self.model_b_name}

    def _summary(self) -> str:
        if self._row is None:
            return f"Playground for {self.model_name}: nothing generated yet"
        rows = {of: decoding.rows[0] for of, decoding in self._decodings.items()}
        told = [f"The text: {rows['a'].prompt[-200:]}{rows['a'].text}"]
        if "b" in rows:
            told.append(f"The text of {self.model_b_name}: {rows['b'].text}")
        return (
            f"Playground for {self.model_name}: tokens coloured by probability, pale where likely. "
            + " ".join(told)
        )

    def _picture(self) -> bytes:
        tokenizer, spans = self._model.tokenizer, []
        for of, decoding in self._decodings.items():
            row = decoding.rows[0]
            if len(self._models) > 1:
                name = f"{self._names()[of]}:\n"
                spans.append((name if of == "a" else f"\n\n{name}", None, math.nan, False))
            prompt = row.prompt_tokens or [Token(i, math.nan, ()) for i in row.prompt_ids]
            spans += [(*token_name(tokenizer, t.id), t.logprob, True) for t in prompt[-120:]]
            spans += [(*token_name(tokenizer, t.id), t.logprob, False) for t in row.tokens[:400]]
        return _draw(self.model_name, spans)


def _numbers(raw: Any, shown: dict[str, Any]) -> dict[str, Any]:
    """The settings that the view's controls give, as numbers."""
    settings: dict[str, Any] = {"keep_end": bool(raw.get("keep_end"))}
    kinds = {name: type(default) for name, default in _SHOWN.items()}
    kinds |= {name: float for name in _SHOWN_IF_SET if name in shown and name in raw}
    for name, kind in kinds.items():
        try:
            settings[name] = kind(raw[name])
        except (TypeError, ValueError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name} is {raw[name]!r}: {wanted} is needed") from None
    return settings


def _arrays(tokens: Sequence[Token]) -> tuple[np.ndarray, ...]:
    """int32 [n], float32 [n], int32 [n, 10], float32 [n, 10]; -inf where there is none."""
    n = len(tokens)
    other_ids = np.zeros((n, ALTERNATIVES), np.int32)
    other_logprobs = np.full((n, ALTERNATIVES), -np.inf, np.float32)
    for i, token in enumerate(tokens):
        for j, (token_id, logprob) in enumerate(token.alternatives):
            other_ids[i, j], other_logprobs[i, j] = token_id, logprob
    ids = np.array([token.id for token in tokens], np.int32)
    logprobs = np.array([token.logprob for token in tokens], np.float32)
    return ids, logprobs, other_ids, other_logprobs


@functools.cache
def _bins() -> list[tuple[float, str, str]]:
    """The view's own probability steps in its light theme: from, background, text."""
    found = re.findall(r'\{from:([\d.]+),.*?light:\["(#\w+)","(#\w+)"\]', _SCRIPT)
    return [(float(least), back, ink) for least, back, ink in found]


def _draw(title: str, spans: list[tuple[str, str | None, float, bool]]) -> bytes:
    """A PNG of tokens in a monospaced grid, in the view's colours."""
    from matplotlib.figure import Figure

    columns, cells, x, y = 92, [], 0, 0
    for shown, text, logprob, is_prompt in spans:
        piece = shown if not text else text.replace("\t", "    ")
        for i, line in enumerate(piece.split("\n")):
            if i or (x + len(line) > columns > len(line)):
                x, y = 0, y + 1
            while line:
                if x >= columns:
                    x, y = 0, y + 1
                part, line = line[: columns - x], line[columns - x :]
                cells.append((x, y, part, logprob, is_prompt))
                x += len(part)
    lines = y + 1
    figure = Figure(figsize=(columns * 0.088, 0.42 + 0.24 * lines), dpi=96, facecolor="white")
    axes = figure.add_axes((0.01, 0, 0.98, 1))
    axes.set_xlim(0, columns)
    axes.set_ylim(lines + 0.2, -1.4)
    axes.axis("off")
    legend = f"{title}: pale tokens were likely, dark ones a surprise; the prompt is bold"
    axes.text(0, -0.75, legend, size=8, color="#565d66", va="center", parse_math=False)
    for x, y, part, logprob, is_prompt in cells:
        back, ink = "#ffffff", "#1b1b1b"
        if not math.isnan(logprob):
            _, back, ink = next(each for each in _bins() if math.exp(logprob) >= each[0])
        axes.fill_between([x, x + len(part)], y - 0.45, y + 0.45, color=back, linewidth=0)
        for i, character in enumerate(part):  # one by one: every font keeps the grid
            if not character.isspace():
                axes.text(
                    x + i + 0.5, y, character, family="monospace", size=9, color=ink,
                    weight="bold" if is_prompt else "normal", va="center", ha="center",
                    parse_math=False,
                )  # fmt: skip
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
