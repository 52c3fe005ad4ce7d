"""Smooth fields over pictures: normalised Gaussian averages of the pixels that count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian(
    images: Tensor,  # (N, C, H, W) float
    sigma: float,  # pixels
) -> Tensor:
    """Gaussian low-pass, cut at 2.5 sigma, edges repeated; same shape."""
    reach = max(1, int(2.5 * sigma + 0.5))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    wide = F.pad(images, (reach, reach, 0, 0), mode="replicate")
    out = F.conv2d(wide, across, groups=channels)
    return F.conv2d(F.pad(out, (0, 0, reach, reach), mode="replicate"), down, groups=channels)


def box(
    images: Tensor,  # (N, C, H, W) float
    radius: int,  # pixels
    *,
    beyond: bool = False,
) -> Tensor:
    """Mean of the pixels within a square window of side 2 radius + 1; same shape.

    What lies outside the picture does not count, or counts as 0 (``beyond``). By rows, then by
    columns: a window of 21 takes 42 sums, not 441.
    """
    side = 2 * radius + 1
    rows = F.avg_pool2d(images, (1, side), 1, (0, radius), count_include_pad=beyond)
    return F.avg_pool2d(rows, (side, 1), 1, (radius, 0), count_include_pad=beyond)


def average(
    images: Tensor,  # (N, C, S, S) float
    weight: Tensor,  # (N, 1, S, S) float >= 0, pixels that count
    *,
    sigma: float,  # fraction of S
    prior: Tensor | None = None,  # (N, C, 1, 1) or (N, C, S, S), what holds where nothing counts
    trust: float = 1e-3,  # weight of the prior, in full pixels
) -> Tensor:
    """Normalised convolution (Knutsson & Westin, CVPR 1993) with a prior, ``(N, C, S, S)``.

    (G * (w I) + trust prior) / (G * w + trust). Without a prior it is 0.
    """
    width = sigma * images.shape[-1]
    both = gaussian(torch.cat([images * weight, weight], 1), width)
    above, below = both[:, :-1], both[:, -1:]
    if prior is not None:
        above = above + trust * prior
    return above / (below + trust)


def guided_filter(
    guide: Tensor,  # (N, 1, S', S') float, the picture whose edges count
    images: Tensor,  # (N, 1, S, S) float
    *,
    radius: int,  # pixels of `images`
    flat: float,  # variance of the guide below which it is taken for flat
) -> Tensor:
    """`images` with the edges of `guide` (He, Sun & Tang, ECCV 2010), at the side of the guide.

    q = mean(a) I + mean(b), with a = cov(I, p) / (var(I) + flat) and b = mean(p) - a mean(I) over
    windows of side 2 radius + 1. All but the first line goes on at the side of `images`, which may
    be smaller (He & Sun, "Fast guided filter", 2015).

    Returns:
        ``(N, 1, S', S')``.
    """

    small = resized(guide, images.shape[-1])
    parts = torch.cat([small, images, small * small, small * images], 1)
    middle, level, square, product = box(parts, radius).split(1, 1)
    slope = (product - middle * level) / (square - middle * middle + flat)
    line = box(torch.cat([slope, level - slope * middle], 1), radius)
    slope, offset = resized(line, guide.shape[-1]).split(1, 1)
    out: Tensor = slope * guide + offset
    return out


def mean(
    images: Tensor,  # (N, C, S, S) float
    weight: Tensor,  # (N, 1, S, S) float >= 0
) -> Tensor:
    """Weighted mean of each picture, ``(N, C, 1, 1)``."""
    return (images * weight).sum((2, 3), keepdim=True) / (
        weight.sum((2, 3), keepdim=True) + 1e-3 * weight[0].numel()
    )


def resized(images: Tensor, side: int) -> Tensor:
    """Square pictures at another side: by area when smaller, else bilinear."""
    if images.shape[-1] == side:
        return images
    if images.shape[-1] > side:
        if images.shape[-1] % side == 0:  # the same, in half the time
            return F.avg_pool2d(images, images.shape[-1] // side)
        return F.interpolate(images, size=(side, side), mode="area")
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
