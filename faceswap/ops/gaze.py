"""The source's irises, moved to where the target looks.

A thin-plate spline is too stiff to move an iris by half its width between lids that stay. So what
it misses is added, inside the lids only: the iris goes as a whole, and what is white beside it is
stretched or squeezed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.smooth import resized
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT

_RIM = 1.2  # of the ring's radius, which lies within the iris's dark rim
_REACH = 2.6  # iris radii from its centre, where nothing moves any more
_CELLS = 128  # the field is worked out at this side at most and interpolated
_FARTHEST = 0.3  # eye widths that an iris is moved at most; points behind sunglasses are guesses


def look_along(
    grid: Tensor,  # (N, S, S, 2) float32 in [-1, 1], backward map from swapped to source crop
    shape: Tensor,  # (N, 478, 2 or 3) float32, mesh of the swapped face, pixels of S
    source_mesh: Tensor,  # (N, 478, 2 or 3) float32, pixels of the source crop, of side S too
) -> Tensor:
    """The map with both irises where `shape` has them, ``(N, S, S, 2)``."""
    size = grid.shape[1]
    field = grid.permute(0, 3, 1, 2)
    side = min(size, _CELLS)
    unit = size / side
    axis = (torch.arange(side, dtype=grid.dtype, device=grid.device) + 0.5) * unit - 0.5
    moved = field.new_zeros(len(field), 2, side, side)
    for lids, iris in ((EYE_LEFT, IRIS_LEFT), (EYE_RIGHT, IRIS_RIGHT)):
        centre = shape[:, iris[0], :2]
        rim = shape[:, constant(iris[1:], shape.device), :2]
        radius = (rim - centre[:, None]).norm(dim=-1).mean(1) * _RIM
        found = F.grid_sample(
            field, (centre * (2 / (size - 1)) - 1)[:, None, None], align_corners=True
        )[:, :, 0, 0]
        miss = source_mesh[:, iris[0], :2] * (2 / (size - 1)) - 1 - found
        width = (source_mesh[:, lids[0], :2] - source_mesh[:, lids[8], :2]).norm(dim=-1)
        most = _FARTHEST * width * (2 / (size - 1))
        miss = miss * (most / miss.norm(dim=-1).clamp_min(1e-6)).clamp(max=1)[:, None]
        x, y = axis - centre[:, :1], axis - centre[:, 1:]
        away = (x.square()[:, None] + y.square()[..., None]).sqrt() / radius[:, None, None]
        share = ((_REACH - away) / (_REACH - 1)).clamp(0, 1)
        share = share * share * (3 - 2 * share)
        lid = (shape[:, constant(lids, shape.device), :2] + 0.5) / unit - 0.5
        inside = outline_distance(lid, side // 2, side) * (64 / side)
        inside = (inside + 0.5).clamp(0, 1)
        moved = moved + miss[..., None, None] * share[:, None] * inside
    return (field + resized(moved, size)).permute(0, 2, 3, 1)
