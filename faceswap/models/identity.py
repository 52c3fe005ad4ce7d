"""IdentityNet: a small face recogniser whose embedding drives the lite swapper.

A plain residual network (He et al. 2016, two 3x3 convolutions a block) on a pixel-unshuffled crop.
Dense convolutions at 1/4 of the side and below are what present CPUs do fastest: a batch of 64 in
bf16 took 0.5 s of CPU time in training against 1.3 s for bottleneck blocks with PReLU at 1/2 of the
side (2026-11-25, Xeon with AMX, busy; depths one block a scale apart from the default).
The head is ArcFace-style global depthwise (MobileFaceNet, Chen et al. 2018). Crops are cut by the
ArcFace five-point template, as everywhere in the field (Deng et al., CVPR 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (the first with the stride), with a projected shortcut if needed."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False),
            nn.BatchNorm2d(cout),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride != 1 else nn.Identity(),
                nn.Conv2d(cin, cout, 1, bias=False),
                nn.BatchNorm2d(cout),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W)`` -> ``(N, cout, H / stride, W / stride)``."""
        return torch.relu(self.body(x) + self.shortcut(x))


class IdentityNet(nn.Module):
    """Face crop to identity embedding.

    Args:
        widths: channels at 1/4, 1/8 and 1/16 of the crop side.
        depths: blocks at each of these scales.
        embedding_size: D.
        size: crop side S in pixels, a multiple of 2 ** (scales + 1).

    Raises:
        ValueError: the side cannot be halved that often.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (64, 128, 256),
        depths: tuple[int, ...] = (1, 3, 2),
        embedding_size: int = 256,
        size: int = 112,
    ) -> None:
        super().__init__()
        if size % 2 ** (len(widths) + 1):
            raise ValueError(f"IdentityNet: {size} px cannot be halved {len(widths) + 1} times")
        self.size = size
        self.embedding_size = embedding_size
        channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(12, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                layers.append(ResidualBlock(channels, width, 2 if index == 0 and level > 0 else 1))
                channels = width
        self.encoder = nn.Sequential(*layers)
        side = size // 2 ** (len(widths) + 1)
        # Depthwise over the whole map, so that each place of the face has its own weight.
        self.pool = nn.Sequential(
            nn.Conv2d(channels, 512, 1, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, side, groups=512, bias=False),
            nn.BatchNorm2d(512),
        )
        self.embed = nn.Linear(512, embedding_size)

    def forward(self, crop: Tensor) -> Tensor:
        """Embeddings of aligned faces.

        Args:
            crop: ``(N, 3, S, S)`` float RGB in [0, 1], cut by the ArcFace template.

        Returns:
            ``(N, D)`` float, not normalised; compare by cosine.
        """
        folded = F.pixel_unshuffle(crop * 2 - 1, 2)
        features = self.pool(self.encoder(self.stem(folded)))
        embedding: Tensor = self.embed(torch.flatten(features, 1))
        return embedding
