"""Two further judges the article's authors tried, off by default: identity and pair critics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _encoder(channels: int, width: int) -> nn.Sequential:
    """``(N, channels, 64, 64)`` -> ``(N, 8 * width)``."""
    layers: list[nn.Module] = []
    for cin, cout in zip(
        (channels, width, 2 * width, 4 * width),
        (width, 2 * width, 4 * width, 8 * width),
        strict=True,
    ):
        layers += [nn.Conv2d(cin, cout, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _small(images: Tensor) -> Tensor:
    """``(N, 3, S, S)`` in [0, 1] -> 64 px in [-1, 1]."""
    return F.interpolate(images, size=(64, 64), mode="area") * 2 - 1


class IdentityCritic(nn.Module):
    """Is this a photo of this person? A projection discriminator (Miyato & Koyama, ICLR 2018).

    f(x, z) = psi(phi(x)) + phi(x) . V z / |z|: real photos come with their own identity, swapped
    faces with the one they should have.
    """

    def __init__(self, embedding_size: int, width: int = 32) -> None:
        super().__init__()
        self.features = _encoder(3, width)
        self.real = nn.Linear(8 * width, 1)
        self.person = nn.Linear(embedding_size, 8 * width, bias=False)

    def forward(
        self,
        images: Tensor,  # (N, 3, S, S) float in [0, 1]
        identity: Tensor,  # (N, D)
    ) -> Tensor:
        """Logits ``(N, 1)``, positive = a photo of them."""
        features = self.features(_small(images))
        person = self.person(F.normalize(identity, dim=1))
        out: Tensor = self.real(features) + (features * person).sum(1, keepdim=True)
        return out


class PairClassifier(nn.Module):
    """Do two photos show one person? Trained on photos, asked about source and swapped face."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.features = _encoder(3, width)
        self.judge = nn.Sequential(
            nn.Linear(16 * width, 8 * width), nn.LeakyReLU(0.2), nn.Linear(8 * width, 1)
        )

    def forward(
        self,
        first: Tensor,  # (N, 3, S, S) float in [0, 1]
        second: Tensor,  # (N, 3, S, S) float in [0, 1]
    ) -> Tensor:
        """Logits ``(N,)``, positive = one person; the order of the two does not matter."""
        a, b = self.features(_small(first)), self.features(_small(second))
        out: Tensor = self.judge(torch.cat([a * b, (a - b).abs()], 1))[:, 0]
        return out
