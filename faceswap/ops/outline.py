"""The outline of a face: the convex hull of some landmarks, as pixels or as radii.

Points are (x, y) in crop pixels, pixel centres at integers, in any order. A hull does not
depend on how landmarks are numbered and moves without jumps when they move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
        outline=(
            *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288),
            *(397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136),
            *(172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
        ),
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
    brows = xy[:, topology.brows]
    lifted = brows + topology.raised * (brows - xy[:, topology.eyes])
    return torch.cat((xy[:, topology.outline], lifted), 1)


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

    A pixel belongs when its row or its column meets the hull within half a pixel of it: what
    cv2.fillConvexPoly draws (spans by rows, plus an eight-connected outline).
    """
    masks = []
    for face in points:
        rows, columns = _spans(face, size), _spans(face.flip(-1), size)
        i = torch.arange(size, device=points.device)
        inside = (i >= rows[0][:, None]) & (i <= rows[1][:, None])
        inside |= ((i >= columns[0][:, None]) & (i <= columns[1][:, None])).mT
        masks.append(inside)
    return torch.stack(masks)[:, None].float() if masks else points.new_zeros(0, 1, size, size)


def _spans(
    points: Tensor,  # (P, 2) float
    size: int,
) -> tuple[Tensor, Tensor]:
    """First and last pixel of the hull in each of S rows, two ``(S,)``; first > last: none.

    The ends of a row's span lie on hull edges, and no line between two points leaves the hull:
    so they are the extremes over all pairs of points, one on each side of the row.
    """
    a, b = torch.combinations(torch.arange(len(points), device=points.device)).T
    swap = points[a, 1] > points[b, 1]
    lower, upper = points[torch.where(swap, b, a)], points[torch.where(swap, a, b)]
    y = torch.arange(size, device=points.device)[:, None]  # (S, 1) against (M,) pairs
    rise = upper[:, 1] - lower[:, 1]
    x = lower[:, 0] + (y - lower[:, 1]) / rise.clamp_min(1e-6) * (upper[:, 0] - lower[:, 0])
    met = (lower[:, 1] <= y) & (y <= upper[:, 1]) & (rise > 0)
    first = torch.where(met, x, math.inf).amin(1)
    last = torch.where(met, x, -math.inf).amax(1)
    return (first + 0.5).floor(), (last + 0.5).floor()


def _directions(
    count: int,
    like: Tensor,
) -> Tensor:
    angle = torch.arange(count, device=like.device, dtype=like.dtype) * (2 * math.pi / count)
    return torch.stack((angle.cos(), angle.sin()), -1)
