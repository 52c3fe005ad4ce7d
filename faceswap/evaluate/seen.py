"""One face a frame, with everything that measures need to know of it.

Pictures go through the networks together: a batch may hold frames of a clip as well as photos of
different sizes and people, and says of each what it would say of it alone (within rounding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faceswap.evaluate.extract import CLOSE, Instruments
from faceswap.evaluate.measures import eye_distance
from faceswap.ops.geometry import Alignment
from faceswap.types import Faces, Pictures

NEAR = 1.0  # eye distances that the middle of a face may be away and still be the same face
AROUND = 1.0  # longer sides of a face's box on every side of it that a close look takes in
TOGETHER = 1 << 24  # pixels of whole pictures that the detector is given at once; bounds memory


@dataclass(frozen=True, slots=True)
class Seen:
    """The measured face of each of B frames; rows without one are NaN."""

    valid: Tensor  # (B,) bool
    mesh: Tensor  # (B, 478, 3) float32, frame pixels
    embedding: Tensor  # (B, D) float32
    extra: dict[str, Tensor]  # extractor -> (B, ...) float32
    boxes: tuple[Tensor, ...]  # B, each (M, 4): box of the points of every face of the frame
    eyes: tuple[Tensor, ...]  # B, each (M,): their eye distances in pixels
    window: Tensor  # (B, 3) float32, middle x y and side of the close look; 0 where none was of use

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
        window = torch.zeros(0, 3)
        return Seen(nothing, torch.zeros(0, 478, 3), torch.zeros(0, 1), {}, (), (), window)

    @staticmethod
    def cat(parts: list[Seen]) -> Seen:
        """Frames one after the other; at least one part."""
        return Seen(
            torch.cat([part.valid for part in parts]),
            torch.cat([part.mesh for part in parts]),
            torch.cat([part.embedding for part in parts]),
            {name: torch.cat(values) for name, values in _extras(parts).items()},
            tuple(box for part in parts for box in part.boxes),
            tuple(eye for part in parts for eye in part.eyes),
            torch.cat([part.window for part in parts]),
        )


@torch.no_grad()
def look(
    tools: Instruments,
    pictures: Pictures,  # (B, 3, H, W) uint8, or B of (3, H, W)
    like: Seen | None = None,
    *,
    clip: bool = False,
    before: Tensor | None = None,  # (478, 3) float, the face in the frame before, if it had one
) -> Seen:
    """Find and describe one face a picture.

    Args:
        tools: what looks.
        pictures: photos of any sizes, or consecutive frames of a clip.
        like: the same pictures in another version: the face at the same place is taken, and none
            if there is none. Otherwise it is the largest, in a clip the one that the frame before
            had.
        clip: the pictures follow each other.
        before: carries a clip's face over from one call to the next.
    """
    pictures = _to(pictures, tools.device)
    if like is not None:
        return _look_again(tools, pictures, like)
    faces = _search(tools, pictures, range(len(pictures)))
    mesh = tools.landmarks(pictures, faces)
    rows = torch.full((len(pictures),), -1, dtype=torch.int64)
    for b in range(len(pictures)):
        mine = torch.nonzero(faces.frame == b)[:, 0]
        if len(mine):
            follows = _nearest(mesh, mine, before) if clip and before is not None else -1
            largest = int(mine[faces.size[mine].argmax()])
            rows[b] = follows if follows >= 0 else largest
            before = mesh[rows[b]]
        else:
            before = None
    # Once more from near by, as the other version of the pictures will be looked at: only then are
    # two equal faces measured as exactly equal.
    window = _windows(faces, rows)
    wanted = [mesh[row] if row >= 0 else None for row in rows.tolist()]
    near, near_mesh, near_rows = _close_look(tools, pictures, window, wanted)
    window[near_rows < 0] = 0
    took = torch.where(near_rows >= 0, len(faces) + near_rows, rows)
    both = Faces.cat([faces, near])
    seen = _describe(tools, pictures, both, torch.cat((mesh, near_mesh)), took.to(tools.device))
    eye, box = _eyes_and_boxes(mesh)
    shown = [faces.frame == b for b in range(len(pictures))]
    return replace(
        seen,
        boxes=tuple(box[each] for each in shown),
        eyes=tuple(eye[each] for each in shown),
        window=window.to(tools.device),
    )


def _look_again(tools: Instruments, pictures: Pictures, like: Seen) -> Seen:
    """`look` at another version of pictures: only where the face was, which is much faster."""
    wanted = [like.mesh[b] if bool(like.valid[b]) else None for b in range(len(pictures))]
    window = like.window.cpu()
    faces, mesh, rows = _close_look(tools, pictures, window, wanted)
    far = [b for b, each in enumerate(wanted) if each is not None and not window[b, 2]]
    if far:
        found = _search(tools, pictures, far)
        more = tools.landmarks(pictures, found)
        for b in far:
            wanted_here = like.mesh[b]
            nearest = _nearest(more, torch.nonzero(found.frame == b)[:, 0], wanted_here)
            rows[b] = len(faces) + nearest if nearest >= 0 else -1
        faces, mesh = Faces.cat([faces, found]), torch.cat((mesh, more))
    seen = _describe(tools, pictures, faces, mesh, rows.to(tools.device))
    return replace(seen, window=like.window)


def _search(tools: Instruments, pictures: Pictures, rows: Sequence[int]) -> Faces:
    """Every face of some of the pictures, those of one size together; picture by picture."""
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for b in rows:
        height, width = pictures[b].shape[1:]
        batches = groups.setdefault((height, width), [[]])
        if (len(batches[-1]) + 1) * height * width > TOGETHER and batches[-1]:
            batches.append([])
        batches[-1].append(b)
    tables = [Faces.empty(tools.device)]
    for batch in (batch for batches in groups.values() for batch in batches):
        found = tools.detect(torch.stack([pictures[b] for b in batch]))
        frame = torch.tensor(batch, device=found.frame.device)[found.frame]
        tables.append(replace(found, frame=frame))
    faces = Faces.cat(tables)
    return faces[torch.argsort(faces.frame, stable=True)]


def _windows(faces: Faces, rows: Tensor) -> Tensor:
    """The surroundings ``(B, 3)`` of one face a picture, see `Seen`; 0 where ``rows`` < 0."""
    out = torch.zeros(len(rows), 3)
    for b, row in enumerate(rows.tolist()):
        if row >= 0:
            x0, y0, x1, y1 = faces.box[row].tolist()
            # between pixels, so that what need not shrink is not resampled
            middle = math.floor((x0 + x1) / 2) + 0.5, math.floor((y0 + y1) / 2) + 0.5
            side = (1 + 2 * AROUND) * max(x1 - x0, y1 - y0)
            out[b] = torch.tensor([*middle, max(side, 1.0)])
    return out


def _close_look(
    tools: Instruments,
    pictures: Pictures,  # B
    window: Tensor,  # (B, 3) float, where to look; side 0: nowhere
    wanted: Sequence[Tensor | None],  # B, (478, 3) float: the face that is meant
) -> tuple[Faces, Tensor, Tensor]:
    """Faces in windows, their meshes ``(N, 478, 3)``, and the row of the one meant, -1 if none.

    All windows become pictures of one size, shrunk where they are larger, black where the picture
    ends, so that one batch holds them.
    """
    device, rows = tools.device, torch.full((len(window),), -1, dtype=torch.int64)
    shown = [b for b, each in enumerate(wanted) if each is not None and window[b, 2] > 0]
    faces = Faces.empty(device)
    if shown:
        x, y, side = window[shown].to(device).unbind(1)
        scale = (CLOSE / side).clamp(max=1.0)
        matrix = torch.zeros(len(shown), 2, 3, device=device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = scale
        matrix[..., 2] = 0.5 * (CLOSE - 1) - scale[:, None] * torch.stack((x, y), 1)
        at, frame = Alignment(matrix, CLOSE), torch.tensor(shown, device=device)
        crops = (at.crop(pictures, frame) * 255).round().byte()
        found = (tools.near or tools.detect)(crops)
        there = at[found.frame]
        box = there.inverse_points(found.box.view(-1, 2, 2)).flatten(1)
        points = there.inverse_points(found.points)
        faces = Faces(frame[found.frame], box, points, found.score)
    mesh = tools.landmarks(pictures, faces)
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


def _describe(
    tools: Instruments, pictures: Pictures, faces: Faces, mesh: Tensor, rows: Tensor
) -> Seen:
    valid = rows >= 0
    chosen = faces[rows[valid]]

    def spread(values: Tensor) -> Tensor:
        out = values.new_full((len(rows), *values.shape[1:]), math.nan)
        out[valid] = values
        return out

    eye, box = _eyes_and_boxes(mesh)
    frame = [faces.frame == b for b in range(len(pictures))]
    return Seen(
        valid=valid,
        mesh=spread(mesh[rows[valid]]),
        embedding=spread(tools.encode(pictures, chosen)),
        extra={
            each.name: spread(each(pictures, chosen, mesh[rows[valid]]))
            for each in tools.extra
            if len(chosen)
        },
        boxes=tuple(box[mine] for mine in frame),
        eyes=tuple(eye[mine] for mine in frame),
        window=torch.zeros(len(rows), 3, device=rows.device),
    )


def _eyes_and_boxes(mesh: Tensor) -> tuple[Tensor, Tensor]:
    """Eye distances ``(N,)`` and boxes of all points ``(N, 4)``."""
    return eye_distance(mesh), torch.cat((mesh.amin(1)[:, :2], mesh.amax(1)[:, :2]), 1)


def _extras(parts: Sequence[Seen]) -> dict[str, list[Tensor]]:
    """What extractors said in each part; NaN in parts without any face."""
    shapes = {name: v.shape[1:] for part in parts for name, v in part.extra.items()}
    return {
        name: [
            part.extra.get(name, part.mesh.new_full((len(part), *shape), math.nan))
            for part in parts
        ]
        for name, shape in shapes.items()
    }


def _to(pictures: Pictures, device: torch.device) -> Pictures:
    if isinstance(pictures, Tensor):
        return pictures.to(device)
    return [picture.to(device) for picture in pictures]
