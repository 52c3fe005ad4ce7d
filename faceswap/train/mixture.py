"""Faces that nobody has: parts of two people, or one through the other, all of it a little bent.

A student that sees some thousand people agrees with its teacher on them better than on strangers;
a patient teacher has an answer for any picture ("function matching", Beyer et al., CVPR 2022). Kin
to mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), with borders that are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CELLS, _BENDS = 5, 6  # a side, of where which face shows and of the bends
_BEND = 0.024  # deviation, of half a side
_STRETCH = 0.03
_THROUGH = 0.25  # share of mixtures in which one face shows through the other everywhere


@dataclass(frozen=True, slots=True)
class Mixing:
    """The random numbers of n mixtures."""

    sharpness: Tensor  # (n, 1, 1, 1), of the border between the faces
    level: Tensor  # (n, 1, 1, 1) in [-0.5, 0.5], which face there is more of
    cells: Tensor  # (n, 1, C, C), standard normal
    through: Tensor  # (n, 1, 1, 1) bool
    bend: Tensor  # (n, 2, B, B), standard normal
    stretch: Tensor  # (n, 1, 1, 2), standard normal


def draw_mixing(n: int, generator: torch.Generator) -> Mixing:
    """Numbers of n mixtures; any thread may draw, each with its own generator."""
    return Mixing(
        sharpness=torch.exp(torch.rand(n, 1, 1, 1, generator=generator) * 3),
        level=torch.rand(n, 1, 1, 1, generator=generator) - 0.5,
        cells=torch.randn(n, 1, _CELLS, _CELLS, generator=generator),
        through=torch.rand(n, 1, 1, 1, generator=generator) < _THROUGH,
        bend=torch.randn(n, 2, _BENDS, _BENDS, generator=generator),
        stretch=torch.randn(n, 1, 1, 2, generator=generator),
    )


def mixed(
    first: Tensor,  # (n, 3, S, S) float in [0, 1], faces in the same place
    second: Tensor,  # (n, 3, S, S) float in [0, 1]
    mixing: Mixing,  # on their device
) -> tuple[Tensor, Tensor]:
    """The mixtures ``(n, 3, S, S)``, and where each pixel was taken from.

    The latter is ``(n, S, S, 2)``, x and y as a difference in `torch.nn.functional.grid_sample`'s
    units (corners aligned): what was at p + difference is seen at p.
    """
    size = first.shape[-1]
    share = torch.sigmoid(mixing.sharpness * (2 * _smooth(mixing.cells, size) + mixing.level))
    share = torch.where(mixing.through, 0.5 + mixing.level * 0.7, share)
    axis = torch.linspace(-1, 1, size, device=first.device)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    bend = _smooth(mixing.bend, size).permute(0, 2, 3, 1) * _BEND
    grid = place * (1 + _STRETCH * mixing.stretch) + bend
    picture = F.grid_sample(torch.lerp(second, first, share), grid, align_corners=True)
    return picture.clamp(0, 1), grid - place


def _smooth(noise: Tensor, size: int) -> Tensor:
    return F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)
