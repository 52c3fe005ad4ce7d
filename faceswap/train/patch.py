"""A small patch discriminator for the lite swapper."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., CVPR 2017) with instance norm, one judgement per 34 px patch."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def step(cin: int, cout: int, stride: int, norm: bool) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(cin, cout, 4, stride, 1)]
            if norm:
                layers.append(nn.InstanceNorm2d(cout, affine=True))
            return [*layers, nn.LeakyReLU(0.2, inplace=True)]

        self.body = nn.Sequential(
            *step(3, width, 2, norm=False),
            *step(width, 2 * width, 2, norm=True),
            *step(2 * width, 4 * width, 2, norm=True),
            nn.Conv2d(4 * width, 1, 3, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Judgements of patches.

        Args:
            images: ``(N, 3, S, S)`` float in [0, 1].

        Returns:
            ``(N, 1, S/8, S/8)``, higher = more real.
        """
        out: Tensor = self.body(images * 2 - 1)
        return out
