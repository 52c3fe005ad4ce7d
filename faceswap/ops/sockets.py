"""Shadow around the eyes: how dark sockets are is more a matter of the light than of the person.

Light from above lies in both sockets alike, so that a face's mirror image (`faceswap.ops.light`)
does not tell it. What the target shows there does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faceswap.ops.color import luma
from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.smooth import average, resized
from faceswap.ops.topology import BROW_LEFT, BROW_RIGHT, EYE_LEFT, EYE_RIGHT

_SLACK = 0.12  # of its light, how much darker than the target's a socket may be
_MOST = 0.3  # of its light, how much brighter it may get
_LOCAL = 0.03  # fraction of the side, sigma of what counts as shadow
_REACH = 14.0  # px of 128 from the lids, to where a socket ends


def lift_sockets(
    image: Tensor,  # (N, 3, S, S) float, already in the target's light
    mesh: Tensor,  # (N, 478, 3) float32, of the image, px of S
    target: Tensor,  # (N, 3, G, G) float in [0, 1]
    target_mesh: Tensor,  # (N, 478, 3) float32, px of S
    light: Tensor,  # (N, 3, G, G), the target's
) -> Tensor:
    """The image with sockets not much darker than the target's, ``(N, 3, S, S)``.

    Light is added, not multiplied: deep shadow on skin is more saturated than skin in the light.
    Lids' edges, eyes and brows stay as they are, and so does what is as bright as the target.
    """
    size, side = image.shape[-1], target.shape[-1]
    rings = _around(torch.cat([mesh[..., :2], target_mesh[..., :2]]), size, side).chunk(2)
    level = luma(light).clamp_min(0.05)
    depth, theirs = (
        average(luma(each) / level, ring, sigma=_LOCAL, trust=1e-3)
        for each, ring in zip((resized(image, side), target), rings, strict=True)
    )
    lack = (theirs.clamp(max=1) - _SLACK - depth).clamp(0, _MOST)
    return image + resized(rings[0] * lack * light, size)


def _around(mesh: Tensor, size: int, side: int) -> Tensor:
    """Skin around the eyes, without lids' edges and brows, ``(N, 1, side, side)`` in [0, 1]."""
    points, unit = (mesh + 0.5) * (side / size) - 0.5, side / 128
    half = side // 2  # cells of outlines; sockets are smooth

    def inside(left: tuple[int, ...], right: tuple[int, ...]) -> Tensor:
        both = [points[:, constant(outline, points.device)] for outline in (left, right)]
        return torch.maximum(*outline_distance(torch.cat(both), half, side).chunk(2)) / unit

    eyes, brows = inside(EYE_LEFT, EYE_RIGHT), inside(BROW_LEFT, BROW_RIGHT)
    near = ((eyes + _REACH) / 6).clamp(0, 1) * (-(eyes + 0.5) / 2).clamp(0, 1)
    return near * (-(brows + 1.5) / 2).clamp(0, 1)
