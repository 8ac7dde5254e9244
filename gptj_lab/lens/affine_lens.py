"""A lens that takes each layer's residual through an affine map of its own before it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from gptj_lab.lens import fingerprint, trace_files
from gptj_lab.lens.logit_lens import LogitLens, logit_lens, places_of
from gptj_lab.lens.trace import Trace

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

AFFINE_LENS = "gptj_lab.affine_lens"  # what its file says that it is


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class AffineLens:
    """`matrix @ residual + bias` for each layer, made for one model.

    Attributes:
        kind: "tuned" (lens/tuned_lens.py) or "jacobian" (lens/jacobian_lens.py).
        matrix: float32 [layers, d_model, d_model], [out, in]; the identity is the logit lens.
        bias: float32 [layers, d_model].
        fingerprint: of the weights that it was made with.
        history: float32 [steps, layers]; of a tuned lens the loss at each step, in nats a token.
    """

    kind: str
    matrix: Float[np.ndarray, "layers d_model d_model"]
    bias: Float[np.ndarray, "layers d_model"]
    fingerprint: str
    history: Float[np.ndarray, "steps layers"]

    def __repr__(self) -> str:
        return f"AffineLens({self.kind}, {len(self.bias)} layers of d_model {self.bias.shape[1]})"

    def translate(
        self, layer: int, residuals: Float[np.ndarray, "*positions d_model"]
    ) -> Float[np.ndarray, "*positions d_model"]:
        """What block `layer` reads as the unembedding should read it, float32.

        Raises:
            ValueError: there is no such layer.
        """
        if not 0 <= layer < len(self.bias):
            raise ValueError(f"layer is {layer}: layers 0 to {len(self.bias) - 1} are there")
        return residuals.astype(np.float32) @ self.matrix[layer].T + self.bias[layer]

    def read(self, trace: Trace, top: int = 5, positions: Sequence[int] | None = None) -> LogitLens:
        """The lens of a traced prompt; arguments and errors as `logit_lens`.

        Raises:
            ValueError: also a trace of another model than the lens was made with.
        """
        if fingerprint.of_weights(trace.model("the unembedding")) != self.fingerprint:
            raise ValueError(
                f"the lens was made with other weights than those of {trace.model_name!r}: "
                "make one with this model"
            )
        places = places_of(trace, positions)
        layers = range(trace.config.num_layers)
        streams = [self.translate(i, trace.residuals[i][places]) for i in layers]
        return logit_lens(trace, top, places.tolist(), np.stack(streams))

    def save(self, file: Path | str, model: LanguageModel) -> None:
        """Writes it as one safetensors file.

        Raises:
            ValueError: the model isn't the one that it was made with.
            OSError: it can't be written; a file that was there stays whole.
        """
        if fingerprint.of_weights(model) != self.fingerprint:
            raise ValueError(f"the lens was made with other weights than {model.name!r} has now")
        arrays = {"matrix": self.matrix, "bias": self.bias, "history": self.history}
        trace_files.write_tensors(Path(file), AFFINE_LENS, model, {"kind": self.kind}, arrays)

    @classmethod
    def load(cls, file: Path | str, model: LanguageModel) -> AffineLens:
        """The lens of a file, for the model that it was made with.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, something else, or belongs to another model.
        """
        config, about, arrays = trace_files.read_tensors(Path(file), AFFINE_LENS, model)
        layers, width = config.num_layers, config.d_model
        steps = len(arrays["history"]) if "history" in arrays else 0
        shapes = {
            "matrix": (layers, width, width), "bias": (layers, width), "history": (steps, layers)
        }  # fmt: skip
        for name, shape in shapes.items():
            found = arrays.get(name, np.zeros(0))
            if found.shape != shape or found.dtype != np.float32:
                raise ValueError(
                    f"{file} is damaged: {name} is {found.dtype}{list(found.shape)}, "
                    f"float32{list(shape)} is needed; make it again"
                )
        kind, weights = str(about.get("kind")), str(about["fingerprint"])
        return cls(kind, arrays["matrix"], arrays["bias"], weights, arrays["history"])


def windows(model: LanguageModel, texts: Sequence[str], seq: int) -> Int[np.ndarray, "tokens"]:
    """The tokens of texts, one after the other, at least `seq`.

    Raises:
        ValueError: a window longer than the context, or texts of fewer tokens than one.
    """
    if not 1 <= seq <= model.config.context:
        raise ValueError(f"seq is {seq}: 1 to {model.config.context} tokens fit into the context")
    ids = np.concatenate([np.zeros(0, np.int64), *model.tokenizer.encode_all(texts)])
    if len(ids) < seq:
        raise ValueError(f"the texts have {len(ids)} tokens: a window of seq={seq} is needed")
    return ids.astype(np.int32)
