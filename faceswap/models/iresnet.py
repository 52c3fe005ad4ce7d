"""ArcFace's improved ResNet, which tells who somebody is (GHOST's identity encoder).

Deng et al., "ArcFace", CVPR 2019, and Duta et al., "Improved Residual Networks", 2020. The
default is iresnet100 with exactly the keys and shapes of the published ``backbone.pth``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.attributes import scaled

INPUT_SIZE = 112  # px, side of the crop the network was made for


class Block(nn.Module):
    """Residual block: norm, convolution, norm, PReLU, convolution with stride, norm."""

    def __init__(self, cin: int, cout: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N,cin,H,W) -> (N,cout,H/stride,W/stride)``."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out: Tensor = self.bn3(self.conv2(y)) + self.downsample(x)
        return out


class IResNet(nn.Module):
    """Aligned face -> identity embedding.

    Args:
        layers: blocks in each of the four stages; (3, 13, 30, 3) is iresnet100.
        embedding_size: D of the embedding.
        width: factor on the inner channels.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 13, 30, 3),
        *,
        embedding_size: int = 512,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        stem = scaled(64, width)
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        cin = stem
        for i, (count, channels) in enumerate(zip(layers, (64, 128, 256, 512), strict=True), 1):
            cout = scaled(channels, width)
            blocks = [Block(cin, cout, stride=2)]
            blocks += [Block(cout, cout, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            cin = cout
        self.bn2 = nn.BatchNorm2d(cin)
        self.fc = nn.Linear(cin * (INPUT_SIZE // 16) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad_(False)  # as ArcFace trains it: the scale stays 1

    def forward(
        self,
        images: Tensor,  # (N, 3, S, S) float in [0, 1] RGB, aligned to the ArcFace template
    ) -> Tensor:
        """Raw embeddings ``(N, D)`` float32, not normalised: what GHOST's generator wants.

        Crops of another side than 112 are resized as GHOST does (bilinear, aligned corners).
        """
        if images.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            side = (INPUT_SIZE, INPUT_SIZE)
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=True)
        x = (images * 2 - 1).to(self.conv1.weight.dtype)
        x = self.prelu(self.bn1(self.conv1(x)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        embedding: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return embedding.float()
