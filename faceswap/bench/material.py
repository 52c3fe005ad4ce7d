"""Pictures and clips to measure with, made on the spot, and networks where weights are absent.

The face is scikit-image's astronaut (NASA, public domain), moved around on a smooth background.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.media.writer import Encoding, VideoWriter
from faceswap.types import VideoInfo

PHOTO = (1080, 1920)  # h, w
HEAD = 0.37  # of the picture's height, side of a pasted head; its face is half as wide
_BATCH = 16  # frames written at a time


def photo(
    faces: int,
    size: tuple[int, int] = PHOTO,  # (h, w)
    *,
    moment: float = 0.0,  # seconds; heads sway with time
) -> Tensor:
    """A picture with so many faces side by side, ``(3, h, w) uint8``."""
    height, width = size
    ramp = torch.linspace(60, 180, width).byte()
    canvas = ramp.expand(3, height, width).clone()
    slot = width // max(faces, 1)
    side = min(round(HEAD * height), int(slot * 0.9))
    for i in range(faces):
        swell = 1 + 0.04 * math.sin(0.9 * moment + i)
        grown = min(round(side * swell), slot, height)
        head = _head(grown if i % 2 == 0 else -grown)
        room_x, room_y = slot - grown, height - grown
        x = i * slot + round(room_x * (0.5 + 0.4 * math.sin(1.1 * moment + 2 * i)))
        y = round(room_y * (0.5 + 0.3 * math.sin(1.7 * moment + i)))
        canvas[:, y : y + grown, x : x + grown] = head
    return canvas


def _head(side: int) -> Tensor:
    """The head ``(3, |side|, |side|) uint8``, mirrored if the side is negative."""
    from skimage import data

    pixels = torch.from_numpy(np.array(data.astronaut()[0:256, 96:352])).permute(2, 0, 1)
    scaled = F.interpolate(
        pixels[None].float(), size=(abs(side), abs(side)), mode="bicubic", antialias=True
    )
    head = scaled[0].clamp(0, 255).byte()
    return head.flip(2) if side < 0 else head


def write_clip(
    path: Path,
    faces: int,
    *,
    size: tuple[int, int] = (720, 1280),  # (h, w)
    frames: int = 375,
    rate: int = 25,
) -> Path:
    """An H.264 clip of swaying heads, as a phone or a download would have it (CRF 20)."""
    base = Fraction(1, rate)
    info = VideoInfo(
        width=size[1],
        height=size[0],
        rate=Fraction(rate),
        time_base=base,
        frames=frames,
        duration=frames / rate,
        color_space="bt709",
        color_range="tv",
    )
    with VideoWriter(path, info, encoding=Encoding(preset="veryfast", crf=20)) as out:
        for first in range(0, frames, _BATCH):
            ticks = list(range(first, min(frames, first + _BATCH)))
            pictures = [photo(faces, size, moment=tick / rate) for tick in ticks]
            out.write(torch.stack(pictures), ticks)
    return path


def rule_made(model: nn.Module) -> nn.Module:
    """Weights by a rule, for timing only: normal, scaled so that activations stay near 1.

    Without it, weights far too small would let activations sink into denormal numbers, which are
    slow, and the figures would not hold for trained weights.
    """
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                spread = (parameter[0].numel()) ** -0.5
                parameter.normal_(0, spread, generator=random)
            elif not bool(parameter.any()):
                parameter.normal_(0, 0.01, generator=random)
    return model.eval()
