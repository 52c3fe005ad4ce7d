"""Trained networks as files for elsewhere: safetensors for this package, ONNX for any other.

An ONNX file takes any number of faces. Inputs and outputs have the names, shapes and ranges of the
network's ``forward``; the guide of a guided network is given as its six pictures. Restorer,
occlusion network and detector also take pictures of any size whose sides are a multiple of their
coarsest stride. The detector's three grids come out as one list of cells: a score in [0, 1], a box
and five points, in pixels from the picture's edge (take off 1/2 for pixel middles at whole
numbers), before any non-maximum suppression.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from faceswap.errors import ConfigError, MediaError, MissingWeightError
from faceswap.models import load_model, save_model
from faceswap.models.aei import AEINet
from faceswap.models.checkpoint import read_checkpoint
from faceswap.models.detector import FaceDetector
from faceswap.models.engine import onnx_bytes
from faceswap.models.guided import GuidedAEINet
from faceswap.models.identity import IdentityNet
from faceswap.models.iresnet import INPUT_SIZE, IResNet
from faceswap.models.mesh import MeshNet
from faceswap.models.occlusion import OcclusionNet
from faceswap.models.restorer import Restorer
from faceswap.train.checkpoint import CHECKPOINT
from faceswap.train.disk import discard, writing
from faceswap.types import GUIDE_CHANNELS, Guide

Format = Literal["safetensors", "onnx"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A network in the form it is exported in."""

    network: nn.Module  # takes tensors only
    inputs: dict[str, Tensor]  # an example, two faces
    outputs: tuple[str, ...]
    free: bool = False  # pictures of any height and width


class _Swap(nn.Module):
    """An AEI-Net for any number of pairs (its own forward repeats a single identity)."""

    def __init__(self, net: AEINet) -> None:
        super().__init__()
        self.net = net

    def forward(self, target: Tensor, identity: Tensor) -> Tensor:
        return self.net.generate(self.net.attributes(target), identity, target)


class _GuidedSwap(nn.Module):
    """A guided network with the guide's pictures as inputs of their own."""

    def __init__(self, net: GuidedAEINet) -> None:
        super().__init__()
        self.net = net

    def forward(self, target: Tensor, identity: Tensor, *guide: Tensor) -> Tensor:
        swapped: Tensor = self.net(target, identity, Guide.of(guide))
        return swapped


class _Restore(nn.Module):
    """A restorer without its padding, which would be fixed at that of the example."""

    def __init__(self, net: Restorer) -> None:
        super().__init__()
        self.net = net

    def forward(self, face: Tensor) -> Tensor:
        return (face + self.net.correction(face)).clamp(0, 1)


class _Detect(nn.Module):
    """A detector whose grids are one list of cells."""

    def __init__(self, net: FaceDetector) -> None:
        super().__init__()
        self.net = net

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grids = self.net(frames)
        score = torch.cat([grid.score.flatten(1) for grid in grids], 1).sigmoid()
        box = torch.cat([grid.box.flatten(1, 2) for grid in grids], 1)
        return score, box, torch.cat([grid.points.flatten(1, 2) for grid in grids], 1)


def exportable(network: nn.Module) -> Exported:
    """What of a network goes into an ONNX file.

    Raises:
        ConfigError: a network that has no use outside.
    """

    def pictures(channels: int, side: int) -> Tensor:
        return torch.rand(2, channels, side, side)

    if isinstance(network, AEINet):
        inputs = {"target": pictures(3, network.size)}
        inputs["identity"] = torch.randn(2, network.embedding_size)
        return Exported(_Swap(network), inputs, ("swapped",))
    if isinstance(network, GuidedAEINet):
        inputs = {"target": pictures(3, network.size)}
        inputs["identity"] = torch.randn(2, network.embedding_size)
        inputs |= {
            name: pictures(channels, network.size) for name, channels in GUIDE_CHANNELS.items()
        }
        return Exported(_GuidedSwap(network), inputs, ("swapped",))
    if isinstance(network, IdentityNet | IResNet):
        side = int(getattr(network, "size", INPUT_SIZE))
        return Exported(network, {"face": pictures(3, side)}, ("identity",))
    if isinstance(network, MeshNet):
        return Exported(network, {"face": pictures(3, network.size)}, ("points", "presence"))
    if isinstance(network, Restorer):
        side = 4 * network.stride
        return Exported(_Restore(network), {"face": pictures(3, side)}, ("restored",), free=True)
    if isinstance(network, OcclusionNet):
        side = 4 * network.stride
        return Exported(network, {"face": pictures(3, side)}, ("logits",), free=True)
    if isinstance(network, FaceDetector):
        outputs = ("score", "box", "points")
        return Exported(_Detect(network), {"frames": pictures(3, 96)}, outputs, free=True)
    raise ConfigError(
        f"a {type(network).__name__} cannot be exported to ONNX: it is of use in training only"
    )


def find_weights(run: Path) -> Path:
    """The weight file of a run, or the file itself.

    Raises:
        MissingWeightError: nothing there yet.
        ConfigError: several weight files in the folder, or the state of a run.
    """
    if run.is_file():
        if run.suffix == ".pt" and (run.name == CHECKPOINT or run.name.startswith("step-")):
            raise ConfigError(f"{run}: the state of a run, to go on with; export {run.parent}")
        return run
    found = sorted(run.glob("*.safetensors"))
    if not found:
        raise MissingWeightError(
            f"{run}: no weights; a run writes them with its first checkpoint, or give a weight file"
        )
    if len(found) > 1:
        raise ConfigError(f"{run}: {len(found)} weight files; name one of them")
    return found[0]


def export(run: Path, to: Format, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the weights of a run (the average of its last steps) for use elsewhere.

    Args:
        run: folder of a run, or a weight file (ours or a published GHOST one).
        to: "safetensors", which `load_model` reads, or "onnx".
        output: the file to write; by default beside the weights, with that ending.
        overwrite: whether it may exist.

    Returns:
        The file written.

    Raises:
        WeightError: no weights, or damaged.
        MediaError: the output exists or cannot be written.
    """
    source = find_weights(run)
    output = output or source.with_suffix(f".{to}")
    if output.resolve() == source.resolve():
        raise ConfigError(f"{source} is a {to} file already; name another output")
    if output.exists() and not overwrite:
        raise MediaError(f"{output} exists; pass --overwrite to replace it")
    network = load_model(source)
    if to == "safetensors":
        found = read_checkpoint(source)
        return save_model(output, network, found.arch, found.args, found.card)
    unfinished = output.with_name(output.name + ".part")
    try:
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_onnx(network, unfinished)
            unfinished.replace(output)
    finally:
        discard(unfinished)
    return output


def write_onnx(network: nn.Module, path: Path) -> None:
    """One ONNX file with a dynamic number of faces, from a network in eval mode."""
    parts = exportable(network)
    path.write_bytes(onnx_bytes(parts.network, parts.inputs, parts.outputs, free=parts.free))
