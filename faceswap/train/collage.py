"""One composed scene in the making: a background, faces and other things pasted onto it.

Or a mosaic of whole crops, or one crop that fills the picture. Things that are no faces are pasted
in the same way, so that a pasted edge tells nothing: pieces of backgrounds, faces whose blocks were
shuffled, parts of faces, and what lies around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.topology import SURFACE, five_points
from faceswap.train.data import Crops
from faceswap.train.paste import Area, Shape, put, shuffled, similarity

_MIRRORED = [1, 0, 2, 4, 3]  # which of the five points each becomes
_HIDDEN = 0.35  # share of a face that may be covered, and of its box that may be outside
_TRIES = 8


@dataclass(frozen=True, slots=True)
class Material:
    """What scenes are made of, and how large."""

    data: Crops
    rows: Tensor  # (n,) int64, faces that may be used; better none that shows a second face
    backgrounds: Sequence[Tensor]  # (3, h, w) uint8, pictures without faces
    size: int  # side S of a scene
    smallest: float  # px, root of a face's box area: smaller ones are there but not asked for
    largest: float  # px, of pasted faces; one that fills the picture may be larger


class Collage:
    """One scene in the making."""

    def __init__(self, material: Material, generator: torch.Generator) -> None:
        self.m, self.generator, self.size = material, generator, material.size
        self.boxes: list[Tensor] = []
        self.points: list[Tensor] = []
        self.counts: list[bool] = []
        self.taken: list[tuple[float, float, float, float]] = []  # faces nothing may cover

    def compose(self) -> None:
        """Draw the scene into ``image``."""
        kind, *u = self._uniform(4)
        whole = (0, 0, self.size, self.size)
        self.image = torch.empty(3, self.size, self.size)
        if kind < 0.2:
            self._tile(whole)
        elif kind < 0.4:
            side = 2 + int(u[0] * 4)
            edges = [round(i * self.size / side) for i in range(side + 1)]
            for top, bottom in pairwise(edges):
                for left, right in pairwise(edges):
                    put = self._tile if self._uniform(1)[0] < 0.7 else self._fill
                    put((left, top, right, bottom))
        else:
            self._fill(whole)
        several = 1 + int(u[1] ** 2 * 10) if kind > 0.4 else int(u[1] * 3)
        for _ in range(several):
            self._paste_face()
        for _ in range(int(u[2] * 5)):
            self._paste_other()

    # ------------------------------------------------------------ random choices

    def _uniform(self, n: int) -> list[float]:
        out: list[float] = torch.rand(n, generator=self.generator).tolist()
        return out

    def _normal(self, n: int) -> list[float]:
        out: list[float] = torch.randn(n, generator=self.generator).tolist()
        return out

    def _angle(self) -> float:
        rare, at = self._uniform(2)
        degrees = (2 * at - 1) * 55 if rare < 0.12 else self._normal(1)[0] * 12
        return math.radians(degrees)

    def _crop(self) -> tuple[Tensor, Tensor]:
        """A face: its crop ``(3, C, C)`` float in [0, 1] and mesh ``(468, 2)`` crop px."""
        pick = int(torch.randint(len(self.m.rows), (1,), generator=self.generator))
        row = self.m.rows[pick : pick + 1]
        crop = self.m.data.read(row)[0].float() / 255
        return crop, self.m.data.mesh[int(row)]

    def _piece(self) -> Tensor:
        """Something without a face, ``(3, h, w)`` float in [0, 1]."""
        kind, a, b, c = self._uniform(4)
        if kind < 0.15:  # a gradient, or cloudy noise
            side = 2 + int(a * 6)
            cells = torch.rand(3, side, side, generator=self.generator)
            mode = "bilinear" if b < 0.8 else "nearest"
            return F.interpolate(cells[None], size=(96, 96), mode=mode)[0]
        if kind < 0.27:  # a face cut to blocks: its colours and textures without its order
            return shuffled(self._crop()[0], self.generator)
        if kind < 0.36:  # an eye, a cheek, half a mouth
            return self._face_part(0.15 + 0.3 * a, b, c)
        if kind < 0.45:  # what lies around a face: hair, collar, shoulders, the room
            beside = self._beside_face(0.2 + 0.3 * a)
            if beside is not None:
                return beside
        picture = self.m.backgrounds[int(a * len(self.m.backgrounds)) % len(self.m.backgrounds)]
        height, width = picture.shape[1:]
        side = int(min(height, width) * (0.15 + 0.85 * b))
        top, left = int(c * (height - side)), int(self._uniform(1)[0] * (width - side))
        piece = picture[:, top : top + side, left : left + side]
        if side > self.size:  # in bytes and channels_last: ten times faster than in floats
            whole = piece[None].contiguous(memory_format=torch.channels_last)
            piece = F.interpolate(whole, size=self.size, mode="bilinear", antialias=True)[0]
        piece = piece.float() / 255
        return piece.flip(2) if c < 0.5 else piece

    def _face_part(self, share: float, across: float, down: float) -> Tensor:
        """A square piece out of a face, its side a share of the face's."""
        crop, mesh = self._crop()
        low, high = mesh[:SURFACE, :2].amin(0), mesh[:SURFACE, :2].amax(0)
        side = max(8, int(share * float((high - low).prod().sqrt())))
        at = low + (high - low - side) * torch.tensor([across, down])
        left, top = at.clamp(0, crop.shape[-1] - side).long().tolist()
        return crop[:, top : top + side, left : left + side]

    def _beside_face(self, share: float) -> Tensor | None:
        """A square piece of a crop that touches its face little, if one is found."""
        crop, mesh = self._crop()
        low, high = mesh[:SURFACE, :2].amin(0), mesh[:SURFACE, :2].amax(0)
        side = int(share * crop.shape[-1])
        for _ in range(_TRIES):
            at = ((crop.shape[-1] - side) * torch.tensor(self._uniform(2))).floor()
            both = (torch.minimum(high, at + side) - torch.maximum(low, at)).clamp_min(0)
            if float(both.prod()) < 0.05 * side * side:
                left, top = at.long().tolist()
                piece: Tensor = crop[:, top : top + side, left : left + side]
                return piece
        return None

    # ------------------------------------------------------------ putting things in

    def _fill(self, area: Area) -> None:
        """Fill a rectangle with something without a face."""
        left, top, right, bottom = area
        height, width = bottom - top, right - left
        piece = self._piece()
        side = max(height, width)
        filled = F.interpolate(piece[None], size=(side, side), mode="bilinear", antialias=True)[0]
        self.image[:, top:bottom, left:right] = filled[:, :height, :width]

    def _tile(self, area: Area) -> None:
        """Fill a rectangle with a whole crop, its surroundings mirrored where it ends."""
        crop, mesh = self._crop()
        side = max(area[2] - area[0], area[3] - area[1])
        shift = [0.06 * side * x for x in self._normal(2)]
        place = ((area[0] + area[2] - 1) / 2 + shift[0], (area[1] + area[3] - 1) / 2 + shift[1])
        zoom, flip = self._uniform(2)
        scale = (1 + 0.5 * zoom) * side / crop.shape[-1]
        matrix = similarity(crop.shape[-1], scale, self._angle() / 2, place, flip < 0.5)
        put(self.image, crop, matrix, area)
        self._note(mesh, matrix, area)

    def _paste_face(self) -> None:
        crop, mesh = self._crop()
        own = mesh[:SURFACE, :2]
        extent = own.amax(0) - own.amin(0)
        least, most = math.log(0.7 * self.m.smallest), math.log(self.m.largest)
        u = self._uniform(6)
        wanted = math.exp(least + (most - least) * u[0])
        scale = wanted / float(extent.prod().sqrt())
        turn, flip = self._angle(), u[1] < 0.5
        half = 0.5 * crop.shape[-1]
        shape = Shape(
            (half * (0.5 + 0.5 * u[2]), half * (0.56 + 0.44 * u[3])),
            2 + 6 * u[4] ** 2,
            0.03 + 0.2 * u[5],
        )
        wide, high = (scale * side for side in shape.half)
        for _ in range(_TRIES):
            x, y = (self.size * v for v in self._uniform(2))
            # With all it brings along: a face it covers would be asked for and not be there.
            if not self._touches((x - wide, y - high, x + wide, y + high), 0.25):
                break
        else:
            return
        matrix = similarity(crop.shape[-1], scale, turn, (x, y), flip)
        area = (0, 0, self.size, self.size)
        put(self.image, crop, matrix, area, shape)
        if self._note(mesh, matrix, area) and self._uniform(1)[0] < 0.2:
            self._hide()

    def _hide(self) -> None:
        """Cover a side of the face that came last."""
        x0, y0, x1, y1 = self.boxes[-1].tolist()
        u = self._uniform(4)
        share = _HIDDEN * u[0]
        width, height = x1 - x0, y1 - y0
        if u[1] < 0.4:  # from below: a hand, a cup, a scarf
            y0 = y1 - share * height
            y1 = y1 + 0.3 * height
        elif u[1] < 0.6:
            y1 = y0 + share * height
            y0 = y0 - 0.3 * height
        elif u[1] < 0.8:
            x1 = x0 + share * width
            x0 = x0 - 0.3 * width
        else:
            x0 = x1 - share * width
            x1 = x1 + 0.3 * width
        piece = self._piece()
        side = max(x1 - x0, y1 - y0)
        place = ((x0 + x1) / 2, (y0 + y1) / 2)
        matrix = similarity(piece.shape[-1], side / piece.shape[-1], 0.0, place, False)
        half = 0.5 * piece.shape[-1]
        shape = Shape(
            (half * (x1 - x0) / side, half * (y1 - y0) / side), 2 + 8 * u[2], 0.02 + 0.1 * u[3]
        )
        put(self.image, piece, matrix, (0, 0, self.size, self.size), shape)

    def _paste_other(self) -> None:
        """Something that is no face, with the edges of one."""
        piece = self._piece()
        u = self._uniform(5)
        wanted = math.exp(math.log(16.0) + math.log(10.0) * u[0])
        for _ in range(_TRIES):
            x, y = (self.size * v for v in self._uniform(2))
            reach = wanted / 2
            if not self._touches((x - reach, y - reach, x + reach, y + reach), 0.05):
                break
        else:
            return
        side = piece.shape[-1]
        half = 0.5 * side
        matrix = similarity(side, wanted / side, self._angle(), (x, y), False)
        shape = Shape(
            (half * (0.6 + 0.4 * u[1]), half * (0.6 + 0.4 * u[2])), 2 + 6 * u[3], 0.03 + 0.2 * u[4]
        )
        put(self.image, piece, matrix, (0, 0, self.size, self.size), shape)

    def _touches(self, box: tuple[float, float, float, float], share: float) -> bool:
        """Whether a box covers more than a share of a face that is there, or that covers it."""
        mine = max((box[2] - box[0]) * (box[3] - box[1]), 1.0)
        for other in self.taken:
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            theirs = max((other[2] - other[0]) * (other[3] - other[1]), 1.0)
            if width > 0 and height > 0 and width * height > share * min(mine, theirs):
                return True
        return False

    def _note(self, mesh: Tensor, matrix: Tensor, area: Area) -> bool:
        """Write down a face; whether it is to be found."""
        xy = mesh[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        five = five_points(xy[None])[0]
        if float(torch.linalg.det(matrix[:, :2])) < 0:
            five = five[_MIRRORED]
        low, high = xy[:SURFACE].amin(0), xy[:SURFACE].amax(0)
        inside = torch.minimum(high, torch.tensor(area[2:], dtype=torch.float32))
        inside = inside - torch.maximum(low, torch.tensor(area[:2], dtype=torch.float32))
        share = float(inside.clamp_min(0).prod() / (high - low).prod().clamp_min(1e-3))
        if share <= 0:
            return False
        side = float((high - low).prod().sqrt())
        self.boxes.append(torch.cat([low, high]))
        self.points.append(five)
        self.counts.append(side >= self.m.smallest and share > 1 - _HIDDEN)
        x0, y0, x1, y1 = (*low.tolist(), *high.tolist())
        self.taken.append((x0, y0, x1, y1))
        return self.counts[-1]
