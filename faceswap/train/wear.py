"""Photographs made worse on purpose: what a network will meet outside a studio.

Follows the degradations of blind face restoration (HiFaceGAN, Yang et al. 2020; GFPGAN, Wang et
al. 2021): blur, downscaling, noise and JPEG, each drawn per picture. What makes our own swaps soft
is added: resampling by a warp, and soft places beside sharp ones.

Everything random is drawn first, on the CPU; then a batch is made worse where it is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from faceswap.train.config import Damage
from faceswap.train.transfer import sent

WARP_CELLS, PATCH_CELLS = 12, 6  # a side, of the grids that places are drawn on
_THIN = 0.15  # of what a movement blurs along its way, how much across
_ENCODERS = 4  # threads that compress at once


@dataclass(frozen=True, slots=True)
class Wear:
    """All that `worsen` does to n pictures, drawn before they are there."""

    moved: Tensor  # (n,) px, how much the warp moves; 0 leaves the picture
    field: Tensor  # (n, 2, c, c) displacements, px
    kernel: Tensor  # (n, k, k) of the blur
    soft: Tensor  # (n, k, k) of the blur in places
    gate: Tensor  # (n, 1, c, c) in [0, 1), where these are
    factors: tuple[float, ...]  # n of `shrink`
    sharp: tuple[tuple[bool, bool], ...]  # n of `shrink`
    noise: Tensor  # (n, 3, H, W)
    quality: tuple[int, ...]  # n of `jpeg`


def draw_wear(n: int, size: int, damage: Damage, generator: torch.Generator) -> Wear:
    """What is wrong with n pictures of side ``size``: a random choice of all that can be.

    A share of ``damage.clean`` is left alone, so that a restorer learns to leave good pictures
    alone too.
    """
    hit = torch.rand(n, 6, generator=generator) < torch.tensor(
        [damage.warp, damage.blur, damage.patches, damage.shrink, damage.noise, damage.jpeg]
    )
    hit &= (torch.rand(n, generator=generator) >= damage.clean)[:, None]
    much = torch.rand(n, 6, generator=generator) * hit
    moved = much[:, 0] * damage.warp_px
    field = torch.randn(n, 2, WARP_CELLS, WARP_CELLS, generator=generator)
    motion = torch.rand(n, generator=generator) < damage.motion
    turn = torch.rand(n, generator=generator) * math.pi
    kernel = kernels(much[:, 1] * damage.blur_px, torch.where(motion, _THIN, 1.0), turn)
    soft = kernels(much[:, 2] * damage.patches_px)
    gate = torch.rand(n, 1, PATCH_CELLS, PATCH_CELLS, generator=generator)
    sharp = torch.rand(n, 2, generator=generator) < 0.5
    grey = torch.randn(n, 1, size, size, generator=generator)
    colour = torch.randn(n, 3, size, size, generator=generator)
    quality = torch.where(hit[:, 5], 95 - much[:, 5] * (95 - damage.quality), 100.0)
    return Wear(
        moved,
        field * moved.view(-1, 1, 1, 1),
        kernel,
        soft,
        gate,
        # Detail lost goes by the logarithm of the factor: as many halvings as quarterings.
        tuple((damage.smallest ** much[:, 3]).tolist()),
        tuple((down, up) for down, up in sharp.tolist()),
        # As cameras leave it, mostly of brightness, a little of colour.
        (grey + 0.4 * colour) * (much[:, 4] * damage.noise_sd).view(-1, 1, 1, 1),
        tuple(quality.round().long().tolist()),
    )


def worsen(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    wear: Wear,  # of N pictures of that size, on the same device
) -> Tensor:
    """Each picture with what was drawn for it; ``(N, 3, H, W)`` in [0, 1].

    In the order in which it comes about: resampled by a warp, out of focus or moved, soft in
    places, small, noisy, compressed.
    """
    out = warp(images, wear.moved, wear.field)
    out = filter_each(out, wear.kernel)
    out = soften_patches(out, wear.soft, wear.gate)
    out = shrink(out, wear.factors, wear.sharp)
    return jpeg((out + wear.noise).clamp(0, 1), wear.quality)


def warp(
    images: Tensor,  # (N, 3, H, W) float
    amount: Tensor,  # (N,) px; 0 leaves the picture
    field: Tensor,  # (N, 2, c, c) displacements of places all over the picture, px
) -> Tensor:
    """Resampled bilinearly at slightly wrong places, as a spline warp does; same shape."""
    n, _, height, width = images.shape
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
    still = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    grid = F.affine_grid(still, [n, 3, height, width], align_corners=True)
    grid = grid + torch.stack(
        [field[:, 0] * (2 / (width - 1)), field[:, 1] * (2 / (height - 1))], -1
    )
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    return torch.where((amount > 0).view(-1, 1, 1, 1), moved, images)


def kernels(
    sigma: Tensor,  # (N,) px along the long axis; 0 leaves the picture
    thin: Tensor | None = None,  # (N,) the other axis as a share of it; near 0 is motion
    turn: Tensor | None = None,  # (N,) radians, direction of the long axis
) -> Tensor:
    """Gaussians of any shape, ``(N, k, k)`` with sum 1, for `filter_each`."""
    thin = torch.ones_like(sigma) if thin is None else thin
    turn = torch.zeros_like(sigma) if turn is None else turn
    reach = max(1, math.ceil(2.5 * float(sigma.max())))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
    long = sigma.clamp_min(1e-2).view(-1, 1, 1)
    short = (sigma * thin).clamp_min(0.25).minimum(sigma.clamp_min(1e-2)).view(-1, 1, 1)
    along, across = (x * cos + y * sin) / long, (y * cos - x * sin) / short
    kernel = torch.exp(-0.5 * (along.square() + across.square()))
    return kernel / kernel.sum((1, 2), keepdim=True)


def filter_each(
    images: Tensor,  # (N, 3, H, W) float
    kernel: Tensor,  # (N, k, k)
) -> Tensor:
    """Correlate picture i with kernel i, edges continued; same shape."""
    n, channels, height, width = images.shape
    reach = kernel.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    weight = kernel.repeat_interleave(channels, 0)[:, None]
    out = F.conv2d(padded, weight, groups=n * channels)
    return out.view(n, channels, height, width)


@dataclass(frozen=True, slots=True)
class Motion:
    """Some pictures of a batch that moved while they were taken."""

    rows: Tensor  # (k,) int64
    kernel: Tensor  # (k, c, c) of `filter_each`


def draw_motion(
    n: int,
    share: float,  # of the pictures that move
    far: float,  # px, largest standard deviation along the way
    generator: torch.Generator,
) -> Motion:
    """Which of n pictures move, how far and where to."""
    much, turn = torch.rand(2, n, generator=generator)
    length = ((much - 1 + share) / max(share, 1e-6)).clamp(0, 1) * far
    rows = torch.nonzero(length > 0)[:, 0]
    if not len(rows):
        return Motion(rows, torch.ones(0, 1, 1))
    thin = torch.full((len(rows),), _THIN)
    return Motion(rows, kernels(length[rows], thin, turn[rows] * math.pi))


def motion_blurred(
    images: Tensor,  # (N, 3, H, W) float
    motion: Motion,  # on the same device
) -> Tensor:
    """Those of the pictures blurred that moved; same shape."""
    if not len(motion.rows):
        return images
    return images.index_copy(0, motion.rows, filter_each(images[motion.rows], motion.kernel))


def soften_patches(
    images: Tensor,  # (N, 3, H, W) float
    kernel: Tensor,  # (N, k, k) of the soft places
    gate: Tensor,  # (N, 1, c, c) in [0, 1], high where these are
) -> Tensor:
    """Soft in places, sharp in others, with smooth borders: a gate between a texture and its base.

    Same shape.
    """
    gate = F.interpolate(gate, size=images.shape[2:], mode="bilinear", align_corners=False)
    gate = ((gate - 0.5) * 4 + 0.5).clamp(0, 1)
    return torch.lerp(images, filter_each(images, kernel), gate)


def shrink(
    images: Tensor,  # (N, 3, H, W) float
    factors: Sequence[float],  # N in (0, 1]; 1 leaves the picture
    sharp: Sequence[tuple[bool, bool]],  # N, whether down and up go bicubically
) -> Tensor:
    """Made small by area or bicubically and large again, bilinearly or bicubically; same shape."""
    _, _, height, width = images.shape
    out = []
    for image, scale, (down, up) in zip(images.split(1), factors, sharp, strict=True):
        if scale < 1:
            size = (max(4, round(height * scale)), max(4, round(width * scale)))
            if down:
                small = F.interpolate(image, size=size, mode="bicubic", antialias=True)
            else:
                small = F.interpolate(image, size=size, mode="area")
            mode = "bicubic" if up else "bilinear"
            image = F.interpolate(small, size=(height, width), mode=mode, align_corners=False)
        out.append(image)
    return torch.cat(out).clamp(0, 1)


def jpeg(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    quality: Sequence[int],  # N of 1..99; 100 leaves the picture
) -> Tensor:
    """Through a real JPEG encoder and back; same shape.

    The encoder runs on the CPU: from a GPU only pictures that are compressed come and go, as bytes.
    """
    wanted = [(row, each) for row, each in enumerate(quality) if each < 100]
    if not wanted:
        return images
    rows = sent(torch.tensor([row for row, _ in wanted]), images.device)
    pixels = images[rows].mul(255).round().byte().permute(0, 2, 3, 1).cpu()
    with ThreadPoolExecutor(min(_ENCODERS, len(wanted))) as pool:  # the encoder frees Python's lock
        again = list(pool.map(_compressed, pixels.numpy(), [each for _, each in wanted]))
    out = images.clone()
    out[rows] = (
        torch.from_numpy(np.stack(again)).to(images.device).permute(0, 3, 1, 2).float() / 255
    )
    return out


def _compressed(pixels: np.ndarray[Any, Any], quality: int) -> np.ndarray[Any, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))
