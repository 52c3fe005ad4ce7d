"""IdentityNet: a small face recogniser whose embedding drives the lite swapper.

A residual network in the manner of ArcFace's IResNet (batch norm first, PReLU), thinner and with
bottleneck blocks, trained by this project (`configs/lite_identity.yaml`). Crops are cut by the
ArcFace five-point template, as everywhere in the field (Deng et al., CVPR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Pre-normalised bottleneck: 1x1, 3x3 (stride), 1x1, with a projected shortcut if needed."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        mid = cout // 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.Conv2d(cin, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.PReLU(mid),
            nn.Conv2d(mid, mid, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(mid),
            nn.PReLU(mid),
            nn.Conv2d(mid, cout, 1, bias=False),
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
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


class IdentityNet(nn.Module):
    """Face crop to identity embedding.

    Args:
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the crop side.
        depths: blocks at each of these scales.
        embedding_size: D.
        size: crop side S in pixels.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (32, 96, 192, 320),
        depths: tuple[int, ...] = (1, 3, 6, 3),
        embedding_size: int = 256,
        size: int = 112,
    ) -> None:
        super().__init__()
        self.size = size
        self.embedding_size = embedding_size
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        ]
        channels = widths[0]
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if index == 0 and level > 0 else 1
                layers.append(_Block(channels, width, stride))
                channels = width
        self.encoder = nn.Sequential(*layers)
        side = size // 2 ** len(widths)
        # Depthwise over the whole map, so that each place of the face has its own weight.
        self.pool = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            nn.Conv2d(channels, 512, 1, bias=False),
            nn.BatchNorm2d(512),
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
        features = self.pool(self.encoder(crop * 2 - 1))
        embedding: Tensor = self.embed(torch.flatten(features, 1))
        return embedding
