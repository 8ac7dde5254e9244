"""The Explorer: a prompt, and everything that happens inside the model while it reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from jaxtyping import Float

from gptj_lab.generation.decoding import Decoding
from gptj_lab.language_model import LanguageModel
from gptj_lab.lens import attribution
from gptj_lab.widgets import (
    explorer_answers,
    explorer_code,
    explorer_lens,
    explorer_picture,
    explorer_requests,
    theme,
)
from gptj_lab.widgets.explorer_answers import Answer
from gptj_lab.widgets.explorer_edits import Edit, index
from gptj_lab.widgets.explorer_session import DIFFERENCES, RUNS, Session, first_run
from gptj_lab.widgets.explorer_sweeps import Sweep

if TYPE_CHECKING:
    from gptj_lab.lens.affine_lens import AffineLens
    from gptj_lab.lens.attribution import Attribution
    from gptj_lab.lens.logit_lens import LogitLens
    from gptj_lab.widgets.explorer_reading import Reading

_VIEW_BYTES = 4096
_STATE_VERSION = 1


class Explorer(anywidget.AnyWidget):
    """Attention, logit lens, attribution, ablation and patching of one prompt, in one linked view.

    Everything that the view does can be done without it: `run`, `select`, `ablate`, `cut`,
    `undo`, `attribute`, `sweep`; read `data`, `code()` and `state`; leave a picture with `pin()`.

    The browser pulls what it shows, in messages below a megabyte; the kernel is idle in between.
    Interventions are data: no click compiles anything, but the first of its kind.

    Args:
        model: any LanguageModel, on one device or a mesh.
        prompt: the text to look into.
        compare: a second prompt, or a second model of the same shape (a fine-tune) for the same
            prompt: it becomes B beside A.
        layer, head: what is shown first.
        steer: a direction, float32 [d_model], that `{"kind": "steer"}` adds to resid_post.
        tuned_lens: of this model (`gptj_lab.lens.tuned_lens.train_tuned_lens`): a choice beside
            the logit lens and the Jacobian lens, which is computed where it is looked at.
        state: of an earlier Explorer (its `state`); it wins over `prompt`.

    Raises:
        TypeError, ValueError: a prompt that is empty or too long, a compare that can't be compared,
            a tuned_lens that is none.
    """

    _esm = theme.script("explorer")
    _css = theme.style("explorer")

    about = traitlets.Dict(read_only=True).tag(sync=True)
    prompt = traitlets.Unicode(read_only=True).tag(sync=True)
    prompt_b = traitlets.Unicode(read_only=True).tag(sync=True)
    selection = traitlets.Dict().tag(sync=True)
    interventions = traitlets.List(read_only=True).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    stale = traitlets.Unicode(read_only=True).tag(sync=True)

    def __init__(
        self,
        model: LanguageModel,
        prompt: str = "",
        compare: str | LanguageModel | None = None,
        *,
        layer: int = 0,
        head: int = 0,
        steer: Float[np.ndarray, "d_model"] | None = None,
        tuned_lens: AffineLens | None = None,
        state: Mapping[str, Any] | None = None,
    ):
        if not isinstance(compare, str | LanguageModel | None):
            raise TypeError(
                f"compare is a {type(compare).__name__}: a second prompt or a LanguageModel is "
                "needed"
            )
        other = compare if isinstance(compare, LanguageModel) else None
        explorer_lens.check_tuned(tuned_lens)
        self._session = Session(model, other, steer, tuned_lens)
        self._sweep: Sweep | None = None
        self._sweep_number = 0
        self._decoding: Decoding | None = None
        self._seconds, self._compiled = 0.0, 0  # of the last run
        self._below: Any = None  # the output that the view's Pin button fills
        super().__init__()
        self.selection = {"layer": layer, "head": head, "query": None, "key": None, "of": "a"}
        if state is not None:
            self.state = state
        else:
            self._run(prompt, compare if isinstance(compare, str) else "")
        self.on_msg(self._receive)

    # --- Without the view ---

    def run(self, prompt: str | None = None, prompt_b: str | None = None) -> None:
        """Reads the prompt (and B's) anew; by default those that are there, with today's weights.

        Raises:
            ValueError: a prompt that is empty or too long, or a NaN inside the model.
        """
        self._run(
            self.prompt if prompt is None else prompt,
            self.prompt_b if prompt_b is None else prompt_b,
        )
        self._changed()

    def select(self, **what: Any) -> None:
        """Chooses what is shown: layer, head, query, key (positions), of ("a", "after", "b-a").

        Raises:
            ValueError: something that isn't there.
        """
        self.selection = self.selection | what

    def intervene(self, edits: Sequence[Edit]) -> None:
        """Changes A to exactly these interventions; `after` is A's text with them.

        Args:
            edits: dictionaries: {"kind": "head", "layer", "head", "how": "zero", "mean" or
                "freeze"}, {"kind": "mlp", "layer", "how"}, {"kind": "edge", "layer", "head",
                "query", "key"}, {"kind": "patch", "site", "layer", "position"} and {"kind":
                "patch_head", "layer", "head"} (B's value), {"kind": "steer", "layer", "scale"};
                head, mlp, patch_head and steer may have "positions", and patch a "source",
                [layer, position], if B's value comes from another place than it is put in.

        Raises:
            ValueError: an edit that can't be made; nothing changes.
        """
        self._fresh()
        self._edit(edits)
        self._changed()

    def ablate(
        self,
        layer: int,
        head: int | None = None,
        how: str = "zero",
        positions: Sequence[int] | None = None,
    ) -> None:
        """Takes away a head ("zero", "mean" or "freeze"), or without `head` the layer's MLP."""
        edit: Edit = {"kind": "mlp" if head is None else "head", "layer": layer, "how": how}
        if head is not None:
            edit["head"] = head
        if positions is not None:
            edit["positions"] = list(positions)
        self.intervene([*self._session.edits, edit])

    def cut(self, layer: int, head: int, query: int, key: int) -> None:
        """The head no longer reads token `key` at token `query`."""
        edit = {"kind": "edge", "layer": layer, "head": head, "query": query, "key": key}
        self.intervene([*self._session.edits, edit])

    def undo(self) -> None:
        """Takes the last change of the interventions back, if there is one."""
        if self._undo():
            self._changed()

    def attribute(
        self, token: str | int | None = None, minus: str | int | None = None, position: int = -1
    ) -> Attribution:
        """A's logit of a token (by default the likeliest) as the sum of all that wrote it.

        Raises:
            ValueError: as `gptj_lab.lens.attribution.attribute`.
        """
        run = self._session.a
        if token is None:
            token = int(run.logits[position].argmax())
        return attribution.attribute(run.model, run.ids, token, minus, position, run.interventions)

    def lens(self, kind: str = "logit", positions: Sequence[int] | None = None) -> LogitLens:
        """A lens of the selected run: "logit", "tuned" or "jacobian".

        Args:
            positions: by default the selected one (the last, where none is).

        Raises:
            ValueError: as `explorer_lens.lens`, or a position that isn't there.
        """
        run, query = self._shown()
        places = (
            [query] if positions is None else [index("position", p, len(run)) for p in positions]
        )
        return explorer_lens.lens(run, places, kind, self._session.tuned)

    def sweep(
        self,
        what: str,
        token: int | None = None,
        minus: int | None = None,
        position: int | None = None,
    ) -> Float[np.ndarray, "layers columns"]:
        """A whole sweep, as `explorer_sweeps.Sweep` has it.

        Args:
            what: "resid_pre", "attn_out", "mlp_out" or "heads": A's values patched into B's run;
                "ablate_heads" or "ablate_mlps": zeroed in A.

        Raises:
            ValueError: as `explorer_sweeps.Sweep`.
        """
        self._fresh()
        return Sweep(self._session, what, token, minus, position).complete()

    def generate(self, max_new_tokens: int = 16, temperature: float = 0.0, seed: int = 0) -> str:
        """Continues A's text and reads all of it: the text that was added."""
        self._fresh()
        self._begin(max_new_tokens, temperature, seed)
        assert self._decoding is not None
        text = self._decoding.complete()[0].text
        self._take_over()
        self._changed()
        return text

    @property
    def data(self) -> dict[str, Any]:
        """What is shown, as NumPy arrays.

        token_ids int32 [seq]; logprobs float32 [seq] of A's tokens (NaN for the first); pattern
        float32 [heads, seq, kv_seq] of the selected layer and run; logits float32 [vocab] after
        the selected query (or the last token) in that run; scores, a dictionary of float32
        [layers, heads]; where the view has a lens (`view["lens"]`), its lens_ids int32 [rows, top]
        and lens_logprobs float32 [rows, top] there.
        """
        session, chosen = self._session, dict[str, Any](self.selection)
        run, query = self._shown()
        grids, told = explorer_answers.scores(session, "a")
        kind, read = self._lens_shown(), {}
        if kind:
            found = self.lens(kind)
            read = {"lens_ids": found.ids[:, 0], "lens_logprobs": found.logprobs[:, 0]}
        return read | {
            "token_ids": session.a.ids,
            "logprobs": session.a.token_logprobs,
            "pattern": session.matrix(chosen["layer"], chosen["of"]),
            "logits": run.logits[query],
            "scores": {score["name"]: grid for score, grid in zip(told, grids, strict=True)},
        }

    def code(self) -> str:
        """The Python that gives `pattern`, `logits` and lens of `data` without the Explorer."""
        chosen: dict[str, Any] = dict(self.selection)
        if chosen["query"] is not None:
            chosen["query"] = self._shown()[1]
        return explorer_code.code(self._session, chosen, self._lens_shown())

    def _shown(self) -> tuple[Reading, int]:
        """The selected run, of a difference its first, and the selected position in it."""
        chosen: dict[str, Any] = dict(self.selection)
        of, query = chosen["of"], chosen["query"]
        run = self._session.reading(first_run(of))
        return run, len(run) - 1 if query is None else min(query, len(run) - 1)

    def _lens_shown(self) -> str:
        """The kind of lens that the view has open and this run can have, or ""."""
        kind = self.view.get("lens", "")
        edited = kind == "jacobian" and self._shown()[0].edited
        return kind if kind in explorer_lens.kinds(self._session.tuned) and not edited else ""

    @property
    def state(self) -> dict[str, Any]:
        """Everything that makes another Explorer of these models show the same; plain JSON."""
        session = self._session
        kept = {
            "version": _STATE_VERSION,
            "prompt": self.prompt,
            "prompt_b": self.prompt_b,
            "selection": dict(self.selection),
            "interventions": [dict(edit) for edit in session.edits],
            "view": dict(self.view),
        }
        return kept | ({"token_ids": session.a.ids.tolist()} if session.made else {})

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._restore(state)
        self._changed()

    def pin(self) -> None:
        """Leaves a picture of what is shown as an output of its own, with alt text."""
        from IPython.display import display

        data, metadata = _output(*self._picture())
        display(data, raw=True, metadata=metadata)

    def _pin(self) -> tuple[bytes, str, bool]:
        """The picture and its text, put below the view where a cell has shown it, and whether."""
        picture, alt = self._picture()
        if self._below is not None:
            data, metadata = _output(picture, alt)
            self._below.update(data, raw=True, metadata=metadata)
        return picture, alt, self._below is not None

    def _ipython_display_(self) -> None:
        """Shows the view, and below it an empty output: a comm can change one, but not add it."""
        from IPython.display import display

        data, metadata = self._repr_mimebundle_() or ({"text/plain": repr(self)}, {})
        display(data, raw=True, metadata=metadata)
        self._below = display({"text/plain": ""}, raw=True, display_id=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        still, described = _output(*self._picture())
        return dict(bundle[0]) | still, dict(bundle[1]) | described

    def _picture(self) -> tuple[bytes, str]:
        return explorer_picture.picture(self._session, self.selection)

    # --- With the view ---

    @traitlets.validate("selection")
    def _selectable(self, proposal: Any) -> dict[str, Any]:
        raw = proposal["value"]
        layer, head = self._session.check(raw.get("layer"), raw.get("head"))
        chosen: dict[str, Any] = {"layer": layer, "head": head}
        of = raw.get("of", "a")
        if of not in (*RUNS, *DIFFERENCES):
            known = ", ".join((*RUNS, *DIFFERENCES))
            raise ValueError(f"of is {of!r}: one of {known} is needed")
        for name in ("query", "key"):
            value, size = raw.get(name), self._session.model.config.context
            chosen[name] = None if value is None else index(name, value, size)
        return chosen | {"of": of}

    @traitlets.validate("view")
    def _small(self, proposal: Any) -> dict[str, Any]:
        size = len(repr(proposal["value"]))
        if size > _VIEW_BYTES:
            raise ValueError(f"view holds {size} characters: at most {_VIEW_BYTES} are kept")
        return proposal["value"]

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        """One message of the view; whatever goes wrong is shown there, in a sentence."""
        request = str(message.get("req", "")) if isinstance(message, dict) else ""
        try:
            for content, buffers in self._answers(message):
                self.send(content | {"req": request, "run": self._session.number}, buffers)
        except Exception as error:  # out of memory, for example: the kernel has to live on
            text = str(error)
            if isinstance(error, KeyError):
                text = f"the request lacks {text}"
            elif not isinstance(error, TypeError | ValueError):
                text = f"The model stopped: {type(error).__name__}: {text}"[:1000]
            self.send({"op": "error", "req": request, "text": text}, [])

    def _answers(self, message: Any) -> Iterator[Answer]:
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            raise ValueError("a request is a dictionary with an op")
        op, session = message["op"], self._session
        if op in explorer_requests.FREE:
            yield explorer_requests.FREE[op](self, message)
        elif message.get("run") != session.number:
            yield {"op": "outdated"}, []
        elif self._is_stale():
            yield {"op": "stale", "text": self.stale}, []
        elif op in explorer_requests.CHANGING:
            yield explorer_requests.CHANGING[op](self, message)
        else:
            yield from explorer_answers.answers(session, message)

    def _is_stale(self) -> bool:
        self.set_trait("stale", self._session.stale())
        return bool(self.stale)

    def _fresh(self) -> None:
        if self._is_stale():
            raise ValueError(f"{self.stale} (explorer.run())")

    def _changed(self) -> None:
        """Tells a view that a script changed what it shows."""
        if self.comm is not None:
            self.send({"op": "changed", "req": "", "run": self._session.number}, [])

    def _about(self) -> dict[str, Any]:
        session, config = self._session, self._session.model.config
        return {
            "version": 1, "session": explorer_requests.SESSION,
            "name": session.model.name or "the model", "family": config.family,
            "title": config.family_title, "layers": config.num_layers,
            "heads": config.num_heads, "d_model": config.d_model, "d_head": config.d_head,
            "d_rotary": config.d_rotary, "context": config.context, "vocab": config.vocab_size,
            "parallel": config.parallel, "rotary": config.positions != "learned",
            "compare": "model" if session.two_models else "prompt" if session.prompt_b else None,
            "name_b": (session.other.name or "the other model") if session.two_models else "",
            "steer": session.steer is not None,
            "lenses": explorer_lens.kinds(session.tuned),
        }  # fmt: skip

    # --- What changes the session ---

    def _run(self, prompt: str, prompt_b: str, ids: Sequence[int] | None = None) -> None:
        before, begun = explorer_requests.compiled(), time.perf_counter()
        session = self._session
        session.run(prompt, prompt_b, ids)
        self._seconds = time.perf_counter() - begun
        self._compiled = explorer_requests.compiled() - before
        self._sweep = self._decoding = None
        with self.hold_sync():
            self.set_trait("prompt", session.prompt)
            self.set_trait("prompt_b", session.prompt_b)
            self.set_trait("interventions", list(session.edits))
            self.set_trait("stale", "")
            beyond = {
                name: None
                for name in ("query", "key")
                if (self.selection[name] or 0) >= len(session.a)
            }
            lost = {"of": "a"} if session.b is None and "b" in self.selection["of"] else {}
            self.selection = self.selection | beyond | lost
            self.set_trait("about", self._about())

    def _undo(self) -> bool:
        """Whether there was a change to take back."""
        past = self._session.past
        if past:
            self._edit(past.pop(), remember=False)
            return True
        return False

    def _edit(self, edits: Any, remember: bool = True) -> None:
        before = self._session.edits
        self._session.edit(edits)
        if remember and self._session.edits != before:
            self._session.past.append(before)
        self.set_trait("interventions", list(self._session.edits))

    def _restore(self, state: Mapping[str, Any]) -> None:
        version = state.get("version")
        if version != _STATE_VERSION:
            raise ValueError(f"the state has version {version!r}: {_STATE_VERSION} is needed")
        self._session.edits = []
        self._run(state["prompt"], state.get("prompt_b", ""), state.get("token_ids"))
        self.selection = dict(state.get("selection", self.selection))
        self.view = dict(state.get("view", {}))
        self._edit(state.get("interventions", []), remember=False)

    def _begin(self, max_new_tokens: Any, temperature: Any, seed: Any) -> None:
        tokenizer, ids = self._session.model.tokenizer, self._session.a.ids.tolist()
        begin = len(tokenizer.before)  # which the tokenizer puts there once more
        text = tokenizer.decode(ids[begin:] if ids[:begin] == tokenizer.before else ids)
        self._decoding = Decoding(
            self._session.model, text, max_new_tokens=max_new_tokens, temperature=temperature,
            seed=seed,
        )  # fmt: skip

    def _take_over(self) -> None:
        """Reads prompt and continuation, whose tokens stay as they were made."""
        assert self._decoding is not None
        row, session = self._decoding.rows[0], self._session
        ids = [*row.prompt_ids, *(token.id for token in row.tokens)]
        own = session.tokens(session.prompt)
        prompt = session.prompt if ids[: len(own)] == own.tolist() else row.prompt
        self._run(prompt, session.prompt_b, ids)


def _output(picture: bytes, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of a notebook's output that holds the picture."""
    return {"image/png": picture, "text/plain": alt}, {"image/png": {"alt": alt}}
