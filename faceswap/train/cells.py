"""Which cells of the detector's grids have to see which face of a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faceswap.train.scenes import Scenes

# stride -> px, root of the box's area: faces each grid answers for; they overlap
RANGES = {8: (0.0, 56.0), 16: (36.0, 150.0), 32: (100.0, float("inf"))}
_BETWEEN = 1.4  # a face that is outside a range by less than this factor is left open there


@dataclass(frozen=True, slots=True)
class Answers:
    """What the grids should say of B scenes; all cells of all scenes are counted in one row."""

    asked: Tensor  # (k,) int64, cells whose score counts
    seeing: Tensor  # (m,) int64, cells that have to see a face
    box: Tensor  # (m, 4) float32, of that face, px from the picture's edge
    points: Tensor  # (m, 5, 2) float32, of that face, px from the picture's edge


def answer(scenes: Scenes) -> Answers:
    """The answers to scenes whose labels have pixel middles at whole numbers.

    Grids count from the picture's edge, where a pixel's middle is at 1/2 (`faceswap.faces.detect`
    goes back).
    """
    scenes = replace(scenes, box=scenes.box + 0.5, points=scenes.points + 0.5)
    owner, open_ = assign(scenes)
    owner, open_ = owner.flatten(), open_.flatten()
    seeing = torch.nonzero(owner >= 0)[:, 0]
    rows = owner[seeing]
    asked = torch.nonzero(~open_)[:, 0]
    return Answers(asked, seeing, scenes.box[rows], scenes.points[rows])


def assign(
    scenes: Scenes,  # labels in px from the picture's edge
) -> tuple[Tensor, Tensor]:
    """Which cells have to see which face.

    A face belongs to the cells around its middle (three quarters of a cell, or 15 % of its size)
    of the grids whose range it is in. The other cells in its inner part, and cells of faces that
    do not count, are left open; every other cell is background. Of two faces the smaller wins.

    Returns:
        ``owner (B, cells) int64``, row of `scenes` or -1, and ``open (B, cells) bool``.
    """
    frames, scene = scenes.images.shape[0], scenes.images.shape[-1]
    place, stride = [], []
    for each in RANGES:
        side = scene // each
        axis = (torch.arange(side) + 0.5) * each
        cells = torch.stack((axis.expand(side, side), axis[:, None].expand(side, side)), -1)
        place.append(cells.flatten(0, 1))
        stride.append(torch.full((side * side,), float(each)))
    cell, step = torch.cat(place), torch.cat(stride)
    low = torch.tensor([RANGES[int(s)][0] for s in step.tolist()])
    high = torch.tensor([RANGES[int(s)][1] for s in step.tolist()])
    owner = torch.full((frames, len(cell)), -1, dtype=torch.int64)
    open_ = torch.zeros(frames, len(cell), dtype=torch.bool)
    extent = scenes.box[:, 2:] - scenes.box[:, :2]
    size = extent.prod(1).sqrt()
    for i in torch.argsort(size, descending=True).tolist():
        frame = int(scenes.frame[i])
        off = (cell - (scenes.box[i, :2] + scenes.box[i, 2:]) / 2).abs()
        near = (off <= torch.maximum(0.75 * step, 0.15 * size[i])[:, None]).all(1)
        inner = (off <= 0.4 * extent[i]).all(1) | near
        mine = (size[i] > low) & (size[i] <= high)
        almost = (size[i] > low / _BETWEEN) & (size[i] <= high * _BETWEEN)
        open_[frame] |= inner & almost
        if scenes.counts[i]:
            owner[frame] = torch.where(near & mine, i, owner[frame])
        else:
            open_[frame] |= inner
            owner[frame] = torch.where(inner & (owner[frame] >= 0), -1, owner[frame])
    return owner, open_ & (owner < 0)
