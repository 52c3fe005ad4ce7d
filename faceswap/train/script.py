"""A TorchScript recogniser as plain torch operations: faster, in any precision, open inside.

A script from a converter is correct and slow: padding apart from its convolution, PReLU as three
operations, none of it in bf16. Rebuilt, a batch of omz_reid took 8 ms a face instead of 22, and
2.9 ms in bf16 (one core of an EPYC, 2026-11-27; cosine to the script's answer above .999).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError

Attributes = dict[str, Any]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a["pads"]
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, a["strides"], (top, left), a["dilations"], a["group"])


def _average(a: Attributes, x: Tensor) -> Tensor:
    if tuple(a["kernel_shape"]) == tuple(x.shape[2:]):
        return x.mean((2, 3), keepdim=True)
    return F.avg_pool2d(x, a["kernel_shape"], a["strides"])


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    # F.prelu, whose gradient is slow on CPUs.
    return torch.addcmul(slope * x, 1 - slope, torch.relu(x))


def _slice(
    a: Attributes, x: Tensor, begin: Tensor, _end: Tensor, axes: Tensor, by: Tensor
) -> Tensor:
    return x.flip(axes.tolist())


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "PRelu": _prelu,
    "Relu": lambda a, x: torch.relu(x),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Sigmoid": lambda a, x: x.sigmoid(),
    "AveragePool": _average,
    "Flatten": lambda a, x: x.flatten(a["axis"]),
    "Slice": _slice,
}


@dataclass(frozen=True, slots=True)
class _Node:
    """One operation; names are of tensors."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


class OpenScript(nn.Module):
    """A convolutional TorchScript recogniser, rebuilt.

    Args:
        script: ``(N, 3, S, S)`` in [0, 1] -> ``(N, D)``, on the CPU.
        size: S.

    Raises:
        ConfigError: it does something that is not known here.
    """

    def __init__(self, script: nn.Module, size: int) -> None:
        super().__init__()
        self.size = size
        self.nodes, constants = _read(script, size)
        for node in self.nodes:
            if node.kind not in _OPERATIONS or not _plain(node, constants):
                raise ConfigError(f"{node.kind} in a TorchScript network is not known here")
        self.names = {name: f"c{number}" for number, name in enumerate(constants)}
        for name, value in constants.items():
            if value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            if value.is_floating_point():
                self.register_buffer(self.names[name], value)
            else:  # such as axes: stays on the host, where Python reads it
                setattr(self, self.names[name], value)
        last = {name: at for at, node in enumerate(self.nodes) for name in node.inputs}
        self.done = [  # what nobody needs after each node
            [name for name in node.inputs if last[name] == at and name not in constants]
            for at, node in enumerate(self.nodes)
        ]

        with torch.no_grad():
            seen = self._run(torch.zeros(1, 3, size, size), None)
        self.maps = self._bottlenecks(seen)
        shapes = (seen[name].shape for name in self.maps)
        self.bottlenecks = [(shape[1], shape[2]) for shape in shapes]  # channels and side of each

    def _bottlenecks(self, seen: dict[str, Tensor]) -> tuple[str, ...]:
        """Maps that a pointwise convolution widens: where blocks of a MobileNet begin and end."""
        found = []
        for node in self.nodes:
            if node.kind == "Conv":
                wide, narrow, *kernel = getattr(self, self.names[node.inputs[1]]).shape
                pointwise = kernel == [1, 1] and node.attributes["group"] == 1
                if pointwise and wide > narrow and seen[node.inputs[0]].shape[2] > 1:
                    found.append(node.inputs[0])
        return tuple(found)

    def _run(self, crop: Tensor, kept: Sequence[str] | None) -> dict[str, Tensor]:
        """The values of these names, and of the last operation; None: of all."""
        values, last = {"crop": crop}, self.nodes[-1].output
        out: dict[str, Tensor] = {}
        for node, done in zip(self.nodes, self.done, strict=True):
            inputs = [
                values[name] if name in values else getattr(self, self.names[name])
                for name in node.inputs
            ]
            value = _OPERATIONS[node.kind](node.attributes, *inputs)
            values[node.output] = value
            if kept is None or node.output in kept or node.output == last:
                out[node.output] = value
            for name in done:
                del values[name]
        return out

    def forward(self, crop: Tensor) -> Tensor:
        """``(N, 3, S, S)`` in [0, 1] -> ``(N, D) float32``; lets gradients through."""
        return self.look(crop, ())[0]

    def look(self, crop: Tensor, kept: Sequence[str]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Embeddings, and what it saw on the way there.

        Args:
            crop: ``(N, 3, S, S)`` in [0, 1].
            kept: names of maps, of `maps`.

        Returns:
            ``(N, D) float32``, and for each name ``(N, C, side, side)``, as precise as the network.
        """
        precise = next(b.dtype for b in self.buffers() if b.is_floating_point())
        crop = crop.to(precise, memory_format=torch.channels_last)
        with torch.autocast(crop.device.type, enabled=False):
            parts = [self._run(part, kept) for part in crop.split(_part(crop.device))]
        embedding = torch.cat([part[self.nodes[-1].output] for part in parts])
        return embedding.float(), tuple(torch.cat([part[name] for part in parts]) for name in kept)


def _part(device: torch.device) -> int:
    """Crops at a time; the maps of more do not stay in a CPU's caches."""
    return 16 if device.type == "cpu" else 1024


def _plain(node: _Node, constants: dict[str, Tensor]) -> bool:
    """Whether the operation is used the way that is known here."""
    if node.kind == "Slice":  # channels in reverse
        steps = constants.get(node.inputs[-1])
        return len(node.inputs) == 5 and steps is not None and steps.tolist() == [-1]
    return node.kind != "AveragePool" or not any(node.attributes.get("pads", ()))


def _read(script: nn.Module, size: int) -> tuple[list[_Node], dict[str, Tensor]]:
    """Operations in order, and the constants that they use."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    example = torch.rand(2, 3, size, size)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, folded = Path(folder) / "script.onnx", Path(folder) / "folded.onnx"
        torch.onnx.export(
            script,
            (example,),
            str(path),
            dynamo=False,
            input_names=["crop"],
            dynamic_axes={"crop": {0: "n"}},
        )
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(folded)).graph
    values = {x.name: torch.from_numpy(numpy_helper.to_array(x).copy()) for x in graph.initializer}
    nodes = [
        _Node(
            node.op_type,
            tuple(name for name in node.input if name),
            node.output[0],
            {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute},
        )
        for node in graph.node
    ]
    nodes = _without_pads(_with_prelu(nodes, values), values)
    used = {name for node in nodes for name in node.inputs}
    return nodes, {name: value for name, value in values.items() if name in used}


def _with_prelu(nodes: list[_Node], values: dict[str, Tensor]) -> list[_Node]:
    """``where(x >= 0, x, x * slope)`` as one operation."""
    made = {node.output: node for node in nodes}
    out, spent = [], set()
    for node in nodes:
        if node.kind == "Where":
            test, positive, product = node.inputs
            at, times = made.get(test), made.get(product)
            if (
                at is not None
                and times is not None
                and (at.kind, times.kind) == ("GreaterOrEqual", "Mul")
                and at.inputs[0] == positive
                and at.inputs[1] in values
                and not values[at.inputs[1]].any()
                and positive in times.inputs
            ):
                slope = next(name for name in times.inputs if name != positive)
                spent |= {test, product}
                node = _Node("PRelu", (positive, slope), node.output, {})
        out.append(node)
    return [node for node in out if node.output not in spent]


def _without_pads(nodes: list[_Node], values: dict[str, Tensor]) -> list[_Node]:
    """Zeros around a map as a part of the convolution that they are for."""
    pads = {node.output: node for node in nodes if node.kind == "Pad"}
    out = []
    for node in nodes:
        pad = pads.get(node.inputs[0]) if node.kind == "Conv" else None
        if pad is not None and len(pad.inputs) == 2 and pad.inputs[1] in values:
            n, c, top, left, n2, c2, bottom, right = values[pad.inputs[1]].tolist()
            if not any((n, c, n2, c2, *node.attributes["pads"])):
                attributes = {**node.attributes, "pads": [top, left, bottom, right]}
                node = _Node("Conv", (pad.inputs[0], *node.inputs[1:]), node.output, attributes)
        out.append(node)
    used = {name for node in out for name in node.inputs}
    return [node for node in out if node.kind != "Pad" or node.output in used]
