"""Putting swapped crops over their frames: order, alpha, and blending by frequency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from faceswap.ops.geometry import Alignment


def paint_order(
    size: Tensor,  # (N,) float, how large each face is in its frame
) -> Tensor:
    """Rows from the smallest face to the largest, ``(N,) int64``; equal ones keep their order.

    Of two faces that overlap, the larger is taken to be nearer the camera and painted last.
    """
    return torch.argsort(size, stable=True)


def paint(
    frames: Tensor,  # (B, 3, H, W) uint8 RGB
    frame: Tensor,  # (N,) int64, which frame each face is in
    alignment: Alignment,
    crops: Tensor | Sequence[Tensor],  # (N, 3, S, S) float in [0, 1], or N of (3, S, S)
    mask: Tensor | Sequence[Tensor],  # (N, 1, S, S) or N of (1, S, S), how much of it shows
) -> Tensor:
    """Frames with all crops pasted, the smallest face first; only their rectangles change."""
    order = paint_order(1.0 / alignment.scale.clamp_min(1e-9))
    rows = order.tolist()  # views of the crops, which of many faces are large
    return alignment[order].paste(
        frames, frame[order], [crops[row] for row in rows], [mask[row] for row in rows]
    )


def alpha_blend(
    under: Tensor,  # (..., C, H, W) float
    over: Tensor,  # (..., C, H, W) float
    mask: Tensor,  # (..., 1, H, W) float in [0, 1]
) -> Tensor:
    """``under`` where the mask is 0, ``over`` where it is 1, exactly; a straight line between."""
    return under * (1.0 - mask) + over * mask


def laplacian_blend(
    under: Tensor,  # (N, C, S, S) float in [0, 1]
    over: Tensor,  # (N, C, S, S) float in [0, 1]
    mask: Tensor,  # (N, 1, S, S) float in [0, 1]
    *,
    levels: int = 4,
) -> Tensor:
    """Blend each octave over an edge as wide as its own waves, ``(N, C, S, S)`` in [0, 1].

    Burt and Adelson 1983, "A Multiresolution Spline with Application to Image Mosaics": skin
    tone changes slowly over the edge while pores and hair stay sharp. The low octaves reach up
    to ``2 ** levels`` px past the mask, so paste the result under a mask at least that wider.

    Raises:
        ValueError: no level, or more than the crop's side can be halved.
    """
    side = min(under.shape[-2:])
    if levels < 1 or side >> levels < 1:
        raise ValueError(f"laplacian_blend: {levels} levels do not fit a side of {side}")
    stack = torch.cat((under, over, mask), 1)
    c = under.shape[1]
    bands: list[Tensor] = []
    for level in range(levels + 1):
        images, weight = stack[:, :-1], stack[:, -1:]
        if level < levels:
            stack = _halve(stack)
            images = images - _enlarge(stack[:, :-1], images)
        bands.append(alpha_blend(images[:, :c], images[:, c:], weight))
    result = bands.pop()
    while bands:
        band = bands.pop()
        result = band + _enlarge(result, band)
    return result.clamp(0.0, 1.0)


def _halve(image: Tensor) -> Tensor:
    """Half the size after a five-tap binomial blur."""
    from kornia.filters import filter2d_separable  # a second to load, and no default needs it

    size = [max(1, (side + 1) // 2) for side in image.shape[-2:]]
    kernel = image.new_tensor([[1.0, 4.0, 6.0, 4.0, 1.0]]) / 16.0
    blurred: Tensor = filter2d_separable(image, kernel, kernel, "replicate")
    return F.interpolate(blurred, size, mode="bilinear", align_corners=False)


def _enlarge(image: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(image, like.shape[-2:], mode="bilinear", align_corners=False)
