"""Losses: pure functions from batches to scalars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_l1(
    swapped: Tensor,  # (N, C, H, W)
    target: Tensor,  # (N, C, H, W)
    region: Tensor,  # (N, 1, H, W) in [0, 1]
) -> Tensor:
    """Mean absolute difference where the region is: sum(r |y - x|) / (C sum(r))."""
    area = region.sum() * swapped.shape[1] + 1e-6
    return (region * (swapped - target).abs()).sum() / area


def gradient_loss(
    swapped: Tensor,  # (N, C, H, W)
    target: Tensor,  # (N, C, H, W)
    region: Tensor,  # (N, 1, H, W) in [0, 1]
) -> Tensor:
    """`masked_l1` of horizontal and vertical differences: edges, not brightness.

    Mathieu et al., "Deep multi-scale video prediction beyond mean square error", ICLR 2016, eq. 6
    with alpha = 1.
    """
    across = masked_l1(_dx(swapped), _dx(target), region[..., :, 1:])
    down = masked_l1(_dy(swapped), _dy(target), region[..., 1:, :])
    return across + down


def _dx(x: Tensor) -> Tensor:
    return x[..., :, 1:] - x[..., :, :-1]


def _dy(x: Tensor) -> Tensor:
    return x[..., 1:, :] - x[..., :-1, :]


def identity_loss(
    swapped: Tensor,  # (N, D) embedding of the swapped face
    source: Tensor,  # (N, D) embedding of the source
) -> Tensor:
    """1 - cos(z(Y), z(X_s)), the mean over the batch (FaceShifter, eq. 8)."""
    return (1 - F.cosine_similarity(swapped, source)).mean()


def tone_loss(
    swapped: Tensor,  # (N, 3, H, W) in [0, 1]
    target: Tensor,  # (N, 3, H, W) in [0, 1], may be low-passed
    region: Tensor,  # (N, 1, H, W) in [0, 1]
    *,
    cells: int = 8,
) -> Tensor:
    """L1 between local mean colours on a grid of ``cells`` a side, weighted by the region."""

    def mean(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x * region, cells)

    return (mean(swapped) - mean(target)).abs().sum() / (
        F.adaptive_avg_pool2d(region, cells).sum() * swapped.shape[1] + 1e-6
    )


def hinge_generator(fake: list[Tensor]) -> Tensor:
    """-mean D(Y), summed over the discriminator's scales (Lim & Ye 2017, "Geometric GAN")."""
    return torch.stack([-scale.mean() for scale in fake]).sum()


def hinge_discriminator(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Half of mean relu(1 - D(X)) + mean relu(1 + D(Y)), summed over scales (Lim & Ye 2017)."""
    terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return 0.5 * torch.stack(terms).sum()
