"""Measures of a swapped clip: shaking, wandering identity, a flickering edge.

Row t of every argument is frame t of one track. Frames without a face are False in ``valid``; what
needs neighbours is taken only where all of them are there. Results are one value a frame, NaN
where there is none, so that a curve can be drawn; their mean is the measure.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.evaluate.measures import eye_distance


def jitter(
    target: Tensor,  # (T, P, 2 or 3) float, points in pixels of the target's frames
    swapped: Tensor,  # (T, P, 2 or 3) float, the same points of the swapped frames
    valid: Tensor,  # (T,) bool
) -> Tensor:
    """Shaking that the swap added: ``|d(t-1) - 2 d(t) + d(t+1)|``, d = swapped - target, ``(T,)``.

    Mean over points, x and y, in % of the target's eye distance (``P`` = 478). The target's own
    movement drops out, and so does a constant or steadily moving difference of the two faces.
    """
    gap = (swapped - target)[..., :2]
    second = torch.linalg.vector_norm(gap[:-2] - 2 * gap[1:-1] + gap[2:], dim=2).mean(1)
    value = gap.new_full((len(gap),), math.nan)
    value[1:-1] = 100 * second / eye_distance(target[1:-1, :, :2])
    return value.masked_fill(~(valid & _shifted(valid, 1) & _shifted(valid, -1)), math.nan)


def identity_drift(
    embedding: Tensor,  # (T, D) float
    valid: Tensor,  # (T,) bool
) -> Tensor:
    """Distance of each frame's identity from the track's mean: 1 - cosine, ``(T,)`` in [0, 2]."""
    unit = F.normalize(embedding)
    centre = F.normalize(unit[valid].mean(0, keepdim=True))
    return (1 - (unit * centre).sum(1)).clamp(0, 2).masked_fill(~valid, math.nan)


def flicker(
    target: Tensor,  # (T, 3, S, S) float in [0, 1], crops that follow the target's face
    swapped: Tensor,  # (T, 3, S, S) float in [0, 1], the same cuts of the swapped frames
    band: Tensor,  # (T, 1, S, S) float in [0, 1], the surroundings of the mask's border
    valid: Tensor,  # (T,) bool
) -> Tensor:
    """Change of ``swapped - target`` from frame to frame in the band, ``(T,)`` in 1/255.

    Mean absolute value; the target's own movement and light drop out.
    """
    gap = swapped - target
    both = band[1:] * band[:-1]
    change = ((gap[1:] - gap[:-1]).abs().mean(1, keepdim=True) * both).sum((1, 2, 3))
    value = gap.new_full((len(gap),), math.nan)
    value[1:] = 255 * change / both.sum((1, 2, 3))
    return value.masked_fill(~(valid & _shifted(valid, 1)), math.nan)


def _shifted(valid: Tensor, by: int) -> Tensor:
    """Whether the frame ``by`` places before (after, if negative) is there."""
    out = torch.zeros_like(valid)
    if by > 0:
        out[by:] = valid[:-by]
    else:
        out[:by] = valid[-by:]
    return out
