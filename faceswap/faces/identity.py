"""Identity embeddings of faces, and how alike two people are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.ops.geometry import align
from faceswap.types import Faces, Pictures

BATCH = 32  # faces a forward pass; bounds memory
DEFAULT_SIDE = 112  # px, of ArcFace crops


class IdentityEncoder:
    """A recogniser together with the crop it expects (ArcFace's five-point template as a rule).

    Args:
        model: ``(n, 3, S, S)`` RGB in [0, 1] -> ``(n, D)``; its attribute ``size`` is S.
        template: pose template of the crops it was trained on, a key of `ops.geometry.TEMPLATES`.
        size: S, in place of the model's.
        mirrored: look at the mirror image too, and give the sum of both unit embeddings (usual in
            the field where recognisers are compared); twice the time, surer with small networks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        template: str = "arcface",
        size: int | None = None,
        mirrored: bool = False,
    ) -> None:
        self.model = model
        self.template = template
        self.mirrored = mirrored
        self.size = size or int(getattr(model, "size", DEFAULT_SIDE))

    @torch.no_grad()
    def __call__(
        self,
        frames: Pictures,  # (B, 3, H, W) uint8 RGB, or B of (3, H, W)
        faces: Faces,  # N faces
    ) -> Tensor:
        """Raw embeddings ``(N, D) float32``, row i of face i; compare them by cosine."""
        crops = align(faces.points, self.size, template=self.template).crop(frames, faces.frame)
        return self.embed(crops)

    @torch.no_grad()
    def embed(
        self,
        crops: Tensor,  # (N, 3, S, S) float RGB in [0, 1], cut by `template`
    ) -> Tensor:
        """Raw embeddings of crops, ``(N, D) float32``."""
        if not len(crops):
            probe = self.model(torch.zeros(1, 3, self.size, self.size, device=crops.device))
            return torch.zeros(0, probe.shape[1], device=crops.device)
        return torch.cat([self._embed(part) for part in crops.split(BATCH)])

    def _embed(self, crops: Tensor) -> Tensor:
        found: Tensor = self.model(crops).float()
        if not self.mirrored:
            return found
        return F.normalize(found) + F.normalize(self.model(crops.flip(3)).float())


def similarity(
    a: Tensor,  # (N, D) float32 embeddings
    b: Tensor,  # (K, D) float32 embeddings
) -> Tensor:
    """Cosine of every pair, ``(N, K)`` in [-1, 1]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
