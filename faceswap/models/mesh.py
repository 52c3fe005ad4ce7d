"""MeshNet: 478 dense 3D face points from one aligned crop.

The points follow the MediaPipe FaceMesh topology, which tools of the field share: 468 points of
the face surface, then the irises, 468-472 of the eye on the picture's left and 473-477 of the eye
on its right (centre first). z is in crop pixels as x and y are, smaller is nearer, and its
origin is the mean of the face.

The network is a plain residual encoder that keeps its last 4x4 map (where things are matters) and
ends in a low-rank linear layer: faces live in a space of far fewer dimensions than 3 x 478.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.residual import ResidualBlock

POINTS = 478
TEMPLATE = "ghost_frontal"  # the crop the network expects: `align(points, size, TEMPLATE, MARGIN)`
MARGIN = 1.4


class MeshNet(nn.Module):
    """Dense face points and the presence of a face.

    Args:
        widths: channels at 1/4, 1/8, 1/16 and 1/32 of the crop side.
        depths: residual blocks at each of these scales.
        rank: dimensions of the face space before the last layer.
        size: crop side S in pixels.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (40, 80, 128, 128),
        depths: tuple[int, ...] = (1, 2, 2, 1),
        rank: int = 128,
        size: int = 128,
    ) -> None:
        super().__init__()
        self.size = size
        channels = widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(12, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if index == 0 and level > 0 else 1
                layers.append(ResidualBlock(channels, width, stride))
                channels = width
        self.encoder = nn.Sequential(*layers)
        side = size // 2 ** (len(widths) + 1)
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        self.space = nn.Linear(64 * side * side, rank)
        self.points = nn.Linear(rank, POINTS * 3)
        self.presence = nn.Linear(rank, 1)

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the faces in aligned crops.

        Args:
            crop: ``(N, 3, S, S)`` float RGB in [0, 1], cut with ``TEMPLATE`` and ``MARGIN``.

        Returns:
            ``(N, 478, 3)`` float points in crop pixels and ``(N,)`` presence logits (> 0: a face).
        """
        features = self.squeeze(self.encoder(F.pixel_unshuffle(crop * 2 - 1, 2))).flatten(1)
        with torch.autocast(crop.device.type, enabled=False):  # bf16 knows half a pixel of 128
            code = self.space(features.to(self.space.weight.dtype))
            points = self.points(code).view(-1, POINTS, 3)
            return points * self.size, self.presence(code)[:, 0]
