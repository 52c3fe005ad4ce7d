"""IdentityNet: a small face recogniser whose embedding drives the lite swapper.

MobileFaceNet (Chen et al., CCBR 2018): inverted bottlenecks (Sandler et al., CVPR 2018) with PReLU,
and a depthwise convolution over the whole last map, so that each place of the face has its own
weight. Bottlenecks are gated by squeeze and excitation (Hu et al., CVPR 2018). Crops are cut by the
ArcFace five-point template, as everywhere in the field (Deng et al., CVPR 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PReLU(nn.Module):
    """One slope a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> the same."""
        slope = self.slope.to(x.dtype)
        if not self.training:
            return F.prelu(x, slope)
        positive = torch.relu(x)  # the gradient of F.prelu is slow on CPUs
        return positive + slope[:, None, None] * (x - positive)


class Halving(nn.Conv2d):
    """A depthwise convolution of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> ``(N, C, H / 2, W / 2)``."""
        if not self.training:
            return super().forward(x)
        # Every other place of the plain one: the gradient of stride 2 is slow on CPUs.
        return F.conv2d(x, self.weight, None, 1, self.padding, 1, self.groups)[..., ::2, ::2]


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    """Convolution, norm and PReLU; depthwise where the kernel is larger than 1 and widths agree."""
    groups = cin if kernel > 1 and cin == cout else 1
    kind = Halving if groups > 1 and stride == 2 else nn.Conv2d
    return nn.Sequential(
        kind(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
        *([PReLU(cout)] if act else []),
    )


class ChannelGate(nn.Module):
    """Squeeze and excitation: each channel times a number in [0, 1] that the whole map decides."""

    def __init__(self, channels: int, narrowing: int = 8) -> None:
        super().__init__()
        narrow = max(1, channels // narrowing)
        self.squeeze, self.excite = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)
        self.act = PReLU(narrow)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> the same."""
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(self.act(self.squeeze(mean))))


class Bottleneck(nn.Module):
    """Widened, filtered by channel (with the stride), narrowed, gated; added to what came."""

    def __init__(self, cin: int, cout: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = cin * widening
        self.body = nn.Sequential(
            _conv(cin, wide, 1),
            _conv(wide, wide, 3, stride),
            _conv(wide, cout, 1, act=False),
            ChannelGate(cout),
        )
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """``(N, cin, H, W)`` -> ``(N, cout, H / stride, W / stride)``."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


class WholeMap(nn.Module):
    """A depthwise convolution over the whole map."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, side, side))
        nn.init.normal_(self.weight, std=1 / side)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, side, side)`` -> ``(N, C)``."""
        return (x * self.weight).sum((2, 3))


class IdentityNet(nn.Module):
    """Face crop to identity embedding.

    Args:
        widths: channels at 1/4, 1/8 and 1/16 of the crop side; at 1/2 they are the first's.
        depths: blocks at each of these scales; the first block of each halves the side.
        widening: factor on the channels inside a block; twice that where the side is halved, but
            for the first.
        embedding_size: D.
        size: crop side S in pixels, a multiple of 2 ** (scales + 1).

    Raises:
        ValueError: the side cannot be halved that often.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (64, 128, 128),
        depths: tuple[int, ...] = (5, 7, 3),
        widening: int = 3,
        embedding_size: int = 256,
        size: int = 128,
    ) -> None:
        super().__init__()
        if size % 2 ** (len(widths) + 1):
            raise ValueError(f"IdentityNet: {size} px cannot be halved {len(widths) + 1} times")
        self.size = size
        self.embedding_size = embedding_size
        channels = widths[0]
        # Channels and side of the map before the first block, and after each.
        self.bottlenecks = [(channels, size // 2)]
        self.stem = nn.Sequential(_conv(3, channels, 3, 2), _conv(channels, channels, 3))
        blocks: list[nn.Module] = []
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                halving = index == 0
                wider = 2 * widening if halving and level > 0 else widening
                blocks.append(Bottleneck(channels, width, 2 if halving else 1, wider))
                channels = width
                self.bottlenecks.append((width, size // 2 ** (level + 2)))
        self.blocks = nn.ModuleList(blocks)
        side = size // 2 ** (len(widths) + 1)
        self.pool = nn.Sequential(
            _conv(channels, 512, 1),
            WholeMap(512, side),
            nn.BatchNorm1d(512),
        )
        self.embed = nn.Linear(512, embedding_size)
        for module in self.modules():  # so that untrained ones tell faces apart, too
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.embed.bias)

    def forward(self, crop: Tensor) -> Tensor:
        """Embeddings of aligned faces.

        Args:
            crop: ``(N, 3, S, S)`` float RGB in [0, 1], cut by the ArcFace template.

        Returns:
            ``(N, D)`` float, not normalised; compare by cosine.
        """
        features = self.stem(crop * 2 - 1)
        for block in self.blocks:
            features = block(features)
        embedding: Tensor = self.embed(self.pool(features))
        return embedding
