"""Which pixels of an aligned face are bare skin, and which are hair that hangs into it.

A face tells its own skin colour: robust statistics over the cheeks and the nose (median and median
deviation of brightness and two colour differences). What is far from it on the forehead, at the
temples or beside the cheeks is hair, a hat, a band; brows, eyes and lips are told by the mesh.
Everything is worked out on a grid of 64, which is fine enough for fields that are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.smooth import gaussian, resized
from faceswap.ops.topology import (
    BROW_LEFT,
    BROW_RIGHT,
    CHEEKS,
    EYE_LEFT,
    EYE_RIGHT,
    FACE_OVAL,
    OUTER_LIPS,
    UPPER_FOREHEAD,
)

GRID = 64  # side everything here works at
# Deviations of skin that are never taken for smaller: brightness, red - green, blue - green.
_FLOOR = (0.07, 0.025, 0.025)
_SURE, _FAR = 2.0, 3.5  # deviations at which a pixel is still, and is no longer, skin
_SHADOW = (0.5, 1.0, 1.0)  # factor on the deviations where shadow is no reason to leave skin out
_DEEP = (0.15, 0.8, 0.8)  # the same where no shadow is too deep
_TOP, _NOSE, _CHIN = 10, 4, 152


@dataclass(frozen=True, slots=True)
class Skin:
    """Maps of N faces, each ``(N, 1, GRID, GRID)`` in [0, 1]."""

    bare: Tensor  # skin between the features, inside the face, lit or in shadow
    clear: Tensor  # the same, in shadow however deep, without hair
    hair: Tensor  # what hangs into forehead, temples and cheeks, or lies beside them
    core: Tensor  # the face without its rim, where hair, neck and background begin to mix in

    def rows(self, index: Tensor) -> Skin:
        """Of those faces, ``index (M,) int64``, in that order."""
        return Skin(self.bare[index], self.clear[index], self.hair[index], self.core[index])


def find_skin(
    images: Tensor,  # (N, 3, S, S) float in [0, 1], aligned crops
    mesh: Tensor,  # (N, 478, 2 or 3) float32, crop px
    *,
    brow_room: float = 0.5,  # px of 128 above the brows' points that may still be brow, not hair
    covered: Tensor | None = None,  # (N, 1, S, S) in [0, 1], what lies before the faces
) -> Skin:
    """Bare skin and hair of faces; what covers them is neither."""
    small = resized(images, GRID)
    points = (mesh[..., :2] + 0.5) * (GRID / images.shape[-1]) - 0.5
    unit = GRID / 128
    oval = _distance(points[:, constant(FACE_OVAL, points.device)])
    inside = (oval / (2 * unit) + 0.5).clamp(0, 1)
    core = ((oval / unit - 2) / 4).clamp(0, 1)
    open_ = None if covered is None else 1 - resized(covered, GRID)
    off = _strangeness(small, points, open_)
    likely, shaded, deep = (
        _likely(off * constant(factor, off.device).view(1, 3, 1, 1))
        for factor in ((1.0, 1.0, 1.0), _SHADOW, _DEEP)
    )
    features = _features(points, unit)
    # Strands are thinner than a cell: what is beside hair counts as hair too.
    unlike = F.max_pool2d(gaussian(1 - likely, 0.6), 3, 1, 1)
    zone, upper = _zone(points, oval, unit, brow_room)
    hair = gaussian((1.5 * unlike).clamp(0, 1) * zone, 0.6) * inside
    # Beside the upper face there is hair, ear or background, whatever its colour.
    beside = (0.5 - oval / (4 * unit)).clamp(0, 1) * upper
    hair = torch.maximum(hair, beside)
    plain = inside * (1 - features)
    if open_ is not None:
        plain, hair = plain * open_, hair * open_
    return Skin(plain * shaded, plain * deep * (1 - hair), hair, core)


def _distance(polygon: Tensor) -> Tensor:
    return outline_distance(polygon, GRID // 2, GRID)


def _strangeness(small: Tensor, points: Tensor, open_: Tensor | None) -> Tensor:
    """Deviations of each pixel's tones from the skin of cheeks and nose, ``(N, 3, 64, 64)``."""
    at = points[:, constant(CHEEKS, points.device)] * (2 / (GRID - 1)) - 1
    tones = _tones(small)
    seen = F.grid_sample(tones, at[:, None], align_corners=True, padding_mode="border")[:, :, 0]
    if open_ is not None:
        free = F.grid_sample(open_, at[:, None], align_corners=True, padding_mode="border")[:, :, 0]
        hidden = (free < 0.5) & (free > 0.5).any(2, keepdim=True)  # all of them: nothing to go by
        seen = seen.masked_fill(hidden, torch.nan)
    middle = seen.nanmedian(2, keepdim=True).values
    spread = 1.5 * (seen - middle).abs().nanmedian(2, keepdim=True).values
    spread = spread.maximum(constant(_FLOOR, spread.device).view(1, 3, 1))
    off = (tones - middle[..., None]) / spread[..., None]
    # A highlight is skin; it is brighter, not of another colour.
    return torch.cat([torch.where(off[:, :1] > 0, 0.5 * off[:, :1], off[:, :1]), off[:, 1:]], 1)


def _likely(off: Tensor) -> Tensor:
    far = off.square().sum(1, keepdim=True).sqrt()
    return 1 - ((far - _SURE) / (_FAR - _SURE)).clamp(0, 1)


def _tones(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    scale = 0.5 / (light + 0.15)  # colour differences grow with the light
    return torch.stack([light, (red - green) * scale, (blue - green) * scale], 1)


def _features(points: Tensor, unit: float) -> Tensor:
    """Brows, eyes and lips with a little around them."""
    n = len(points)
    pairs = []
    for left, right, room in ((EYE_LEFT, EYE_RIGHT, 3.0), (BROW_LEFT, BROW_RIGHT, 2.5)):
        both = torch.cat([points[:, constant(side, points.device)] for side in (left, right)])
        distance = _distance(both).view(2, n, 1, GRID, GRID).amax(0)
        pairs.append(distance / unit + room)
    pairs.append(_distance(points[:, constant(OUTER_LIPS, points.device)]) / unit + 2.0)
    return torch.stack(pairs).amax(0).div(2).clamp(0, 1)


def _zone(points: Tensor, oval: Tensor, unit: float, brow_room: float) -> tuple[Tensor, Tensor]:
    """Where hair may be expected (above the brows, along the upper oval), and the upper half."""
    forehead = _distance(points[:, constant(UPPER_FOREHEAD, points.device)])
    above = ((forehead / unit - brow_room) / 2.5).clamp(0, 1)
    up = points[:, _TOP] - points[:, _CHIN]
    length = up.norm(dim=1, keepdim=True)
    axis = torch.arange(GRID, dtype=torch.float32, device=points.device)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    tip = points[:, _NOSE]
    x, y = (xs[None] - tip[:, :1, None]), (ys[None] - tip[:, 1:, None])
    direction = up / length.square()
    height = (x * direction[:, :1, None] + y * direction[:, 1:, None])[:, None]
    upper = (height / 0.08 + 0.5).clamp(0, 1)  # from the nose's tip up
    rim = (1 - (oval / unit - 5.0) / 5.0).clamp(0, 1) * upper
    return torch.maximum(above, rim), upper
