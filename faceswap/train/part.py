"""One part of a training set in the making: a few hundred photos, each cropped and labelled.

What one process does by itself, and what it does it with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceswap import weights
from faceswap.errors import ConfigError, MediaError
from faceswap.faces.detect import PHOTO_SIDES, CenterFaceDetector
from faceswap.ops.geometry import align, transform
from faceswap.ops.topology import five_points
from faceswap.train import label
from faceswap.train.clean import perceptual_hash, sharpness
from faceswap.train.data import cut
from faceswap.train.photos import Photo, decode
from faceswap.train.shards import Part, write_part

TEMPLATE = "ghost_frontal"
BATCH = 32  # faces a forward pass of the labelling networks
_APART = 0.45  # detector and mesh may differ by this share of the eye distance


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What a training set is made to look like."""

    size: int = 224  # px, crop side S
    margin: float = 1.6  # how much wider than the template's view a crop is, room for jitter
    min_size: int = 250  # px, shorter side of a photo (GHOST's article drops smaller ones)
    min_sharpness: float = 0.15  # of `clean.sharpness`; 0 keeps all
    min_similarity: float = 0.2  # cosine to the person's other photos; -1 keeps all
    mesh_teacher: str = ""  # TorchScript FaceMesh; empty: the pack's landmarks
    iris_teacher: str = ""  # TorchScript Iris, goes with it
    identity_teacher: str = ""  # TorchScript or weight file; empty: the pack's encoder
    threads: int = 1  # of torch, a process

    def __post_init__(self) -> None:
        if self.size < 32 or self.margin < 1:
            raise ConfigError(f"size {self.size}, margin {self.margin}: at least 32 and 1")
        if bool(self.mesh_teacher) != bool(self.iris_teacher):
            raise ConfigError("--mesh-teacher and --iris-teacher go together")


@dataclass(frozen=True, slots=True)
class _Tools:
    """The networks of one process."""

    device: torch.device
    detector: CenterFaceDetector
    labeler: label.MeshLabeler
    recogniser: label.Recogniser


Job = tuple[str, list[Photo], PrepareOptions, str]  # file to write, photos, settings, device

_loaded: dict[tuple[PrepareOptions, str], _Tools] = {}  # the networks, once a process


def _tools(options: PrepareOptions, device: str) -> _Tools:
    key = (options, device)
    if key not in _loaded:
        where = torch.device(device)
        detector = CenterFaceDetector(sides=PHOTO_SIDES)
        detector.model.to(where).eval()
        labeler: label.MeshLabeler = (
            label.TeacherLabeler(
                label.load_script(Path(options.mesh_teacher), where),
                label.load_script(Path(options.iris_teacher), where),
            )
            if options.mesh_teacher
            else label.PackLabeler(where)
        )
        name = options.identity_teacher or weights.pack(label.PACK).identity
        _loaded.clear()
        _loaded[key] = _Tools(where, detector, labeler, label.load_recogniser(name, where))
    return _loaded[key]


def make_part(job: Job) -> str:
    """Label the photos of one part and write it."""
    path, photos, options, device = job
    torch.set_num_threads(options.threads)
    tools = _tools(options, device)
    part = Part([], [], [], [], {})
    waiting: list[tuple[Photo, Tensor, Tensor]] = []
    for photo in photos:
        try:
            pixels = decode(photo).to(tools.device)
        except MediaError as error:
            part.dropped[photo.name] = f"unreadable: {str(error).removeprefix(f'{photo.name}: ')}"
            continue
        height, width = pixels.shape[1:]
        if min(height, width) < options.min_size:
            part.dropped[photo.name] = f"small: {width}x{height}"
            continue
        faces = tools.detector(pixels[None])
        row = label.main_face(faces, height, width)
        if row is None:
            part.dropped[photo.name] = "no face"
            continue
        waiting.append((photo, pixels, faces.points[row]))
        if len(waiting) == BATCH:
            _label(waiting, part, options, tools)
            waiting = []
    if waiting:
        _label(waiting, part, options, tools)
    write_part(Path(path), part)
    return path


@torch.no_grad()
def _label(
    faces: list[tuple[Photo, Tensor, Tensor]],  # photo, (3, H, W) uint8, (5, 2) points
    part: Part,
    options: PrepareOptions,
    tools: _Tools,
) -> None:
    """Crop and label a batch of faces, and add to the part those that pass."""
    pixels = [each[1] for each in faces]
    points = torch.stack([each[2] for each in faces])
    mesh, presence = tools.labeler(pixels, points)
    five = five_points(mesh).contiguous()
    alignment = align(five, options.size, template=TEMPLATE, margin=options.margin)
    crops = label.cut_each(pixels, alignment).mul(255).round().byte()
    own, seen = transform(alignment.matrix, points), transform(alignment.matrix, five)
    apart = (own - seen).abs().amax((1, 2)) / ((seen[:, 0] - seen[:, 1]).norm(dim=1) + 10)
    detail = sharpness(crops, options.margin)
    scale = alignment.scale
    dense = torch.cat(
        [transform(alignment.matrix, mesh[..., :2]), mesh[..., 2:] * scale[:, None, None]], -1
    )
    side = tools.recogniser.size
    views = cut(crops, align(own, side, template="arcface").matrix, side)
    columns = {
        "image": crops,
        "points": own,
        "mesh": dense,
        "embedding": tools.recogniser(views),
        "hash": perceptual_hash(crops),
    }
    columns = {name: column.cpu() for name, column in columns.items()}
    for i, (photo, _, _) in enumerate(faces):
        if float(presence[i]) < 0 or float(apart[i]) > _APART:
            part.dropped[photo.name] = "unsure: detector and landmarks disagree"
        elif float(detail[i]) < options.min_sharpness:
            part.dropped[photo.name] = f"blurred: {float(detail[i]):.3f}"
        else:
            part.rows.append({name: column[i] for name, column in columns.items()})
            part.names.append(photo.name)
            part.people.append(photo.person)
            part.scale.append(round(float(scale[i]), 5))
