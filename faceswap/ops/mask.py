"""How much of the swapped crop shows: the landmark-adaptive mask, the article's and ours.

Both compare the outline of the swapped face with that of the target's face, in one crop. Where
the swapped face is wider it has to cover the target's altogether: the mask grows and is sharp.
Where it is narrower, the target's own cheek or jaw would show beside it: the mask shrinks and
fades slowly.

`ghost_mask` is the original of GHOST (Groshev et al. 2022, section "Adaptive blending", with the
numbers of its published code). `adaptive_mask` is the default: continuous in the offset, per
direction all around the face, in fractions of the crop side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.outline import (
    DIRECTIONS,
    TOPOLOGIES,
    Topology,
    hull_pixels,
    hull_radius,
    outline,
)
from faceswap.ops.topology import BROW_LEFT, BROW_RIGHT, JAW, JAW_WIDTH_LEFT, JAW_WIDTH_RIGHT

_ROUNDING = 4.0  # degrees, sigma by which the corners of a hull are rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the mask does about an offset of the outlines; lengths in fractions of the crop side.

    Offset 0 gives the ``rest`` values; they turn smoothly into the ``wide`` ones as the swapped
    face becomes wider, and into the ``narrow`` ones as it becomes narrower, by ``span``. Growth
    moves the middle of the edge outwards, feather is the whole width of the edge.
    """

    span: float = 0.025  # offset at which the response is complete
    growth_wide: float = 0.015
    growth_rest: float = -0.012
    growth_narrow: float = -0.05
    feather_wide: float = 0.05
    feather_rest: float = 0.08
    feather_narrow: float = 0.16
    spread: float = 12.0  # degrees, sigma by which neighbouring directions share their offset

    def __post_init__(self) -> None:
        if not self.growth_narrow <= self.growth_rest <= self.growth_wide:
            raise ValueError("Response: growth must not fall from narrow over rest to wide")
        if not 0 < self.feather_wide <= self.feather_rest <= self.feather_narrow:
            raise ValueError("Response: feather must be positive and not fall from wide to narrow")
        if self.span <= 0 or self.spread <= 0:
            raise ValueError("Response: span and spread must be positive")


def adaptive_parameters(
    swapped: Tensor,  # (N, C, 2) float32, outline of the swapped face, crop pixels
    target: Tensor,  # (N, C', 2) float32, outline of the target's face, crop pixels
    size: int,
    *,
    response: Response | None = None,
) -> Tensor:
    """Growth and feather of the mask in K directions, ``(N, K, 2) float32``, fractions of S.

    Plain numbers per face and direction: a video smooths them along a track and hands them to
    `render_mask`.
    """
    response = response or Response()
    centre = _centre(swapped)
    offset = (hull_radius(swapped, centre) - hull_radius(target, centre)) / size
    offset = offset @ _circular_gaussian(response.spread, offset)
    step = _smoothstep(offset.abs() / response.span)
    wide, narrow = step * (offset > 0), step * (offset < 0)
    growth = response.growth_rest + wide * (response.growth_wide - response.growth_rest)
    growth = growth + narrow * (response.growth_narrow - response.growth_rest)
    feather = response.feather_rest + wide * (response.feather_wide - response.feather_rest)
    feather = feather + narrow * (response.feather_narrow - response.feather_rest)
    return torch.stack((growth, feather), -1)


def render_mask(
    contour: Tensor,  # (N, C, 2) float32, outline of the swapped face, crop pixels
    parameters: Tensor,  # (N, K, 2) float32, growth and feather, fractions of S
    size: int,
    *,
    border: float = 0.08,  # fraction of S over which the mask fades to 0 at the crop's sides
) -> Tensor:
    """The mask ``(N, 1, S, S) float32`` in [0, 1] of a hull with an edge that differs by direction.

    Growth, feather and blur are one smoothstep of the signed distance to the hull. The distance
    is taken in polar form: for the radius r(a), ``(r - |x|) / sqrt(1 + (r'/r)^2)`` is exact to
    first order at the border, which is where it matters.
    """
    if parameters.shape[1:] != (DIRECTIONS, 2):
        raise ValueError(
            f"render_mask: expected parameters (N, {DIRECTIONS}, 2), got {tuple(parameters.shape)}"
        )
    centre = _centre(contour)
    radius = hull_radius(contour, centre).clamp_min(1e-3)
    radius = radius @ _circular_gaussian(_ROUNDING, radius)
    slope = (radius.roll(-1, 1) - radius.roll(1, 1)) * (DIRECTIONS / (4 * math.pi)) / radius
    cos = (1 + slope.square()).rsqrt()  # of the angle between the ray and the border's normal
    cos = cos @ _circular_gaussian(2 * _ROUNDING, cos)  # a corner would throw a crease inwards
    feather = (parameters[..., 1] * size).clamp_min(1.0)
    # sd / feather = level - |x| * rate, both interpolated between directions
    rate = cos / feather
    level = radius * rate + parameters[..., 0] * size / feather
    i = torch.arange(size, device=contour.device, dtype=contour.dtype)
    x, y = i[None, None, :] - centre[:, 0, None, None], i[None, :, None] - centre[:, 1, None, None]
    angle = torch.atan2(y, x) * (DIRECTIONS / (2 * math.pi))  # in directions, (N, S, S)
    level_at, rate_at = _interpolate(torch.stack((level, rate), 1), angle)
    mask = _smoothstep(0.5 + level_at - rate_at * (x.square() + y.square()).sqrt())
    edge = _smoothstep((torch.minimum(i, size - 1 - i) + 0.5) / max(border * size, 1e-6))
    return (mask * torch.minimum(edge[:, None], edge[None, :]))[:, None]


def adaptive_mask(
    swapped: Tensor,  # (N, P, 2 or 3) float32, landmarks of the swapped face, crop pixels
    target: Tensor,  # (N, P, 2 or 3) float32, landmarks of the target's face, crop pixels
    size: int,
    *,
    topology: Topology | None = None,  # None: by P
    response: Response | None = None,
    border: float = 0.08,  # fraction of S over which the mask fades to 0 at the crop's sides
) -> Tensor:
    """The default mask of each face, ``(N, 1, S, S) float32`` in [0, 1]."""
    contour = outline(swapped, topology)
    parameters = adaptive_parameters(contour, outline(target, topology), size, response=response)
    return render_mask(contour, parameters, size, border=border)


def _centre(contour: Tensor) -> Tensor:
    """Middle of the bounding box, ``(N, 2)``: does not depend on how dense the points are."""
    return 0.5 * (contour.amin(1) + contour.amax(1))


def _smoothstep(t: Tensor) -> Tensor:
    t = t.clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _circular_gaussian(sigma: float, like: Tensor) -> Tensor:
    """``(K, K)`` matrix that smooths a row over the directions; sigma in degrees."""
    k = torch.arange(DIRECTIONS, device=like.device, dtype=like.dtype) * (360.0 / DIRECTIONS)
    apart = (k[:, None] - k[None, :] + 180.0).remainder(360.0) - 180.0
    kernel = (-0.5 * (apart / sigma).square()).exp()
    return kernel / kernel.sum(0, keepdim=True)


def _interpolate(
    table: Tensor,  # (N, T, K) float32
    angle: Tensor,  # (N, S, S) float32, in directions
) -> tuple[Tensor, ...]:
    """The T tables at each angle, linear between directions, T times ``(N, S, S)``."""
    low = angle.floor()
    weight = (angle - low).flatten(1)
    index = low.long().remainder(DIRECTIONS).flatten(1)
    ahead = (table.roll(-1, 2) - table).unbind(1)
    return tuple(
        (values.gather(1, index) + weight * step.gather(1, index)).view_as(angle)
        for values, step in zip(table.unbind(1), ahead, strict=True)
    )


# GHOST's numbers, in pixels of its crop.
_GHOST_SIZE = 224


@dataclass(frozen=True, slots=True)
class _GhostPoints:
    """The landmarks that GHOST's mask goes by, in one layout; brows and eyes: `TOPOLOGIES`."""

    left: tuple[int, ...]  # jaw points that measure the width
    right: tuple[int, ...]
    hull: tuple[int, ...]  # whose hull is the face


# 106: the original's. 478: the same places of the mesh, and nothing above the brows, since 2d106
# has no points on the forehead.
_GHOST_POINTS: dict[int, _GhostPoints] = {
    106: _GhostPoints((1, 2, 13), (17, 18, 29), tuple(range(106))),
    478: _GhostPoints(JAW_WIDTH_LEFT, JAW_WIDTH_RIGHT, (*JAW, *BROW_LEFT, *BROW_RIGHT)),
}


@dataclass(frozen=True, slots=True)
class _GhostRow:
    above: float  # applies to offsets greater than this
    kernel: int  # side of the square that erodes the hull; negative: dilates it
    sigma_x: int
    sigma_y: int
    brow: float  # brows move up by half of this times brow - eye


_GHOST_TABLE = (  # by falling offset; positive = the swapped face is narrower
    _GhostRow(6.0, 15, 15, 10, 2.7),
    _GhostRow(3.0, 10, 10, 8, 2.0),
    _GhostRow(-3.0, 5, 5, 5, 2.0),
    _GhostRow(-math.inf, -5, 5, 10, 0.5),
)


def ghost_mask(
    swapped: Tensor,  # (N, P, 2) float32, landmarks of the swapped face, crop pixels; P: see below
    target: Tensor,  # (N, P, 2) float32, landmarks of the target's face, crop pixels
    size: int = _GHOST_SIZE,
) -> Tensor:
    """The mask of the original GHOST, ``(N, 1, S, S) float32`` in [0, 1].

    Offset = the larger of the inward shifts of the left and of the right jaw line, each summed
    over three points; it picks one of four rows. The hull of all landmarks, on whole pixels and
    brows raised, is eroded or dilated, cleared on a border of twice sigma y and blurred.

    P is 106 (insightface's 2d106det, as the original) or 478 (MediaPipe's mesh, by the points at
    the same places of a face: `faceswap.ops.topology`).

    The table is in pixels of a 224 crop; other sizes are computed there and resized.
    """
    if swapped.shape[1:] not in ((106, 2), (478, 2)) or target.shape != swapped.shape:
        raise ValueError(
            f"ghost_mask: expected two (N, 106, 2) or two (N, 478, 2), got {tuple(swapped.shape)} "
            f"and {tuple(target.shape)}"
        )
    if size != _GHOST_SIZE:
        scale = _GHOST_SIZE / size
        mask = ghost_mask((swapped + 0.5) * scale - 0.5, (target + 0.5) * scale - 0.5)
        return F.interpolate(mask, (size, size), mode="bilinear", antialias=True)
    shift = swapped[..., 0] - target[..., 0]
    jaw = _GHOST_POINTS[swapped.shape[1]]
    offset = torch.maximum(shift[:, jaw.left].sum(1), -shift[:, jaw.right].sum(1))
    rows = (offset[:, None] <= offset.new_tensor([row.above for row in _GHOST_TABLE])).sum(1)
    mask = swapped.new_zeros(len(swapped), 1, size, size)
    for number, row in enumerate(_GHOST_TABLE):
        faces = (rows == number).nonzero()[:, 0]
        if len(faces):
            mask[faces] = _ghost_row(swapped[faces], row)
    return mask


def _ghost_row(
    landmarks: Tensor,  # (N, P, 2) float32, 224-crop pixels
    row: _GhostRow,
) -> Tensor:
    topology = TOPOLOGIES[landmarks.shape[1]]
    points = landmarks.trunc()
    brows = points[:, topology.brows]
    points[:, topology.brows] = (
        brows + 0.5 * row.brow * (brows - points[:, topology.eyes])
    ).trunc()
    mask = hull_pixels(points[:, _GHOST_POINTS[landmarks.shape[1]].hull], _GHOST_SIZE)
    mask = 1.0 - _dilate(1.0 - mask, row.kernel) if row.kernel > 0 else _dilate(mask, -row.kernel)
    clear = 2 * row.sigma_y
    mask = F.pad(mask[..., clear:-clear, clear:-clear], (clear, clear, clear, clear))
    return _blur(mask, row.sigma_x, row.sigma_y)


def _dilate(
    mask: Tensor,  # (N, 1, S, S) float32
    kernel: int,
) -> Tensor:
    """Maximum over a square anchored at ``kernel // 2``, as cv2 anchors it."""
    before = kernel // 2
    after = kernel - 1 - before
    return F.max_pool2d(F.pad(mask, (before, after, before, after)), kernel, stride=1)


def _blur(
    mask: Tensor,  # (N, 1, S, S) float32
    sigma_x: int,
    sigma_y: int,
) -> Tensor:
    """Gaussian over +-3 sigma with mirrored borders: cv2.GaussianBlur of an 8-bit picture."""
    for sigma, horizontal in ((sigma_x, True), (sigma_y, False)):
        reach = 3 * sigma
        i = torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype)
        kernel = (-0.5 * (i / sigma).square()).exp()
        kernel = (kernel / kernel.sum()).view((1, 1, 1, -1) if horizontal else (1, 1, -1, 1))
        pad = (reach, reach, 0, 0) if horizontal else (0, 0, reach, reach)
        mask = F.conv2d(F.pad(mask, pad, mode="reflect"), kernel)
    return mask
