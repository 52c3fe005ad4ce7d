"""Attribute encoders: what of the target picture stays (pose, light, expression, background).

Each encoder turns the target crop into L = log2(S) attribute maps, coarse (2x2) to fine (SxS),
and promises their channels in ``.channels``. State-dict names of unet, linknet and resnet are
those of the published GHOST files; at size 256 and width 1.0 so are all shapes.

Smaller crops drop the coarse levels that no longer fit, larger ones add coarse levels; the
bottleneck is always 2x2 and level k from the fine end always has the same channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EncoderKind = Literal["unet", "linknet", "resnet", "fpn"]
SIZES = (32, 64, 128, 256, 512)  # crop sides, px
SLOPE = 0.1  # of every leaky ReLU


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, in steps of 8 and at least 8 (1.0 changes nothing)."""
    return max(8, 8 * round(channels * width / 8))


def upsample(maps: Tensor) -> Tensor:
    """Twice the side, bilinear with aligned corners as GHOST does, ``(N,C,H,W) -> (N,C,2H,2W)``."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def initialise(module: nn.Module) -> None:
    """GHOST's initial weights: Xavier normal convolutions, linear layers almost zero."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.xavier_normal_(module.weight)


def _halve(cin: int, cout: int) -> nn.Sequential:
    """Convolution, batch norm, leaky ReLU: ``(N,cin,H,W) -> (N,cout,H/2,W/2)``."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(cout),
        nn.LeakyReLU(SLOPE),
    )


def _ladder(size: int, width: float) -> list[int]:
    """Output channels of the L-1 halving convolutions, fine to coarse: 32, 64 ... 1024, 1024."""
    levels = size.bit_length() - 1
    return [scaled(min(32 << i, 1024), width) for i in range(levels - 1)]


class Deconv(nn.Module):
    """One step up: transposed convolution, batch norm, leaky ReLU."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(cin, cout, 4, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.lrelu = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """``(N,cin,H,W) -> (N,cout,2H,2W)``."""
        y: Tensor = self.lrelu(self.bn(self.deconv(x)))
        return y


class SkipEncoder(nn.Module):
    """Hourglass whose skips are concatenated (unet) or added (linknet).

    GHOST's main encoder. The finest map is the second finest enlarged, as in the original.
    """

    def __init__(
        self,
        join: Literal["concatenate", "add"],
        size: int = 256,
        *,
        width: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.concatenate = join == "concatenate"
        down = _ladder(size, width)
        for i, (cin, cout) in enumerate(zip([in_channels, *down], down, strict=False), 1):
            self.add_module(f"conv{i}", _halve(cin, cout))
        channels = [down[-1]]
        for i, cout in enumerate(reversed(down[:-1]), 1):
            self.add_module(f"deconv{i}", Deconv(channels[-1], cout))
            channels.append(2 * cout if self.concatenate else cout)
        self.depth = len(down)
        self.channels = (*channels, channels[-1])  # L numbers, coarse to fine
        self.apply(initialise)

    def forward(
        self,
        x: Tensor,  # (N, 3, S, S) in [-1, 1]
    ) -> tuple[Tensor, ...]:
        """L maps ``(N, channels[k], 2**(k+1), 2**(k+1))``, coarse to fine."""
        maps = self.distinct(x)
        return (*maps, upsample(maps[-1]))

    def distinct(
        self,
        x: Tensor,  # (N, 3, S, S) in [-1, 1]
    ) -> tuple[Tensor, ...]:
        """The same without the finest map, which is the second finest enlarged."""
        skips: list[Tensor] = []
        for i in range(1, self.depth + 1):
            x = getattr(self, f"conv{i}")(x)
            skips.append(x)
        maps = [skips.pop()]
        for i in range(1, self.depth):
            up = getattr(self, f"deconv{i}")(maps[-1])
            skip = skips.pop()
            maps.append(torch.cat((up, skip), 1) if self.concatenate else up + skip)
        return tuple(maps)


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3, 1x1 of He et al. 2015 (stride in the first 1x1, as there)."""

    def __init__(self, cin: int, planes: int, *, stride: int) -> None:
        super().__init__()
        cout = 4 * planes
        self.conv1 = nn.Conv2d(cin, planes, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N,cin,H,W) -> (N,4*planes,H/stride,W/stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNetEncoder(nn.Module):
    """The way down of a ResNet, every level an attribute map; there is no way up."""

    def __init__(self, size: int = 256, *, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        stages = size.bit_length() - 3
        stem = scaled(64, width)
        self.conv0 = nn.Conv2d(in_channels, stem, 7, padding=3, bias=False)
        self.bn0 = nn.BatchNorm2d(stem)
        self.conv1 = nn.Conv2d(stem, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = [stem, stem]
        for i in range(1, stages + 1):
            # 32, 64, 128, 256, 512, 256 at size 256: the last stage halves instead of doubling
            planes = scaled(256 if i > 5 else 32 << (i - 1), width)
            stage = [
                Bottleneck(channels[-1], planes, stride=2),
                Bottleneck(4 * planes, planes, stride=1),
            ]
            self.add_module(f"layer{i}", nn.Sequential(*stage))
            channels.append(4 * planes)
        self.stages = stages
        self.channels = tuple(reversed(channels))  # L numbers, coarse to fine
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        x: Tensor,  # (N, 3, S, S) in [-1, 1]
    ) -> tuple[Tensor, ...]:
        """L maps ``(N, channels[k], 2**(k+1), 2**(k+1))``, coarse to fine."""
        maps = [F.relu(self.bn0(self.conv0(x)))]  # the finest map, after its ReLU (golden test)
        maps.append(F.relu(self.bn1(self.conv1(maps[-1]))))
        for i in range(1, self.stages + 1):
            maps.append(getattr(self, f"layer{i}")(maps[-1]))
        return tuple(reversed(maps))


class PyramidEncoder(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): every level sees the whole context below it.

    Bottom-up: the halving convolutions of the unet encoder. Top-down: at each level a lateral
    1x1 convolution brings the bottom-up map to the pyramid's one width, the coarser pyramid map
    is enlarged (bilinear) and added. A 3x3 convolution, batch norm and leaky ReLU then smooth
    the sum (against the aliasing of the enlargement) into the level's attribute map, with the
    channels of linknet, so that the generator has linknet's size. The finest map is the second
    finest enlarged, as in unet. GHOST's authors tried an FPN and published none; this is ours.
    """

    def __init__(self, size: int = 256, *, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        pyramid = scaled(256, width)
        down = _ladder(size, width)
        for i, (cin, cout) in enumerate(zip([in_channels, *down], down, strict=False), 1):
            self.add_module(f"conv{i}", _halve(cin, cout))
            self.add_module(f"lateral{i}", nn.Conv2d(cout, pyramid, 1))
            smooth = nn.Conv2d(pyramid, cout, 3, padding=1, bias=False)
            self.add_module(
                f"smooth{i}",
                nn.Sequential(smooth, nn.BatchNorm2d(cout), nn.LeakyReLU(SLOPE)),
            )
        self.depth = len(down)
        self.channels = (*reversed(down), down[0])  # L numbers, coarse to fine
        self.apply(initialise)

    def forward(
        self,
        x: Tensor,  # (N, 3, S, S) in [-1, 1]
    ) -> tuple[Tensor, ...]:
        """L maps ``(N, channels[k], 2**(k+1), 2**(k+1))``, coarse to fine."""
        maps = self.distinct(x)
        return (*maps, upsample(maps[-1]))

    def distinct(
        self,
        x: Tensor,  # (N, 3, S, S) in [-1, 1]
    ) -> tuple[Tensor, ...]:
        """The same without the finest map, which is the second finest enlarged."""
        laterals: list[Tensor] = []
        for i in range(1, self.depth + 1):
            x = getattr(self, f"conv{i}")(x)
            laterals.append(getattr(self, f"lateral{i}")(x))
        pyramid = laterals[-1]
        maps = [getattr(self, f"smooth{self.depth}")(pyramid)]
        for i in range(self.depth - 1, 0, -1):
            pyramid = upsample(pyramid) + laterals[i - 1]
            maps.append(getattr(self, f"smooth{i}")(pyramid))
        return tuple(maps)


def make_encoder(
    kind: EncoderKind, size: int = 256, *, width: float = 1.0, in_channels: int = 3
) -> SkipEncoder | ResNetEncoder | PyramidEncoder:
    """A new encoder of that kind for crops of side ``size`` (one of `SIZES`)."""
    if size not in SIZES:
        raise ValueError(f"size: expected one of {SIZES}, got {size}")
    if kind == "unet":
        return SkipEncoder("concatenate", size, width=width, in_channels=in_channels)
    if kind == "linknet":
        return SkipEncoder("add", size, width=width, in_channels=in_channels)
    if kind == "resnet":
        return ResNetEncoder(size, width=width, in_channels=in_channels)
    if kind == "fpn":
        return PyramidEncoder(size, width=width, in_channels=in_channels)
    raise ValueError(f"attribute_encoder: expected unet, linknet, resnet or fpn, got {kind!r}")
