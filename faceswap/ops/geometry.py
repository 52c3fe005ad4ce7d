"""Alignment: where each face's square crop lies in its frame, and pixels there and back.

Conventions (pinned by ``tests/test_convention.py``):

- points are (x, y), pixel centres at integers, origin top left;
- matrices are (2, 3) and map frame pixels to crop pixels;
- every warp uses ``align_corners=True``;
- scaling a crop by s maps a coordinate c to ``s * (c + 0.5) - 0.5`` (edges stay edges).

Crop and paste touch only the rectangle of each face (`faceswap.ops.warp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.warp import Padding, blend_rectangle, sample_rectangle
from faceswap.types import Pictures

_GRID = 112  # side of the square the templates are written on
_TINY = 1e-3  # least scale of a fit, so that coincident points still give an invertible matrix

_ARCFACE = (
    (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
)
# The five pose templates of GHOST: frontal, profile left, half left, half right, profile right.
# The last two mirror the former at x = 56.2065, rounded as published.
_GHOST = (
    ((39.730, 51.138), (72.270, 51.138), (56.000, 68.493), (42.463, 87.010), (69.537, 87.010)),
    ((51.642, 50.115), (57.617, 49.990), (35.740, 69.007), (51.157, 89.050), (57.025, 89.702)),
    ((45.031, 50.118), (65.568, 50.872), (39.677, 68.111), (45.177, 86.190), (64.246, 86.758)),
    ((46.845, 50.872), (67.382, 50.118), (72.737, 68.111), (48.167, 86.758), (67.236, 86.190)),
    ((54.796, 49.990), (60.771, 50.115), (76.673, 69.007), (55.388, 89.702), (61.257, 89.050)),
)

_TEMPLATES = {"arcface": _ARCFACE, "ghost": _GHOST, "ghost_frontal": _GHOST[:1]}
TEMPLATES: dict[str, Tensor] = {  # (T, 5, 2) float32, pixels of a 112 grid, points as in `Faces`
    name: torch.tensor(values) for name, values in _TEMPLATES.items()
}


def fit_similarity(
    points: Tensor,  # (N, 5, 2) float32, frame pixels
    template: Tensor,  # (T, 5, 2) float32, template pixels
) -> tuple[Tensor, Tensor]:
    """Rotation, scale and shift that bring points closest to the best of T templates.

    Least squares in closed form (Umeyama 1991, eq. 40-42). In the plane a similarity without
    reflection is multiplication by one complex number, so no SVD is needed:
    ``a = sum(conj(p) q) / sum(|p|^2)`` for centred points p and centred template q.

    Any number of points works, not only five.

    Returns:
        ``matrix (N, 2, 3) float32``, points -> template, and ``error (N,) float32``, the mean
        distance of a mapped point from its template point, in template pixels.
    """
    template = template.to(points)
    point_centre, template_centre = points.mean(1), template.mean(1)  # (N, 2), (T, 2)
    p = (points - point_centre[:, None])[:, None]  # (N, 1, P, 2)
    q = (template - template_centre[:, None])[None]  # (1, T, P, 2)
    norm = p.square().sum((2, 3)).clamp_min(1e-12)
    cos = (p * q).sum((2, 3)) / norm  # (N, T), real part of a
    sin = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(2) / norm  # imaginary part
    flat = cos.square() + sin.square() < _TINY**2
    cos, sin = cos.masked_fill(flat, _TINY), sin.masked_fill(flat, 0.0)
    linear = torch.stack((cos, -sin, sin, cos), -1).reshape(*cos.shape, 2, 2)
    mapped = p @ linear.mT
    error, best = torch.linalg.vector_norm(mapped - q, dim=-1).mean(-1).min(1)
    row = torch.arange(len(points), device=points.device)
    linear = linear[row, best]
    shift = template_centre[best] - (linear @ point_centre[..., None])[..., 0]
    return torch.cat((linear, shift[..., None]), -1), error


def align(
    points: Tensor,  # (N, 5, 2) float32, frame pixels
    size: int,  # crop side in pixels
    *,
    template: str = "ghost",  # key of TEMPLATES
    margin: float = 1.0,  # > 1 widens the view about the centre of the crop
) -> Alignment:
    """Square crops in which the five points of each face lie where the template has them.

    A template point c of the 112 grid comes to lie at ``(c + 0.5) * size / 112 - 0.5``.

    Raises:
        ValueError: unknown template, or a size or margin that is not positive.
    """
    if template not in TEMPLATES:
        raise ValueError(f"align: unknown template {template!r}, expected {sorted(TEMPLATES)}")
    if size < 1 or margin <= 0:
        raise ValueError(f"align: size and margin must be positive, got {size} and {margin}")
    matrix, _ = fit_similarity(points, constant(_TEMPLATES[template], points.device))
    scale = size / (_GRID * margin)
    shift = 0.5 * (size - 1) - scale * 0.5 * (_GRID - 1)  # centre of the grid -> centre of crop
    return Alignment(
        torch.cat((matrix[..., :2] * scale, matrix[..., 2:] * scale + shift), -1), size
    )


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the square crops of N faces lie in their frames."""

    matrix: Tensor  # (N, 2, 3) float32, frame pixels -> crop pixels
    size: int  # crop side S in pixels

    def __post_init__(self) -> None:
        if self.matrix.ndim != 3 or self.matrix.shape[1:] != (2, 3):
            raise ValueError(
                f"Alignment.matrix: expected (N, 2, 3), got {tuple(self.matrix.shape)}"
            )
        if self.matrix.dtype != torch.float32:
            raise ValueError(f"Alignment.matrix: expected float32, got {self.matrix.dtype}")

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, rows: Tensor) -> Alignment:
        """Rows by boolean mask ``(N,)`` or by index ``(M,) int64``, in that order."""
        return Alignment(self.matrix[rows], self.size)

    @property
    def scale(self) -> Tensor:
        """Crop pixels per frame pixel, ``(N,) float32``."""
        m = self.matrix
        return (m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]).abs().sqrt()

    def scaled(self, s: float) -> Alignment:
        """The same view at ``size * s`` pixels a side, for what a restorer enlarged by s.

        Raises:
            ValueError: size * s is not a whole number of pixels.
        """
        size = round(self.size * s)
        if size < 1 or abs(size - self.size * s) > 1e-6 * size:
            raise ValueError(f"Alignment.scaled: {self.size} * {s} is not a whole crop side")
        shift = self.matrix.new_tensor([0.0, 0.0, 0.5 * s - 0.5])
        return Alignment(self.matrix * s + shift, size)

    def points(
        self,
        xy: Tensor,  # (N, P, 2) float32, frame pixels
    ) -> Tensor:
        """The same points in crop pixels, ``(N, P, 2)``."""
        return transform(self.matrix, xy)

    def inverse_points(
        self,
        xy: Tensor,  # (N, P, 2) float32, crop pixels
    ) -> Tensor:
        """The same points in frame pixels, ``(N, P, 2)``."""
        return transform(invert(self.matrix), xy)

    def crop(
        self,
        frames: Pictures,  # (B, 3, H, W) or B of (3, H, W), uint8, or float in [0, 1]
        frame: Tensor,  # (N,) int64, which frame each face is in
        *,
        padding: Padding = "zeros",  # what lies outside the frame
    ) -> Tensor:
        """Cut the faces out, ``(N, 3, S, S) float32`` in [0, 1].

        Bilinear where a crop pixel covers at most two frame pixels (then equal to
        cv2.warpAffine), low-passed below that. Any number of channels works.
        """
        crops = [
            sample_rectangle(frames[b], matrix, self.size, padding)
            for matrix, b in zip(invert(self.matrix).tolist(), frame.tolist(), strict=True)
        ]
        if not crops:
            channels = frames.shape[1] if isinstance(frames, Tensor) else 3
            return torch.zeros(0, channels, self.size, self.size, device=self.matrix.device)
        out = torch.cat(crops)
        return out.div_(255.0) if frames[int(frame[0])].dtype == torch.uint8 else out

    def paste(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8, or float in [0, 1]
        frame: Tensor,  # (N,) int64, which frame each face is in
        crops: Tensor | Sequence[Tensor],  # (N, 3, S, S) float in [0, 1], or N of (3, S, S)
        mask: Tensor | Sequence[Tensor],  # (N, 1, S, S) or N of (1, S, S), how much of it shows
    ) -> Tensor:
        """Frames with the crops blended over them, in the given order; a new tensor.

        uint8 frames are rounded once. Pixels under a mask of zero stay bit-exact.

        Raises:
            ValueError: crops or mask are not S pixels a side (see `scaled`).
        """
        n, s = len(self), self.size
        if not n:
            return frames.clone()
        got = [(len(each), *each[0].shape) for each in (crops, mask) if len(each)]
        if got != [(n, frames.shape[1], s, s), (n, 1, s, s)]:
            raise ValueError(
                f"Alignment.paste: expected crops {(n, frames.shape[1], s, s)} and mask "
                f"{(n, 1, s, s)}, got {' and '.join(map(str, got))}"
            )
        out = frames.clone()
        white = 255.0 if frames.dtype == torch.uint8 else 1.0
        extents = _extent(mask if isinstance(mask, Tensor) else torch.stack([*mask])).tolist()
        host = zip(self.matrix.tolist(), extents, frame.tolist(), strict=True)
        for crop, shown, (matrix, extent, b) in zip(crops, mask, host, strict=True):
            if extent[2] >= extent[0]:  # one by one: of many faces, all layers would be large
                weight = shown.float()
                layer = torch.cat((crop.float().clamp(0.0, 1.0) * (weight * white), weight))
                blend_rectangle(out[b], layer, matrix, extent)
        return out


def _extent(
    mask: Tensor,  # (N, 1, S, S) float
) -> Tensor:
    """Bounds x0 y0 x1 y1 of what is not zero, inclusive, ``(N, 4) int64``; empty: x1 < x0."""
    shown = mask[:, 0] != 0
    sides = []
    for used in (shown.any(1), shown.any(2)):  # (N, S): columns, then rows
        i = torch.arange(used.shape[1], device=mask.device)
        sides.append(
            (torch.where(used, i, used.shape[1]).amin(1), torch.where(used, i, -1).amax(1))
        )
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), 1)


def transform(
    matrix: Tensor,  # (N, 2, 3) float32
    xy: Tensor,  # (N, P, 2) float32
) -> Tensor:
    """Points after the matrix of their row, ``(N, P, 2)``."""
    return xy @ matrix[:, :, :2].mT + matrix[:, None, :, 2]


def invert(
    matrix: Tensor,  # (N, 2, 3) float32
) -> Tensor:
    """The matrices that lead back, ``(N, 2, 3)``."""
    linear = torch.linalg.inv(matrix[:, :, :2])
    return torch.cat((linear, -linear @ matrix[:, :, 2:]), -1)


def compose(
    outer: Tensor,  # (N, 2, 3) float32, applied second
    inner: Tensor,  # (N, 2, 3) float32, applied first
) -> Tensor:
    """One matrix that does inner, then outer, ``(N, 2, 3)``."""
    linear = outer[:, :, :2]
    return torch.cat((linear @ inner[:, :, :2], linear @ inner[:, :, 2:] + outer[:, :, 2:]), -1)


def rotate90(
    xy: Tensor,  # (..., 2) float, pixels of the picture before the turn
    turns: int,  # quarter turns counter-clockwise, as in torch.rot90(frames, turns, (2, 3))
    size: tuple[int, int],  # (h, w) of the picture before the turn
) -> Tensor:
    """The points in the turned picture; ``rotate90(., -turns, size of that)`` leads back."""
    height, width = size
    for _ in range(turns % 4):
        xy = torch.stack((xy[..., 1], (width - 1) - xy[..., 0]), -1)
        height, width = width, height
    return xy


def fit_affine(
    places: Tensor,  # (N, P, 2) float32, px
    origin: Tensor,  # (N, P, 2) float32, px
) -> Tensor:
    """Least squares from places to where they come from, ``(N, 2, 3)``; a line stays a line."""
    middle = places.mean(1, keepdim=True)
    to = places - middle  # else the equations would lose half of their digits
    scale = to.square().sum((1, 2), keepdim=True).clamp_min(1e-6).rsqrt()
    to = to * scale
    eye = 1e-6 * torch.eye(2, device=places.device)
    centre = origin.mean(1, keepdim=True)
    linear = torch.linalg.solve_ex(to.mT @ to + eye, to.mT @ (origin - centre)).result.mT * scale
    return torch.cat([linear, centre.mT - linear @ middle.mT], 2)
