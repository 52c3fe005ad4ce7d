"""One face a frame, with everything that measures need to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.evaluate.extract import Instruments
from faceswap.evaluate.measures import eye_distance
from faceswap.types import Faces

NEAR = 1.0  # eye distances that the middle of a face may be away and still be the same face


@dataclass(frozen=True, slots=True)
class Seen:
    """The measured face of each of B frames; rows without one are NaN."""

    valid: Tensor  # (B,) bool
    mesh: Tensor  # (B, 478, 3) float32, frame pixels
    embedding: Tensor  # (B, D) float32
    extra: dict[str, Tensor]  # extractor -> (B, ...) float32
    boxes: tuple[Tensor, ...]  # B, each (M, 4): box of the points of every face of the frame
    eyes: tuple[Tensor, ...]  # B, each (M,): their eye distances in pixels

    def __len__(self) -> int:
        return len(self.valid)

    def __getitem__(self, rows: Tensor) -> Seen:
        """Frames by index ``(M,) int64``."""
        rows = rows.to(self.valid.device)
        return Seen(
            self.valid[rows],
            self.mesh[rows],
            self.embedding[rows],
            {name: values[rows] for name, values in self.extra.items()},
            tuple(self.boxes[row] for row in rows.tolist()),
            tuple(self.eyes[row] for row in rows.tolist()),
        )

    @staticmethod
    def empty() -> Seen:
        """No frames at all."""
        nothing = torch.zeros(0, dtype=torch.bool)
        return Seen(nothing, torch.zeros(0, 478, 3), torch.zeros(0, 1), {}, (), ())

    @staticmethod
    def cat(parts: list[Seen]) -> Seen:
        """Frames one after the other; at least one part."""
        return Seen(
            torch.cat([part.valid for part in parts]),
            torch.cat([part.mesh for part in parts]),
            torch.cat([part.embedding for part in parts]),
            {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra},
            tuple(box for part in parts for box in part.boxes),
            tuple(eye for part in parts for eye in part.eyes),
        )


@torch.no_grad()
def look(
    tools: Instruments,
    frames: Tensor,  # (B, 3, H, W) uint8
    like: Seen | None = None,
    before: Tensor | None = None,  # (478, 3) float, the face in the frame before, if it had one
) -> Seen:
    """Find and describe one face a frame.

    Args:
        tools: what looks.
        frames: pictures, or consecutive frames of a clip.
        like: the same frames of another version: the face at the same place is taken, and none if
            there is none. Otherwise it is the face that the frame before had (frames of a clip
            follow each other, see ``before``), else the largest.
        before: carries a clip's face over from one call to the next.
    """
    frames = frames.to(tools.device)
    faces = tools.detect(frames)
    mesh = tools.landmarks(frames, faces)
    rows = torch.full((len(frames),), -1, dtype=torch.int64)
    for b in range(len(frames)):
        mine = torch.nonzero(faces.frame == b)[:, 0]
        if like is not None:
            if bool(like.valid[b]):
                rows[b] = _nearest(mesh, mine, like.mesh[b])
            continue
        if len(mine):
            follows = -1 if before is None else _nearest(mesh, mine, before)
            largest = int(mine[faces.size[mine].argmax()])
            rows[b] = follows if follows >= 0 else largest
            before = mesh[rows[b]]
        else:
            before = None
    return _describe(tools, frames, faces, mesh, rows.to(tools.device))


def _nearest(mesh: Tensor, rows: Tensor, wanted: Tensor) -> int:
    """The row whose middle is nearest to that of the wanted mesh, -1 if it is too far away."""
    if not len(rows):
        return -1
    gap = torch.linalg.vector_norm((mesh[rows].mean(1) - wanted.mean(0))[:, :2], dim=1)
    best = int(gap.argmin())
    unit = float(eye_distance(wanted[None])[0])
    return int(rows[best]) if float(gap[best]) <= NEAR * unit else -1


def _describe(tools: Instruments, frames: Tensor, faces: Faces, mesh: Tensor, rows: Tensor) -> Seen:
    valid = rows >= 0
    chosen = faces[rows[valid]]

    def spread(values: Tensor) -> Tensor:
        out = values.new_full((len(rows), *values.shape[1:]), math.nan)
        out[valid] = values
        return out

    eye, box = eye_distance(mesh), torch.cat((mesh.amin(1)[:, :2], mesh.amax(1)[:, :2]), 1)
    frame = [faces.frame == b for b in range(len(frames))]
    return Seen(
        valid=valid,
        mesh=spread(mesh[rows[valid]]),
        embedding=spread(tools.encode(frames, chosen)),
        extra={
            each.name: spread(each(frames, chosen, mesh[rows[valid]]))
            for each in tools.extra
            if len(chosen)
        },
        boxes=tuple(box[mine] for mine in frame),
        eyes=tuple(eye[mine] for mine in frame),
    )
