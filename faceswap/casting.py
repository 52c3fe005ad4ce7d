"""Which track of a clip gets which source: decided per track, and kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.faces.identity import similarity
from faceswap.faces.track import Describe, Track, quality

_BEST = 3  # faces of a track that its identity is taken from
_BETTER = 1.15  # times as good a view makes one look again at somebody who matched nobody
_GLANCES = 5  # times between two reviews that such a view is looked for
_LOYALTY = 0.1  # cosine that a track's present source is ahead of others when thought over


class Casting:
    """Assigns sources to tracks; row k of the references stands for source k.

    With references: the best faces of a track that can be seen ahead are compared with all
    references, and the tracks of a frame share them out one to one. It is thought over every
    `review` frames, and sooner once somebody who matched nobody shows much more of the face, so
    that who comes in turned away is swapped from the start. With
    ``everyone``: every track. Without either: one track at a time, the largest.

    Args:
        references: ``(K, D) float32``, or None.
        threshold: least cosine to a reference.
        margin: how far the best track of a frame must be ahead of the second best.
        everyone: swap every face.
        review: frames after which a decision is thought over.
    """

    def __init__(
        self,
        references: Tensor | None,
        *,
        threshold: float = 0.3,
        margin: float = 0.0,
        everyone: bool = False,
        review: int = 30,
    ) -> None:
        self.references = None if references is None else references.cpu()
        self.threshold = threshold
        self.margin = margin
        self.everyone = everyone
        self.review = review
        self.best = -1.0  # largest cosine of anybody to a reference so far

    def decide(
        self,
        frame: int,
        visible: Sequence[Track],  # all tracks of this frame
        ahead: int,  # last frame that can be looked at
        describe: Describe,
    ) -> None:
        """Set ``track.source`` (and ``since``) of the tracks in a frame."""
        if self.everyone:
            for track in visible:
                self._give(track, 0, frame)
        elif self.references is None:
            holder = next((track for track in visible if track.source == 0), None)
            if holder is None and visible:
                holder = max(visible, key=lambda track: track.places[frame].size)
            for track in visible:
                self._give(track, 0 if track is holder else -1, frame)
        else:
            due = [
                t
                for t in visible
                if t.source is None or frame >= t.review or self._shows_more(t, frame, ahead)
            ]
            for track in due:
                self._look(track, frame, ahead, describe)
            if due:
                self._share_out([t for t in visible if t.embedding is not None], frame)
            for track in visible:
                if track.source is None:
                    track.source = -1

    def _shows_more(self, track: Track, frame: int, ahead: int) -> bool:
        """Whether nobody's face shows much more of itself ahead than when it was looked at."""
        if track.source != -1 or (track.review - frame) % max(1, self.review // _GLANCES):
            return False
        seen = [p for at, p in track.places.items() if frame <= at <= ahead and p.seen]
        return max(map(quality, seen), default=0.0) > _BETTER * track.quality

    def _look(self, track: Track, frame: int, ahead: int, describe: Describe) -> None:
        """Take the track's identity from its best faces among those that can be seen."""
        track.review = frame + self.review
        window = [
            (at, place) for at, place in track.places.items() if frame <= at <= ahead and place.seen
        ]
        window.sort(key=lambda item: -quality(item[1]))
        best = window[:_BEST]
        value = quality(best[0][1]) if best else 0.0
        if not best or (track.embedding is not None and value < 0.7 * track.quality):
            return
        mean = F.normalize(F.normalize(describe(best).cpu()).mean(0), dim=0)
        known = track.embedding if track.quality > 0 else None
        track.embedding = mean if known is None else F.normalize(known + mean, dim=0)
        track.quality = max(track.quality, value)

    def _share_out(self, tracks: Sequence[Track], frame: int) -> None:
        """References to tracks, one to one, with the largest sum of cosines (Hungarian)."""
        from scipy.optimize import linear_sum_assignment

        assert self.references is not None
        if not tracks:
            return
        known = torch.stack([t.embedding for t in tracks if t.embedding is not None])
        cosine = similarity(known, self.references)  # (T, K)
        self.best = max(self.best, float(cosine.max()))
        top = cosine.topk(min(2, len(tracks)), dim=0).values
        lead = top[0] - top[1] if len(top) > 1 else torch.full_like(top[0], 2.0)
        worth = cosine - self.threshold
        for row, track in enumerate(tracks):
            if track.source is not None and track.source >= 0:
                worth[row, track.source] += _LOYALTY
        allowed = (worth >= 0) & ((lead >= self.margin)[None] | (cosine < top[0][None]))
        pairs = linear_sum_assignment(
            torch.where(allowed, worth + 1e-6, torch.zeros(())).numpy(), maximize=True
        )
        given = {int(t): int(k) for t, k in zip(*pairs, strict=True) if allowed[t, k]}
        for row, track in enumerate(tracks):
            self._give(track, given.get(row, -1), frame)

    @staticmethod
    def _give(track: Track, source: int, frame: int) -> None:
        if track.source != source:
            track.source, track.since = source, frame


def opacity(
    track: Track,
    frame: int,
    fade: int,  # frames
) -> float:
    """Fading in where somebody comes into view, out where they leave; not at cuts."""
    share = 1.0
    if track.since > track.first or not track.sudden:
        share = min(share, (frame - track.since + 1) / (fade + 1))
    if not track.open and not track.cut_off:
        share = min(share, (track.last - frame + 1) / (fade + 1))
    return share
