"""The stretch of a clip between the newest frame analysed and the oldest not yet given out.

Every decision about a frame may look that far ahead (about 0.7 s): whether a face that is gone
comes back, which of a track's faces tell best who it is, where its points really were. The
stretch has a fixed length, so memory does not depend on the length of the clip.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from faceswap.casting import Casting, opacity
from faceswap.config import VideoConfig
from faceswap.faces.track import Place, Track, Tracker
from faceswap.lanes import Lane, Lanes
from faceswap.lookout import Looking, Lookout
from faceswap.media.planes import FrameBatch
from faceswap.media.transfer import Fetched, Sent
from faceswap.render import Placed, Renderer, Row, Waiting
from faceswap.swap import Swapper
from faceswap.tally import Tally, measurable
from faceswap.types import Identities

_LEAST_SECONDS = 0.12  # a track seen for less is no person ...
_LEAST_FRAMES = 3  # ... but nobody needs to be seen in more frames than this
_REVIEW_SECONDS = 0.75  # between thinking over who somebody is
_JITTER_EVERY = 4  # batches, of which one is measured


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch on its way to the device that will work on it."""

    batch: FrameBatch
    lane: Lane
    frames: Sent


@dataclass(frozen=True, slots=True)
class Leaving:
    """A batch whose faces are being swapped."""

    waiting: Waiting
    rows: list[Row]
    # frames, and landmarks (N, 478, 3) if they are measured; None: nobody to swap
    swapped: Future[tuple[Fetched, Tensor | None]] | None


class Window:
    """Frames go in with `feed`, and come out swapped a moment later; use it in a ``with`` block.

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
        self._lookout = Lookout(track.detect_every)
        self._lanes = Lanes(swapper)
        self._looking: collections.deque[Looking] = collections.deque()
        self._waiting: collections.deque[Waiting] = collections.deque()  # not cast yet
        self._leaving: collections.deque[Leaving] = collections.deque()
        # When so many frames are given out, nothing behind them has been decided: see `state`.
        self.pause_at: int | None = None
        self._seconds: dict[int, float] = {}  # frame -> time, as far back as smoothing looks
        self._analysed = 0  # frames that the tracker knows
        self._taken = 0  # frames that came in
        self._given = 0  # frames that went out

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the work so far."""
        return [warning for lane in self._lanes for warning in lane.warnings]

    @property
    def devices(self) -> str:
        """Where it works, as ``--device`` has it."""
        return ",".join(str(lane.swapper.device) for lane in self._lanes)

    @property
    def next_pts(self) -> int | None:
        """Time, in ticks, of the first frame that has not been given out."""
        kept = [each.waiting for each in self._leaving] or self._waiting
        return kept[0].batch.pts[0] if kept else None

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lanes.__exit__(kind, error, trace)

    def load(self, batch: FrameBatch) -> Loaded:
        """Begin to take a batch to its device; in the clip's order, but from any thread."""
        lane = self._lanes.next()
        return Loaded(batch, lane, lane.carrier.send(batch.frames))

    def feed(self, loaded: Loaded) -> Iterator[tuple[FrameBatch, Fetched]]:
        """Take the next frames; give out those that nothing to come can change any more."""
        batch = loaded.batch
        waiting = Waiting(self._taken, batch, loaded.frames.take(), loaded.lane)
        self._waiting.append(waiting)
        self._taken += len(batch)
        for frame, seconds in enumerate(batch.seconds, waiting.first):
            self._seconds[frame] = float(seconds)
        if waiting.first >= self._analysed:  # else: read again after an interruption
            self._looking.append(self._lookout.look(waiting))
        yield from self._give_due()
        while len(self._looking) > self._lanes.ahead:
            self._analyse(self._looking.popleft())
            yield from self._give_due()

    def finish(self) -> Iterator[tuple[FrameBatch, Fetched]]:
        """The frames that are left when the clip is over."""
        while self._looking:
            self._analyse(self._looking.popleft())
            yield from self._give_due()
        self._tracker.close(self._taken - 1)
        while self._waiting:
            yield from self._cast_one()
        yield from self._give_out(0)

    def state(self) -> dict[str, Any]:
        """Everything but pixels, to go on from `next_pts`; only at a pause or with one device."""
        assert not self._leaving, "frames behind have been decided already"
        tally = self.tally
        looked = self._looking[0].state if self._looking else self._lookout.state()
        return {
            "tracker": self._tracker.state(),
            "shots": looked,
            "seconds": dict(self._seconds),
            "counters": [self._analysed, self._given],
            "best": self.casting.best,
            "tally": {name: getattr(tally, name) for name in Tally.__slots__ if name != "swaps"},
            "swaps": {number: list(entry) for number, entry in tally.swaps.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; feed it the frames from there on."""
        self._tracker.restore(state["tracker"])
        self._lookout.restore(state["shots"])
        self._seconds = dict(state["seconds"])
        self._analysed, self._given = state["counters"]
        self._taken = self._given
        self.casting.best = state["best"]
        self.tally = Tally(**state["tally"], swaps=dict(state["swaps"]))

    def _analyse(self, looking: Looking) -> None:
        """Link the faces of the next batch to tracks."""
        waiting, faces = looking.waiting, looking.faces.result()
        began = time.perf_counter()
        for row, b in enumerate(looking.looked):
            self._tracker.update(
                waiting.first + b, faces[faces.frame == row], self._describe, cut=looking.cuts[b]
            )
        self._analysed = waiting.end
        self._clock("track", began)

    def _describe(self, asked: Sequence[tuple[int, Place]]) -> Tensor:
        """Embeddings ``(M, D)`` of faces in frames of the window, in the order asked for."""
        parts: dict[int, Tensor] = {}
        for waiting in self._waiting:
            rows = [i for i, (frame, _) in enumerate(asked) if waiting.first <= frame < waiting.end]
            if rows:
                lane, faces = waiting.lane, waiting.table([asked[i] for i in rows])
                found = lane.per_face(lane.swapper.embed, waiting.frames, faces)
                parts.update(zip(rows, found, strict=True))
        return torch.stack([parts[i] for i in range(len(asked))])

    def _give_due(self) -> Iterator[tuple[FrameBatch, Fetched]]:
        """Batches that nothing to come can change any more."""
        while self._analysed - self._waiting[0].end >= self._ahead:
            if self._waiting[-1].end < self._analysed:
                return  # its frames are still to be read again
            yield from self._cast_one()

    def _cast_one(self) -> Iterator[tuple[FrameBatch, Fetched]]:
        """Have the oldest batch swapped; give out those that are done."""
        decided = self.tally.frames + sum(len(each.waiting.batch) for each in self._leaving)
        if self.pause_at is not None and decided >= self.pause_at:
            yield from self._give_out(0)
        waiting, swapped = self._waiting[0], None
        began = time.perf_counter()
        rows = self._cast(waiting)
        self._clock("track", began)
        if rows:
            running = [each.swapped for each in self._leaving if each.swapped is not None]
            before = running[-1] if running else None
            placed = self._render.place(self._waiting, rows, self._seconds, before)
            swapped = waiting.lane.submit(partial(self._swap, waiting, placed))
        self._count(waiting, rows)
        self._leaving.append(Leaving(self._waiting.popleft(), rows, swapped))
        yield from self._give_out(self._lanes.ahead)

    def _swap(self, waiting: Waiting, placed: Placed) -> tuple[Fetched, Tensor | None]:
        """A batch swapped, and landmarks for `Tally.measure` now and then; runs in its lane."""
        frames = self._render.swap(waiting, placed)
        out = waiting.lane.carrier.fetch(frames)
        number = waiting.first // max(1, len(waiting.batch))
        if number % _JITTER_EVERY or not (self.tally.wants_jitter and measurable(placed.rows)):
            return out, None
        lane = waiting.lane
        return out, lane.per_face(lane.swapper.landmarks, frames, placed.faces)

    def _give_out(self, most: int) -> Iterator[tuple[FrameBatch, Fetched]]:
        """Batches in order until at most so many are still being swapped."""
        while len(self._leaving) > most:
            leaving = self._leaving[0]
            waiting, after = leaving.waiting, None
            out = Fetched(waiting.batch.frames)  # nobody to swap: as they came
            if leaving.swapped is not None:
                out, after = leaving.swapped.result()
            if after is not None and self.tally.wants_jitter:
                self.tally.measure(leaving.rows, after)
            self.tally.frames += len(waiting.batch)
            self._leaving.popleft()
            self._given = waiting.end
            self._tracker.forget(self._given - self._render.radius)
            for frame in [f for f in self._seconds if f < self._given - self._render.radius]:
                del self._seconds[frame]
            yield waiting.batch, out

    def _cast(self, waiting: Waiting) -> list[Row]:
        """Decide who is swapped in each frame of a batch."""
        rows = []
        for frame in range(waiting.first, waiting.end):
            visible = [track for track in self._tracker.at(frame) if self._substantial(track)]
            self.casting.decide(frame, visible, self._analysed - 1, self._describe)
            for track in visible:
                given = -1 if track.source is None else track.source
                role = self.roles[given] if given >= 0 else -1
                share = opacity(track, frame, self._fade)
                if role >= 0 and share > 0:
                    rows.append(Row(frame, track, role, share))
        return rows

    def _substantial(self, track: Track) -> bool:
        return track.seen >= self._least or (track.sudden and track.cut_off)

    def _count(self, waiting: Waiting, rows: Sequence[Row]) -> None:
        for frame in range(waiting.first, waiting.end):
            for track in self._tracker.at(frame):
                self.tally.count_track(track, frame, a_person=self._substantial(track))
        every = self.config.track.detect_every
        for row in rows:
            self.tally.count_swap(row, self._seconds[row.frame], looked=row.frame % every == 0)

    def _clock(self, stage: str, began: float) -> None:
        seconds = self.swapper.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
