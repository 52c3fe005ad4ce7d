"""The outline of a face: the convex hull of some landmarks, as pixels or as radii.

Points are (x, y) in crop pixels, pixel centres at integers, in any order. A hull does not
depend on how landmarks are numbered and moves without jumps when they move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.topology import FACE

DIRECTIONS = 128  # K, over the full turn; direction k points at the angle 2 pi k / K, x towards y
_SUPPORT = 256  # directions of the support function; an edge of L px is met to L / 163 px


@dataclass(frozen=True, slots=True)
class Topology:
    """Which landmarks draw the outline of a face."""

    outline: tuple[int, ...]  # in any order
    brows: tuple[int, ...]  # tops of both brows
    eyes: tuple[int, ...]  # the eyelid point under each brow point
    raised: float  # the brows also count lifted by this many brow-to-eye distances


# Landmarks per face -> topology. 106: insightface 2d106det; 478: MediaPipe FaceMesh with irises.
TOPOLOGIES: dict[int, Topology] = {
    106: Topology(
        outline=tuple(range(33)),
        brows=(43, 48, 49, 51, 50, 102, 103, 104, 105, 101),
        eyes=(35, 41, 40, 42, 39, 89, 95, 94, 96, 93),
        raised=1.0,
    ),
    478: Topology(
        outline=FACE,
        brows=(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
        eyes=(33, 161, 159, 157, 133, 362, 384, 386, 388, 263),
        raised=1.0,
    ),
}


def outline(
    landmarks: Tensor,  # (N, P, 2 or 3) float32, crop pixels
    topology: Topology | None = None,  # None: by P
) -> Tensor:
    """The points whose hull is the face, brows raised, ``(N, C, 2) float32``.

    Raises:
        ValueError: no topology known for P landmarks.
    """
    topology = topology or TOPOLOGIES.get(landmarks.shape[1])
    if topology is None:
        raise ValueError(
            f"outline: no topology for {landmarks.shape[1]} landmarks, expected one of "
            f"{sorted(TOPOLOGIES)}; pass topology="
        )
    xy = landmarks[..., :2]
    rim, high, low = (
        xy[:, constant(rows, xy.device)]
        for rows in (topology.outline, topology.brows, topology.eyes)
    )
    return torch.cat((rim, high + topology.raised * (high - low)), 1)


def hull_radius(
    points: Tensor,  # (N, P, 2) float32
    centre: Tensor,  # (N, 2) float32, inside the hull
) -> Tensor:
    """Distance from the centre to the border of the hull in K directions, ``(N, K) float32``.

    The hull is the intersection of its supporting half planes: with the support function
    ``h(b) = max_i n(b) . (p_i - c)``, the ray at angle a leaves it at
    ``min h(b) / cos(a - b)`` over ``cos > 0``. Zero where the centre is not inside.
    """
    support = _directions(_SUPPORT, points)
    height = ((points - centre[:, None]) @ support.mT).amax(1)  # (N, J)
    cos = _directions(DIRECTIONS, points) @ support.mT  # (K, J)
    reach = height[:, None] / cos.clamp_min(1e-3)  # (N, K, J)
    return torch.where(cos > 1e-3, reach, math.inf).amin(-1).clamp_min(0.0)


def hull_pixels(
    points: Tensor,  # (N, P, 2) float, whole numbers
    size: int,
) -> Tensor:
    """Pixels of the hull and its outline, ``(N, 1, S, S) float32``, 1 inside and 0 outside.

    The pixels of cv2.fillConvexPoly: spans by rows, and an outline of Bresenham lines. The ends
    of a span lie on edges of the hull and no line between two points leaves it, so they are the
    extremes over all pairs of points.
    """
    masks = []
    for face, corner in zip(points.double(), _corners(points), strict=True):
        face = face[corner]
        (left, right), (top, bottom) = _row_spans(face, size), _column_spans(face, size)
        i = torch.arange(size, device=points.device)
        inside = (i >= left[:, None]) & (i <= right[:, None])
        inside |= ((i >= top[:, None]) & (i <= bottom[:, None])).mT
        masks.append(inside)
    return torch.stack(masks)[:, None].float() if masks else points.new_zeros(0, 1, size, size)


def _corners(
    points: Tensor,  # (N, P, 2) float
) -> Tensor:
    """Which points may be corners of the hull, ``(N, P) bool``: all others lie within a half turn.

    Points on an edge may count, points inside never do: it only saves work.
    """
    ray = points[:, None] - points[:, :, None]  # (N, P, P, 2), from each point to each other one
    angle = torch.atan2(ray[..., 1], ray[..., 0])
    itself = (ray == 0).all(-1)
    angle = torch.where(itself, -math.inf, angle)
    angle = torch.where(itself, angle.amax(-1, keepdim=True), angle).sort(-1).values
    gap = torch.cat((angle.diff(dim=-1), angle[..., :1] + 2 * math.pi - angle[..., -1:]), -1)
    return ~(gap.amax(-1) <= math.pi - 1e-3)  # all points in one place: not a number, all count


def _row_spans(
    points: Tensor,  # (P, 2) float64, whole numbers
    size: int,
) -> tuple[Tensor, Tensor]:
    """First and last pixel of the hull in each of S rows, two ``(S,)``; first > last: none."""
    start, run, at, met = _crossings(points, 1, size)
    # cv2 walks the sides in steps of 1 / 65536, which decides where halves go
    step = ((run[:, 0] * 2**17 + run[:, 1]) / (2 * run[:, 1])).trunc() / 2**16
    span = (start[:, 0] + at * step + 0.5).floor()
    # the outline takes halves to the left where it runs along the column
    line = start[:, 0] + (at * run[:, 0] / run[:, 1] - 0.5).ceil()
    first = torch.where(run[:, 0].abs() < run[:, 1], torch.minimum(span, line), span)
    return (
        torch.where(met, first, math.inf).amin(1),
        torch.where(met, span, -math.inf).amax(1),
    )


def _column_spans(
    points: Tensor,  # (P, 2) float64, whole numbers
    size: int,
) -> tuple[Tensor, Tensor]:
    """First and last pixel of the hull in each of S columns, two ``(S,)``."""
    start, run, at, met = _crossings(points, 0, size)
    rise = at * run[:, 1] / run[:, 0]  # from the left end, towards which halves go
    line = start[:, 1] + rise.sign() * (rise.abs() - 0.5).ceil()
    return (
        torch.where(met, line, math.inf).amin(1),
        torch.where(met, line, -math.inf).amax(1),
    )


def _crossings(
    points: Tensor,  # (P, 2) float64
    axis: int,  # 0: columns, 1: rows
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where S rows or columns meet the lines between all M pairs of points.

    Returns:
        The end ``(M, 2)`` of each line that is less along the axis, the way ``(M, 2)`` to the
        other end, the way ``(S, M)`` along the axis to each row, and whether they meet.
    """
    a, b = torch.combinations(torch.arange(len(points), device=points.device)).T
    swap = points[a, axis] > points[b, axis]
    start = points[torch.where(swap, b, a)]
    run = points[torch.where(swap, a, b)] - start
    at = torch.arange(size, device=points.device)[:, None] - start[:, axis]
    return start, run, at, (at >= 0) & (at <= run[:, axis]) & (run[:, axis] > 0)


def _directions(
    count: int,
    like: Tensor,
) -> Tensor:
    angle = torch.arange(count, device=like.device, dtype=like.dtype) * (2 * math.pi / count)
    return torch.stack((angle.cos(), angle.sin()), -1)
