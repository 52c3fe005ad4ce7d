"""Labels of training photos: which face is meant, its dense points, who it is.

Labels come from teachers (TorchScript files) where they are given, otherwise from the lite pack's
own networks. Photos differ in size, so everything here takes a list of them, one face each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from faceswap import weights
from faceswap.errors import ConfigError
from faceswap.faces.identity import BATCH, DEFAULT_SIDE
from faceswap.models import load_model
from faceswap.models import mesh as layout
from faceswap.ops.geometry import Alignment, align
from faceswap.ops.topology import SURFACE, five_points
from faceswap.train.data import cut
from faceswap.train.script import OpenScript
from faceswap.types import Faces

PACK = "lite"
_CONTOUR = 1.5  # side of facemesh's crop, in longer sides of the face's box
_FINE = 0.5  # scale of a crop from which on bilinear sampling leaves nothing out
_EYE = 2.3  # side of the iris crop, in eye widths


def main_face(faces: Faces, height: int, width: int) -> int | None:
    """Row of the face a portrait is of: sure, large and in the middle; None without a face.

    A photo set's label means the person in the middle; whoever else is in the picture is cut.
    """
    if not len(faces):
        return None
    middle = (faces.box[:, :2] + faces.box[:, 2:]) / 2 / faces.box.new_tensor([width, height])
    off = (middle - 0.5).norm(dim=1)
    share = (faces.box[:, 2:] - faces.box[:, :2]).clamp_min(0).prod(1).sqrt() / width
    return int((faces.score + 1.5 * share - 2 * off).argmax())


class MeshLabeler(Protocol):
    """Anything that finds 478 points of one face in each photo."""

    def __call__(self, photos: Sequence[Tensor] | Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points ``(N, 478, 3)`` in photo pixels, presence logits ``(N,)``.

        Args:
            photos: N times ``(3, H, W) uint8``, in one tensor where they are of one size.
            points: ``(N, 5, 2)`` the detector's points.
        """
        ...


def cut_each(photos: Sequence[Tensor] | Tensor, alignment: Alignment) -> Tensor:
    """Crop i out of photo i, ``(N, 3, S, S)`` float in [0, 1]; of one tensor all at once."""
    square = isinstance(photos, Tensor) and photos.shape[-1] == photos.shape[-2]
    if isinstance(photos, Tensor) and square and bool((alignment.scale >= _FINE).all()):
        return cut(photos, alignment.matrix, alignment.size)
    first = torch.zeros(1, dtype=torch.int64)
    rows = torch.arange(len(photos), device=alignment.matrix.device)
    crops = [alignment[rows[i : i + 1]].crop(photo[None], first) for i, photo in enumerate(photos)]
    return torch.cat(crops)


def to_photo(points: Tensor, alignment: Alignment) -> Tensor:
    """Points ``(N, P, 3)`` from crop to photo pixels; z by the scale of the crop."""
    xy = alignment.inverse_points(points[..., :2].contiguous())
    return torch.cat([xy, points[..., 2:] / alignment.scale[:, None, None]], -1)


class PackLabeler:
    """MeshNet of the pack, or of a file; the second look is cut by the points of the first."""

    def __init__(self, device: torch.device, landmarks: str | None = None) -> None:
        self.net = load_model(landmarks or weights.pack(PACK).landmarks, device=device)

    @torch.no_grad()
    def __call__(self, photos: Sequence[Tensor] | Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `MeshLabeler`."""
        mesh, presence = self._look(photos, points)
        return self._look(photos, five_points(mesh))[0], presence

    def _look(self, photos: Sequence[Tensor] | Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        size: int = self.net.size  # type: ignore[assignment]
        alignment = align(points, size, template=layout.TEMPLATE, margin=layout.MARGIN)
        found, presence = self.net(cut_each(photos, alignment))
        return to_photo(found, alignment), presence


class TeacherLabeler:
    """MediaPipe's FaceMesh and Iris networks as TorchScript, each on the crop it was made for.

    Args:
        facemesh: ``(N, 3, 192, 192)`` -> ``(N, 468, 3)`` points in crop px, presence logits.
        iris: ``(N, 3, 64, 64)`` -> eye contour, ``(N, 5, 3)`` iris in crop px, of a right-hand
            eye as seen in the picture.
    """

    def __init__(self, facemesh: nn.Module, iris: nn.Module) -> None:
        self.facemesh, self.iris = facemesh, iris

    @torch.no_grad()
    def __call__(self, photos: Sequence[Tensor] | Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `MeshLabeler`."""
        rough = align(points, 192, template="ghost_frontal", margin=1.45)
        mesh = to_photo(self.facemesh(cut_each(photos, rough))[0], rough)
        fine = _around(mesh)
        found, presence = self.facemesh(cut_each(photos, fine))
        mesh = to_photo(found, fine)
        left = self._look(photos, mesh[:, 33], mesh[:, 133], mirrored=True)
        right = self._look(photos, mesh[:, 362], mesh[:, 263], mirrored=False)
        return torch.cat([mesh, left, right], 1), presence.reshape(-1)

    def _look(
        self, photos: Sequence[Tensor] | Tensor, begin: Tensor, end: Tensor, *, mirrored: bool
    ) -> Tensor:
        """Iris of the eye between two corners (left and right in the picture), photo px."""
        across = end[:, :2] - begin[:, :2]
        middle = (begin[:, :2] + end[:, :2]) / 2
        alignment = _square(middle, across, _EYE * across.norm(dim=1), 64)
        crops = cut_each(photos, alignment)
        points = self.iris(crops.flip(3) if mirrored else crops)[1].clone()
        if mirrored:
            points[..., 0] = 63 - points[..., 0]
        return to_photo(points, alignment)


def _around(mesh: Tensor) -> Alignment:
    """The upright square crop FaceMesh was trained on, by the points just found."""
    across = mesh[:, 263, :2] - mesh[:, 33, :2]
    unit = across / across.norm(dim=1, keepdim=True)
    turn = torch.stack([unit, torch.stack([-unit[:, 1], unit[:, 0]], 1)], 1)  # (N, 2, 2)
    level = mesh[:, :SURFACE, :2] @ turn.mT
    low, high = level.amin(1), level.amax(1)
    middle = ((low + high) / 2)[:, None] @ turn
    return _square(middle[:, 0], across, _CONTOUR * (high - low).amax(1), 192)


def _square(middle: Tensor, across: Tensor, side: Tensor, size: int) -> Alignment:
    """Square crops about points, turned so that a direction becomes horizontal.

    Args:
        middle: ``(N, 2)`` photo px.
        across: ``(N, 2)`` direction.
        side: ``(N,)`` photo px.
        size: crop side.
    """
    unit = across / across.norm(dim=1, keepdim=True).clamp_min(1e-6)
    turn = torch.stack([unit, torch.stack([-unit[:, 1], unit[:, 0]], 1)], 1)
    linear = turn * (size / side.clamp_min(1.0))[:, None, None]
    shift = (size - 1) / 2 - linear @ middle[..., None]
    return Alignment(torch.cat([linear, shift], 2), size)


@dataclass(frozen=True, slots=True)
class Recogniser:
    """An identity encoder and the side of its ArcFace crop."""

    model: nn.Module
    size: int

    @torch.no_grad()
    def __call__(self, crops: Tensor) -> Tensor:
        """``(N, 3, S, S)`` in [0, 1] -> ``(N, D) float32``."""
        return torch.cat([self.model(part).float() for part in crops.split(BATCH)])


def load_script(path: Path, device: torch.device) -> nn.Module:
    """A frozen TorchScript network.

    Raises:
        ConfigError: no such file, or not TorchScript.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such TorchScript file")
    try:
        network: nn.Module = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise ConfigError(f"{path}: not a TorchScript file") from error
    for parameter in network.parameters():  # a ScriptModule has no requires_grad_ of its own
        parameter.requires_grad = False
    return network.eval()


def load_recogniser(
    path_or_name: str, device: torch.device, dtype: torch.dtype | None = None
) -> Recogniser:
    """An identity encoder: a TorchScript file, one of our weight files, or a name.

    The crop side of a TorchScript network is found by trying 112 and 128. Where a ``dtype`` is
    given, it is rebuilt in that precision if it can be (`OpenScript`), which is several times as
    fast on a CPU.

    Raises:
        ConfigError: no such file, or it takes neither side.
        WeightError: see `load_model`.
    """
    if not path_or_name.endswith(".ts"):
        model = load_model(path_or_name, device=device).requires_grad_(False)
        return Recogniser(model, int(getattr(model, "size", DEFAULT_SIDE)))
    model = load_script(Path(path_or_name), device)
    for size in (DEFAULT_SIDE, 128):
        try:
            with torch.no_grad():
                out = model(torch.zeros(1, 3, size, size, device=device))
        except RuntimeError:
            continue
        if isinstance(out, Tensor) and out.ndim == 2 and len(out) == 1:
            return Recogniser(_opened(Path(path_or_name), size, model, device, dtype), size)
    raise ConfigError(f"{path_or_name}: expected (N, 3, S, S) -> (N, D) with S = 112 or 128")


def _opened(
    path: Path, size: int, model: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """The network rebuilt in a precision, or as it is where that is not asked for or cannot be."""
    if dtype is None:
        return model
    with suppress(ConfigError):
        return OpenScript(load_script(path, torch.device("cpu")), size).to(device, dtype)
    return model
