"""Our networks by onnxruntime on a CPU: the same answers sooner.

`models.fuse` gives torch what algebra can; onnxruntime lays weights and maps out for the processor
as well. It wins by more than it costs only where a network is used hundreds of times, since the
network has to be written down for it first (0.2 to 0.4 s each): for clips.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from faceswap.models.guided import GuidedAEINet
from faceswap.models.mesh import MeshNet
from faceswap.models.occlusion import OcclusionNet
from faceswap.types import GUIDE_CHANNELS, Guide

OPSET = 17


class Session:
    """One ONNX model on as many threads as torch has.

    Args:
        model: the file's bytes.
    """

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = False  # 30 to 70 MiB less, a tenth slower in the detector
        options.log_severity_level = 3  # shapes in a file may be those of its example
        # Its threads would keep spinning while torch's work, and there are only so many cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs ``float32``, for inputs ``float32`` in the order of the file."""
        given = [np.ascontiguousarray(x.detach().float().numpy()) for x in inputs]
        found = self._session.run(None, dict(zip(self._names, given, strict=True)))
        return [torch.from_numpy(x) for x in found]


def onnx_bytes(
    network: nn.Module,
    inputs: Mapping[str, Tensor],  # an example, two rows each
    outputs: Sequence[str],
    *,
    free: bool = False,
) -> bytes:
    """A network as an ONNX file that takes any number of rows.

    By torch's older exporter: the newer one needs onnxscript, and gains nothing for these
    networks.

    Args:
        network: takes and gives tensors only; put into eval mode.
        inputs: by name, in the order of its forward.
        outputs: names.
        free: whether pictures may have any height and width.
    """
    axes = {name: {0: "faces"} for name in (*inputs, *outputs)}
    if free:
        for name in inputs:
            axes[name] |= {2: "height", 3: "width"}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "network.onnx"
        warnings.simplefilter("ignore")  # of its deprecation, and of constants in shape checks
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
        return file.read_bytes()


class MeshEngine:
    """Drop-in for a `MeshNet` on a CPU; leave the network as `load_model` gives it (not fused)."""

    def __init__(self, net: MeshNet) -> None:
        self.size = net.size
        example = {"face": torch.zeros(2, 3, net.size, net.size)}
        self._run = Session(onnx_bytes(net, example, ("points", "presence")))

    def __call__(
        self,
        crop: Tensor,  # (N, 3, S, S) float32
    ) -> tuple[Tensor, Tensor]:
        """See `MeshNet.forward`."""
        points, presence = self._run(crop)
        return points, presence


class OcclusionEngine:
    """Drop-in for an `OcclusionNet` on a CPU; leave the network as `load_model` gives it."""

    def __init__(self, net: OcclusionNet) -> None:
        self.size = net.size
        example = {"face": torch.zeros(2, 3, 4 * net.stride, 4 * net.stride)}
        self._run = Session(onnx_bytes(net, example, ("logits",), free=True))

    def __call__(
        self,
        crop: Tensor,  # (N, 3, S, S) float32
    ) -> Tensor:
        """See `OcclusionNet.forward`."""
        return self._run(crop)[0]


_SEEN = {name: n for name, n in GUIDE_CHANNELS.items() if name != "eyes"}  # by the network proper


class _Gates(nn.Module):
    def __init__(self, net: GuidedAEINet) -> None:
        super().__init__()
        self.net = net

    def forward(self, identity: Tensor, *guide: Tensor) -> tuple[Tensor, Tensor]:
        parts: dict[str, Any] = dict(zip(_SEEN, guide, strict=True))
        return self.net.gates(Guide(**parts, eyes=torch.zeros_like(parts["mouth"])), identity)


class GatesEngine:
    """Drop-in for `GuidedAEINet.gates` on a CPU; leave the network as `load_model` gives it."""

    def __init__(self, net: GuidedAEINet) -> None:
        example = {"identity": torch.ones(2, net.embedding_size)}
        for name, channels in _SEEN.items():
            example[name] = torch.zeros(2, channels, net.size, net.size)
        self._run = Session(onnx_bytes(_Gates(net), example, ("gate", "residual")))

    def __call__(self, guide: Guide, identity: Tensor) -> tuple[Tensor, Tensor]:
        """See `GuidedAEINet.gates`."""
        parts = (getattr(guide, name) for name in _SEEN)
        gate, residual = self._run(identity, *parts)
        return gate, residual
