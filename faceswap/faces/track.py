"""Who is who from frame to frame: faces linked to tracks.

`Tracker` is fed one frame after the other and knows no pixels. A face joins the track that it lies
nearest to (overlap, distance of the five points from where the track's motion would put them),
one to one; where two tracks or two faces compete, their identities decide. Faces that the detector
is unsure of can carry a track on, never begin or end one. Gaps up to ``max_gap`` are filled with
interpolated places; no track goes over a cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from faceswap.faces.identity import similarity
from faceswap.ops.boxes import box_iou
from faceswap.types import Faces

_REACH = 0.45  # of the face's size: how far from its expected place a face may be
_REACH_LATER = 1.0  # the same after a long gap
_OVERLAP = 0.3  # IoU with the expected box that also makes a candidate
_UNSURE_REACH = 0.3  # _REACH for faces the detector is unsure of
_SCALE_STEP = 1.6  # a face is not that many times larger or smaller than a moment ago
_RIVAL = 0.4  # difference of cost under which two candidates are rivals
_IDENTITY_WEIGHT = 2.0  # of 1 - cosine against the costs of place
_FORBIDDEN = 1e6
_NOSE = 0.54  # of the way from eyes to mouth, where a nose is seen level; 0.50 to 0.58 in portraits
_MEMORY = 4  # frames that the motion is taken from

# [(frame, place)] -> (M, D) embeddings of these faces
Describe = Callable[[Sequence[tuple[int, "Place"]]], Tensor]


@dataclass(slots=True)
class Place:
    """Where a track's face is in one frame."""

    box: Tensor  # (4,) float32, frame px
    points: Tensor  # (5, 2) float32, frame px
    score: float  # of the detector; 0 where interpolated
    seen: bool = True  # False: interpolated
    mesh: Tensor | None = None  # (P, 3) float32, frame px, once it was looked for
    covered: Tensor | None = None  # (s, s) uint8, what lies before it (`Swapper.covers`), likewise

    @property
    def size(self) -> float:
        """Longer side of the box, px."""
        return float((self.box[2:] - self.box[:2]).max())


@dataclass(slots=True)
class Track:
    """One face over consecutive frames of one shot."""

    number: int
    first: int  # frame
    last: int  # frame, of the last sure sight
    sudden: bool  # began with its shot, so it was there before anybody could see it
    open: bool = True  # may still go on
    cut_off: bool = False  # ended with its shot
    seen: int = 0  # frames with a sure detection
    places: dict[int, Place] = field(default_factory=dict)  # frame -> place, without gaps
    unsure: dict[int, Place] = field(default_factory=dict)  # after `last`, not yet confirmed
    embedding: Tensor | None = None  # (D,) float32, unit length
    quality: float = 0.0  # of the best face the embedding was made of
    source: int | None = None  # row of the identities; -1 = left alone; None = not yet decided
    since: int = 0  # frame from which `source` counts
    review: int = 0  # frame at which `source` is to be thought over
    side: int = 0  # px the swap is rendered at; 0 = not yet settled
    color: Tensor | None = None  # (2, 2, 3) float32, steadied statistics: own and wanted
    look: int = -1  # of the source, see `faceswap.faces.looks`; -1 = not yet chosen
    coming: int = -1  # the look that it fades into; -1 = none
    turned: int = 0  # frame at which that began

    def expected(self, frame: int) -> Place:
        """Where the face would be if it moved on as it did, a little slower each frame."""
        known = {**self.places, **self.unsure}
        frames = sorted(known)[-_MEMORY:]
        newest = known[frames[-1]]
        if len(frames) < 2:
            return newest
        span = frames[-1] - frames[0]
        ahead = sum(0.9**step for step in range(frame - frames[-1]))
        oldest = known[frames[0]]
        points = newest.points + (newest.points - oldest.points) * (ahead / span)
        shift = (points - newest.points).mean(0).repeat(2)
        return Place(newest.box + shift, points, newest.score)


class Tracker:
    """Tracks of a clip, fed frame by frame.

    Args:
        max_gap: frames without a sure sight after which a track has ended.
        sure: score from which a face can begin a track.
        step: frames from one `update` to the next; those between are interpolated.
    """

    def __init__(self, *, max_gap: int, sure: float, step: int = 1) -> None:
        self.max_gap = max(max_gap, step)
        self.sure = sure
        self.step = step
        self.tracks: list[Track] = []  # those that are open, or still of interest to the caller
        self.count = 0  # tracks ever begun
        self._newest = -1
        self._shot = 0  # frame in which the shot began

    def update(
        self,
        frame: int,
        faces: Faces,  # of this frame
        describe: Describe,
        *,
        cut: bool = False,  # a new shot begins with this frame
    ) -> None:
        """Link the faces of a frame; ``describe`` is asked only where places do not decide."""
        if cut:
            self.close(frame - 1)
            self._shot = frame
        self._newest = frame
        for track in self.tracks:
            if track.open and frame - track.last > self.max_gap:
                track.open, track.unsure = False, {}
        faces = faces.to("cpu")
        places = [
            Place(box, points, float(score))
            for box, points, score in zip(faces.box, faces.points, faces.score, strict=True)
        ]
        clear = [place for place in places if place.score >= self.sure]
        vague = [place for place in places if place.score < self.sure]
        waiting = [track for track in self.tracks if track.open]
        linked = _link(waiting, clear, frame, describe, self.max_gap)
        for t, p in linked:
            _extend(waiting[t], frame, clear[p])
        rest = [track for t, track in enumerate(waiting) if t not in {t for t, _ in linked}]
        for t, p in _link(rest, vague, frame, None, self.max_gap):
            rest[t].unsure[frame] = vague[p]
        taken = {p for _, p in linked}
        for place in (place for p, place in enumerate(clear) if p not in taken):
            sudden = frame - self._shot < self.step
            track = Track(self.count, frame, frame, sudden, seen=1, places={frame: place})
            self.tracks.append(track)
            self.count += 1

    def close(self, end: int) -> None:
        """End all tracks: the shot or the clip is over, ``end`` was its last frame.

        Frames behind the newest `update` were not looked at; a face that was there then goes on
        to the end as it moved.
        """
        for track in self.tracks:
            if track.open:
                track.open, track.unsure = False, {}
                track.cut_off = self._newest - track.last < self.step
                left = range(track.last + 1, end + 1) if track.cut_off else ()
                expected = [track.expected(frame) for frame in left]
                for frame, place in zip(left, expected, strict=True):
                    track.places[frame] = Place(place.box, place.points, 0.0, False)

    def at(self, frame: int) -> list[Track]:
        """Tracks that have a place in this frame."""
        return [track for track in self.tracks if frame in track.places]

    def forget(self, before: int) -> None:
        """Drop what lies before a frame; tracks keep what their motion is taken from."""
        for track in self.tracks:
            keep = min(before, track.last - _MEMORY) if track.open else before
            for frame in [frame for frame in track.places if frame < keep]:
                del track.places[frame]
        self.tracks = [track for track in self.tracks if track.open or track.places]

    def state(self) -> dict[str, Any]:
        """All of it as plain values and tensors, for `restore`."""
        tracks = [asdict(track) for track in self.tracks]
        return {
            "tracks": tracks,
            "count": self.count,
            "newest": self._newest,
            "shot": self._shot,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.count, self._newest, self._shot = state["count"], state["newest"], state["shot"]
        self.tracks = []
        for values in state["tracks"]:
            for name in ("places", "unsure"):
                values[name] = {frame: Place(**place) for frame, place in values[name].items()}
            self.tracks.append(Track(**values))


def quality(place: Place) -> float:
    """How much a face tells of its identity, in [0, 1]: sure, large and seen from the front."""
    eyes, nose, mouth = place.points[:2], place.points[2], place.points[3:].mean(0)
    across = eyes[1] - eyes[0]
    width = float(across.norm()) + 1e-6
    off = float(((nose - eyes.mean(0)) * across).sum()) / width**2  # 0 = nose between the eyes
    turned = min(1.0, abs(off) / 0.5)
    down = mouth - eyes.mean(0)
    low = float(((nose - eyes.mean(0)) * down).sum()) / (float(down.square().sum()) + 1e-6)
    tilted = min(1.0, abs(low - _NOSE) / 0.35)
    return place.score * min(1.0, place.size / 112) * (1 - 0.8 * max(turned, tilted))


def _extend(track: Track, frame: int, place: Place) -> None:
    """Add a sure sight, and what lies between it and the one before."""
    anchors = {track.last: track.places[track.last], **track.unsure, frame: place}
    frames = sorted(anchors)
    for begin, end in itertools.pairwise(frames):
        a, b = anchors[begin], anchors[end]
        for between in range(begin + 1, end):
            share = (between - begin) / (end - begin)
            track.places[between] = Place(
                torch.lerp(a.box, b.box, share), torch.lerp(a.points, b.points, share), 0.0, False
            )
        track.places[end] = b
    track.last, track.unsure = frame, {}
    track.seen += 1


def _link(
    tracks: Sequence[Track],
    places: Sequence[Place],
    frame: int,
    describe: Describe | None,  # None: faces the detector is unsure of
    max_gap: int,
) -> list[tuple[int, int]]:
    """Pairs (track, place), one to one, of the least total cost (Hungarian, Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment

    if not tracks or not places:
        return []
    expected = [track.expected(frame) for track in tracks]
    wait = torch.tensor([(frame - track.last - 1) / max_gap for track in tracks]).clamp(0, 1)
    reach = _REACH + (_REACH_LATER - _REACH) * wait if describe else wait * 0 + _UNSURE_REACH
    boxes = torch.stack([place.box for place in places])
    overlap = box_iou(torch.stack([place.box for place in expected]), boxes)
    a = torch.stack([place.points for place in expected])
    b = torch.stack([place.points for place in places])
    was = torch.tensor([place.size for place in expected])[:, None].clamp_min(1.0)
    now = torch.tensor([place.size for place in places])[None].clamp_min(1.0)
    distance = (a[:, None] - b[None]).norm(dim=-1).mean(-1) / was
    may = (distance < reach[:, None]) | (overlap > _OVERLAP)
    may &= (now / was < _SCALE_STEP) & (was / now < _SCALE_STEP)
    cost = distance + 0.5 * (1 - overlap)
    if describe:
        cost = cost + _identity_cost(tracks, places, frame, may & _rivals(cost, may), describe)
    cost = torch.where(may, cost, _FORBIDDEN)
    pairs = zip(*linear_sum_assignment(cost.numpy()), strict=True)
    return [(int(t), int(p)) for t, p in pairs if may[t, p]]


def _rivals(cost: Tensor, may: Tensor) -> Tensor:
    """Candidates ``(T, P) bool`` that another one of the same row or column comes close to."""
    masked = torch.where(may, cost, _FORBIDDEN)
    out = torch.zeros_like(may)
    for dim in (0, 1):
        near = may & (masked < masked.amin(dim, keepdim=True) + _RIVAL)
        out |= near & (near.sum(dim, keepdim=True) > 1)
    return out


def _identity_cost(
    tracks: Sequence[Track],
    places: Sequence[Place],
    frame: int,
    rivals: Tensor,  # (T, P) bool
    describe: Describe,
) -> Tensor:
    """What identity adds to the cost of the tracks and places that have rivals, ``(T, P)``."""
    cost = torch.zeros(rivals.shape)
    rows, columns = rivals.any(1).nonzero()[:, 0], rivals.any(0).nonzero()[:, 0]
    if not len(rows):
        return cost
    new = [tracks[t] for t in rows.tolist() if tracks[t].embedding is None]
    asked = [(track.last, track.places[track.last]) for track in new]
    found = describe([*asked, *((frame, places[p]) for p in columns.tolist())]).cpu()
    for track, row in zip(new, found[: len(new)], strict=True):
        track.embedding = row / row.norm().clamp_min(1e-6)
    known = [tracks[t].embedding for t in rows.tolist()]
    own = torch.stack([row for row in known if row is not None])
    cost[rows[:, None], columns[None]] = _IDENTITY_WEIGHT * (1 - similarity(own, found[len(new) :]))
    return cost
