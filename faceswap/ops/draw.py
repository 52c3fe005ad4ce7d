"""Polygons and points as pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def signed_distance(
    polygon: Tensor,  # (N, V, 2) float32, pixels, closed
    size: int,
) -> Tensor:
    """Distance to a polygon's outline, positive inside, ``(N, 1, size, size)`` in pixels."""
    axis = torch.arange(size, dtype=torch.float32, device=polygon.device)
    x, y = axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)
    nearest = torch.full((len(polygon), size, size), torch.inf, device=polygon.device)
    inside = torch.zeros(len(polygon), size, size, dtype=torch.bool, device=polygon.device)
    # A CPU takes the edges one by one: all of them at once would not stay in the cache.
    edges = 1 if polygon.device.type == "cpu" else polygon.shape[1]
    ends = polygon.roll(-1, 1).split(edges, 1)
    for begin, end in zip(polygon.split(edges, 1), ends, strict=True):
        ay, by = begin[..., 1, None, None], end[..., 1, None, None]
        ex, ey = (end - begin)[..., None, None].unbind(2)
        px, py = x - begin[..., 0, None, None], y - ay
        length = ex * ex + ey * ey + 1e-9
        along = (px * (ex / length) + py * (ey / length)).clamp_(0, 1)
        gap = torch.addcmul(px, along, ex, value=-1).square_()
        across = torch.addcmul(py, along, ey, value=-1)
        gap = gap.addcmul_(across, across)
        crosses = (px < ex * py / (ey + 1e-9 * (ey == 0))).logical_and_((ay > y) != (by > y))
        nearest = torch.minimum(nearest, gap[:, 0] if edges == 1 else gap.amin(1))
        inside ^= crosses[:, 0] if edges == 1 else crosses.sum(1) % 2 == 1
    distance = nearest.sqrt()
    return torch.where(inside, distance, -distance)[:, None]


def outline_distance(polygon: Tensor, cells: int, size: int) -> Tensor:
    """`signed_distance` on a grid of fewer cells, brought up; ``(N, 1, size, size)`` in pixels.

    Args:
        polygon: ``(N, V, 2)`` float32, in pixels of ``size``.
        cells: side of the grid; what is finer than its cells is rounded.
        size: side of the picture.
    """
    factor = size / cells
    distance = signed_distance((polygon + 0.5) / factor - 0.5, cells) * factor
    return F.interpolate(distance, size=(size, size), mode="bilinear", align_corners=False)


def dots(
    points: Tensor,  # (N, P, 2) float32, pixels
    size: int,
    *,
    sigma: float = 1.0,  # pixels
) -> Tensor:
    """Points drawn as soft dots, ``(N, 1, size, size)`` in [0, 1]."""
    n = points.shape[0]
    floor = points.floor()
    part = points - floor
    canvas = torch.zeros(n, size * size, device=points.device)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = floor[..., 0] + dx, floor[..., 1] + dy
            share = (1 - (dx - part[..., 0]).abs()) * (1 - (dy - part[..., 1]).abs())
            inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
            index = (y * size + x).clamp(0, size * size - 1).long()
            canvas.scatter_add_(1, index, share * inside)
    reach = max(1, int(2.5 * sigma + 0.5))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=points.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    image = canvas.view(n, 1, size, size)
    image = F.conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(image, kernel.view(1, 1, -1, 1), padding=(reach, 0)).clamp(0, 1)
