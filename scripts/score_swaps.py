"""The fixed protocol by which swapper weights are compared (part of ``score_lite.py``).

People who were held back from training and have two photos or more are the sources, in an order
that only their names decide; targets are other held-back faces. Every swap goes through the
pipeline (`Swapper.replace`), so that masks and colours are those a user gets, and is then measured
by networks that the pipeline does not use.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.config import load_config
from faceswap.errors import ConfigError, NoFaceError
from faceswap.evaluate import measures, pixels
from faceswap.evaluate.values import view
from faceswap.models.guided import GuidedAEINet
from faceswap.ops.draw import outline_distance
from faceswap.ops.geometry import align
from faceswap.ops.guide import make_guide
from faceswap.ops.light import BROAD
from faceswap.ops.shape import ShapeModel
from faceswap.ops.skin import GRID
from faceswap.ops.smooth import average, resized
from faceswap.ops.spline import thin_plate_grid
from faceswap.ops.topology import CONTROL, FACE, five_points
from faceswap.swap import Swapper
from faceswap.train.data import Crops
from faceswap.train.label import MeshLabeler, Recogniser
from faceswap.types import Faces, Guide, Identities

PART = 32  # faces that go through networks together
PLAIN = "thin-plate warp"  # the source's pixels by its landmarks and the colours of the target
WARP = "bare warp"  # the guide, which has more: mirrored halves, light, the target's eyes
REDRAWN = "target redrawn"  # what cutting, resizing and measuring cost by themselves


@dataclass(frozen=True, slots=True)
class Protocol:
    """N sources, each with T targets; row i of the swaps is source ``who[i]`` on ``target[i]``."""

    source: Tensor  # (N,) int64, rows of the prepared data
    gallery: Tensor  # (N,) int64, another photo of each source
    target: Tensor  # (N * T,) int64
    who: Tensor  # (N * T,) int64, place among the sources


def choose_pairs(data: Crops, people: int, targets: int) -> Protocol:
    """The same pairs for the same data, whatever its rows are called or ordered.

    Raises:
        NoFaceError: fewer than two held-back people have two photos.
    """
    held = torch.nonzero(data.held_back)[:, 0].tolist()

    def order(row: int) -> bytes:
        return hashlib.sha256(data.names[row].encode()).digest()

    by_person: dict[int, list[int]] = {}
    for row in sorted(held, key=order):
        by_person.setdefault(int(data.identity[row]), []).append(row)
    several = [rows for rows in by_person.values() if len(rows) > 1][:people]
    if len(several) < 2:
        raise NoFaceError(f"{len(several)} held-back people with two photos; at least 2 are needed")
    # One face of each person who is no source, then, if these do not do, other photos of sources.
    others = [rows[0] for rows in list(by_person.values()) if rows not in several]
    others += [row for rows in several for row in rows[2:]] or [rows[1] for rows in several]
    pairs: list[tuple[int, int]] = []
    at = 0
    for number, rows in enumerate(several):
        taken = 0
        while taken < targets:
            row = others[at % len(others)]
            at += 1
            if data.identity[row] != data.identity[rows[0]]:
                pairs.append((row, number))
                taken += 1
    target, who = torch.tensor(pairs).T
    source, gallery = torch.tensor([rows[:2] for rows in several]).T
    return Protocol(source, gallery, target, who)


@dataclass(frozen=True, slots=True)
class Look:
    """What the measuring networks say of N pictures."""

    mesh: Tensor  # (N, 478, 3) float32, px
    lost: Tensor  # (N,) bool, no face there any more
    embedding: dict[str, Tensor]  # encoder -> (N, D), unit length


@torch.no_grad()
def look(
    frames: Tensor,  # (N, 3, S, S) uint8
    points: Tensor,  # (N, 5, 2) float32, px
    labeler: MeshLabeler,
    encoders: dict[str, Recogniser],
    mesh: Tensor | None = None,  # (N, 478, 3) float32, px; known already
) -> Look:
    """Points and identities of one face a picture, with nothing known of how it was made."""
    lost = torch.zeros(len(frames), dtype=torch.bool)
    if mesh is None:
        parts = [
            labeler(list(f), p) for f, p in zip(frames.split(PART), points.split(PART), strict=True)
        ]
        mesh, presence = (torch.cat(column) for column in zip(*parts, strict=True))
        lost = presence < 0
    five, rows = five_points(mesh).contiguous(), torch.arange(len(frames))
    embedding = {}
    for name, encoder in encoders.items():
        crops = align(five, encoder.size, template="arcface").crop(frames, rows)
        embedding[name] = F.normalize(encoder(crops))
    return Look(mesh, lost, embedding)


class BareWarp(GuidedAEINet):
    """The guide itself instead of what a network makes of it."""

    def forward(self, target: Tensor, identity: Tensor, guide: Guide) -> Tensor:
        """See `GuidedAEINet.forward`."""
        return target + guide.region * (guide.image - target)


class Redrawn(GuidedAEINet):
    """The target's own crop."""

    def forward(self, target: Tensor, identity: Tensor, guide: Guide) -> Tensor:
        """See `GuidedAEINet.forward`."""
        return target


CONTROLS: dict[str, type[GuidedAEINet]] = {REDRAWN: Redrawn, PLAIN: BareWarp, WARP: BareWarp}


def plain_guide(
    model: ShapeModel,
    source: Tensor,  # (N, 3, S, S) float in [0, 1]
    source_mesh: Tensor,  # (N, 478, 3) float32, crop px
    target: Tensor,  # (N, 3, S, S) float in [0, 1]
    target_mesh: Tensor,  # (N, 478, 3) float32, crop px
    **known: Any,
) -> tuple[Guide, Tensor]:
    """A guide whose picture is a thin-plate warp onto the target's landmarks, and no more.

    Its broad colours are the target's. What covers the target's face stays, as with every swap.
    """
    guide, _ = make_guide(model, source, source_mesh, target, target_mesh, **known)
    size = target.shape[-1]
    to, back = (mesh[:, list(CONTROL), :2] for mesh in (target_mesh, source_mesh))
    grid = thin_plate_grid(to, back, torch.ones(to.shape[:2]), size=size)
    image = F.grid_sample(source, grid, align_corners=True, padding_mode="border")
    face = outline_distance(target_mesh[:, list(FACE), :2], GRID, size)
    region = (face / (size / 16) + 0.5).clamp(0, 1)
    broad = [
        average(resized(each, GRID), resized(region, GRID), sigma=BROAD, trust=1e-3)
        for each in (target, image)
    ]
    image = (image + resized(broad[0] - broad[1], size)).clamp(0, 1)
    return replace(guide, image=image, region=region), target_mesh


def load_swapper(file: str, settings: Sequence[str] = ()) -> Swapper:
    """The pipeline with a swapper's file or name, or one of `CONTROLS` in its place."""
    given = [] if file in (*CONTROLS, "lite-swapper") else [f"swapper={file}"]
    config = load_config(None, ["device=cpu", "batch_size=16", *given, *settings])
    swapper = Swapper.from_config(config)
    if file in CONTROLS:
        net = swapper.generator
        assert isinstance(net, GuidedAEINet)
        control = CONTROLS[file](size=net.size, shape_rank=len(net.shape_basis)).eval()
        for name in ("shape_mean", "shape_basis", "shape_expression"):
            getattr(control, name).copy_(getattr(net, name))
        swapper.generator = control
    return swapper


@torch.no_grad()
def make_swaps(
    swapper: Swapper, data: Crops, protocol: Protocol, *, own_labels: bool = True
) -> Tensor:
    """The swaps ``(N * T, 3, S, S) uint8``, each in its target's prepared crop.

    Args:
        swapper: the pipeline.
        data: what it was prepared from.
        protocol: whom onto whom.
        own_labels: points and embeddings by the pipeline's own networks, as a user gets them;
            otherwise those in the data, which come from its teachers.
    """
    out = []
    jobs = zip(protocol.target.split(PART), protocol.who.split(PART), strict=True)
    for target, who in jobs:
        source = protocol.source[who]
        frames, faces, mesh = _inputs(swapper, data, target, own_labels)
        people = _identities(swapper, data, source, own_labels)
        rows = torch.arange(len(target))
        out.append(swapper.replace(frames, faces, people, rows, mesh=mesh))
    return torch.cat(out)


def _inputs(swapper: Swapper, data: Crops, rows: Tensor, own: bool) -> tuple[Tensor, Faces, Tensor]:
    frames, mesh = data.pixels(rows), data.mesh[rows]
    box = torch.cat((mesh.amin(1)[:, :2], mesh.amax(1)[:, :2]), 1)
    points = data.points[rows] if own else five_points(mesh).contiguous()
    faces = Faces(torch.arange(len(rows)), box, points, torch.ones(len(rows)))
    return frames, faces, swapper.landmarks(frames, faces) if own else mesh


def _identities(swapper: Swapper, data: Crops, rows: Tensor, own: bool) -> Identities:
    frames, faces, mesh = _inputs(swapper, data, rows, own)
    crop, inside, _ = swapper.source_crops(frames, faces, mesh)
    if own:
        embedding = swapper.encoder(frames, faces)
    elif data.embedding is None:
        raise ConfigError("the prepared data holds no embeddings; leave out --data-labels")
    else:
        embedding = data.embedding[rows]
    wanted = swapper.generator.embedding_size
    if embedding.shape[1] != wanted:
        raise ConfigError(
            f"the swapper takes embeddings of {wanted}, the labels have {embedding.shape[1]}; "
            f"{'pass' if own else 'leave out'} --data-labels"
        )
    return Identities(("",) * len(rows), embedding, crop, inside)


class Scorer:
    """Measures swaps of one protocol; sources, targets and gallery are looked at once."""

    def __init__(
        self,
        data: Crops,
        protocol: Protocol,
        labeler: MeshLabeler,
        encoders: dict[str, Recogniser],
        shape: ShapeModel,
    ) -> None:
        self.protocol, self.labeler, self.encoders, self.shape = protocol, labeler, encoders, shape
        self.frames = data.pixels(protocol.target)
        self.points = data.points[protocol.target]
        self.target = look(self.frames, self.points, labeler, encoders)
        self.source, self.gallery = (
            look(data.pixels(rows), data.points[rows], labeler, encoders, data.mesh[rows])
            for rows in (protocol.source, protocol.gallery)
        )

    def __call__(self, swapped: Tensor) -> dict[str, Tensor]:
        """Every measure ``(N * T,) float64``, NaN where the face is lost.

        Args:
            swapped: ``(N * T, 3, S, S) uint8``.
        """
        seen = look(swapped, self.points, self.labeler, self.encoders)
        who = self.protocol.who
        columns: dict[str, Tensor] = {}
        for name in self.encoders:
            own = seen.embedding[name]
            columns |= {
                f"cos_source {name}": (own * self.source.embedding[name][who]).sum(1),
                f"cos_other {name}": (own * self.gallery.embedding[name][who]).sum(1),
                f"cos_target {name}": (own * self.target.embedding[name]).sum(1),
                f"top1 {name}": self._top1(own, self.source, name),
                f"top1_other {name}": self._top1(own, self.gallery, name),
            }
        columns |= self._geometry(seen.mesh)
        columns |= self._pixels(swapped)
        out = {}
        for name, column in columns.items():
            kept = column.double()
            gone = 0.0 if name.startswith("top1") else torch.nan  # a lost face is not retrieved
            out[name] = torch.where(seen.lost | self.target.lost, gone, kept)
        out["lost"] = 100.0 * seen.lost.double()
        return out

    def ceiling(self) -> dict[str, float]:
        """How near another photo of the source itself comes."""
        out, mine = {}, torch.arange(len(self.protocol.source))
        for name in self.encoders:
            a, b = self.source.embedding[name], self.gallery.embedding[name]
            out[f"cos_source {name}"] = float((a * b).sum(1).mean())
            out[f"top1 {name}"] = 100 * float(((b @ a.T).argmax(1) == mine).double().mean())
        return out

    def _top1(self, own: Tensor, known: Look, name: str) -> Tensor:
        everyone = torch.arange(len(self.protocol.source))
        rank = measures.retrieval_rank(own, self.protocol.who, known.embedding[name], everyone)
        return 100.0 * (rank == 1)

    def _geometry(self, s: Tensor) -> dict[str, Tensor]:
        t, mean = self.target.mesh, self.shape.mean
        return {
            "pose": measures.pose_error(t, s, mean).angle,
            "expression": measures.expression_error(t, s, mean),
            "expression_separated": measures.separated_expression_error(t, s, self.shape),
            "mouth_opening": (measures.mouth_opening(t) - measures.mouth_opening(s)).abs(),
            "eye_opening": (measures.eye_opening(t) - measures.eye_opening(s)).abs().mean(1),
            "gaze": measures.gaze_error(t, s, mean).angle,
            "shape": measures.shape_error(s, self.source.mesh[self.protocol.who]),
        }

    def _pixels(self, swapped: Tensor) -> dict[str, Tensor]:
        parts = []
        for before, after, mesh in zip(
            self.frames.split(PART), swapped.split(PART), self.target.mesh.split(PART), strict=True
        ):
            old, points = view(before, mesh)
            new, _ = view(after, mesh)
            distance = pixels.outline(points)
            parts.append(
                (
                    pixels.border_tone(old, new, distance),
                    pixels.blur_ratio(old, new, distance),
                )
            )
        tone, blur = (torch.cat(column) for column in zip(*parts, strict=True))
        return {"border_tone": tone, "blur_ratio": blur}


@dataclass(frozen=True, slots=True)
class Scored:
    """One way of making the swaps."""

    name: str
    values: dict[str, Tensor]  # measure -> (N * T,)
    swapped: Tensor  # (N * T, 3, S, S) uint8
    seconds: float  # CPU time it took to make and to measure them


def score_all(
    files: Sequence[str],
    data: Crops,
    scorer: Scorer,
    *,
    settings: Sequence[str] = (),
    own_labels: bool = True,
    say: Callable[[str], None],
) -> list[Scored]:
    """Score the target redrawn, two warps and swapper files, in this order."""
    out = []
    for file in (*CONTROLS, *files):
        began = time.process_time()
        swapper = load_swapper(file, settings)
        plain = patch("faceswap.swap.make_guide", plain_guide) if file == PLAIN else nullcontext()
        with plain:
            swapped = make_swaps(swapper, data, scorer.protocol, own_labels=own_labels)
        values = scorer(swapped)
        seconds = time.process_time() - began
        out.append(Scored(_called(file, files), values, swapped, seconds))
        say(f"{out[-1].name}: {len(swapped)} swaps, {seconds:.0f} s of CPU time")
    return out


def _called(file: str, files: Sequence[str]) -> str:
    """A short name that still tells files apart: the last parts of its path."""
    parts = Path(file).parts
    others = [Path(other).parts for other in files if other != file]
    for count in range(1, len(parts) + 1):
        if all(other[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return file
