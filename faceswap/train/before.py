"""What lies before faces in training, as in the pipeline: it stays, and tells nothing of skin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.errors import ConfigError
from faceswap.models import load_model
from faceswap.models.occlusion import OcclusionNet
from faceswap.occlude import OcclusionMask, without_rims
from faceswap.train.config import SwapperConfig
from faceswap.train.task import autocast


@dataclass(frozen=True, slots=True)
class Before:
    """What finds the things that lie before faces, if the teachers name it."""

    mask: OcclusionMask | None
    precision: str
    device: torch.device

    @classmethod
    def of(cls, config: SwapperConfig, device: torch.device) -> Before:
        """By the network that ``teachers.occlusion`` names.

        Raises:
            ConfigError: it is another kind of network.
            MissingWeightError, WeightError: see `load_model`.
        """
        name, mask = config.teachers.occlusion, None
        if name is not None:
            network = load_model(name, device=device)
            if not isinstance(network, OcclusionNet):
                raise ConfigError(
                    f"teachers.occlusion: {name} is a {type(network).__name__}; name an occlusion "
                    "network, such as lite-occlusion, or leave it out"
                )
            mask = OcclusionMask(network)
        return cls(mask, config.precision, device)

    @torch.no_grad()
    def clear(
        self,
        source: Tensor,  # (n, 3, S, S) float in [0, 1]
        source_mesh: Tensor,  # (n, 478, 3) float32
        target: Tensor,  # (n, 3, S, S) float in [0, 1]
        target_mesh: Tensor,  # (n, 478, 3) float32
    ) -> tuple[Tensor, Tensor | None]:
        """The sources without rims, and what lies before the targets ``(n, 1, S, S)``."""
        if self.mask is None:
            return source, None
        images, mesh = torch.cat([source, target]), torch.cat([source_mesh, target_mesh])
        hidden, covered = self.mask(images, mesh, self._run).chunk(2)
        return without_rims(source, hidden), covered

    def _run(self, call: Callable[[], Tensor]) -> Tensor:
        with autocast(self.precision, self.device):
            return call()


def behind(face: Tensor, target: Tensor, covered: Tensor | None) -> Tensor:
    """The face behind what lies before the target's, as the pipeline pastes it."""
    return face if covered is None else torch.lerp(face, target, covered)
