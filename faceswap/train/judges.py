"""Frozen networks that losses look through: who is it, and where do the eyes look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap import weights
from faceswap.errors import ConfigError, MissingWeightError
from faceswap.models import load_model
from faceswap.models import mesh as layout
from faceswap.ops.constant import constant
from faceswap.train.label import PACK, Recogniser, load_recogniser, load_script
from faceswap.train.losses import heat_maps, identity_loss
from faceswap.train.pairs import look

_PUPILS = (96, 97)  # of the 98 WFLW points
_FAN_SIDE = 256


class IdentityJudge(nn.Module):
    """One or several identity encoders as one.

    Raises:
        ConfigError: several whose embeddings differ in size have no mean.
        MissingWeightError: an encoder that is not here.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        super().__init__()
        try:
            self.encoders: list[Recogniser] = [load_recogniser(name, device) for name in names]
        except MissingWeightError as error:
            raise MissingWeightError(
                f"{error}; or train with the encoder that is always here: "
                "--set encoders=[lite-identity]"
            ) from error
        sizes = []
        for each in self.encoders:
            with torch.no_grad():
                probe = each.model(torch.zeros(1, 3, each.size, each.size, device=device))
            sizes.append(int(probe.shape[1]))
        if len(set(sizes)) > 1:
            said = ", ".join(f"{n}: {s}" for n, s in zip(names, sizes, strict=True))
            raise ConfigError(f"encoders of different embedding sizes have no mean ({said})")
        self.embedding_size = sizes[0]

    def each(self, views: Tensor, points: Tensor) -> list[Tensor]:
        """Embeddings ``(N, D)`` of each encoder; differentiable.

        Args:
            views: ``(N, 3, S, S)`` float in [0, 1].
            points: ``(N, 5, 2)`` view px.
        """
        return [e.model(look(views, points, e.size)).float() for e in self.encoders]

    def distance(self, swapped: Sequence[Tensor], source: Sequence[Tensor]) -> Tensor:
        """`identity_loss`, the mean over encoders."""
        terms = [identity_loss(a, b) for a, b in zip(swapped, source, strict=True)]
        return torch.stack(terms).mean()


def disturbed(
    embedding: Tensor,  # (N, D)
    noise: Tensor,  # (N, D), standard normal
    strength: float,
) -> Tensor:
    """Embeddings with noise of that share of their own root mean square."""
    return embedding + strength * embedding.square().mean(1, keepdim=True).sqrt() * noise


def mean_embedding(embeddings: Sequence[Tensor]) -> Tensor:
    """What the generator gets of several encoders, ``(N, D)``."""
    return torch.stack(list(embeddings)).mean(0)


class EyeJudge:
    """Heat maps of the pupils, and the mesh for gaze.

    A TorchScript FAN (98 WFLW heat maps of a 256 px crop, as AdaptiveWing's, which GHOST used)
    where one is given; otherwise heat maps drawn at the irises the lite landmarks find.
    """

    def __init__(self, fan: str, device: torch.device) -> None:
        self.fan = load_script(Path(fan), device) if fan else None
        self.mesh = load_model(weights.pack(PACK).landmarks, device=device).requires_grad_(False)

    def __call__(self, views: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Heat maps ``(N, 2, h, w)`` and mesh ``(N, 478, 3)`` in the mesh network's crop px.

        Args:
            views: ``(N, 3, S, S)`` float in [0, 1].
            points: ``(N, 5, 2)`` of the target, in view px, for all views of it.
        """
        size: int = self.mesh.size  # type: ignore[assignment]
        crops = look(views, points, size, template=layout.TEMPLATE, margin=layout.MARGIN)
        mesh, _ = self.mesh(crops)
        mesh = mesh.float()
        if self.fan is None:
            return heat_maps((mesh[:, constant((468, 473), mesh.device), :2] + 0.5) / size), mesh
        whole = F.interpolate(views, size=(_FAN_SIDE, _FAN_SIDE), mode="bilinear")
        maps = self.fan(whole)
        maps = maps[-1] if isinstance(maps, (list, tuple)) else maps  # the last stack
        return maps[:, constant(_PUPILS, maps.device)].float(), mesh
