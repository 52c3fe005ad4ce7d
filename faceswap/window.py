"""The stretch of a clip between the newest frame analysed and the oldest not yet given out.

Every decision about a frame may look that far ahead (about 0.7 s): whether a face that is gone
comes back, which of a track's faces tell best who it is, where its points really were. The
stretch has a fixed length, so memory does not depend on the length of the clip.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from faceswap.casting import Casting
from faceswap.config import VideoConfig
from faceswap.errors import DeviceError
from faceswap.evaluate.temporal import jitter
from faceswap.faces.shots import Shots
from faceswap.faces.steady import radius, steady
from faceswap.faces.track import Place, Track, Tracker
from faceswap.media.planes import FrameBatch
from faceswap.ops.geometry import align
from faceswap.ops.topology import five_points
from faceswap.swap import Swapper
from faceswap.types import Faces, Identities

R = TypeVar("R")

UNSURE = 0.5  # of the detector's threshold: what carries a track on
_LEAST_SECONDS = 0.12  # a track seen for less is no person ...
_LEAST_FRAMES = 3  # ... but nobody needs to be seen in more frames than this
_REVIEW_SECONDS = 0.75  # between thinking over who somebody is
_SIDE_SLACK = 1.35  # a face has to shrink by this much before it is rendered smaller
_JITTER_EVERY = 4  # batches, of which one is measured
_JITTER_FRAMES = 240  # after which the figure is good enough


@dataclass(slots=True)
class Tally:
    """What happened so far; numbers for the report."""

    frames: int = 0
    faces_seen: int = 0
    faces_swapped: int = 0
    bridged: int = 0
    dropped: int = 0
    tracks: int = 0
    jitter_sum: float = 0.0
    jitter_frames: int = 0
    swaps: dict[int, list[Any]] = field(default_factory=dict)  # track -> source, first, last, n


@dataclass(slots=True)
class _Waiting:
    first: int  # number of its first frame
    batch: FrameBatch
    frames: Tensor  # (B, 3, H, W) uint8, on the device


@dataclass(slots=True)
class _Row:
    """One face that is to be swapped."""

    frame: int
    track: Track
    opacity: float


class Window:
    """Frames go in with `feed`, and come out swapped a moment later.

    Args:
        swapper: loaded with ``video=True``.
        identities: the people to put in.
        roles: row of `identities` for each source that `casting` hands out; -1 = left alone.
        casting: who becomes whom.
        config: settings of the clip.
        rate: frames per second.
    """

    def __init__(
        self,
        swapper: Swapper,
        identities: Identities,
        *,
        roles: Sequence[int],
        casting: Casting,
        config: VideoConfig,
        rate: float,
    ) -> None:
        self.swapper = swapper
        self.identities = identities
        self.roles = tuple(roles)
        self.casting = casting
        self.config = config
        self.tally = Tally()
        self.warnings: list[str] = []
        track = config.track
        gap = round(track.max_gap * rate)
        self._fade = round(track.fade * rate)
        self._radius = radius(track.smoothing, rate)
        self._ahead = max(gap + 1, self._radius, track.detect_every) + self._fade + 1
        self._least = min(_LEAST_FRAMES, max(1, round(_LEAST_SECONDS * rate)))
        self._color_keep = 0.0 if not track.smoothing else math.exp(-8 / (track.smoothing * rate))
        casting.review = max(1, round(_REVIEW_SECONDS * rate))
        self._tracker = Tracker(
            max_gap=gap, sure=swapper.detector.threshold, step=track.detect_every
        )
        self._shots = Shots()
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._seconds: dict[int, float] = {}  # frame -> time, as far back as smoothing looks
        self._analysed = 0  # frames that the tracker knows
        self._taken = 0  # frames that came in
        self._given = 0  # frames that went out

    @property
    def next_pts(self) -> int | None:
        """Time, in ticks, of the first frame that has not been given out."""
        return self._waiting[0].batch.pts[0] if self._waiting else None

    def feed(self, batch: FrameBatch) -> Iterator[tuple[FrameBatch, Tensor]]:
        """Take the next frames; give out those that nothing to come can change any more."""
        waiting = _Waiting(self._taken, batch, batch.frames.to(self.swapper.device))
        self._waiting.append(waiting)
        self._taken += len(batch)
        for frame, seconds in enumerate(batch.seconds, waiting.first):
            self._seconds[frame] = float(seconds)
        if waiting.first >= self._analysed:  # else: read again after an interruption
            self._analyse(waiting)
            self._analysed = self._taken
        while self._analysed - self._end(self._waiting[0]) >= self._ahead:
            if self._end(self._waiting[-1]) < self._analysed:
                return  # its frames are still to be read again
            yield self._give_out()

    def finish(self) -> Iterator[tuple[FrameBatch, Tensor]]:
        """The frames that are left when the clip is over."""
        self._tracker.close()
        while self._waiting:
            yield self._give_out()

    def state(self) -> dict[str, Any]:
        """Everything but pixels, to go on from `next_pts`."""
        tally = self.tally
        return {
            "tracker": self._tracker.state(),
            "shots": self._shots.state(),
            "seconds": dict(self._seconds),
            "counters": [self._analysed, self._given],
            "best": self.casting.best,
            "tally": {name: getattr(tally, name) for name in Tally.__slots__ if name != "swaps"},
            "swaps": {number: list(entry) for number, entry in tally.swaps.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; feed it the frames from there on."""
        self._tracker.restore(state["tracker"])
        self._shots.restore(state["shots"])
        self._seconds = dict(state["seconds"])
        self._analysed, self._given = state["counters"]
        self._taken = self._given
        self.casting.best = state["best"]
        self.tally = Tally(**state["tally"], swaps=dict(state["swaps"]))

    @staticmethod
    def _end(waiting: _Waiting) -> int:
        return waiting.first + len(waiting.batch)

    def _analyse(self, waiting: _Waiting) -> None:
        """Find the faces of a batch and link them to tracks."""
        cuts = self._shots.cuts(waiting.frames)
        every = self.config.track.detect_every
        looked = [b for b, cut in enumerate(cuts) if cut or (waiting.first + b) % every == 0]
        faces = Faces.empty()
        if looked:
            rows = torch.tensor(looked, device=waiting.frames.device)
            faces = self._with_room(
                lambda: self.swapper.detect(waiting.frames[rows], unsure=UNSURE)
            ).to("cpu")
        began = time.perf_counter()
        for row, b in enumerate(looked):
            self._tracker.update(
                waiting.first + b, faces[faces.frame == row], self._describe, cut=cuts[b]
            )
        self._clock("track", began)

    def _describe(self, asked: Sequence[tuple[int, Place]]) -> Tensor:
        """Embeddings ``(M, D)`` of faces in frames of the window, in the order asked for."""
        parts: dict[int, Tensor] = {}
        for waiting in self._waiting:
            rows = [
                i
                for i, (frame, _) in enumerate(asked)
                if 0 <= frame - waiting.first < len(waiting.batch)
            ]
            if rows:
                faces = _table([(asked[i][0] - waiting.first, asked[i][1]) for i in rows])
                found = self.swapper.embed(waiting.frames, faces.to(waiting.frames.device)).cpu()
                parts.update(zip(rows, found, strict=True))
        return torch.stack([parts[i] for i in range(len(asked))])

    def _give_out(self) -> tuple[FrameBatch, Tensor]:
        """The oldest batch, swapped."""
        waiting = self._waiting[0]
        began = time.perf_counter()
        rows = self._cast(waiting)
        self._clock("track", began)
        out = self._swap(waiting, rows) if rows else waiting.batch.frames
        self._count(waiting, rows)
        self._waiting.popleft()
        self._given = self._end(waiting)
        self._tracker.forget(self._given - self._radius)
        for frame in [f for f in self._seconds if f < self._given - self._radius]:
            del self._seconds[frame]
        return waiting.batch, out

    def _cast(self, waiting: _Waiting) -> list[_Row]:
        """Decide who is swapped in each frame of a batch."""
        rows = []
        for frame in range(waiting.first, self._end(waiting)):
            visible = [track for track in self._tracker.at(frame) if self._substantial(track)]
            self.casting.decide(frame, visible, self._analysed - 1, self._describe)
            for track in visible:
                opacity = self._opacity(track, frame)
                if self._role(track) >= 0 and opacity > 0:
                    rows.append(_Row(frame, track, opacity))
        return rows

    def _substantial(self, track: Track) -> bool:
        return track.seen >= self._least or (track.sudden and track.cut_off)

    def _role(self, track: Track) -> int:
        """Row of the identities that a track receives; -1 = left alone."""
        return -1 if track.source is None or track.source < 0 else self.roles[track.source]

    def _opacity(self, track: Track, frame: int) -> float:
        """Fading in where somebody comes into view, out where they leave; not at cuts."""
        opacity = 1.0
        if track.since > track.first or not track.sudden:
            opacity = min(opacity, (frame - track.since + 1) / (self._fade + 1))
        if not track.open and not track.cut_off:
            opacity = min(opacity, (track.last - frame + 1) / (self._fade + 1))
        return opacity

    def _swap(self, waiting: _Waiting, rows: Sequence[_Row]) -> Tensor:
        """The frames of a batch with these faces swapped, ``(B, 3, H, W) uint8`` on the CPU."""
        device = waiting.frames.device
        self._find_meshes(rows)
        began = time.perf_counter()
        steadied = [self._steady(row) for row in rows]  # (5 + P, 3) each
        table = [
            (row.frame - waiting.first, Place(place.box, points[:5, :2], place.score))
            for row, points in zip(rows, steadied, strict=True)
            for place in [row.track.places[row.frame]]
        ]
        faces, mesh = _table(table), torch.stack([points[5:] for points in steadied])
        if mesh.shape[1] == 478:
            faces = Faces(faces.frame, faces.box, five_points(mesh).contiguous(), faces.score)
        side = self._sides(rows, faces)
        self._clock("track", began)
        faces, mesh, side = faces.to(device), mesh.to(device), side.to(device)
        out = self._with_room(
            lambda: self.swapper.replace(
                waiting.frames,
                faces,
                self.identities,
                torch.tensor([self._role(row.track) for row in rows], device=device),
                mesh=mesh,
                side=side,
                opacity=torch.tensor([row.opacity for row in rows], device=device),
                settle=lambda chosen, own, wanted: self._settle(rows, chosen, own, wanted),
            )
        )
        self._measure(waiting, rows, faces, out)
        return out.cpu()

    def _find_meshes(self, rows: Sequence[_Row]) -> None:
        """Dense landmarks of the tracks to be swapped, as far ahead as smoothing looks."""
        last: dict[int, tuple[Track, int]] = {}
        for row in rows:
            last[row.track.number] = (row.track, row.frame + self._radius)
        for waiting in self._waiting:
            wanted = [
                (frame, place)
                for track, end in last.values()
                for frame in range(waiting.first, min(self._end(waiting), end + 1))
                for place in [track.places.get(frame)]
                if place is not None and place.mesh is None
            ]
            if wanted:
                wanted.sort(key=lambda item: item[0])
                faces = _table([(frame - waiting.first, place) for frame, place in wanted])
                found = self.swapper.dense(waiting.frames, faces.to(waiting.frames.device))
                for (_, place), mesh in zip(wanted, found.float().cpu(), strict=True):
                    place.mesh = mesh

    def _steady(self, row: _Row) -> Tensor:
        """Points of a face without their noise: five, then the dense ones, ``(5 + P, 3)``."""
        values, times = [], []
        now = self._seconds[row.frame]
        for frame in range(row.frame - self._radius, row.frame + self._radius + 1):
            place = row.track.places.get(frame)
            if place is not None and place.mesh is not None:
                five = torch.cat([place.points, torch.zeros(5, 1)], 1)
                values.append(torch.cat([five, place.mesh]))
                times.append(self._seconds[frame] - now)
        eyes = row.track.places[row.frame].points[:2]
        strength = self.config.track.smoothing
        stack, moments = torch.stack(values), torch.tensor(times, dtype=torch.float32)
        return steady(stack, moments, float((eyes[0] - eyes[1]).norm()), strength)

    def _sides(self, rows: Sequence[_Row], faces: Faces) -> Tensor:
        """Side to render each face at, which a track keeps until its size has really changed."""
        extent = 100 / align(faces.points, 100, template=self.swapper.pack.template).scale
        larger = self.swapper.sides(extent * _SIDE_SLACK).tolist()
        out = []
        for row, need, most in zip(rows, self.swapper.sides(extent).tolist(), larger, strict=True):
            row.track.side = min(max(need, row.track.side), most)
            out.append(row.track.side)
        return torch.tensor(out)

    def _settle(
        self, rows: Sequence[_Row], chosen: Tensor, own: Tensor, wanted: Tensor
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

    def _measure(self, waiting: _Waiting, rows: Sequence[_Row], faces: Faces, out: Tensor) -> None:
        """Add to the jitter figure: landmarks found in the frames before and after."""
        number = waiting.first // max(1, len(waiting.batch))
        if number % _JITTER_EVERY or self.tally.jitter_frames >= _JITTER_FRAMES:
            return
        before = [row.track.places[row.frame].mesh for row in rows]
        if len(rows) < 3 or before[0] is None or len(before[0]) != 478:
            return
        after = self.swapper.landmarks(out, faces).float().cpu()
        for track in {row.track.number: row.track for row in rows}.values():
            mine = [i for i, row in enumerate(rows) if row.track is track and row.opacity == 1]
            if len(mine) < 3 or rows[mine[-1]].frame - rows[mine[0]].frame != len(mine) - 1:
                continue
            target = torch.stack([mesh for i in mine for mesh in [before[i]] if mesh is not None])
            value = jitter(target, after[mine], torch.ones(len(mine), dtype=torch.bool))
            value = value[value.isfinite()]
            self.tally.jitter_sum += float(value.sum())
            self.tally.jitter_frames += len(value)

    def _count(self, waiting: _Waiting, rows: Sequence[_Row]) -> None:
        tally, every = self.tally, self.config.track.detect_every
        tally.frames += len(waiting.batch)
        for frame in range(waiting.first, self._end(waiting)):
            for track in self._tracker.at(frame):
                tally.faces_seen += track.places[frame].seen
                if self._substantial(track):
                    tally.tracks += track.first == frame
                else:
                    tally.dropped += 1
        tally.faces_swapped += len(rows)
        for row in rows:
            tally.bridged += not row.track.places[row.frame].seen and row.frame % every == 0
            seconds, source = self._seconds[row.frame], self._role(row.track)
            entry = tally.swaps.setdefault(row.track.number, [source, seconds, seconds, 0])
            entry[2], entry[3] = seconds, entry[3] + 1

    def _with_room(self, call: Callable[[], R]) -> R:
        """Make a call; with half the batch as long as the GPU's memory does not suffice."""
        while True:
            try:
                return call()
            except torch.cuda.OutOfMemoryError as error:
                size = self.swapper.config.batch_size // 2
                if not size:
                    raise DeviceError(
                        "the GPU's memory does not suffice for a single frame; close other "
                        "programs or use --device cpu"
                    ) from error
            torch.cuda.empty_cache()
            self.swapper.config = self.swapper.config.model_copy(update={"batch_size": size})
            self.warnings.append(f"GPU memory is short: batches of {size} from here on")

    def _clock(self, stage: str, began: float) -> None:
        seconds = self.swapper.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _table(rows: Sequence[tuple[int, Place]]) -> Faces:
    """Places as `Faces`; the first of each pair is the frame of the batch."""
    return Faces(
        torch.tensor([frame for frame, _ in rows], dtype=torch.int64),
        torch.stack([place.box for _, place in rows]),
        torch.stack([place.points for _, place in rows]),
        torch.tensor([place.score for _, place in rows], dtype=torch.float32),
    )
