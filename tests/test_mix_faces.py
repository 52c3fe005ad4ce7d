"""Mixtures of faces for the identity encoder (scripts/mix_faces.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import mix_faces

from faceswap.ops.draw import dots
from faceswap.train.data import Crops

SIDE = 96
FIVE = torch.tensor([[32.0, 40.0], [63.0, 40.0], [47.5, 55.0], [36.0, 70.0], [59.0, 70.0]])


def crops(*light: float) -> Crops:
    """Crops that are dark but for dots at their points, as bright as that."""
    count = len(light)
    drawn = dots(FIVE[None], SIDE, sigma=1.2)[0]
    images = torch.stack([(drawn * each * 255).byte().expand(3, -1, -1) for each in light])
    return Crops(
        images=(images,),
        points=FIVE.expand(count, 5, 2),
        mesh=torch.cat([FIVE, torch.zeros(5, 1)], 1).expand(count, 5, 3),
        embedding=None,
        identity=torch.arange(count),
        held_back=torch.zeros(count, dtype=torch.bool),
        names=tuple(str(i) for i in range(count)),
        size=SIDE,
        template="ghost_frontal",
        margin=1.6,
    )


def mixed(data: Crops, rows: list[int], seed: int) -> dict[str, torch.Tensor]:
    order = torch.tensor([1, 0, 2, 4, 3])
    generator = torch.Generator().manual_seed(seed)
    return mix_faces.mix(data, torch.tensor(rows), order, generator)


def test_points_go_where_their_pixels_go() -> None:
    found = mixed(crops(1.0), [0] * 16, seed=1)
    assert found["image"].shape == (8, 3, SIDE, SIDE)
    assert found["image"].dtype == torch.uint8
    moved = (found["points"] - FIVE).norm(dim=-1)
    assert moved.max() > 1.5  # it is bent ...
    for image, points in zip(found["image"].float(), found["points"], strict=True):
        for x, y in points.tolist():
            left, top = round(x) - 5, round(y) - 5
            near = image[0, top : top + 11, left : left + 11].clone()
            near[near < 60] = 0
            axis = torch.arange(11.0)
            place = torch.stack([near.sum(0) @ axis + 0.0, near.sum(1) @ axis]) / near.sum()
            off = place + torch.tensor([left, top]) - torch.tensor([x, y])
            assert off.norm() < 1.0  # ... and the points with it
    assert torch.equal(found["points"], found["mesh"][..., :2])


def test_a_teacher_says_where_the_points_are() -> None:
    part = mixed(crops(1.0), [0] * 8, seed=1)

    def labeler(photos, points):
        assert len(photos) == len(points) == 4
        mesh = torch.cat([points + 1, torch.zeros(4, 5, 1)], 2)
        return mesh, torch.tensor([3.0, -3.0, 1.0, -0.1])  # sees no face in two of them

    seen = mix_faces.labelled(part, labeler, torch.device("cpu"))
    for key in ("image", "points"):
        assert torch.equal(seen[key], part[key][[0, 2]])
    assert torch.equal(seen["mesh"][..., :2], part["points"][[0, 2]] + 1)


def test_both_faces_show() -> None:
    data = crops(0.4, 1.0)
    found = mixed(data, [0] * 32 + [1] * 32, seed=2)
    light = found["image"].amax((1, 2, 3)).float() / 255
    assert light.min() < 0.75  # here and there mostly the one,
    assert light.max() > 0.9  # or the other
    again = mixed(data, [0] * 32 + [1] * 32, seed=2)
    assert torch.equal(found["image"], again["image"])
