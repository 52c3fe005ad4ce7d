"""Sharpening swapped crops: the stage between swap and paste that `--restore` switches on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceswap import weights
from faceswap.config import RestorerConfig
from faceswap.errors import ConfigError, MissingWeightError
from faceswap.models import load_model
from faceswap.models.restorer import Restorer
from faceswap.ops.blend import alpha_blend

_FADE = 0.25  # of `min_size`: over this much more the restorer comes in, so that nothing pops


@dataclass(frozen=True, slots=True)
class FaceRestorer:
    """The network and how much of it is wanted. It sees one crop at a time, and no frame before."""

    network: Restorer
    settings: RestorerConfig

    def share(
        self,
        extent: Tensor,  # (N,) float32, side of each crop in frame px
    ) -> Tensor:
        """Share of the restored crop for each face, ``(N,) float32`` in [0, strength].

        0 where the face is so small in the frame that there is nothing to see, then rising with
        its size: a face that walks towards the camera does not change from one frame to the next.
        """
        least = self.settings.min_size
        if not least:
            return torch.full_like(extent, self.settings.strength)
        return ((extent - least) / (_FADE * least)).clamp(0, 1) * self.settings.strength

    def __call__(
        self,
        crops: Tensor,  # (N, 3, S, S) float in [0, 1]
        extent: Tensor,  # (N,) float32, side of each crop in frame px
        run: Callable[[Callable[[], Tensor]], Tensor],  # how a network is run, for its precision
    ) -> Tensor:
        """Crops with their detail back, same shape; those with a share of 0 are untouched."""
        share = self.share(extent)
        rows = torch.nonzero(share > 0)[:, 0]
        if not len(rows):
            return crops
        soft = crops[rows].contiguous(memory_format=torch.channels_last)
        sharp = run(lambda: self.network(soft)).to(crops.dtype)
        out = crops.clone()
        out[rows] = alpha_blend(crops[rows], sharp, share[rows].to(crops.dtype).view(-1, 1, 1, 1))
        return out


def load_restorer(
    settings: RestorerConfig, pack: weights.Pack, device: torch.device
) -> FaceRestorer | None:
    """The restorer that the settings or the pack name; None where none is wanted.

    Raises:
        ConfigError: the pack has none, or the file holds another kind of network.
        MissingWeightError, WeightError: see `load_model`.
    """
    if not settings.enabled or not settings.strength:
        return None
    name = settings.weights or pack.restorer
    if name is None:
        raise ConfigError(
            f"pack {pack.name} has no face restorer; leave --restore out, or name one with "
            "--set restorer.weights=lite-restorer"
        )
    if name in weights.entries() and not weights.present(name):
        raise MissingWeightError(
            f"restorer {name} is not here ({weights.path_of(weights.entry(name))}); leave "
            "--restore out, or name a file of yours with --set restorer.weights=FILE"
        )
    path = Path(name)
    network = load_model(path if path.suffix == ".safetensors" else name, device=device)
    if not isinstance(network, Restorer):
        raise ConfigError(f"{name}: holds a {type(network).__name__}, which is no restorer")
    return FaceRestorer(network.to(memory_format=torch.channels_last), settings)
