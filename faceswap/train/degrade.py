"""Coarse and noisy pictures, for networks that only have to bear them.

What a restorer learns from is `faceswap.train.wear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Coarse:
    """Some pictures of a batch that lose detail by one factor."""

    rows: Tensor  # (k,) int64
    size: tuple[int, int]  # h, w they are made small to
    grain: Tensor  # (k, C, h, w) noise at that size


def draw_coarse(
    shape: Sequence[int],  # N, C, H, W of the pictures
    probability: float,  # that a picture is touched at all
    generator: torch.Generator | None = None,
    *,
    smallest: float = 0.25,  # strongest downscaling
    largest: float = 1.0,  # weakest
    noise: float = 0.04,  # largest standard deviation
) -> tuple[Coarse, ...]:
    """What `degrade` does, one factor a group of pictures so that the work stays batched."""
    n, channels, height, width = shape
    chosen = torch.rand(n, generator=generator) < probability
    groups = torch.randint(4, (n,), generator=generator)
    factors = smallest + (largest - smallest) * torch.rand(4, generator=generator)
    out = []
    for group, factor in enumerate(factors.tolist()):
        rows = torch.nonzero(chosen & (groups == group))[:, 0]
        if not len(rows):
            continue
        size = (max(8, round(height * factor)), max(8, round(width * factor)))
        sigma = torch.rand(len(rows), 1, 1, 1, generator=generator) * noise
        grain = torch.randn(len(rows), channels, *size, generator=generator) * sigma
        out.append(Coarse(rows, size, grain))
    return tuple(out)


def degrade(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    coarse: tuple[Coarse, ...],  # on the same device
) -> Tensor:
    """Some pictures downscaled and noisy; ``(N, 3, H, W)`` in [0, 1].

    Downscaling goes by area (a low-pass) and back up bilinearly.
    """
    out = images.clone()
    for each in coarse:
        small = F.interpolate(images[each.rows], size=each.size, mode="area") + each.grain
        out[each.rows] = F.interpolate(
            small, size=images.shape[2:], mode="bilinear", align_corners=False
        )
    return out.clamp(0, 1)
