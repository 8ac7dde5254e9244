"""The MeshView: which device holds which slice of which weight, and what a block exchanges."""

from __future__ import annotations

import difflib
import functools
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from jaxtyping import Int

from gptj_lab import plots
from gptj_lab.mesh.report import MeshReport, WeightPlacement
from gptj_lab.names import DATA, MODEL
from gptj_lab.widgets import theme

if TYPE_CHECKING:
    from gptj_lab.language_model import LanguageModel

_DIMENSIONS = {1: ("entries",), 2: ("rows", "columns")}
_WHY = {
    (): "Every device holds all weights and computes other rows of the batch: a block has nothing "
    "to exchange.",
    ("all-reduce",): "In this block attention and MLP read the same input and both add to what "
    "comes out. So each device adds up its own two parts first, and one all-reduce sums them over "
    "the devices. A sequential block needs two: its MLP has to wait for attention's sum.",
    ("all-reduce",) * 2: "The MLP of a sequential block reads what attention has written, so both "
    "have to be summed over the devices, one after the other. GPT-J's parallel block needs only "
    "one all-reduce.",
}


class MeshView(anywidget.AnyWidget):
    """The devices of a model's mesh, the slices of each weight on them, a block's collectives.

    Everything that the view says can be had without it: `report`, `summary()`, `tell(device)`,
    `exchange()`, `why()`; set `weight`, and leave a picture with `pin()`.

    Args:
        model: on a mesh, as of `gptj_lab.load(..., mesh=gptj_lab.mesh(data=2, model=4))`.
        weight: the path of the weight that is shown first; one of the first block by default.
        batch, seq: rows (filled up until `data` divides them) and tokens a row for which the
            block is compiled and its collectives are counted.

    Raises:
        ValueError: the model doesn't lie on a mesh, or it has no such weight.
    """

    _esm = theme.script("meshview")
    _css = theme.style("meshview")

    # The mesh is small and goes with the view, so that it is there while the kernel is busy.
    mesh = traitlets.Dict(read_only=True).tag(sync=True)
    weight = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, model: LanguageModel, weight: str | None = None, *, batch: int = 1, seq: int = 16
    ):
        for name, value in (("batch", batch), ("seq", seq)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: a whole number of at least 1 is needed")
        self._name = model.name or "the model"
        self._report = model.placement(batch, seq)
        self._weights = {each.name: each for each in self._report.weights}
        inside = [name for name in self._weights if name.startswith("blocks.0.")]
        matrices = [name for name in inside if len(self._weights[name].shape) == 2]
        self.set_trait("mesh", self._mesh())
        super().__init__(weight=weight or next(iter([*matrices, *self._weights])))
        self.on_msg(self._receive)

    # --- Without the view ---

    @property
    def report(self) -> MeshReport:
        """Everything that is shown, as data."""
        return self._report

    def tell(self, device: int, weight: str | None = None) -> str:
        """One sentence on what a device holds of a weight; by default of the one that is shown.

        Raises:
            ValueError: there is no such device or weight.
        """
        placement = self._placement(self.weight if weight is None else weight)
        if device not in placement.slices:
            raise ValueError(
                f"device is {device!r}: the devices of this mesh are {_listed(placement.slices)}"
            )
        bounds = placement.slices[device]
        kinds = _DIMENSIONS.get(len(bounds), [f"of dimension {i}" for i in range(len(bounds))])
        parts = [
            f"all {size:,} {kind}"
            if (start, stop) == (0, size)
            else f"{kind} {start:,}–{stop - 1:,} of {size:,}"
            for (start, stop), size, kind in zip(bounds, placement.shape, kinds, strict=True)
        ]
        held = f"Device {device} holds {' and '.join(parts)}: {_size(placement.bytes_per_device)}."
        same = [other for other in placement.slices if placement.slices[other] == bounds]
        same.remove(device)
        if not same:
            return f"{held} No other device holds these."
        if len(same) + 1 == len(placement.slices):
            return f"{held} So does every other device."
        return f"{held} {_devices(same, 'Device')} hold{'s' * (len(same) == 1)} the same."

    def exchange(self) -> str:
        """What the devices exchange in the forward pass of one block."""
        told = self._report
        rows, parts = told.batch, told.axes[DATA]
        batch = f"{rows} x {told.seq} tokens"
        if parts > 1:
            batch += f" ({rows // parts} row{'s' * (rows > parts)} on each part of data)"
        counts = Counter((one.kind, one.axes, one.bytes) for one in told.block)
        found = [
            f"{count} {kind}{'s' * (count > 1)} over {' and '.join(axes)} of {_size(size)}"
            for (kind, axes, size), count in counts.items()
        ]
        return f"The forward pass of one block, for {batch}: {', '.join(found) or 'no exchange'}."

    def why(self) -> str:
        """Why it is so many exchanges; empty where it isn't one of the usual patterns."""
        block = self._report.block
        usual = all(each.axes == (MODEL,) for each in block)
        return _WHY.get(tuple(each.kind for each in block), "") if usual else ""

    def summary(self) -> str:
        """The mesh, the shown weight and the exchange in a few sentences."""
        placement = self._placement(self.weight)
        size = " x ".join(f"{n:,}" for n in placement.shape)
        return (
            f"{self._title()} {placement.name} ({size} of {placement.dtype}) is "
            f"{_cut(placement, self._report)}. {self.exchange()} {self.why()}".rstrip()
        )

    def pin(self) -> None:
        """Leaves a picture of the mesh and the shown weight as an output of its own."""
        from IPython.display import display

        display(
            {"image/png": self._picture(), "text/plain": self.summary()},
            raw=True,
            metadata={"image/png": {"alt": self.summary()}},
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        data = dict(data) | {"text/plain": self.summary(), "image/png": self._picture()}
        return data, dict(metadata) | {"image/png": {"alt": self.summary()}}

    # --- With the view ---

    @traitlets.validate("weight")
    def _known(self, proposal: Any) -> str:
        return self._placement(proposal["value"]).name

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        """One message of the view; whatever goes wrong is shown there, in a sentence."""
        request = str(message.get("req", "")) if isinstance(message, dict) else ""
        try:
            match message["op"]:
                case "show":
                    self.weight = self._placement(message["weight"]).name
                    self._send_weight(request)
        except (TypeError, ValueError, KeyError) as error:
            self.send({"op": "error", "req": request, "text": str(error)})

    def _mesh(self) -> dict[str, Any]:
        """What stays as it is while weights are chosen."""
        told = self._report
        groups: dict[str, list[tuple[str, str, str]]] = {}
        for each in told.weights:
            block = re.match(r"blocks\.\d+(?=\.)", each.name)
            group = block.group() if block else "outside the blocks"
            label = each.name.removeprefix(f"{group}.")
            size = " x ".join(f"{n:,}" for n in each.shape)
            groups.setdefault(group, []).append((each.name, label, size))
        held = {device: _size(count) for device, count in told.bytes_per_device.items()}
        return {
            "title": self._title(),
            "axes": list(told.axes),
            "devices": told.devices,
            "held": [[held[device] for device in row] for row in told.devices],
            "groups": list(groups.items()),
            "exchange": self.exchange(),
            "why": self.why(),
        }

    def _send_weight(self, request: str) -> None:
        placement = self._placement(self.weight)
        parts, numbers = _parts(placement, self._report)
        message = {
            "op": "weight",
            "req": request,
            "name": placement.name,
            "shape": list(placement.shape),
            "cut": f"{placement.dtype}, {_cut(placement, self._report)}",
            "tells": [self.tell(device) for row in self._report.devices for device in row],
        }
        self.send(message, [parts.tobytes(), numbers.tobytes()])

    def _placement(self, name: Any) -> WeightPlacement:
        if name not in self._weights:
            near = difflib.get_close_matches(str(name), self._weights, 3, 0)
            raise ValueError(
                f"{self._name} has no weight {name!r}: report.weights lists them, such as "
                f"{_listed(near)}"
            )
        return self._weights[name]

    def _title(self) -> str:
        told = self._report
        whole = sum(int(np.prod(w.shape)) * np.dtype(w.dtype).itemsize for w in told.weights)
        sizes = sorted({_size(count) for count in told.bytes_per_device.values()})
        axes = " x ".join(f"{name}={size}" for name, size in told.axes.items())
        return (
            f"{self._name} on a mesh of {axes}: its weights are {_size(whole)}, each device "
            f"holds {' to '.join(sizes)}."
        )

    def _picture(self) -> bytes:
        placement = self._placement(self.weight)
        parts, numbers = _parts(placement, self._report)
        held = [
            _size(self._report.bytes_per_device[d]) for row in self._report.devices for d in row
        ]
        figure = plots.mesh_placement(
            np.array(self._report.devices), held, numbers, parts, placement.shape,
            f"{placement.name}: {_cut(placement, self._report)}",
        )  # fmt: skip
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def _parts(
    placement: WeightPlacement, told: MeshReport
) -> tuple[Int[np.ndarray, "parts dimensions 2"], Int[np.ndarray, "data model"]]:
    """The different slices of a weight, from its beginning, and which of them a device holds."""
    held = np.array([placement.slices[device] for row in told.devices for device in row], np.int32)
    parts, numbers = np.unique(held, axis=0, return_inverse=True)
    return parts, numbers.reshape(np.shape(told.devices)).astype(np.int32)


def _cut(placement: WeightPlacement, told: MeshReport) -> str:
    """How a weight is cut, as the end of a sentence."""
    count = len(set(placement.slices.values()))
    copies = len(placement.slices) // count
    if count == 1:
        return "not cut: every device holds a copy of all of it"
    kinds = _DIMENSIONS.get(len(placement.shape), ())
    axes = {axis for axis in placement.axes if axis is not None}
    by = [kind for kind, axis in zip(kinds, placement.axes, strict=False) if axis is not None]
    how = f"cut over {' and '.join(sorted(axes))} into {count} slices of {' and '.join(by)}"
    return how if copies == 1 else f"{how}, each held by {copies} devices"


def _devices(devices: list[int], word: str) -> str:
    return f"{word}{'s' * (len(devices) > 1)} {_listed(devices)}"


def _listed(names: Any) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


@functools.cache
def _size(count: int) -> str:
    """Bytes as people read them, in powers of 1000."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
