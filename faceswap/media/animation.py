"""Animated WebP in, through Pillow: the ffmpeg inside PyAV may not know it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.media.plan import Clip
from faceswap.media.planes import Plane
from faceswap.types import VideoInfo

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError)


def is_webp(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as WebP does."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


class WebpAnimation:
    """The pictures of an animated WebP with their times in milliseconds."""

    origin = 0  # tick at which the animation begins

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[str] = []
        self.truncated = False
        try:
            self._image = PIL.Image.open(path, formats=["WEBP"])
            self._count = int(getattr(self._image, "n_frames", 1))
            first = np.asarray(self._image.convert("RGBA"))
        except _DAMAGE as error:
            raise MediaError(f"{path!r} is damaged or cut short ({error})") from error
        if self._count == 1:
            self._image.close()
            raise MediaError(f"{path!r} is a photo, not an animation; use `faceswap image`")
        try:
            self._image.seek(self._count - 1)
            self._image.load()
            milliseconds = sum(self._times())
        except _DAMAGE:  # found and counted when the picture is read
            milliseconds = 0
        width, height = self._image.size
        rate = Fraction(1000 * self._count, milliseconds) if milliseconds else Fraction(10)
        self.info = VideoInfo(
            width=width,
            height=height,
            rate=rate,
            time_base=Fraction(1, 1000),
            frames=self._count,
            duration=milliseconds / 1000,
            pixel_format="gbrap",
            codec="webp",
            container="webp",
            color_range="pc",
            variable_rate=True,
            alpha=bool((first[..., 3] < 255).any()),
        )

    def _times(self) -> tuple[int, int]:
        info = self._image.info
        return int(info.get("timestamp", 0)), int(info.get("duration", 0))

    def __iter__(self) -> Iterator[tuple[int, Tensor, tuple[Plane, ...]]]:
        for index in range(self._count):
            try:
                self._image.seek(index)
                samples = np.asarray(self._image.convert("RGBA"))
            except _DAMAGE:
                self.truncated = True
                self.problems.append(
                    f"{self.path!r} is damaged: picture {index + 1} of {self._count} and those "
                    "behind it cannot be read"
                )
                return
            red, green, blue, alpha = (samples[..., i].copy() for i in range(4))
            rgb = torch.from_numpy(np.stack([red, green, blue]))
            yield self._times()[0], rgb, (green, blue, red, alpha)

    def clip(self) -> Clip:
        """What lies beside the pictures: nothing."""
        return Clip(self.path)

    def seek(self, tick: int) -> None:
        """Nothing to do: pictures build on each other, so reading starts at the first."""

    def close(self) -> None:
        """Close the file."""
        self._image.close()
