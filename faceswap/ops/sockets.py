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
from faceswap.types import Guide, Sockets

_SLACK = 0.12  # of its light, how much darker than the target's a socket may be
_MOST = 0.3  # of its light, how much brighter it may get
_LOCAL = 0.03  # fraction of the side, sigma of what counts as shadow
_BROAD = 0.07  # the same in the target, whose glasses and lashes are dark in places
_REACH = 14.0  # px of 128 from the lids, to where a socket ends


def sockets_of(
    mesh: Tensor,  # (N, 478, 3) float32, of the swapped faces, px of S
    target: Tensor,  # (N, 3, G, G) float in [0, 1]
    target_mesh: Tensor,  # (N, 478, 3) float32, px of S
    light: Tensor,  # (N, 3, G, G), the target's
    size: int,  # S
) -> Sockets:
    """Where the swapped faces' sockets are, and how dark they may be."""
    side = target.shape[-1]
    rings = _around(torch.cat([mesh[..., :2], target_mesh[..., :2]]), size, side).chunk(2)
    left = _left(target, rings[1], light, _BROAD).clamp(max=1)
    return Sockets(rings[0], left - _SLACK, light)


def lift_sockets(image: Tensor, sockets: Sockets) -> Tensor:
    """The image with sockets not much darker than the target's.

    Light is added, not multiplied: deep shadow on skin is more saturated than skin in the light.
    Lids' edges, eyes and brows stay as they are, and so does what is as bright as the target.

    Args:
        image: ``(N, 3, S, S)`` float, already in the target's light.
        sockets: of these faces.

    Returns:
        ``(N, 3, S, S)``.
    """
    size, side = image.shape[-1], sockets.ring.shape[-1]
    left = _left(resized(image, side), sockets.ring, sockets.light, _LOCAL)
    lack = (sockets.floor - left).clamp(0, _MOST)
    return image + resized(sockets.ring * lack * sockets.light, size)


def keep_sockets(swapped: Tensor, guide: Guide) -> Tensor:
    """What a generator made of a guide, ``(N, 3, S, S)``, with sockets as light as the guide's.

    Generators darken what the guide has lifted: to recognisers sockets are a part of the person.
    """
    if guide.sockets is None:
        return swapped
    lifted = lift_sockets(swapped, guide.sockets)
    return (swapped + guide.region * (lifted - swapped)).clamp(0, 1)


def _left(images: Tensor, ring: Tensor, light: Tensor, sigma: float) -> Tensor:
    """Share of the light that is left around the eyes, ``(N, 1, G, G)``; smooth."""
    share = luma(images) / luma(light).clamp_min(0.05)
    return average(share, ring, sigma=sigma, trust=1e-3)


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
