"""The stretch of a clip between the newest frame analysed and the oldest not yet given out.

Every decision about a frame may look that far ahead (about 0.7 s): whether a face that is gone
comes back, which of a track's faces tell best who it is, where its points really were. The
stretch has a fixed length, so memory does not depend on the length of the clip.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from faceswap.casting import Casting
from faceswap.config import VideoConfig
from faceswap.faces.shots import Shots
from faceswap.faces.track import Place, Track, Tracker
from faceswap.media.buffers import Buffers
from faceswap.media.planes import FrameBatch
from faceswap.render import Renderer, Row, Waiting
from faceswap.swap import Swapper
from faceswap.tally import Tally, measurable
from faceswap.types import Faces, Identities

UNSURE = 0.5  # of the detector's threshold: what carries a track on
_LEAST_SECONDS = 0.12  # a track seen for less is no person ...
_LEAST_FRAMES = 3  # ... but nobody needs to be seen in more frames than this
_REVIEW_SECONDS = 0.75  # between thinking over who somebody is
_JITTER_EVERY = 4  # batches, of which one is measured


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
        self.roles = tuple(roles)
        self.casting = casting
        self.config = config
        self.tally = Tally()
        track = config.track
        gap = round(track.max_gap * rate)
        self._render = Renderer(swapper, identities, config=track, rate=rate)
        self._fade = round(track.fade * rate)
        self._ahead = max(gap + 1, self._render.radius, track.detect_every) + self._fade + 1
        self._least = min(_LEAST_FRAMES, max(1, round(_LEAST_SECONDS * rate)))
        casting.review = max(1, round(_REVIEW_SECONDS * rate))
        self._tracker = Tracker(
            max_gap=gap, sure=swapper.detector.threshold, step=track.detect_every
        )
        self._shots = Shots()
        self._buffers = Buffers()
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._seconds: dict[int, float] = {}  # frame -> time, as far back as smoothing looks
        self._analysed = 0  # frames that the tracker knows
        self._taken = 0  # frames that came in
        self._given = 0  # frames that went out

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the work so far."""
        return self._render.warnings

    @property
    def next_pts(self) -> int | None:
        """Time, in ticks, of the first frame that has not been given out."""
        return self._waiting[0].batch.pts[0] if self._waiting else None

    def feed(self, batch: FrameBatch) -> Iterator[tuple[FrameBatch, Tensor]]:
        """Take the next frames; give out those that nothing to come can change any more."""
        waiting = Waiting(self._taken, batch, batch.frames.to(self.swapper.device))
        self._waiting.append(waiting)
        self._taken += len(batch)
        for frame, seconds in enumerate(batch.seconds, waiting.first):
            self._seconds[frame] = float(seconds)
        if waiting.first >= self._analysed:  # else: read again after an interruption
            self._analyse(waiting)
            self._analysed = self._taken
        while self._analysed - self._waiting[0].end >= self._ahead:
            if self._waiting[-1].end < self._analysed:
                return  # its frames are still to be read again
            yield self._give_out()

    def finish(self) -> Iterator[tuple[FrameBatch, Tensor]]:
        """The frames that are left when the clip is over."""
        self._tracker.close(self._taken - 1)
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

    def _analyse(self, waiting: Waiting) -> None:
        """Find the faces of a batch and link them to tracks."""
        cuts = self._shots.cuts(waiting.frames)
        every = self.config.track.detect_every
        looked = [b for b, cut in enumerate(cuts) if cut or (waiting.first + b) % every == 0]
        faces = Faces.empty()
        if looked:
            frames = waiting.frames[torch.tensor(looked, device=waiting.frames.device)]
            faces = self._render.with_room(lambda size: self._detect(frames, size))
        began = time.perf_counter()
        for row, b in enumerate(looked):
            self._tracker.update(
                waiting.first + b, faces[faces.frame == row], self._describe, cut=cuts[b]
            )
        self._clock("track", began)

    def _detect(self, frames: Tensor, size: int) -> Faces:
        """Faces of consecutive frames, so many of which go through the network together."""
        tables = []
        for start in range(0, len(frames), size):
            part = frames[start : start + size]
            faces = self.swapper.detect(part, unsure=UNSURE, consecutive=True).to("cpu")
            tables.append(Faces(faces.frame + start, faces.box, faces.points, faces.score))
        return Faces.cat(tables)

    def _describe(self, asked: Sequence[tuple[int, Place]]) -> Tensor:
        """Embeddings ``(M, D)`` of faces in frames of the window, in the order asked for."""
        parts: dict[int, Tensor] = {}
        for waiting in self._waiting:
            rows = [i for i, (frame, _) in enumerate(asked) if waiting.first <= frame < waiting.end]
            if rows:
                here = (waiting, [asked[i] for i in rows])
                found = self._render.per_face(self.swapper.embed, here)
                parts.update(zip(rows, found, strict=True))
        return torch.stack([parts[i] for i in range(len(asked))])

    def _give_out(self) -> tuple[FrameBatch, Tensor]:
        """The oldest batch, swapped."""
        waiting = self._waiting[0]
        began = time.perf_counter()
        rows = self._cast(waiting)
        self._clock("track", began)
        out = waiting.batch.frames
        if rows:
            swapped, faces = self._render(self._waiting, rows, self._seconds)
            self._measure(waiting, rows, faces, swapped)
            out = self._buffers.tensor(*swapped.shape).copy_(swapped)
        self._count(waiting, rows)
        self._waiting.popleft()
        self._given = waiting.end
        self._tracker.forget(self._given - self._render.radius)
        for frame in [f for f in self._seconds if f < self._given - self._render.radius]:
            del self._seconds[frame]
        return waiting.batch, out

    def _cast(self, waiting: Waiting) -> list[Row]:
        """Decide who is swapped in each frame of a batch."""
        rows = []
        for frame in range(waiting.first, waiting.end):
            visible = [track for track in self._tracker.at(frame) if self._substantial(track)]
            self.casting.decide(frame, visible, self._analysed - 1, self._describe)
            for track in visible:
                given = -1 if track.source is None else track.source
                role = self.roles[given] if given >= 0 else -1
                opacity = self._opacity(track, frame)
                if role >= 0 and opacity > 0:
                    rows.append(Row(frame, track, role, opacity))
        return rows

    def _substantial(self, track: Track) -> bool:
        return track.seen >= self._least or (track.sudden and track.cut_off)

    def _opacity(self, track: Track, frame: int) -> float:
        """Fading in where somebody comes into view, out where they leave; not at cuts."""
        opacity = 1.0
        if track.since > track.first or not track.sudden:
            opacity = min(opacity, (frame - track.since + 1) / (self._fade + 1))
        if not track.open and not track.cut_off:
            opacity = min(opacity, (track.last - frame + 1) / (self._fade + 1))
        return opacity

    def _measure(self, waiting: Waiting, rows: Sequence[Row], faces: Faces, out: Tensor) -> None:
        """Add to the jitter figure: landmarks found in the frames before and after."""
        number = waiting.first // max(1, len(waiting.batch))
        if number % _JITTER_EVERY == 0 and self.tally.wants_jitter and measurable(rows):
            self.tally.measure(rows, self.swapper.landmarks(out, faces).float().cpu())

    def _count(self, waiting: Waiting, rows: Sequence[Row]) -> None:
        self.tally.frames += len(waiting.batch)
        for frame in range(waiting.first, waiting.end):
            for track in self._tracker.at(frame):
                self.tally.count_track(track, frame, a_person=self._substantial(track))
        every = self.config.track.detect_every
        for row in rows:
            self.tally.count_swap(row, self._seconds[row.frame], looked=row.frame % every == 0)

    def _clock(self, stage: str, began: float) -> None:
        seconds = self.swapper.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
