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
