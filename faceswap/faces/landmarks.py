"""Dense landmarks of faces, batched over all faces of all frames.

A landmarker is any call ``(frames, faces) -> (N, P, 3) float32`` in frame pixels; z is in the same
scale, smaller is nearer, and its origin is the face's mean (0 where a network knows no depth).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from faceswap.models.engine import MeshEngine
from faceswap.models.mesh import MARGIN, TEMPLATE
from faceswap.ops.geometry import align
from faceswap.types import Faces, Pictures

BATCH = 32  # faces a forward pass; bounds memory


class Landmarker(Protocol):
    """Anything that finds dense landmarks."""

    def __call__(self, frames: Pictures, faces: Faces) -> Tensor:
        """Points ``(N, P, 3)`` in frame pixels of faces in ``(B, 3, H, W) uint8`` frames.

        The frames may also be B pictures ``(3, H, W)`` of different sizes.
        """
        ...


class MeshLandmarker:
    """MeshNet: 478 points in the MediaPipe FaceMesh topology.

    Args:
        model: a `faceswap.models.mesh.MeshNet`, or the engine of one.
        refinements: how often the crop is cut again by the points just found; the second look
            does not depend on how well the detector placed its five points.
    """

    def __init__(self, model: nn.Module | MeshEngine, *, refinements: int = 1) -> None:
        self.model: Any = model
        self.refinements = refinements

    @torch.no_grad()
    def __call__(
        self,
        frames: Pictures,  # (B, 3, H, W) uint8 RGB, or B of (3, H, W)
        faces: Faces,  # N faces
    ) -> Tensor:
        """Points ``(N, 478, 3) float32`` in frame pixels."""
        from faceswap.ops.topology import five_points

        points = self._look(frames, faces.frame, faces.points)
        for _ in range(self.refinements):
            points = self._look(frames, faces.frame, five_points(points).contiguous())
        return points

    def _look(self, frames: Pictures, frame: Tensor, five: Tensor) -> Tensor:
        alignment = align(five, self.model.size, template=TEMPLATE, margin=MARGIN)
        crops = alignment.crop(frames, frame)
        if not len(crops):
            return torch.zeros(0, 478, 3, device=five.device)
        found = torch.cat([self.model(part)[0].float() for part in crops.split(BATCH)])
        xy = alignment.inverse_points(found[..., :2])
        return torch.cat([xy, found[..., 2:] / alignment.scale[:, None, None]], -1)


class Insight106Landmarker:
    """insightface's 2d106det (ghost packs), as GHOST calls it.

    Args:
        path: the ONNX file.
    """

    SIDE = 192  # px, input of the network

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(
            str(path), providers=onnxruntime.get_available_providers()
        )
        entry = self.session.get_inputs()[0]
        self.input = entry.name
        # Some exports are for a batch of one, the one of insightface's packs takes any.
        self.batch = entry.shape[0] if isinstance(entry.shape[0], int) else BATCH

    def __call__(
        self,
        frames: Pictures,  # (B, 3, H, W) uint8 RGB, or B of (3, H, W)
        faces: Faces,  # N faces
    ) -> Tensor:
        """Points ``(N, 106, 3) float32`` in frame pixels; z is 0.

        The crop is GHOST's: the 224 px swap crop, scaled by 0.5714 and shifted by 32 px into
        192 px (a view about 1.5 times as wide). Output is in [-1, 1].
        """
        if not len(faces):
            return torch.zeros(0, 106, 3, device=faces.points.device)
        alignment = align(faces.points, self.SIDE, template="ghost", margin=1.5)
        crops = alignment.crop(frames, faces.frame).cpu().numpy() * np.float32(255)
        parts = [crops[i : i + self.batch] for i in range(0, len(crops), self.batch)]
        found = [self.session.run(None, {self.input: part})[0] for part in parts]
        points = torch.from_numpy(np.concatenate(found).reshape(len(faces), 106, 2))
        points = (points.to(faces.points.device) + 1) * (self.SIDE / 2)
        xy = alignment.inverse_points(points)
        return torch.cat([xy, torch.zeros_like(xy[..., :1])], -1)
