"""One face a frame, with everything that measures need to know of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faceswap.evaluate.extract import Instruments
from faceswap.evaluate.measures import eye_distance
from faceswap.types import Faces

NEAR = 1.0  # eye distances that the middle of a face may be away and still be the same face
AROUND = 1.0  # longer sides of a face's box on every side of it that a close look takes in


@dataclass(frozen=True, slots=True)
class Seen:
    """The measured face of each of B frames; rows without one are NaN."""

    valid: Tensor  # (B,) bool
    mesh: Tensor  # (B, 478, 3) float32, frame pixels
    embedding: Tensor  # (B, D) float32
    extra: dict[str, Tensor]  # extractor -> (B, ...) float32
    boxes: tuple[Tensor, ...]  # B, each (M, 4): box of the points of every face of the frame
    eyes: tuple[Tensor, ...]  # B, each (M,): their eye distances in pixels
    window: Tensor  # (B, 4) int64, x0 y0 x1 y1 of the close look; x1 = 0 where none was of use

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
            self.window[rows],
        )

    @staticmethod
    def empty() -> Seen:
        """No frames at all."""
        nothing = torch.zeros(0, dtype=torch.bool)
        window = torch.zeros(0, 4, dtype=torch.int64)
        return Seen(nothing, torch.zeros(0, 478, 3), torch.zeros(0, 1), {}, (), (), window)

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
            torch.cat([part.window for part in parts]),
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
    if like is not None:
        return _look_again(tools, frames, like)
    faces = tools.detect(frames)
    mesh = tools.landmarks(frames, faces)
    rows = torch.full((len(frames),), -1, dtype=torch.int64)
    for b in range(len(frames)):
        mine = torch.nonzero(faces.frame == b)[:, 0]
        if len(mine):
            follows = -1 if before is None else _nearest(mesh, mine, before)
            largest = int(mine[faces.size[mine].argmax()])
            rows[b] = follows if follows >= 0 else largest
            before = mesh[rows[b]]
        else:
            before = None
    # Once more from near by, as the other version of the frames will be looked at: only then are
    # two equal faces measured as exactly equal.
    window = _windows(faces, rows, frames.shape[2:])
    wanted = [mesh[row] if row >= 0 else None for row in rows.tolist()]
    near, near_mesh, near_rows = _close_look(tools, frames, window, wanted)
    window[near_rows < 0] = 0
    took = torch.where(near_rows >= 0, len(faces) + near_rows, rows)
    both = Faces.cat([faces, near])
    seen = _describe(tools, frames, both, torch.cat((mesh, near_mesh)), took.to(tools.device))
    eye, box = _eyes_and_boxes(mesh)
    shown = [faces.frame == b for b in range(len(frames))]
    return replace(
        seen,
        boxes=tuple(box[each] for each in shown),
        eyes=tuple(eye[each] for each in shown),
        window=window.to(tools.device),
    )


def _look_again(tools: Instruments, frames: Tensor, like: Seen) -> Seen:
    """`look` at another version of frames: only where the face was, which is much faster."""
    wanted = [like.mesh[b] if bool(like.valid[b]) else None for b in range(len(frames))]
    window = like.window.cpu()
    faces, mesh, rows = _close_look(tools, frames, window, wanted)
    far = [b for b, each in enumerate(wanted) if each is not None and int(window[b, 2]) == 0]
    if far:
        found = tools.detect(frames[far])
        found = replace(found, frame=torch.tensor(far, device=found.frame.device)[found.frame])
        more = tools.landmarks(frames, found)
        for b in far:
            nearest = _nearest(more, torch.nonzero(found.frame == b)[:, 0], like.mesh[b])
            rows[b] = len(faces) + nearest if nearest >= 0 else -1
        faces, mesh = Faces.cat([faces, found]), torch.cat((mesh, more))
    return replace(_describe(tools, frames, faces, mesh, rows.to(tools.device)), window=like.window)


def _windows(faces: Faces, rows: Tensor, size: Sequence[int]) -> Tensor:
    """The surroundings ``(B, 4) int64`` of one face a frame, whole pixels; 0 where ``rows`` < 0."""
    height, width = size
    out = torch.zeros(len(rows), 4, dtype=torch.int64)
    for b, row in enumerate(rows.tolist()):
        if row >= 0:
            x0, y0, x1, y1 = faces.box[row].tolist()
            grow = AROUND * max(x1 - x0, y1 - y0)
            left, top = max(0, math.floor(x0 - grow)), max(0, math.floor(y0 - grow))
            right, bottom = min(width, math.ceil(x1 + grow)), min(height, math.ceil(y1 + grow))
            if right > left and bottom > top:
                out[b] = torch.tensor([left, top, right, bottom])
    return out


def _close_look(
    tools: Instruments,
    frames: Tensor,  # (B, 3, H, W) uint8
    window: Tensor,  # (B, 4) int64, where to look; x1 = 0: nowhere
    wanted: Sequence[Tensor | None],  # B, (478, 3) float: the face that is meant
) -> tuple[Faces, Tensor, Tensor]:
    """Faces in windows, their meshes ``(N, 478, 3)``, and the row of the one meant, -1 if none."""
    tables = [Faces.empty(frames.device)]
    for b, (x0, y0, x1, y1) in enumerate(window.tolist()):
        if x1 and wanted[b] is not None:
            found = (tools.near or tools.detect)(frames[b : b + 1, :, y0:y1, x0:x1])
            corner = found.box.new_tensor([x0, y0])
            tables.append(
                Faces(
                    found.frame + b,
                    found.box + corner.repeat(2),
                    found.points + corner,
                    found.score,
                )
            )
    faces = Faces.cat(tables)
    mesh = tools.landmarks(frames, faces)
    rows = torch.full((len(frames),), -1, dtype=torch.int64)
    for b, each in enumerate(wanted):
        if each is not None:
            rows[b] = _nearest(mesh, torch.nonzero(faces.frame == b)[:, 0], each)
    return faces, mesh, rows


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

    eye, box = _eyes_and_boxes(mesh)
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
        window=torch.zeros(len(rows), 4, dtype=torch.int64, device=rows.device),
    )


def _eyes_and_boxes(mesh: Tensor) -> tuple[Tensor, Tensor]:
    """Eye distances ``(N,)`` and boxes of all points ``(N, 4)``."""
    return eye_distance(mesh), torch.cat((mesh.amin(1)[:, :2], mesh.amax(1)[:, :2]), 1)
