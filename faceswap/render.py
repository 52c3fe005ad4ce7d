"""The faces of a batch swapped, with points, sides and colours that are steady from frame to frame.

What a single photo does not have: landmarks smoothed over the frames before and after, a rendering
side that does not change at every step of a face, colour statistics averaged along the track.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from faceswap.config import TrackConfig
from faceswap.errors import DeviceError
from faceswap.faces.steady import radius, steady
from faceswap.faces.track import Place, Track
from faceswap.media.planes import FrameBatch
from faceswap.ops.geometry import align
from faceswap.ops.topology import MESH_POINTS, five_points
from faceswap.swap import Swapper
from faceswap.types import Faces, Identities

R = TypeVar("R")

_SIDE_SLACK = 1.35  # a face has to shrink by this much before it is rendered smaller


@dataclass(slots=True)
class Waiting:
    """A batch that is not yet given out."""

    first: int  # number of its first frame
    batch: FrameBatch
    frames: Tensor  # (B, 3, H, W) uint8, on the device

    @property
    def end(self) -> int:
        """Number of the first frame behind it."""
        return self.first + len(self.batch)


@dataclass(slots=True)
class Row:
    """One face that is to be swapped."""

    frame: int
    track: Track
    role: int  # row of the identities
    opacity: float


Located = tuple[Waiting, Sequence[tuple[int, Place]]]  # a batch, and (frame, place) in it


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
        self.radius = radius(config.smoothing, rate)  # frames, to either side
        self.warnings: list[str] = []
        self._color_keep = 0.0 if not self.strength else math.exp(-8 / (self.strength * rate))

    def __call__(
        self,
        ahead: Sequence[Waiting],  # the batch, and those behind it that have been read
        rows: Sequence[Row],  # faces of the batch to be swapped, frame by frame
        seconds: Mapping[int, float],  # frame -> time
    ) -> tuple[Tensor, Faces]:
        """The frames of ``ahead[0]`` swapped, ``(B, 3, H, W) uint8``, and the faces as placed."""
        waiting = ahead[0]
        device = waiting.frames.device
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
        self._clock("track", began)
        faces, mesh, side = faces.to(device), mesh.to(device), side.to(device)
        out = self.with_room(
            lambda _size: self.swapper.replace(  # goes by the setting that `with_room` changes
                waiting.frames,
                faces,
                self.identities,
                torch.tensor([row.role for row in rows], device=device),
                mesh=mesh,
                side=side,
                opacity=torch.tensor([row.opacity for row in rows], device=device),
                settle=lambda chosen, own, wanted: self._settle(rows, chosen, own, wanted),
            )
        )
        return out, faces

    def with_room(self, call: Callable[[int], R]) -> R:
        """Make a call; with half the batch as long as the GPU's memory does not suffice.

        Args:
            call: is told how many frames or faces may go through a network together.

        Raises:
            DeviceError: not even one.
        """
        while True:
            size = self.swapper.config.batch_size
            try:
                return call(size)
            except torch.cuda.OutOfMemoryError as error:
                if size == 1:
                    raise DeviceError(
                        "the GPU's memory does not suffice for a single frame; close other "
                        "programs or use --device cpu"
                    ) from error
            torch.cuda.empty_cache()
            self.swapper.config = self.swapper.config.model_copy(update={"batch_size": size // 2})
            self.warnings.append(f"GPU memory is short: batches of {size // 2} from here on")

    def per_face(self, network: Callable[[Tensor, Faces], Tensor], at: Located) -> Tensor:
        """What a network says of faces of one batch, ``(N, ...) float32`` on the CPU."""
        waiting, places = at
        faces = table([(frame - waiting.first, place) for frame, place in places])
        faces = faces.to(waiting.frames.device)

        def call(size: int) -> Tensor:
            rows = torch.arange(len(faces), device=faces.frame.device).split(size)
            return torch.cat([network(waiting.frames, faces[part]).float().cpu() for part in rows])

        return self.with_room(call)

    def _find_meshes(self, ahead: Sequence[Waiting], rows: Sequence[Row]) -> None:
        """Dense landmarks of the tracks to be swapped, as far ahead as smoothing looks."""
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
                found = self.per_face(self.swapper.dense, (waiting, wanted))
                for (_, place), mesh in zip(wanted, found, strict=True):
                    place.mesh = mesh

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
        self, rows: Sequence[Row], chosen: Tensor, own: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Colour statistics ``(M, 2, 3)`` twice, averaged with those of the track's last frames."""
        now = torch.stack([own, wanted], 1).float()  # (M, 2, 2, 3)
        out = now.clone()
        for i, index in enumerate(chosen.tolist()):
            track = rows[index].track
            if bool(torch.isfinite(now[i]).all()):
                value = now[i].cpu()
                if track.color is not None:
                    value = torch.lerp(value, track.color, self._color_keep)
                track.color = value
                out[i] = value.to(out.device)
        return out[:, 0], out[:, 1]

    def _clock(self, stage: str, began: float) -> None:
        seconds = self.swapper.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def table(rows: Sequence[tuple[int, Place]]) -> Faces:
    """Places as `Faces`; the first of each pair is the frame of the batch."""
    return Faces(
        torch.tensor([frame for frame, _ in rows], dtype=torch.int64),
        torch.stack([place.box for _, place in rows]),
        torch.stack([place.points for _, place in rows]),
        torch.tensor([place.score for _, place in rows], dtype=torch.float32),
    )
