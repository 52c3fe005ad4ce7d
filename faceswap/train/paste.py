"""Drawing one picture into another: turned, scaled, low-passed, through a soft mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCKS = 5  # a side, of a shuffled picture
Area = tuple[int, int, int, int]  # left, top, right, bottom in px of the scene


@dataclass(frozen=True, slots=True)
class Shape:
    """A soft superellipse about the middle of a picture: |x/a|^p + |y/b|^p = 1."""

    half: tuple[float, float]  # a, b in picture px
    power: float
    soft: float  # width of the edge, share of the half axes

    def mask(self, x: Tensor, y: Tensor) -> Tensor:
        """``(h, w)`` in [0, 1] at places relative to the middle, picture px."""
        a, b = self.half
        radius = ((x / a).abs() ** self.power + (y / b).abs() ** self.power) ** (1 / self.power)
        out: Tensor = ((1 - radius) / self.soft).clamp(0, 1)
        return out


def similarity(
    side: int, scale: float, turn: float, place: tuple[float, float], flip: bool
) -> Tensor:
    """Picture px -> scene px ``(2, 3)``; the middle of the picture comes to lie at the place."""
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    linear = torch.tensor([[cos, -sin], [sin, cos]])
    if flip:
        linear = linear @ torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    middle = torch.full((2,), (side - 1) / 2)
    return torch.cat([linear, (torch.tensor(place) - linear @ middle)[:, None]], 1)


def shuffled(crop: Tensor, generator: torch.Generator) -> Tensor:
    """A crop cut into blocks in another order."""
    side = crop.shape[-1] // _BLOCKS
    blocks = crop[:, : side * _BLOCKS, : side * _BLOCKS].unflatten(1, (_BLOCKS, side))
    blocks = blocks.unflatten(3, (_BLOCKS, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    blocks = blocks[torch.randperm(len(blocks), generator=generator)]
    rows = blocks.unflatten(0, (_BLOCKS, _BLOCKS)).permute(2, 0, 3, 1, 4)
    out: Tensor = rows.flatten(1, 2).flatten(2, 3)
    return out


def put(
    image: Tensor,  # (3, H, W) float in [0, 1], the scene, changed in place
    picture: Tensor,  # (3, h, w) float in [0, 1]
    matrix: Tensor,  # (2, 3), picture px -> scene px
    area: Area,
    shape: Shape | None = None,
) -> None:
    """Draw a picture into the scene, inside an area, through a soft mask."""
    height, width = picture.shape[1:]
    scale = float(torch.linalg.det(matrix[:, :2]).abs().sqrt())
    corners = torch.tensor([[0.0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    if shape is not None:
        centre = torch.tensor([(width - 1) / 2, (height - 1) / 2])
        corners = centre + (corners - centre).sign() * torch.tensor(shape.half)
    placed = corners @ matrix[:, :2].T + matrix[:, 2]
    left = max(area[0], math.floor(float(placed[:, 0].min())))
    top = max(area[1], math.floor(float(placed[:, 1].min())))
    right = min(area[2], math.ceil(float(placed[:, 0].max())) + 1)
    bottom = min(area[3], math.ceil(float(placed[:, 1].max())) + 1)
    if shape is None:
        left, top, right, bottom = area
    if right <= left or bottom <= top:
        return
    factor = 1 << max(0, math.floor(math.log2(max(1.0, 1 / scale))))
    small = F.avg_pool2d(picture[None], factor) if factor > 1 else picture[None]
    linear = torch.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    x = torch.arange(left, right, dtype=torch.float32)
    y = torch.arange(top, bottom, dtype=torch.float32)
    at_x = linear[0, 0] * x + linear[0, 1] * y[:, None] + shift[0]  # picture px
    at_y = linear[1, 0] * x + linear[1, 1] * y[:, None] + shift[1]
    grid = torch.stack(
        [
            ((at_x + 0.5) / factor) * (2 / small.shape[3]) - 1,
            ((at_y + 0.5) / factor) * (2 / small.shape[2]) - 1,
        ],
        -1,
    )[None]
    view = F.grid_sample(small, grid, padding_mode="reflection", align_corners=False)[0]
    region = image[:, top:bottom, left:right]
    if shape is None:
        region.copy_(view)
        return
    mask = shape.mask(at_x - (width - 1) / 2, at_y - (height - 1) / 2)
    region.lerp_(view, mask.expand_as(view))
