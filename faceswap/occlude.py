"""What lies before the target's face and stays: the stage that keeps glasses, hands, microphones.

The mask of a swap is a hull around the face. What covers a part of the face belongs to the picture,
not to the person, so it is taken out of that mask, and its colours tell nothing about the light on
the skin. The source's own glasses belong to its photo, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap import weights
from faceswap.config import OcclusionConfig
from faceswap.errors import ConfigError, MissingWeightError
from faceswap.models import load_model
from faceswap.models.engine import OcclusionEngine
from faceswap.models.fused import fuse
from faceswap.models.occlusion import OcclusionNet
from faceswap.ops.color import luma
from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.smooth import average, box, gaussian, guided_filter, mean, resized
from faceswap.ops.topology import FACE, MESH_POINTS

_SELDOM = 0.35  # of the frames
_FROM, _TO = 0.45, 0.8  # probabilities at which a pixel begins to stay, and stays altogether
# Radius, px of the network's crop, within which its mask is fitted to the edges of larger pictures.
_REACH = 2
_BESIDE = 0.02  # of the side, how far beside a line skin may be that it is compared with
_SAME, _OTHER = 0.01, 0.04  # difference of brightness up to which it is that skin, and is the line
# Half a window's side, of the crop's, and shares of it that are covered: by a speck, by a stroke.
_AROUND_LINE, _SPECK, _STROKE = 0.1, 0.011, 0.018
_FLAT = 1e-3  # variance of the brightness below which there is no edge to follow
_CELLS, _AROUND = 32, 0.05  # of the face's outline, and how far around it still counts, of the side
# Of the side: half the width of what is thin enough to be filled in, and how far edges blur.
_THIN, _RIM = 0.028, 0.006
_FINEST, _COARSE = 256, 64  # px, sides at which they are found and filled, and colours averaged


@dataclass(frozen=True, slots=True)
class OcclusionMask:
    """The network, on pictures of any side."""

    network: nn.Module | OcclusionEngine

    def __call__(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1], aligned faces
        mesh: Tensor,  # (N, P, 2 or 3) float32, crop px
        run: Callable[[Callable[[], Tensor]], Tensor],  # how a network is run, for its precision
    ) -> Tensor:
        """Share of each pixel that something lies before the face, ``(N, 1, S, S)`` in [0, 1].

        Where there is no face nothing lies before it; landmarks other than the 478 do not tell.
        """
        return self.fit(self.find(target, run), target, mesh)

    @property
    def size(self) -> int:
        """Side of the crops the network looks at."""
        return int(self.network.size)  # type: ignore[arg-type]

    def find(
        self,
        target: Tensor,  # (N, 3, S, S) float in [0, 1], aligned faces
        run: Callable[[Callable[[], Tensor]], Tensor],
    ) -> Tensor:
        """What the network sees, at its own side, ``(N, 1, size, size) float32`` in [0, 1]."""
        small = resized(target, self.size).contiguous(memory_format=torch.channels_last)
        found = run(lambda: self.network(small)).float().sigmoid()
        return ((found - _FROM) / (_TO - _FROM)).clamp(0, 1)

    def fit(
        self,
        covered: Tensor,  # (N, 1, size, size) in [0, 1]
        target: Tensor,  # (N, 3, S, S) float in [0, 1]
        mesh: Tensor,  # (N, P, 2 or 3) float32, crop px
    ) -> Tensor:
        """The mask of these faces at their own side, ``(N, 1, S, S)``.

        What is broad goes along the picture's edges; what is thin stays where it was seen.
        """
        size = target.shape[-1]
        if size <= covered.shape[-1]:
            covered = resized(covered, size)
        else:
            # A rim would fade, and what is dark beside it, such as a brow, would be taken for it.
            grey, broad = luma(target), _grown(1 - _grown(1 - covered, _REACH), _REACH)
            fine = guided_filter(grey, broad, radius=_REACH, flat=_FLAT).clamp(0, 1)
            thin = (covered - broad) * self._stroke(covered, mesh * (covered.shape[-1] / size))
            covered = fine.maximum(_lines(thin, covered, grey))
        return covered * near_face(mesh, size) if mesh.shape[1] == MESH_POINTS else covered

    @staticmethod
    def _stroke(
        covered: Tensor,  # (N, 1, s, s) in [0, 1]
        mesh: Tensor,  # (N, P, 2 or 3) float32, px of the same
    ) -> Tensor:
        """Where so much lies before the face nearby that a thin thing is one, in [0, 1].

        A single speck is a part of the face: the tip of a moustache, the end of a drawn eyelid.
        """
        side = covered.shape[-1]
        around = round(_AROUND_LINE * side)
        if mesh.shape[1] == MESH_POINTS:
            covered = covered * near_face(mesh, side)
        share = box(covered, around, beyond=True)
        return ((share - _SPECK) / (_STROKE - _SPECK)).clamp(0, 1)


def _lines(
    thin: Tensor,  # (N, 1, s, s) in [0, 1], lines about a pixel broader than they are
    covered: Tensor,  # (N, 1, s, s) in [0, 1], all that is covered
    grey: Tensor,  # (N, 1, S, S) float in [0, 1], the target's brightness
) -> Tensor:
    """The same at the target's side, ``(N, 1, S, S)``, without the skin beside them."""
    side, size = thin.shape[-1], grey.shape[-1]
    if thin.device.type == "cpu" and not bool(thin.any()):  # most faces; a GPU need not know
        return thin.new_zeros(grey.shape)
    skin = average(resized(grey, side), 1 - _grown(covered, 1), sigma=_BESIDE, trust=1e-3)
    apart = (grey - resized(skin, size)).abs()
    return resized(thin, size) * ((apart - _SAME) / (_OTHER - _SAME)).clamp(0, 1)


def lasting(
    masks: Tensor,  # (T, ...) in [0, 1], of one face in frames before and after, and in its own
) -> Tensor:
    """What lies before a face for longer than a moment, ``(...)`` in [0, 1].

    A soft median: what is seen in most frames is there in those where it was missed, and what is
    seen in a few (a brow that is blurred by its movement) is not there at all. A hand that comes
    comes at its time.
    """
    return ((masks.mean(0) - _SELDOM) / (1 - 2 * _SELDOM)).clamp(0, 1)


def near_face(
    mesh: Tensor,  # (N, 478, 3) float32, crop px
    size: int,
) -> Tensor:
    """The face and a little around it, ``(N, 1, S, S)`` in [0, 1].

    Beside a face nobody can tell what is drawn there from what is simply there.
    """
    rim = mesh[:, constant(FACE, mesh.device), :2]
    return (outline_distance(rim, _CELLS, size) / (_AROUND * size) + 1).clamp(0, 1)


def without_rims(
    images: Tensor,  # (N, 3, S, S) float in [0, 1]
    covered: Tensor,  # (N, 1, S, S) in [0, 1], what lies before the faces
) -> Tensor:
    """The faces with thin things, such as the rims of glasses, filled in from beside them.

    What is broader (dark lenses, hands) stays: there is nothing to fill it with.
    """
    size = images.shape[-1]
    side = min(size, _FINEST)
    thin, rim = (max(1, round(part * side)) for part in (_THIN, _RIM))
    hidden = (resized(covered, side) > 0.5).float()
    broad = _grown(1 - _grown(1 - hidden, thin), thin + 2 * rim)
    fine = _grown(hidden, rim) * (1 - broad)  # with the edge, where rim and skin mix
    if not bool(fine.any()):  # most photos; asked once a source
        return images
    open_ = 1 - _grown(hidden, rim)
    small = resized(images, side)
    seen = resized(torch.cat([small * open_, open_], 1), _COARSE)
    colour, weight = seen[:, :3] / seen[:, 3:].clamp_min(1e-3), seen[:, 3:]
    far = average(colour, weight, sigma=4 * _THIN, prior=mean(colour, weight), trust=1e-3)
    near = average(small, open_, sigma=0.6 * _THIN, prior=resized(far, side), trust=0.02)
    fine = resized(gaussian(fine, 0.5 * rim), size)
    return torch.lerp(images, resized(near, size), fine.expand_as(images))


def _grown(mask: Tensor, by: int) -> Tensor:
    """The largest value in squares; rows, then columns, which is the same and quicker."""
    side = 2 * by + 1
    return F.max_pool2d(F.max_pool2d(mask, (1, side), 1, (0, by)), (side, 1), 1, (by, 0))


def load_occlusion(
    settings: OcclusionConfig,
    pack: weights.Pack,
    device: torch.device,
    *,
    fast: bool = False,
) -> OcclusionMask | None:
    """The occlusion network that the settings or the pack name; None where none is wanted.

    Args:
        settings: of the stage; where they leave it open, it is on if the pack names a network.
        pack: the pack in use.
        device: where to.
        fast: by onnxruntime.

    Raises:
        ConfigError: the file holds another kind of network.
        MissingWeightError, WeightError: see `load_model`.
    """
    if not (pack.occlusion is not None if settings.enabled is None else settings.enabled):
        return None
    name = settings.weights or pack.occlusion or "lite-occlusion"
    if name in weights.entries() and not weights.present(name):
        raise MissingWeightError(
            f"occlusion network {name} is not here ({weights.path_of(weights.entry(name))}); use "
            "--no-occlusion, or name a file of yours with --set occlusion.weights=FILE"
        )
    path = Path(name)
    network = load_model(path if path.suffix == ".safetensors" else name, device=device)
    if not isinstance(network, OcclusionNet):
        raise ConfigError(f"{name}: holds a {type(network).__name__}, which masks no occlusion")
    if fast:
        return OcclusionMask(OcclusionEngine(network))
    return OcclusionMask(fuse(network))
