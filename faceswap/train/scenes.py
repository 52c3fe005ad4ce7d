"""Composed scenes: pictures whose faces are known because they were put there.

What is drawn into one is `faceswap.train.collage`; here scenes become a batch, and bad photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.train.collage import Collage, Material
from faceswap.train.data import jitter_color
from faceswap.train.degrade import degrade, draw_coarse
from faceswap.train.photos import decode, find_photos
from faceswap.train.wear import filter_each, jpeg, kernels

_FREE = ("coffee", "brick", "grass", "gravel", "rocket", "chelsea", "colorwheel", "page", "text")


@dataclass(frozen=True, slots=True)
class Scenes:
    """B scenes and the N faces in them."""

    images: Tensor  # (B, 3, S, S) float in [0, 1]
    frame: Tensor  # (N,) int64, which scene
    box: Tensor  # (N, 4) float32, x0 y0 x1 y1
    points: Tensor  # (N, 5, 2) float32
    counts: Tensor  # (N,) bool; False: too small or too hidden to be asked for, or not to be


def load_backgrounds(folder: str) -> list[Tensor]:
    """Pictures without faces, ``(3, H, W) uint8`` each.

    Args:
        folder: a folder or tar of photos; empty: the free ones that lie in scikit-image.

    Raises:
        MissingMediaError, MediaError: nothing there, or no photo can be read.
    """
    if folder:
        found = [decode(photo) for photo in find_photos([], [Path(folder)])]
    else:
        import skimage.data

        arrays = [torch.from_numpy(getattr(skimage.data, name)()) for name in _FREE]
        found = [a[..., None].expand(*a.shape, 3) if a.ndim == 2 else a[..., :3] for a in arrays]
        found = [a.permute(2, 0, 1).contiguous() for a in found if a.dtype == torch.uint8]
    small = [picture for picture in found if min(picture.shape[1:]) < 32]
    if small:
        raise MediaError(f"{folder}: a background of {tuple(small[0].shape[1:])}; at least 32 px")
    return found


def draw_scenes(material: Material, n: int, generator: torch.Generator) -> Scenes:
    """Scenes ``n``, on the CPU: hundreds of small pieces, which a worker makes ahead.

    All random numbers come from the generator.
    """
    images, frames, boxes, points, counts = [], [], [], [], []
    for i in range(n):
        scene = Collage(material, generator)
        scene.compose()
        images.append(scene.image)
        frames += [i] * len(scene.boxes)
        boxes += scene.boxes
        points += scene.points
        counts += scene.counts
    batch = torch.stack(images)
    batch = jitter_color(batch, 0.35, generator)
    grey = torch.rand(n, 1, 1, 1, generator=generator) < 0.1
    batch = torch.where(grey, batch.mean(1, keepdim=True), batch)
    return Scenes(
        _taken_badly(batch, generator),
        torch.tensor(frames, dtype=torch.int64),
        torch.stack(boxes) if boxes else torch.zeros(0, 4),
        torch.stack(points) if points else torch.zeros(0, 5, 2),
        torch.tensor(counts, dtype=torch.bool),
    )


def _taken_badly(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """Scenes ``(B, 3, S, S)`` in [0, 1], some dark, out of focus, coarse, noisy or compressed."""
    u = torch.rand(len(scenes), 5, generator=generator)
    scenes = scenes * torch.where(u[:, 0] < 0.15, 0.15 + 0.5 * u[:, 1], 1.0).view(-1, 1, 1, 1)
    soft = torch.nonzero(u[:, 2] < 0.15)[:, 0]
    if len(soft):
        much = torch.rand(len(soft), 3, generator=generator)
        thin = torch.where(much[:, 1] < 0.5, 1.0, 0.15)
        kernel = kernels(0.4 + 1.4 * much[:, 0], thin, much[:, 2] * math.pi)
        scenes[soft] = filter_each(scenes[soft], kernel)
    coarse = draw_coarse(scenes.shape, 0.4, generator, smallest=0.6, noise=0.05)
    scenes = degrade(scenes, coarse)
    quality = torch.where(u[:, 3] < 0.4, 25 + 65 * u[:, 4], 100.0)
    return jpeg(scenes, quality.round().long().tolist())
