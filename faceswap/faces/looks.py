"""Which of a person's photos to take the texture from: the one turned most like the target.

What a photo does not show has to be made up, so a target that looks to the left is best given a
photo that looks to the left. The first photo is the user's choice; another one has to be nearer by
much. In clips the choice is kept until that is so, and one photo fades into the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.faces.track import Track
from faceswap.ops.shape import fit_pose
from faceswap.types import Identities

NEARER = 15.0  # degrees by which another photo has to be nearer
FADE = 0.3  # seconds in which one photo fades into another


def angles(
    mesh: Tensor,  # (N, 478, 3) float32, targets in px of their crops
    looks: Tensor,  # (L, 478, 3) float32, sources in px of theirs
    mean: Tensor,  # (478, 3) float32, `ShapeModel.mean`
) -> Tensor:
    """Degrees between where targets and sources look, ``(N, L)``; how they are tilted is no matter.

    Crops stand upright, so the way that the noses point tells.
    """
    ahead, theirs = (fit_pose(each, mean)[1][:, :, 2] for each in (mesh, looks))
    return torch.rad2deg(torch.acos((ahead @ theirs.T).clamp(-1, 1)))


def nearest(
    apart: Tensor,  # (N, L) degrees, of `angles`
    source: Tensor,  # (N,) int64, person of each target
    person: Tensor,  # (L,) int64, person of each look, first ones first
) -> Tensor:
    """The look of each target, ``(N,) int64``."""
    later = torch.zeros_like(person, dtype=torch.bool)
    later[1:] = person[1:] == person[:-1]
    cost = apart + NEARER * later
    return cost.masked_fill(person != source[:, None], torch.inf).argmin(1)


@dataclass(frozen=True, slots=True)
class Shown:
    """How a face of a frame is shown: one look, and another that comes in over it."""

    look: int
    coming: int = -1  # none
    share: float = 0.0  # in [0, 1), of the one that comes


def show(
    track: Track,
    frame: int,
    apart: Tensor,  # (L,) degrees, of `angles`
    role: int,  # whom the track shows
    people: Identities,  # with several looks
    frames: int,  # that a fade takes
) -> Shown:
    """The look of a track in a frame; to be asked for frame after frame."""
    assert people.person is not None
    mine = torch.nonzero(people.person == role)[:, 0].tolist()
    if track.look not in mine:
        track.look = int(nearest(apart[None], torch.tensor([role]), people.person))
        track.coming = -1
    if track.coming < 0:
        best = min(mine, key=lambda each: float(apart[each]))
        if float(apart[track.look] - apart[best]) > NEARER:
            track.coming, track.turned = best, frame
    if track.coming < 0:
        return Shown(track.look)
    share = (frame - track.turned + 1) / (frames + 1)
    if share < 1:
        return Shown(track.look, track.coming, share)
    track.look, track.coming = track.coming, -1
    return Shown(track.look)
