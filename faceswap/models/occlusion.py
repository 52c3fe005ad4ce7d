"""OcclusionNet: what lies in front of a face - glasses, hands, microphones - pixel by pixel.

A U-Net (Ronneberger et al., MICCAI 2015) that begins at half the crop's side by a pixel unshuffle
and ends by a pixel shuffle, so that rims one pixel wide are told at the cost of half the side.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLD = 2  # the stem's pixel unshuffle


def _conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    )


class OcclusionNet(nn.Module):
    """Face crop to the share of each pixel that is not face but something before it.

    Args:
        widths: channels at 1/2, 1/4, 1/8 ... of the crop's side.
        size: side S in pixels that it is trained for and used at.
    """

    def __init__(
        self, *, widths: tuple[int, ...] = (16, 40, 80, 144, 160), size: int = 160
    ) -> None:
        super().__init__()
        self.size = size
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"OcclusionNet: widths {tuple(widths)}: at least two, each at least 1")
        self.stride = FOLD * 2 ** (len(widths) - 1)  # the crop's side is a multiple of it
        self.stem = _conv(3 * FOLD**2, widths[0])
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(_conv(fine, coarse, 2), _conv(coarse, coarse)) for fine, coarse in steps
        )
        self.lift = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(_conv(2 * fine, fine) for fine, _ in steps)
        self.head = nn.Conv2d(widths[0], FOLD**2, 3, padding=1)
        nn.init.constant_(self.head.bias, -2.0)  # type: ignore[arg-type]  # most of a face is bare

    def forward(self, crop: Tensor) -> Tensor:
        """The logit of each pixel being covered.

        Args:
            crop: ``(N, 3, S, S)`` float RGB in [0, 1], an aligned face, S a multiple of ``stride``.

        Returns:
            ``(N, 1, S, S)`` float.
        """
        maps = [self.stem(F.pixel_unshuffle(crop * 2 - 1, FOLD))]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for lift, up in zip(reversed(self.lift), reversed(self.up), strict=True):
            x = F.interpolate(lift(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = up(torch.cat([x, maps.pop()], 1))
        out: Tensor = F.pixel_shuffle(self.head(x), FOLD)
        return out
