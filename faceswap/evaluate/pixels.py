"""Measures of the picture around a swapped face, and of crops as a set (FID, KID)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab
from torch import Tensor

from faceswap.ops.color import luma
from faceswap.ops.draw import signed_distance
from faceswap.ops.topology import FACE_OVAL

VIEW = 192  # side of the crops that pixels are measured in
MARGIN = 1.7  # of these crops: the face and half as much again around it
GROWN = 0.6  # eye distances around a face's box that a swap may change
RING = (0.06, 0.3)  # eye distances from the outline: where its two sides are compared
BORDER = 0.25  # eye distances on either side of the outline that a mask's edge lies in


def outside_change(
    target: Tensor,  # (3, H, W) uint8
    swapped: Tensor,  # (3, H, W) uint8
    box: Tensor,  # (M, 4) float, x0 y0 x1 y1 of every face's points in the target
    eye: Tensor,  # (M,) float, eye distances in pixels
) -> tuple[float, float]:
    """What a swap changed where no face is.

    Outside is what lies in no box grown by `GROWN` eye distances on every side.

    Returns:
        Share of the outside pixels that differ at all in %, and their mean absolute difference in
        1/255 over the outside; NaN both where a face fills the picture.
    """
    height, width = target.shape[1:]
    x = torch.arange(width, device=target.device)
    y = torch.arange(height, device=target.device)
    free = torch.ones(height, width, dtype=torch.bool, device=target.device)
    for (x0, y0, x1, y1), unit in zip(box.tolist(), eye.tolist(), strict=True):
        grow = GROWN * unit
        column = (x >= x0 - grow) & (x <= x1 + grow)
        row = (y >= y0 - grow) & (y <= y1 + grow)
        free &= ~(row[:, None] & column)
    if not free.any():
        return math.nan, math.nan
    gap = (target.short() - swapped.short()).abs()[:, free]
    return 100 * (gap > 0).any(0).float().mean().item(), gap.float().mean().item()


def outline(
    mesh: Tensor,  # (N, 478, 2 or 3) float, crop pixels
    size: int = VIEW,
) -> Tensor:
    """Distance from the face's outline in eye distances, positive inside, ``(N, 1, S, S)``."""
    oval = mesh[:, list(FACE_OVAL), :2]
    unit = torch.linalg.vector_norm(
        mesh[:, [33, 133], :2].mean(1) - mesh[:, [362, 263], :2].mean(1), dim=1
    )
    height = torch.linalg.vector_norm(mesh[:, 10, :2] - mesh[:, 152, :2], dim=1)
    unit = torch.maximum(unit, 0.3 * height)  # a profile's eyes coincide
    half = signed_distance((oval + 0.5) / 2 - 0.5, size // 2) * 2
    full = F.interpolate(half, size=(size, size), mode="bilinear", align_corners=False)
    distance: Tensor = full / unit[:, None, None, None]
    return distance


def border_tone(
    target: Tensor,  # (N, 3, S, S) float in [0, 1]
    swapped: Tensor,  # (N, 3, S, S) float in [0, 1], the same cut
    distance: Tensor,  # (N, 1, S, S) float, from `outline` of the target
) -> Tensor:
    """Step of colour across the face's outline that the swap added, ``(N,)`` in CIE 1976 Delta E.

    Mean Lab of a ring inside minus that of a ring outside (`RING`), for the swapped face and for
    the target; the length of the difference of the two steps. 2.3 is just noticeable (Mahy 1994).
    """
    near, far = RING
    inner = (distance >= near) & (distance <= far)
    outer = (distance <= -near) & (distance >= -far)
    steps = []
    for crop in (target, swapped):
        lab = rgb_to_lab(crop)
        steps.append(_mean(lab, inner) - _mean(lab, outer))
    added: Tensor = torch.linalg.vector_norm(steps[1] - steps[0], dim=1)
    return added


def blur_ratio(
    target: Tensor,  # (N, 3, S, S) float in [0, 1]
    swapped: Tensor,  # (N, 3, S, S) float in [0, 1], the same cut
    distance: Tensor,  # (N, 1, S, S) float, from `outline` of the target
) -> Tensor:
    """Sharpness of the swapped face against its surroundings, as a share of the target's, ``(N,)``.

    Sharpness is the root mean square of the Laplacian of luma; each face's is divided by that of
    its surroundings, so that scaling or recompressing a whole picture does not count. 1: as in the
    target; below: blurred; above: sharper or noisier.
    """
    inside = distance >= RING[0]
    around = distance <= -BORDER
    kernel = target.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    ratios = []
    for crop in (target, swapped):
        grey = luma(crop)
        edges = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernel[None, None])
        energy = edges.square()
        ratios.append((_mean(energy, inside) / _mean(energy, around).clamp_min(1e-10)).sqrt())
    ratio: Tensor = (ratios[1] / ratios[0].clamp_min(1e-6))[:, 0]
    return ratio


def border_band(
    distance: Tensor,  # (N, 1, S, S) float, from `outline`
) -> Tensor:
    """Where a mask's edge lies, ``(N, 1, S, S)`` of 0 and 1."""
    return (distance.abs() <= BORDER).float()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked pixels, ``(N, C)``; NaN where none is."""
    return (values * where).sum((2, 3)) / where.sum((2, 3))


def frechet_distance(
    a: Tensor,  # (N, D) float, features of one set of crops
    b: Tensor,  # (M, D) float, of the other
) -> float:
    """FID of two sets of features (Heusel et al., NeurIPS 2017, eq. 6).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the root's trace is the sum of the singular
    values of ``C1^(1/2) C2^(1/2)``. It is biased for small sets: compare only equal N and M.

    Raises:
        ValueError: fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"frechet_distance: expected 2 rows or more, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    roots, traces = [], 0.0
    for x in (a, b):
        spread = torch.cov(x.T).view(x.shape[1], x.shape[1])
        values, vectors = torch.linalg.eigh(spread)
        roots.append(vectors * values.clamp_min(0).sqrt() @ vectors.T)
        traces += spread.trace().item()
    shared = torch.linalg.svdvals(roots[0] @ roots[1]).sum().item()
    apart = (a.mean(0) - b.mean(0)).square().sum().item()
    return max(0.0, float(apart + traces - 2 * shared))  # rounding can take it below


def kernel_distance(
    a: Tensor,  # (N, D) float, features of one set of crops
    b: Tensor,  # (M, D) float, of the other
) -> float:
    """KID: unbiased squared MMD under ``(x.y / D + 1)^3`` (Binkowski et al., ICLR 2018).

    May be slightly negative for equal sets.

    Raises:
        ValueError: fewer than two rows.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"kernel_distance: expected 2 rows or more, got {n} and {m}")
    a, b = a.double(), b.double()
    size = a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / size + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    own = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(own - 2 * kernel(a, b).mean())
