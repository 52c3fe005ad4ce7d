"""Jitter of landmarks with and without the head's motion (scripts/score_landmarks.py)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import score_landmarks as scores

from faceswap.ops.geometry import transform


def similarity(degrees: float, scale: float, dx: float, dy: float) -> torch.Tensor:
    c, s = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    return torch.tensor([[c, -s, dx], [s, c, dy]])


def moved(image: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The picture after ``matrix`` (px to px), bilinearly."""
    size = image.shape[-1]
    linear = torch.linalg.inv(matrix[:, :2])
    axis = torch.arange(size, dtype=torch.float32)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    at = (torch.stack([xs, ys], -1) - matrix[:, 2]) @ linear.T
    grid = at[None] * (2 / (size - 1)) - 1
    return F.grid_sample(image[None], grid, align_corners=True, padding_mode="reflection")[0]


@pytest.fixture
def texture() -> torch.Tensor:
    """``(3, 240, 240)`` of blobs of several sizes."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        F.interpolate(torch.rand(1, 3, cells, cells, generator=generator), size=240, mode="bicubic")
        for cells in (8, 20, 50)
    ]
    return torch.stack(parts).mean(0)[0].clamp(0, 1)


def grid_of_points() -> torch.Tensor:
    axis = torch.linspace(60, 180, 20)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([xs, ys], -1).view(-1, 2)


def test_the_pictures_motion_is_found(texture: torch.Tensor) -> None:
    points, true = grid_of_points(), similarity(4.0, 1.03, 3.5, -6.25)
    first, second = ((each * 255).byte() for each in (texture, moved(texture, true)))
    found = scores.picture_motion(first, second, points)
    apart = transform(found[None], points[None]) - transform(true[None], points[None])
    assert float(apart.norm(dim=-1).max()) < 0.15


def test_where_there_is_nothing_to_follow_it_says_nothing() -> None:
    flat = torch.full((3, 240, 240), 128, dtype=torch.uint8)
    noise = torch.randint(256, (3, 240, 240), dtype=torch.uint8)
    assert bool(scores.picture_motion(flat, noise, grid_of_points()).isnan().all())


def test_points_that_go_with_the_picture_do_not_jitter() -> None:
    """However wildly the head moves; and noise of a point is counted as what it is."""
    generator = torch.Generator().manual_seed(0)
    mesh = torch.rand(1, 478, 3, generator=generator) * 100
    steps = [
        similarity(a, s, x, y) for a, s, x, y in ((9, 1, 20, 0), (-7, 1.1, -30, 9), (0, 1, 5, 5))
    ]
    frames = [mesh]
    for step in steps:
        xy = transform(step[None], frames[-1][..., :2])
        frames.append(torch.cat([xy, frames[-1][..., 2:]], 2))
    clip, motion = torch.cat(frames), torch.stack(steps)
    assert float(scores.jitter(clip[..., :2])) > 10
    assert float(scores.off_motion(clip, motion)) < 1e-3
    assert float(scores.jitter(scores.shapes(clip))) < 1e-2
    off = clip.clone()
    off[1, :, 0] += 3.0  # one frame of four is 3 px off: one step too far, one back
    want = 3.0 * (1 + 1.1) / 3  # the way back is scaled with the head
    assert float(scores.off_motion(off, motion)) == pytest.approx(want, abs=1e-3)
    motion[0] = torch.nan  # a step that nobody knows is left out
    assert float(scores.off_motion(off, motion)) == pytest.approx(3.0 * 1.1 / 2, abs=1e-3)
