"""What measures are taken with: the lite pack's networks, or files that the user brings.

Instruments never depend on the pack that is being measured, so that two reports can be compared.
An extractor file is TorchScript (``.ts``, ``.pt``; RGB ``(n, 3, S, S)`` in [0, 1] in, its own
normalisation inside) or, for identity, anything `load_model` reads. Only load files you trust.

The names of the GHOST article are used for what its own extractors give, and for nothing else:

======== ==== ============================================ ===============================
name     S    the file gives                               measures
======== ==== ============================================ ===============================
identity 112  (n, D), ArcFace crop                         replaces the lite encoder in id_*
cosface  112  (n, D), ArcFace crop                         ``ID retrieval``
hopenet  224  (n, 3) yaw pitch roll in degrees, or three   ``poseHN``
              (n, 66) bins of 3 degrees from -99
ringnet  224  (n, 159): camera 3, pose 6, shape 100,       ``shape_ringnet``, ``exp_ringnet``,
              expression 50                                ``pose_ringnet``
eyes     256  (n, 98, 2) WFLW points in crop pixels, or    ``eye_ldmk``
              (n, 98, h, w) heatmaps (AdaptiveWing)
features 299  (n, D), upright crop                         ``fid``, ``kid``
======== ==== ============================================ ===============================
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faceswap.errors import ConfigError, MissingWeightError, WeightError, unknown
from faceswap.faces.detect import CenterFaceDetector, detect_any_rotation
from faceswap.faces.identity import IdentityEncoder
from faceswap.models import load_model
from faceswap.ops.geometry import Alignment, align
from faceswap.ops.shape import ShapeModel
from faceswap.types import Faces, Pictures

SIZES = {"identity": 112, "cosface": 112, "hopenet": 224, "ringnet": 224, "eyes": 256}
SIZES |= {"features": 299}
CLOSE = 256  # px, side of the pictures of one face and its surroundings that are looked at
_AROUND = 1.4  # side of upright crops in longer sides of the box of the face's points
_WFLW_EYES = (*range(60, 76), 96, 97)  # lids and pupils among the 98 points


@dataclass(frozen=True, slots=True)
class Extractor:
    """A network from a file, and how its crops are cut."""

    name: str  # key of SIZES
    model: Callable[[Tensor], Any]  # (n, 3, S, S) float in [0, 1] -> see the module
    size: int  # S

    @torch.no_grad()
    def __call__(
        self,
        frames: Pictures,  # (B, 3, H, W) uint8, or B of (3, H, W)
        faces: Faces,  # N faces
        mesh: Tensor,  # (N, 478, 3) float, frame pixels; says where upright crops are cut
    ) -> Tensor:
        """What the network says of each face, ``(N, ...)``, as its measures want it."""
        if self.name in ("identity", "cosface"):
            at = align(faces.points, self.size, template="arcface")
        else:
            at = upright(mesh, self.size)
        return _read(self.name, self.model(at.crop(frames, faces.frame)), self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """Everything that looks at pictures; tensors live on `device`."""

    detect: Callable[[Tensor], Faces]  # frames (B, 3, H, W) uint8
    landmarks: Callable[[Pictures, Faces], Tensor]  # -> (N, 478, 3) frame pixels
    encode: Callable[[Pictures, Faces], Tensor]  # -> (N, D)
    shape: ShapeModel
    extra: tuple[Extractor, ...] = ()
    device: torch.device
    near: Callable[[Tensor], Faces] | None = None  # the same for close looks, `CLOSE` px a side
    about: dict[str, str] = field(default_factory=dict)  # instrument -> what it is, for reports


def load_instruments(extractors: tuple[str, ...] = (), device: str = "auto") -> Instruments:
    """The lite pack's networks, and extractor files.

    Args:
        extractors: each ``NAME=FILE`` or ``NAME=FILE@SIZE``, see the module.
        device: as in settings.

    Raises:
        ConfigError: an extractor nobody knows, or named twice.
        WeightError: a file that is missing or of the wrong kind.
        DeviceError: the device cannot be had.
    """
    from faceswap.config import SwapConfig
    from faceswap.models.guided import GuidedAEINet
    from faceswap.swap import Swapper

    settings = SwapConfig(pack="lite", device=device, engine="onnxruntime")  # many photos: it pays
    lite = Swapper.from_config(settings)
    net = lite.generator
    assert isinstance(net, GuidedAEINet)  # the lite pack's is one
    assert isinstance(lite.detector, CenterFaceDetector)
    near = CenterFaceDetector(
        lite.detector.model,
        sides=(CLOSE,),
        threshold=lite.detector.threshold,
        engine=lite.detector.engine,
    )
    pack = lite.pack
    about = {
        "detector": f"{pack.detector} (pack lite)",
        "landmarks": f"{pack.landmarks} (pack lite)",
        "identity": f"{pack.identity} (pack lite)",
        "face model": f"{pack.swapper} (pack lite)",
    }
    encode: Callable[[Pictures, Faces], Tensor] = lite.encoder
    extra: list[Extractor] = []
    for text in extractors:
        extractor, says = load_extractor(text, lite.device)
        if extractor.name in {each.name for each in extra} or (
            extractor.name == "identity" and encode is not lite.encoder
        ):
            raise ConfigError(f"extractor {extractor.name!r} is given twice")
        about[extractor.name] = says
        if extractor.name == "identity":
            encode = _encoder(extractor)
        else:
            extra.append(extractor)
    return Instruments(
        detect=lite.detect,
        landmarks=lite.landmarks,
        encode=encode,
        shape=ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression),
        extra=tuple(extra),
        device=lite.device,
        near=partial(detect_any_rotation, near),
        about=about,
    )


def load_extractor(text: str, device: torch.device) -> tuple[Extractor, str]:
    """An extractor from ``NAME=FILE[@SIZE]``, and a line that says which file it is."""
    match = re.fullmatch(r"([a-z]+)=(.+?)(?:@(\d+))?", text)
    if not match:
        raise ConfigError(f"extractor {text!r}: expected NAME=FILE or NAME=FILE@SIZE")
    name, file, size = match[1], Path(match[2]), match[3]
    if name not in SIZES:
        raise unknown("extractor", name, SIZES)
    if not file.is_file():
        raise MissingWeightError(f"extractor {name}: there is no file {str(file)!r}")
    model = _open(file, name, device)
    side = int(size) if size else int(getattr(model, "size", SIZES[name]))
    extractor = Extractor(name, model, side)
    _try(extractor, device)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return extractor, f"{file.name}, {side} px, sha256 {digest}"


def _encoder(extractor: Extractor) -> IdentityEncoder:
    model = extractor.model
    assert isinstance(model, nn.Module)
    encoder = IdentityEncoder(model)
    encoder.size = extractor.size
    return encoder


def _open(file: Path, name: str, device: torch.device) -> nn.Module:
    """A TorchScript file, or one of our own or GHOST's weight files."""
    if file.suffix not in (".ts", ".pt"):
        return load_model(file, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is being retired
            model: nn.Module = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise WeightError(
            f"extractor {name}: {str(file)!r} is no TorchScript file; save it with "
            "torch.jit.trace(network, example).save(FILE)"
        ) from error
    return model


def _try(extractor: Extractor, device: torch.device) -> None:
    """Three grey crops through the network, so that a wrong file fails before the work begins."""
    size = extractor.size
    try:
        with torch.no_grad():
            out = extractor.model(torch.full((3, 3, size, size), 0.5, device=device))
        _read(extractor.name, out, size)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise WeightError(
            f"extractor {extractor.name}: the file does not take any number of {size} px crops, or "
            f"does not give what it should (`faceswap.evaluate.extract` lists that): {reason}"
        ) from error


def _read(name: str, out: Any, size: int) -> Tensor:
    """A network's output in the form its measures want; the first axis is faces."""
    if name == "hopenet" and isinstance(out, (tuple, list)):  # Ruiz et al. 2018, section 3.2
        bins = torch.arange(66, device=out[0].device) * 3.0 - 99
        out = torch.stack([(torch.softmax(each, 1) * bins).sum(1) for each in out[:3]], 1)
    if isinstance(out, (tuple, list)):
        out = out[0]
    if not isinstance(out, Tensor):
        raise ValueError(f"expected a tensor, got {type(out).__name__}")
    if name == "eyes" and out.ndim == 4:
        height, width = out.shape[2:]
        at = out.flatten(2).argmax(2)
        xy = torch.stack((at % width, torch.div(at, width, rounding_mode="floor")), 2)
        scale = torch.tensor([size / width, size / height], device=out.device)
        out = (xy + 0.5) * scale - 0.5
    wanted = {"hopenet": (3,), "ringnet": (159,), "eyes": (98, 2)}.get(name)
    shape = tuple(out.shape[1:])
    if (wanted and shape != wanted) or (not wanted and len(shape) != 1):
        raise ValueError(f"expected (n, {wanted or 'D'}), got {tuple(out.shape)}")
    values: Tensor = out.float()
    return values[:, list(_WFLW_EYES)] if name == "eyes" else values


def upright(
    mesh: Tensor,  # (N, P, 2 or 3) float, frame pixels
    size: int,
) -> Alignment:
    """Square crops around the box of the points, not turned, so that roll can be seen in them."""
    low, high = mesh[..., :2].amin(1), mesh[..., :2].amax(1)
    scale = size / (_AROUND * (high - low).amax(1).clamp_min(1.0))
    shift = 0.5 * (size - 1) - scale[:, None] * (low + high) / 2
    matrix = torch.zeros(len(mesh), 2, 3, device=mesh.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[..., 2] = shift
    return Alignment(matrix, size)
