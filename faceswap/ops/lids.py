"""Lids that close where the target's do.

A linear shape model shares a blink out among its components and opens a closed eye half again. How
far lids are apart is measured instead: dense meshes of closed eyes still show about an eighth of
the eye's width between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT

_CLOSED, _OPEN = 0.145, 0.18  # opening in eye widths where eyes are closed, and open for sure
_LEAST = 0.03  # what is left of it: a spline cannot take two points to the same place
_ALIKE = 0.03  # from the mean of both eyes is a matter of measuring; twice as far is a wink
_UPPER = 0.85  # share of the way that the upper lid goes


def opening(mesh: Tensor, eye: tuple[int, ...]) -> Tensor:
    """How far the lids are apart in the middle of an eye, in its widths, ``(N,)``.

    Args:
        mesh: ``(N, 478, 2 or 3)`` float32.
        eye: `topology.EYE_LEFT` or `EYE_RIGHT`.
    """
    xy = mesh[..., :2]
    upper, lower = (constant(rows, xy.device) for rows in (eye[3:6], eye[-3:-6:-1]))
    width = (xy[:, eye[0]] - xy[:, eye[8]]).norm(dim=-1)
    gap = (xy[:, upper] - xy[:, lower]).norm(dim=-1).mean(1)
    share: Tensor = gap / width.clamp_min(1e-6)
    return share


def close_lids(
    shape: Tensor,  # (N, 478, 3) float32, mesh of the swapped face, target's pixels
    target: Tensor,  # (N, 478, 3) float32
) -> Tensor:
    """The mesh with eyes that close as the target's do; what is open stays as it is."""
    out = shape.clone()
    both = torch.stack([opening(target, eye) for eye in (EYE_LEFT, EYE_RIGHT)])
    apart = both - both.mean(0)
    both = both - apart * (2 - apart.abs() / _ALIKE).clamp(0, 1)
    for eye, theirs in zip((EYE_LEFT, EYE_RIGHT), both, strict=True):
        least = (_LEAST / opening(shape, eye).clamp_min(_LEAST)).clamp(max=1)
        keep = ((theirs - _CLOSED) / (_OPEN - _CLOSED)).clamp(0, 1).maximum(least)
        upper, lower = (constant(rows, shape.device) for rows in (eye[1:8], eye[:8:-1]))
        gap = (shape[:, lower] - shape[:, upper]) * (1 - keep)[:, None, None]
        out[:, upper] += _UPPER * gap
        out[:, lower] -= (1 - _UPPER) * gap
    return out
