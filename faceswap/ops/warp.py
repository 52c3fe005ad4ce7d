"""Warps of one rectangle: from a frame into a crop, and from a crop over its frame.

Nothing here ever holds more than the rectangle a face covers. Both directions low-pass before
they shrink: bilinear sampling alone would alias in the crop of a large face, and in the paste
of a crop onto a small one.

Per face the geometry is a few floats, so matrices live on the host here, as two rows of three
numbers; coordinates are (x, y), pixel centres at integers, ``align_corners=True`` throughout.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["zeros", "border", "reflection"]
Affine = list[list[float]]  # the two rows of a (2, 3) matrix

_SHARP, _SOFT = 0.5, 0.35  # scales: from the one on plain bilinear, from the other low-passed
_RESIDUAL = 0.7  # what is left to the bilinear warp after the low-pass has shrunk the picture
_BAND = 1 << 18  # pixels pasted at once: bounds the memory that a large face needs


def sample_rectangle(
    frame: Tensor,  # (C, H, W) uint8 or float
    inverse: Affine,  # crop -> frame
    size: int,
    padding: Padding,
) -> Tensor:
    """One crop ``(1, C, S, S) float32`` in the units of the frame."""
    height, width = frame.shape[-2:]
    scale = 1.0 / max(_scale(inverse), 1e-9)
    x0, y0, x1, y1 = _bounds(inverse, (0, 0, size - 1, size - 1))
    reach = 1.0 + _reach(scale)
    left, right = _span(x0 - reach, x1 + reach, width, padding == "reflection")
    top, bottom = _span(y0 - reach, y1 + reach, height, padding == "reflection")
    patch = frame[None, :, top:bottom, left:right].float()
    view = _compose([[1, 0, -left], [0, 1, -top]], inverse)
    return _warp(patch, view, (0, 0, size, size), scale, padding)


def blend_rectangle(
    frame: Tensor,  # (C, H, W), written to
    layer: Tensor,  # (C + 1, S, S) float32, colour in the frame's units times mask; mask
    matrix: Affine,  # frame -> crop
    extent: list[int],  # x0 y0 x1 y1 in crop pixels, inclusive: where the mask is not zero
) -> None:
    """Blend one crop over its rectangle of the frame, in place, rounded once if uint8."""
    height, width = frame.shape[-2:]
    scale = 1.0 / max(_scale(matrix), 1e-9)
    reach = _reach(scale)  # crop pixels by which the filters spread the mask
    spread = (extent[0] - reach, extent[1] - reach, extent[2] + reach, extent[3] + reach)
    x0, y0, x1, y1 = _bounds(_invert(matrix), spread)
    left, right = max(0, math.floor(x0)), min(width, math.ceil(x1) + 1)
    top, bottom = max(0, math.floor(y0)), min(height, math.ceil(y1) + 1)
    if left >= right or top >= bottom:
        return
    rows = max(1, _BAND // (right - left))
    for y in range(top, bottom, rows):
        band = (left, y, right, min(bottom, y + rows))
        warped = _warp(layer[None], matrix, band, scale, "zeros")[0]
        under = frame[:, band[1] : band[3], left:right]
        mixed = under * (1.0 - warped[-1:])
        mixed += warped[:-1]
        under.copy_(mixed if frame.is_floating_point() else mixed.round_())


def _span(low: float, high: float, side: int, mirrored: bool) -> tuple[int, int]:
    """Pixels ``[start, stop)`` of a side that sampling from low to high needs, two at least."""
    if mirrored and low < 0:
        high = max(high, -low)
    if mirrored and high > side - 1:
        low = min(low, 2 * (side - 1) - high)
    start = min(max(0, math.floor(low)), max(0, side - 2))
    return start, max(min(side, math.ceil(high) + 1), min(side, start + 2))


def _warp(
    image: Tensor,  # (1, C, h, w) float32
    view: Affine,  # output pixels -> pixels of the image
    area: tuple[int, int, int, int],  # x0 y0 x1 y1 of the output, x1 and y1 exclusive
    scale: float,  # output pixels per pixel of the image
    padding: Padding,
) -> Tensor:
    """The image seen through the view, ``(1, C, y1 - y0, x1 - x0)``, low-passed where it shrinks.

    Between two scales the plain and the low-passed picture are mixed, so that a face that walks
    away does not change its sharpness from one frame to the next.
    """
    soft = min(1.0, max(0.0, (_SHARP - scale) / (_SHARP - _SOFT)))
    if soft == 0.0:
        return _sample(image, view, area, padding)
    small, to_small = _shrink(image, scale / _RESIDUAL)
    low = _sample(small, _compose(to_small, view), area, padding)
    return low if soft == 1.0 else _sample(image, view, area, padding).lerp_(low, soft)


def _sample(
    image: Tensor,  # (1, C, h, w) float32
    view: Affine,  # output pixels -> pixels of the image
    area: tuple[int, int, int, int],  # x0 y0 x1 y1 of the output, x1 and y1 exclusive
    padding: Padding,
) -> Tensor:
    """The image seen through the view, bilinear."""
    x = torch.arange(area[0], area[2], device=image.device, dtype=torch.float32)
    y = torch.arange(area[1], area[3], device=image.device, dtype=torch.float32)
    grid = torch.empty(1, len(y), len(x), 2, device=image.device)
    for axis, (a, b, c) in enumerate(view):
        unit = 2.0 / max(image.shape[3 - axis] - 1, 1)
        column = y * (b * unit) + (c * unit - 1.0)
        torch.add((x * (a * unit))[None], column[:, None], out=grid[0, ..., axis])
    return F.grid_sample(image, grid, "bilinear", padding, align_corners=True)


def _reach(scale: float) -> float:
    """How far the filters of `_warp` see, in pixels of its image."""
    return 1.0 if scale >= _SHARP else 2.0 * _RESIDUAL / scale


def _shrink(
    image: Tensor,  # (1, C, h, w) float32
    factor: float,
) -> tuple[Tensor, Affine]:
    """The image low-passed and resized, and the matrix old -> new pixels."""
    height, width = image.shape[-2:]
    size = (max(2, round(height * factor)), max(2, round(width * factor)))
    small = F.interpolate(image, size, mode="bilinear", antialias=True)
    sy, sx = size[0] / height, size[1] / width
    return small, [[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5]]


def _bounds(matrix: Affine, area: tuple[float, float, float, float]) -> tuple[float, ...]:
    """Bounds x0 y0 x1 y1 of a rectangle after the matrix."""
    corners = [(x, y) for x in (area[0], area[2]) for y in (area[1], area[3])]
    xs, ys = ([a * x + b * y + c for x, y in corners] for a, b, c in matrix)
    return min(xs), min(ys), max(xs), max(ys)


def _scale(matrix: Affine) -> float:
    (a, b, _), (c, d, _) = matrix
    return math.sqrt(abs(a * d - b * c))


def _compose(outer: Affine, inner: Affine) -> Affine:
    """First inner, then outer."""
    (a, b, c), (d, e, f) = inner
    return [[u * a + v * d, u * b + v * e, u * c + v * f + w] for u, v, w in outer]


def _invert(matrix: Affine) -> Affine:
    (a, b, c), (d, e, f) = matrix
    det = a * e - b * d
    return [
        [e / det, -b / det, (b * f - c * e) / det],
        [-d / det, a / det, (c * d - a * f) / det],
    ]
