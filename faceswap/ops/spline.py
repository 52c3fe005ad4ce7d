"""Thin-plate splines between control points, and values scattered over a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def thin_plate_grid(
    target: Tensor,  # (N, C, 2) float32 control points in the warped picture, pixels
    source: Tensor,  # (N, C, 2) float32 where they are in the source crop, pixels
    weight: Tensor,  # (N, C) float32 in (0, 1], trust in each control point
    *,
    size: int,  # side of both pictures, pixels
    cells: int = 48,  # the field is solved on this grid and interpolated
    stiffness: float = 5e-4,
) -> Tensor:
    """Backward map of a regularised thin-plate spline, ``(N, size, size, 2)`` in [-1, 1].

    f(x) = A x + sum_c w_c U(|x - x_c|), U(r) = r^2 log r^2, minimising
    sum_c weight_c |f(x_c) - y_c|^2 + stiffness * bending (Bookstein 1989; Wahba 1990).
    """
    n, count, _ = target.shape
    a = target * (2 / (size - 1)) - 1
    b = source * (2 / (size - 1)) - 1
    ones = torch.ones(n, count, 1, device=a.device)
    affine = torch.cat([ones, a], -1)
    system = torch.zeros(n, count + 3, count + 3, device=a.device)
    system[:, :count, :count] = _radial(a, a) + torch.diag_embed(stiffness / weight)
    system[:, :count, count:] = affine
    system[:, count:, :count] = affine.transpose(1, 2)
    right = torch.cat([b, torch.zeros(n, 3, 2, device=a.device)], 1)
    solved = torch.linalg.solve_ex(system, right).result  # `solve` makes Python wait for a GPU
    axis = torch.linspace(-1, 1, cells, device=a.device)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.stack([xs, ys], -1).view(1, -1, 2).expand(n, -1, -1)
    field = _radial(at, a) @ solved[:, :count]
    field = field + torch.cat([torch.ones_like(at[..., :1]), at], -1) @ solved[:, count:]
    field = field.transpose(1, 2).view(n, 2, cells, cells)
    if cells != size:
        field = F.interpolate(field, size=(size, size), mode="bilinear", align_corners=True)
    out: Tensor = field.permute(0, 2, 3, 1)
    return out


def _radial(p: Tensor, q: Tensor) -> Tensor:
    across, down = (p[:, :, None, i] - q[:, None, :, i] for i in (0, 1))
    squared = torch.addcmul(across.square(), down, down)
    out: Tensor = squared * torch.log(squared + 1e-9)
    return out


def spread(points: Tensor, values: Tensor, size: int) -> Tensor:
    """Scattered values as a smooth map (Shepard interpolation), ``(N, 1, size, size)``."""
    cells = 16
    axis = (torch.arange(cells, device=points.device) + 0.5) * size / cells - 0.5
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.stack([xs, ys], -1).view(1, -1, 2)
    gap = torch.cdist(at.expand(len(points), -1, -1), points) * (128 / size)
    share = 1 / (gap.square() + 16)
    map_ = (share @ values[..., None]) / share.sum(-1, keepdim=True)
    map_ = map_.view(-1, 1, cells, cells)
    return F.interpolate(map_, size=(size, size), mode="bilinear", align_corners=False)
