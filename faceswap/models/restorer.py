"""Restorer: gives a soft, noisy or blocky face crop its detail back.

In the manner of HiFaceGAN (Yang et al., "HiFaceGAN: Face Renovation via Collaborative Suppression
and Replenishment", ACM MM 2020), which GHOST sharpened its swaps with, small enough for a CPU: an
encoder **suppresses** what is no face (noise, blocks, ringing) by gates that follow the content,
a decoder **replenishes** detail, modulated at each scale by the suppressed features of that scale.
No code of theirs or of SPADE is in it.

The network works at a quarter of the crop's side and below, folds pixels into channels to get
there (Shi et al., CVPR 2016), and its output is a correction that is added to the input: begun
at zero, it cannot do worse than leaving the crop alone before it has learnt to do better. There
are no norm layers, so a crop's result does not depend on the rest of the batch or on the frame
before.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLD = 4  # the finest features have 1 / FOLD of the crop's side
_SLOPE = 0.1  # of the leaky ReLU


class _Suppress(nn.Module):
    """x + m * body(x): a residual block whose gate m, one number a place, follows the content."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        body = self.second(F.leaky_relu(self.first(x), _SLOPE))
        out: Tensor = x + torch.sigmoid(self.gate(x)) * body
        return out


class _Replenish(nn.Module):
    """Detail of one scale: h * (1 + a(e)) + b(e), then residual blocks; e is the encoder's map."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.modulate = nn.Conv2d(channels, 2 * channels, 1)
        self.blocks = nn.Sequential(*(_Suppress(channels) for _ in range(depth)))

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        scale, shift = self.modulate(encoded).chunk(2, 1)
        out: Tensor = self.blocks(x * (1 + scale) + shift)
        return out


class Restorer(nn.Module):
    """Face crop in, restored face crop out.

    Args:
        widths: channels at 1/4 of the crop's side, 1/8, 1/16 and so on.
        depths: residual blocks of the encoder, and again of the decoder, at each of these; the
            last is the middle, which is passed once.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = (48, 96, 128),
        depths: tuple[int, ...] = (2, 2, 3),
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths or min(*widths, *depths) < 1:
            raise ValueError(
                f"widths {tuple(widths)}, depths {tuple(depths)}: as many of one as of the other, "
                "each at least 1"
            )
        self.stride = FOLD * 2 ** (len(widths) - 1)  # crop px a side of the coarsest feature
        self.stem = nn.Conv2d(3 * FOLD**2, widths[0], 3, padding=1)
        self.suppress = nn.ModuleList(
            nn.Sequential(*(_Suppress(width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.replenish = nn.ModuleList(
            _Replenish(width, depth) for width, depth in zip(widths[:-1], depths[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], 3 * FOLD**2, 3, padding=1)
        self._begin()

    def _begin(self) -> None:
        """He initialisation; blocks begin near the identity, the correction at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Suppress):
                nn.init.zeros_(module.gate.weight)
                with torch.no_grad():
                    module.second.weight.mul_(0.2)
            elif isinstance(module, _Replenish):
                with torch.no_grad():
                    module.modulate.weight.mul_(0.1)
        nn.init.zeros_(self.head.weight)

    def correction(self, crops: Tensor) -> Tensor:
        """What is to be added to crops whose side is a multiple of ``stride``; same shape."""
        x = self.stem(F.pixel_unshuffle(crops * 2 - 1, FOLD))
        encoded = []
        for level, blocks in enumerate(self.suppress):
            x = blocks(x if level == 0 else self.down[level - 1](x))
            encoded.append(x)
        for level in reversed(range(len(self.replenish))):
            x = F.pixel_shuffle(self.up[level](x), 2)
            x = self.replenish[level](x, encoded[level])
        out: Tensor = F.pixel_shuffle(self.head(x), FOLD)
        return out

    def forward(self, crops: Tensor) -> Tensor:
        """The restored crops.

        Args:
            crops: ``(N, 3, H, W)`` float RGB in [0, 1], aligned faces; any size, 128 to 512 px is
                what it is trained and tried for.

        Returns:
            ``(N, 3, H, W)`` float in [0, 1].
        """
        height, width = crops.shape[-2:]
        room = (0, -width % self.stride, 0, -height % self.stride)
        whole = F.pad(crops, room, mode="replicate") if any(room) else crops
        correction = self.correction(whole)[..., :height, :width]
        return (crops + correction.to(crops.dtype)).clamp(0, 1)
