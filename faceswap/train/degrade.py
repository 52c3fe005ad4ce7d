"""Photographs made worse on purpose: what a network will meet outside a studio.

Follows the degradations of blind face restoration (HiFaceGAN, Yang et al. 2020; GFPGAN, Wang et
al. 2021): blur, downscaling, noise and JPEG, each drawn per picture. `degrade` is the quick one,
for networks that only have to bear it; `worsen` is what a restorer learns from, and adds what
makes our own swaps soft: resampling by a warp, and soft places beside sharp ones.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from faceswap.train.config import Damage


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


def worsen(
    images: Tensor,  # (N, 3, H, W) float in [0, 1], on the CPU
    damage: Damage,
    generator: torch.Generator,
) -> Tensor:
    """Each picture with a random choice of all that can be wrong with it.

    In the order in which it comes about: resampled by a warp, out of focus or moved, soft in
    places, small, noisy, compressed. A share of ``damage.clean`` is left alone, so that a restorer
    learns to leave good pictures alone too.

    Returns:
        ``(N, 3, H, W)`` float in [0, 1]; the same for the same generator.
    """
    n = images.shape[0]
    hit = torch.rand(n, 6, generator=generator) < torch.tensor(
        [damage.warp, damage.blur, damage.patches, damage.shrink, damage.noise, damage.jpeg]
    )
    hit &= (torch.rand(n, generator=generator) >= damage.clean)[:, None]
    much = torch.rand(n, 6, generator=generator) * hit
    out = warp(images, much[:, 0] * damage.warp_px, generator)
    moved = torch.rand(n, generator=generator) < damage.motion
    turn = torch.rand(n, generator=generator) * math.pi
    out = blur(out, much[:, 1] * damage.blur_px, torch.where(moved, 0.15, 1.0), turn)
    out = soften_patches(out, much[:, 2] * damage.patches_px, generator)
    # Detail lost goes by the logarithm of the factor: as many halvings as quarterings.
    out = shrink(out, damage.smallest ** much[:, 3], generator)
    out = grain(out, much[:, 4] * damage.noise_sd, generator)
    quality = torch.where(hit[:, 5], 95 - much[:, 5] * (95 - damage.quality), 100.0)
    return jpeg(out, quality.round().long())


def warp(
    images: Tensor,  # (N, 3, H, W) float
    amount: Tensor,  # (N,) px, standard deviation of the displacement
    generator: torch.Generator,
    *,
    cells: int = 12,
) -> Tensor:
    """Resampled bilinearly at slightly wrong places, as a spline warp does; same shape."""
    n, _, height, width = images.shape
    field = torch.randn(n, 2, cells, cells, generator=generator) * amount.view(-1, 1, 1, 1)
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
    still = torch.eye(2, 3).expand(n, 2, 3)
    grid = F.affine_grid(still, [n, 3, height, width], align_corners=True)
    grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([2 / (width - 1), 2 / (height - 1)])
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    return torch.where((amount > 0).view(-1, 1, 1, 1), moved, images)


def blur(
    images: Tensor,  # (N, 3, H, W) float
    sigma: Tensor,  # (N,) px along the long axis; 0 leaves the picture
    thin: Tensor,  # (N,) the other axis as a share of it: 1 is out of focus, near 0 is motion
    turn: Tensor,  # (N,) radians, direction of the long axis
) -> Tensor:
    """Gaussian blur of any shape, each picture its own; same shape."""
    reach = max(1, math.ceil(2.5 * float(sigma.max())))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
    long = sigma.clamp_min(1e-2).view(-1, 1, 1)
    short = (sigma * thin).clamp_min(0.25).minimum(sigma.clamp_min(1e-2)).view(-1, 1, 1)
    along, across = (x * cos + y * sin) / long, (y * cos - x * sin) / short
    kernel = torch.exp(-0.5 * (along.square() + across.square()))
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    return _filter_each(images, kernel)


def _filter_each(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate picture i with kernel i ``(N, k, k)``, edges continued."""
    n, channels, height, width = images.shape
    reach = kernel.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    weight = kernel.repeat_interleave(channels, 0)[:, None]
    out = F.conv2d(padded, weight, groups=n * channels)
    return out.view(n, channels, height, width)


def soften_patches(
    images: Tensor,  # (N, 3, H, W) float
    sigma: Tensor,  # (N,) px of the soft places
    generator: torch.Generator,
    *,
    cells: int = 6,
) -> Tensor:
    """Soft in places, sharp in others, with smooth borders: a gate between a texture and its base.

    Same shape.
    """
    n, _, height, width = images.shape
    gate = torch.rand(n, 1, cells, cells, generator=generator)
    gate = F.interpolate(gate, size=(height, width), mode="bilinear", align_corners=False)
    gate = ((gate - 0.5) * 4 + 0.5).clamp(0, 1)
    still = torch.zeros(n)
    return torch.lerp(images, blur(images, sigma, still + 1, still), gate)


def shrink(
    images: Tensor,  # (N, 3, H, W) float
    factor: Tensor,  # (N,) in (0, 1]; 1 leaves the picture
    generator: torch.Generator,
) -> Tensor:
    """Made small by area or bicubically and large again, bilinearly or bicubically; same shape."""
    _, _, height, width = images.shape
    sharp = (torch.rand(len(images), 2, generator=generator) < 0.5).tolist()
    out = []
    for image, scale, (down, up) in zip(images.split(1), factor.tolist(), sharp, strict=True):
        if scale < 1:
            size = (max(4, round(height * scale)), max(4, round(width * scale)))
            small = F.interpolate(image, size=size, mode="bicubic", antialias=True)
            small = small if down else F.interpolate(image, size=size, mode="area")
            mode = "bicubic" if up else "bilinear"
            image = F.interpolate(small, size=(height, width), mode=mode, align_corners=False)
        out.append(image)
    return torch.cat(out).clamp(0, 1)


def grain(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    deviation: Tensor,  # (N,) of the noise
    generator: torch.Generator,
) -> Tensor:
    """Noise as cameras leave it, mostly of brightness, a little of colour; same shape, [0, 1]."""
    n, _, height, width = images.shape
    grey = torch.randn(n, 1, height, width, generator=generator)
    colour = torch.randn(n, 3, height, width, generator=generator)
    return (images + (grey + 0.4 * colour) * deviation.view(-1, 1, 1, 1)).clamp(0, 1)


def jpeg(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    quality: Tensor,  # (N,) int64, 1..99; 100 leaves the picture
) -> Tensor:
    """Through a real JPEG encoder and back; same shape."""
    out = []
    for image, wanted in zip(images, quality.tolist(), strict=True):
        if wanted < 100:
            file = io.BytesIO()
            pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(file, "JPEG", quality=wanted)
            pixels = np.array(Image.open(file))
            image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        out.append(image)
    return torch.stack(out)
