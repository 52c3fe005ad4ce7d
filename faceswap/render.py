"""The faces of a batch swapped, with points, sides and colours that are steady from frame to frame.

What a single photo does not have: landmarks smoothed over the frames before and after, a rendering
side that does not change at every step of a face, colour statistics averaged along the track.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from faceswap.config import TrackConfig
from faceswap.faces.looks import FADE, Shown, angles, show
from faceswap.faces.steady import radius, steady
from faceswap.faces.track import Place, Track
from faceswap.lanes import Lane
from faceswap.media.planes import FrameBatch
from faceswap.models.guided import GuidedAEINet
from faceswap.occlude import lasting
from faceswap.ops.geometry import align
from faceswap.ops.topology import MESH_POINTS, five_points
from faceswap.swap import Swapper, in_crop
from faceswap.types import Faces, Identities

_CROP = 128  # px, crops in which it is told where a face looks
_SIDE_SLACK = 1.35  # a face has to shrink by this much before it is rendered smaller


@dataclass(slots=True)
class Waiting:
    """A batch that is not yet given out."""

    first: int  # number of its first frame
    batch: FrameBatch
    frames: Tensor  # (B, 3, H, W) uint8, on the lane's device
    lane: Lane

    @property
    def end(self) -> int:
        """Number of the first frame behind it."""
        return self.first + len(self.batch)

    def table(self, places: Sequence[tuple[int, Place]]) -> Faces:
        """Faces of the batch; ``places``: (frame of the clip, place)."""
        return table([(frame - self.first, place) for frame, place in places])


@dataclass(slots=True)
class Row:
    """One face that is to be swapped."""

    frame: int
    track: Track
    role: int  # row of the identities
    opacity: float


@dataclass(frozen=True, slots=True)
class Placed:
    """Where and how the N faces of a batch are to be swapped; all on the CPU."""

    rows: Sequence[Row]
    faces: Faces
    mesh: Tensor  # (N, P, 3) float32, frame px, steadied
    side: Tensor  # (N,) int64, px to render at
    before: Future[Any] | None  # the batch before, whose colours come first
    covered: Tensor | None = None  # (N, 1, s, s) float32 in [0, 1], what lies before the faces
    shown: Sequence[Shown] = ()  # N, where a person has several looks


class Renderer:
    """Swaps the faces of one clip, batch by batch.

    Args:
        swapper: models.
        identities: the people to put in.
        config: how strongly to smooth.
        rate: frames per second.
    """

    def __init__(
        self, swapper: Swapper, identities: Identities, *, config: TrackConfig, rate: float
    ) -> None:
        self.swapper = swapper
        self.identities = identities
        self.strength = config.smoothing
        self.rate = rate
        self.radius = radius(config.smoothing, rate)  # frames, to either side
        self._people: dict[torch.device, Identities] = {}
        self._color_keep = 0.0 if not self.strength else math.exp(-8 / (self.strength * rate))

    def place(
        self,
        ahead: Sequence[Waiting],  # the batch, and those behind it that have been read
        rows: Sequence[Row],  # faces of the batch to be swapped, frame by frame
        seconds: Mapping[int, float],  # frame -> time
        before: Future[Any] | None = None,  # `swap` of the batch before, if it may still run
    ) -> Placed:
        """Decide where the faces of ``ahead[0]`` are; to be called in the order of the clip."""
        waiting = ahead[0]
        self._find_meshes(ahead, rows)
        began = time.perf_counter()
        steadied = [self._steady(row, seconds) for row in rows]  # (5 + P, 3) each
        listed = [
            (row.frame - waiting.first, Place(place.box, points[:5, :2], place.score))
            for row, points in zip(rows, steadied, strict=True)
            for place in [row.track.places[row.frame]]
        ]
        faces, mesh = table(listed), torch.stack([points[5:] for points in steadied])
        if mesh.shape[1] == MESH_POINTS:
            faces = Faces(faces.frame, faces.box, five_points(mesh).contiguous(), faces.score)
        side = self._sides(rows, faces)
        covered = None
        if self.swapper.occlusion is not None:
            covered = torch.stack([self._lasting(row) for row in rows])[:, None]
        shown = self._looks(rows, faces, mesh)
        self._clock("track", began)
        return Placed(rows, faces, mesh, side, before, covered, shown)

    def swap(self, waiting: Waiting, placed: Placed) -> Tensor:
        """The frames of a batch swapped, ``(B, 3, H, W) uint8``; runs in its lane."""
        device, swapper = waiting.frames.device, waiting.lane.swapper
        rows, shown = placed.rows, placed.shown
        # A look that comes in is painted over the one that goes.
        again = [row for row, each in enumerate(shown) if each.share]
        index = torch.tensor([*range(len(rows)), *again])
        faces, mesh = placed.faces[index].to(device), placed.mesh[index].to(device)
        side = placed.side[index].to(device)
        covered = None if placed.covered is None else placed.covered[index].to(device)
        role = torch.tensor([rows[row].role for row in index.tolist()], device=device)
        opacity = torch.tensor([rows[row].opacity for row in index.tolist()], device=device)
        look = None
        if shown:
            looks = [each.look for each in shown] + [shown[row].coming for row in again]
            look = torch.tensor(looks, device=device)
            opacity[len(rows) :] *= torch.tensor([shown[row].share for row in again], device=device)
        people = self._people_of(waiting.lane)
        return waiting.lane.with_room(
            lambda _size: swapper.replace(  # goes by the setting that `with_room` changes
                waiting.frames,
                faces,
                people,
                role,
                mesh=mesh,
                side=side,
                opacity=opacity,
                covered=covered,
                look=look,
                settle=lambda chosen, own, wanted: self._settle(
                    placed, index[chosen.cpu()], own, wanted
                ),
            ),
        )

    def _find_meshes(self, ahead: Sequence[Waiting], rows: Sequence[Row]) -> None:
        """Dense landmarks of the tracks to be swapped, as far ahead as smoothing looks.

        What lies before the faces is looked for with them.
        """
        last: dict[int, tuple[Track, int]] = {}
        for row in rows:
            last[row.track.number] = (row.track, row.frame + self.radius)
        for waiting in ahead:
            wanted = [
                (frame, place)
                for track, end in last.values()
                for frame in range(waiting.first, min(waiting.end, end + 1))
                for place in [track.places.get(frame)]
                if place is not None and place.mesh is None
            ]
            if wanted:
                wanted.sort(key=lambda item: item[0])
                lane, faces = waiting.lane, waiting.table(wanted)
                found = lane.per_face(lane.swapper.dense, waiting.frames, faces)
                for (_, place), mesh in zip(wanted, found, strict=True):
                    place.mesh = mesh
                if self.swapper.occlusion is not None:
                    faces = waiting.table([(frame, _as_seen(place)) for frame, place in wanted])
                    covers = lane.per_face(lane.swapper.covers, waiting.frames, faces)
                    for (_, place), cover in zip(wanted, covers, strict=True):
                        place.covered = (cover[0] * 255).round().to(torch.uint8)

    def _looks(self, rows: Sequence[Row], faces: Faces, mesh: Tensor) -> list[Shown]:
        """Which photo of its source each face shows; none where every source has one."""
        own = self.identities
        if own.person is None or own.mesh is None:
            return []
        net = self.swapper.generator
        assert isinstance(net, GuidedAEINet)  # others take no texture
        at = align(faces.points, _CROP, template=self.swapper.pack.template)
        apart = angles(in_crop(mesh, at), own.mesh.cpu(), net.shape_mean.cpu())
        fade = max(1, round(FADE * self.rate))
        return [
            show(row.track, row.frame, each, row.role, own, fade)
            for row, each in zip(rows, apart, strict=True)
        ]

    def _lasting(self, row: Row) -> Tensor:
        """What lies before a face for longer than a moment, ``(s, s) float32`` in [0, 1]."""
        near = range(row.frame - self.radius, row.frame + self.radius + 1)
        places = [row.track.places.get(frame) for frame in near]
        masks = [p.covered for p in places if p is not None and p.covered is not None]
        return lasting(torch.stack(masks).float() / 255)

    def _steady(self, row: Row, seconds: Mapping[int, float]) -> Tensor:
        """Points of a face without their noise: five, then the dense ones, ``(5 + P, 3)``."""
        values, times = [], []
        now = seconds[row.frame]
        for frame in range(row.frame - self.radius, row.frame + self.radius + 1):
            place = row.track.places.get(frame)
            if place is not None and place.mesh is not None:
                five = torch.cat([place.points, torch.zeros(5, 1)], 1)
                values.append(torch.cat([five, place.mesh]))
                times.append(seconds[frame] - now)
        eyes = row.track.places[row.frame].points[:2]
        stack, moments = torch.stack(values), torch.tensor(times, dtype=torch.float32)
        return steady(stack, moments, float((eyes[0] - eyes[1]).norm()), self.strength)

    def _sides(self, rows: Sequence[Row], faces: Faces) -> Tensor:
        """Side to render each face at, which a track keeps until its size has really changed."""
        extent = 100 / align(faces.points, 100, template=self.swapper.pack.template).scale
        larger = self.swapper.sides(extent * _SIDE_SLACK).tolist()
        out = []
        for row, need, most in zip(rows, self.swapper.sides(extent).tolist(), larger, strict=True):
            row.track.side = min(max(need, row.track.side), most)
            out.append(row.track.side)
        return torch.tensor(out)

    def _settle(
        self, placed: Placed, chosen: Tensor, own: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Colour statistics ``(M, 2, 3)`` twice, averaged with those of the track's last frames."""
        if placed.before is not None:
            wait([placed.before])  # those frames may be on another device
        now = torch.stack([own, wanted], 1).float()  # (M, 2, 2, 3)
        out = now.clone()
        for i, index in enumerate(chosen.tolist()):
            track = placed.rows[index].track
            if bool(torch.isfinite(now[i]).all()):
                value = now[i].cpu()
                if track.color is not None:
                    value = torch.lerp(value, track.color, self._color_keep)
                track.color = value
                out[i] = value.to(out.device)
        return out[:, 0], out[:, 1]

    def _people_of(self, lane: Lane) -> Identities:
        """The people to put in, on the lane's device."""
        device = lane.swapper.device
        if device not in self._people:
            own = self.identities
            self._people[device] = replace(
                own,
                embedding=own.embedding.to(device),
                crop=None if own.crop is None else own.crop.to(device),
                mesh=None if own.mesh is None else own.mesh.to(device),
            )
        return self._people[device]

    def _clock(self, stage: str, began: float) -> None:
        seconds = self.swapper.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _as_seen(place: Place) -> Place:
    """A place with the five points of its dense ones, by which its crop is cut."""
    mesh = place.mesh
    assert mesh is not None
    points = five_points(mesh[None])[0] if len(mesh) == MESH_POINTS else place.points
    return Place(place.box, points, place.score)


def table(rows: Sequence[tuple[int, Place]]) -> Faces:
    """Places as `Faces`; the first of each pair is the frame of the batch."""
    return Faces(
        torch.tensor([frame for frame, _ in rows], dtype=torch.int64),
        torch.stack([place.box for _, place in rows]),
        torch.stack([place.points for _, place in rows]),
        torch.tensor([place.score for _, place in rows], dtype=torch.float32),
    )
