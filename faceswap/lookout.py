"""Where a clip is looked at for faces: every so many frames, and wherever a shot begins."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from faceswap.faces.shots import Shots
from faceswap.render import Waiting
from faceswap.types import Faces

UNSURE = 0.5  # of the detector's threshold: what carries a track on


@dataclass(frozen=True, slots=True)
class Looking:
    """A batch whose faces are being looked for."""

    waiting: Waiting
    cuts: list[bool]  # B, whether a shot begins
    looked: list[int]  # frames of the batch that the detector is shown
    faces: Future[Faces]  # on the CPU; rows count among `looked`
    state: dict[str, Any]  # of the `Lookout` before the batch


class Lookout:
    """Looks for faces in the batches of a clip, in order.

    Args:
        every: frames from one look to the next; a frame that begins a shot is always looked at.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._shots = Shots()

    def look(self, waiting: Waiting) -> Looking:
        """Have the faces of a batch found."""
        state = self.state()
        cuts = self._shots.cuts(waiting.frames)
        looked = [b for b, cut in enumerate(cuts) if cut or (waiting.first + b) % self.every == 0]
        faces = waiting.lane.submit(partial(_detect, waiting, looked))
        return Looking(waiting, cuts, looked, faces, state)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return self._shots.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._shots.restore(state)


def _detect(waiting: Waiting, looked: Sequence[int]) -> Faces:
    """Faces of some frames of a batch; runs in its lane."""
    if not looked:
        return Faces.empty()
    swapper = waiting.lane.swapper
    frames = waiting.frames[torch.tensor(looked, device=waiting.frames.device)]

    def call(size: int) -> Faces:
        tables = []
        for start in range(0, len(frames), size):
            part = frames[start : start + size]
            faces = swapper.detect(part, unsure=UNSURE, consecutive=True).to("cpu")
            tables.append(Faces(faces.frame + start, faces.box, faces.points, faces.score))
        return Faces.cat(tables)

    return waiting.lane.with_room(call)
