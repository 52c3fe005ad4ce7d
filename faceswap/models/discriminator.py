"""The critic of the adversarial loss: is this patch of this picture a photo?

Multi-scale patch discriminator of pix2pixHD (Wang et al., CVPR 2018) with GHOST's settings:
three scales, five layers, instance norm, no sigmoid (hinge loss). Keys and shapes are those of
the published ``D_*.pth`` files.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models.attributes import scaled

SLOPE = 0.2  # of every leaky ReLU


def _scale(layers: int, width: float) -> nn.Sequential:
    """The discriminator of one scale: ``layers`` halvings, then two convolutions of stride 1."""
    channels = [scaled(min(64 << i, 512), width) for i in range(layers)]
    channels.append(channels[-1])
    parts: list[nn.Module] = [
        nn.Conv2d(3, channels[0], 4, stride=2, padding=2),
        nn.LeakyReLU(SLOPE),
    ]
    for i in range(1, layers + 1):
        stride = 2 if i < layers else 1
        parts += [
            nn.Conv2d(channels[i - 1], channels[i], 4, stride=stride, padding=2),
            nn.InstanceNorm2d(channels[i], affine=False),
            nn.LeakyReLU(SLOPE),
        ]
    parts.append(nn.Conv2d(channels[-1], 1, 4, padding=2))
    return nn.Sequential(*parts)


class MultiscaleDiscriminator(nn.Module):
    """One patch discriminator on the picture, its half, its quarter ...

    Args:
        layers: halvings in each scale.
        scales: how many sizes of the picture are judged.
        width: factor on the inner channels.
    """

    def __init__(self, layers: int = 5, scales: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        self.scales = scales
        for i in range(scales):
            self.add_module(f"layer{i}", _scale(layers, width))

    def forward(
        self,
        images: Tensor,  # (N, 3, S, S) float in [0, 1] RGB
    ) -> tuple[Tensor, ...]:
        """Logits of each scale, full size first, ``(N, 1, h, w)``; positive means real."""
        x = images * 2 - 1
        logits: list[Tensor] = []
        for i in reversed(range(self.scales)):  # the last one judges the full size, as in GHOST
            logits.append(getattr(self, f"layer{i}")(x))
            if i:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return tuple(logits)
