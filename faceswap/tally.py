"""What happened in a clip so far: numbers for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from faceswap.evaluate.temporal import jitter
from faceswap.faces.track import Track
from faceswap.ops.topology import MESH_POINTS
from faceswap.render import Row

_JITTER_FRAMES = 240  # after which the figure is good enough


@dataclass(slots=True)
class Tally:
    """Counts; plain numbers, so that they survive an interruption."""

    frames: int = 0
    faces_seen: int = 0
    faces_swapped: int = 0
    bridged: int = 0
    dropped: int = 0
    tracks: int = 0
    jitter_sum: float = 0.0
    jitter_frames: int = 0
    swaps: dict[int, list[Any]] = field(default_factory=dict)  # track -> source, first, last, n

    @property
    def jitter(self) -> float | None:
        """Mean of `evaluate.temporal.jitter` over the frames measured; None if there are none."""
        return self.jitter_sum / self.jitter_frames if self.jitter_frames else None

    @property
    def wants_jitter(self) -> bool:
        """Whether more measurements would still tell something."""
        return self.jitter_frames < _JITTER_FRAMES

    def count_track(self, track: Track, frame: int, *, a_person: bool) -> None:
        """A track in one frame; ``a_person``: it lasts for long enough to be one."""
        self.faces_seen += track.places[frame].seen
        if a_person:
            self.tracks += track.first == frame
        else:
            self.dropped += 1

    def count_swap(self, row: Row, seconds: float, *, looked: bool) -> None:
        """A face that was swapped; ``looked``: the detector was asked in this frame."""
        self.faces_swapped += 1
        self.bridged += looked and not row.track.places[row.frame].seen
        entry = self.swaps.setdefault(row.track.number, [row.role, seconds, seconds, 0])
        entry[2], entry[3] = seconds, entry[3] + 1

    def measure(self, rows: Sequence[Row], after: Tensor) -> None:
        """Add to the jitter figure.

        Args:
            rows: faces swapped in consecutive frames, with their landmarks from before.
            after: ``(N, 478, 3) float32``, landmarks found in the swapped frames.
        """
        for track in {row.track.number: row.track for row in rows}.values():
            mine = [i for i, row in enumerate(rows) if row.track is track and row.opacity == 1]
            if len(mine) < 3 or rows[mine[-1]].frame - rows[mine[0]].frame != len(mine) - 1:
                continue
            before = [track.places[rows[i].frame].mesh for i in mine]
            target = torch.stack([mesh for mesh in before if mesh is not None])
            value = jitter(target, after[mine], torch.ones(len(mine), dtype=torch.bool))
            value = value[value.isfinite()]
            self.jitter_sum += float(value.sum())
            self.jitter_frames += len(value)


def measurable(rows: Sequence[Row]) -> bool:
    """Whether these faces have the landmarks, and are enough, for `Tally.measure`."""
    meshes = [row.track.places[row.frame].mesh for row in rows]
    return len(rows) >= 3 and all(m is not None and len(m) == MESH_POINTS for m in meshes)
