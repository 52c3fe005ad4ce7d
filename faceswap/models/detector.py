"""FaceDetector: boxes and five points of all faces of a picture, on three grids, without anchors.

A compact network of our own after the manner of FCOS (Tian et al., ICCV 2019) and YuNet (Wu et
al., 2023): plain 3x3 convolutions down to stride 32, a top-down path, and one head that the three
grids share. Nothing is computed at the frame's own resolution and little at stride 4, where a CPU
waits for memory; that is what makes it several times faster than CenterFace.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (8, 16, 32)  # frame pixels per cell of each grid
_OUT = 1 + 4 + 10  # score logit; box; points


class Grid(NamedTuple):
    """What the head says of the cells of one grid, in frame pixels from the frame's edge.

    Cell (i, j) has its middle at ``((j + 1/2) stride, (i + 1/2) stride)``.
    """

    stride: int
    score: Tensor  # (B, h, w) float, logit of "the middle of a face is here"
    box: Tensor  # (B, h, w, 4) float, x0 y0 x1 y1
    points: Tensor  # (B, h, w, 5, 2) float


class _Conv(nn.Module):
    """3x3 or 1x1 convolution, batch norm, ReLU."""

    def __init__(self, cin: int, cout: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Batch norm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _Conv(channels, channels), _Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


class FaceDetector(nn.Module):
    """Faces of frames of any size.

    Args:
        widths: channels at strides 2, 4, 8, 16, 32.
        depths: blocks at strides 8, 16, 32.
        neck: channels of the three grids.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int, int] = (8, 24, 40, 64, 96),
        depths: tuple[int, int, int] = (1, 1, 1),
        neck: int = 40,
    ) -> None:
        super().__init__()
        one, two, *rest = widths
        self.stem = nn.Sequential(_Conv(3, one, stride=2), _Conv(one, two, stride=2))
        stages, cin = [], two
        for cout, depth in zip(rest, depths, strict=True):
            blocks = [_Block(cout) for _ in range(depth)]
            stages.append(nn.Sequential(_Conv(cin, cout, stride=2), *blocks))
            cin = cout
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(_Conv(c, neck, kernel=1) for c in rest)
        self.smooth = nn.ModuleList(_Conv(neck, neck) for _ in rest)
        self.head = nn.Conv2d(neck, _OUT, 1)  # of all grids
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        with torch.no_grad():  # faces are rare: nearly no cell is one at the beginning
            self.head.bias.zero_()[0] = -math.log(99.0)

    def forward(
        self,
        frames: Tensor,  # (B, 3, H, W) RGB, uint8 or float in [0, 1]; any H, W
    ) -> list[Grid]:
        """The three grids over the frame, padded with black at the right and below."""
        step = STRIDES[-1]
        x = F.pad(frames, (0, -frames.shape[3] % step, 0, -frames.shape[2] % step))
        x = x.contiguous(memory_format=torch.channels_last).to(self.head.weight.dtype)
        if frames.dtype == torch.uint8:
            x = x.mul_(1 / 255)  # a tensor of our own
        x = self.stem(x)
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        grids: list[Grid] = []
        above: Tensor | None = None
        for level in reversed(range(len(taps))):
            here = self.lateral[level](taps[level])
            if above is not None:
                here = here + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = self.smooth[level](here)
            grids.insert(0, _grid(self.head(above), STRIDES[level]))
        return grids

    def folded(self) -> FaceDetector:
        """A copy for inference, its batch norms in the convolutions: same result, faster."""
        copy = deepcopy(self).eval().requires_grad_(False)
        for module in copy.modules():
            if isinstance(module, _Conv):
                module.fold()
        return copy.to(memory_format=torch.channels_last)


def _grid(raw: Tensor, stride: int) -> Grid:
    """The head's numbers ``(B, 15, h, w)`` as pixels.

    Box: centre = cell + (dx, dy) stride, size = 4 stride exp(w, h). Points: cell + 2 stride offset.
    Numbers of order 1 then mean the sizes a grid is for.
    """
    raw = raw.float()
    height, width = raw.shape[2:]
    x = (torch.arange(width, device=raw.device) + 0.5) * stride
    y = (torch.arange(height, device=raw.device) + 0.5) * stride
    cell = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
    raw = raw.permute(0, 2, 3, 1)
    centre = cell + raw[..., 1:3] * stride
    half = raw[..., 3:5].clamp(-4, 4).exp() * (2 * stride)
    points = cell[:, :, None] + raw[..., 5:].unflatten(-1, (5, 2)) * (2 * stride)
    return Grid(stride, raw[..., 0], torch.cat((centre - half, centre + half), -1), points)
