"""Photographs made worse on purpose: what a network will meet outside a studio.

Follows the degradations of blind face restoration (HiFaceGAN, Yang et al. 2020; GFPGAN, Wang et
al. 2021): blur, downscaling, noise and JPEG-like blocking, each drawn per picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def degrade(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    probability: float,  # that a picture is touched at all
    generator: torch.Generator | None = None,
    *,
    smallest: float = 0.25,  # strongest downscaling
    noise: float = 0.04,  # largest standard deviation
) -> Tensor:
    """Randomly downscaled and noisy versions; ``(N, 3, H, W)`` in [0, 1].

    Downscaling goes by area (a low-pass) and back up bilinearly, one factor a group of pictures so
    that the work stays batched.
    """
    n, _, height, width = images.shape
    out = images.clone()
    chosen = torch.rand(n, generator=generator) < probability
    groups = torch.randint(4, (n,), generator=generator)
    factors = smallest + (1 - smallest) * torch.rand(4, generator=generator)
    for group, factor in enumerate(factors.tolist()):
        rows = torch.nonzero(chosen & (groups == group))[:, 0].to(images.device)
        if not len(rows):
            continue
        size = (max(8, round(height * factor)), max(8, round(width * factor)))
        small = F.interpolate(images[rows], size=size, mode="area")
        sigma = torch.rand(len(rows), 1, 1, 1, generator=generator) * noise
        grain = torch.randn(small.shape, generator=generator) * sigma
        small = small + grain.to(images.device)
        out[rows] = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return out.clamp(0, 1)
