"""Where one shot ends and the next begins."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SIZE = (18, 32)  # (h, w) of the pictures that are compared
_LEAST = 0.10  # mean difference of two pictures, of full range, that can be a cut
_AHEAD = 3.0  # times the usual difference of late, or it is only a fast pan
_RECENT = 8  # differences that "of late" means


class Shots:
    """Cuts of a clip, fed in batches; remembers the last frame and the latest differences."""

    def __init__(self) -> None:
        self._last: Tensor | None = None  # (3, h, w) float32 in [0, 1]
        self._recent: list[float] = []

    def cuts(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8
    ) -> list[bool]:
        """For each frame, whether a new shot begins with it."""
        out = []
        for small in thumbnails(frames):
            difference = 0.0 if self._last is None else float((small - self._last).abs().mean())
            usual = sorted(self._recent)[len(self._recent) // 2] if self._recent else 0.0
            cut = difference > max(_LEAST, _AHEAD * usual)
            out.append(cut)
            if cut:
                self._recent = []
            elif self._last is not None:
                self._recent = [*self._recent, difference][-_RECENT:]
            self._last = small
        return out

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"last": self._last, "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._last, self._recent = state["last"], state["recent"]


def thumbnails(
    frames: Tensor,  # (B, 3, H, W) uint8
) -> Tensor:
    """Tiny pictures ``(B, 3, 18, 32) float32`` in [0, 1], on the CPU."""
    # Every fourth pixel is enough to average, and a quarter of the work each way.
    step = max(1, min(frames.shape[2] // (4 * _SIZE[0]), frames.shape[3] // (4 * _SIZE[1])))
    coarse = frames[:, :, ::step, ::step].float()
    return F.interpolate(coarse, size=_SIZE, mode="area").div_(255).cpu()


def is_cut(a: Tensor, b: Tensor) -> bool:
    """Whether two thumbnails, of frames far apart, are likely of different shots."""
    return bool(torch.as_tensor((a - b).abs().mean() > _LEAST))
