"""Pairs of photos an AEI-Net is trained on, and the views of them.

All random numbers of a step are drawn for the whole batch, whatever part of it this process works
on, so that the batch does not depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.errors import ConfigError
from faceswap.ops.geometry import align, transform
from faceswap.ops.mask import adaptive_mask
from faceswap.train.config import Augment
from faceswap.train.data import Crops, cut, jitter_matrix, map_points, recolor
from faceswap.train.degrade import degrade
from faceswap.train.parallel import ALONE, Group

TEMPLATE = "ghost"  # the five poses; the crop of the ghost packs
_MIRRORED = [1, 0, 2, 4, 3]  # which of the five points each becomes
_ON_DEVICE = 0.4  # share of a GPU's free memory that the photos may take


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch of n pairs, on the device."""

    target: Tensor  # (n, 3, S, S) float in [0, 1], the generator's view
    points: Tensor  # (n, 5, 2) float32, of the target, view px
    source: Tensor  # (n, 3, S, S) float in [0, 1], the same view of the source photo
    source_points: Tensor  # (n, 5, 2) float32, view px
    same: Tensor  # (n,) bool, one person
    region: Tensor  # (n, 1, S, S) in [0, 1], the target's face; (n, 0) where nobody asks for it

    def split(self, parts: int) -> list[Pairs]:
        """The batch in equal parts."""
        size = len(self.same) // parts
        pieces = [getattr(self, f.name).split(size) for f in fields(self)]
        return [Pairs(*each) for each in zip(*pieces, strict=True)]


@dataclass(frozen=True, slots=True)
class _Photos:
    """One side of the pairs before it becomes views: this process's n rows."""

    rows: Tensor  # (n,) int64
    matrix: Tensor  # (n, 2, 3) float32, stored crop px -> view px
    color: Tensor  # (n, 6) random numbers of `recolor`
    flip: Tensor  # (n,) bool
    stored: Tensor | None  # (n, 3, C, C) uint8; None: they are on the device


@dataclass(frozen=True, slots=True)
class Draw:
    """A batch before it becomes views: what a worker can make ready."""

    source: _Photos
    target: _Photos
    same: Tensor  # (n,) bool
    count: int  # pairs of one person among those of all processes


def look(
    views: Tensor,  # (N, 3, S, S) float in [0, 1]
    points: Tensor,  # (N, 5, 2) float32, view px
    size: int,
    *,
    template: str = "arcface",
    margin: float = 1.0,
) -> Tensor:
    """The same faces as another network wants them, ``(N, 3, size, size)``; differentiable.

    Views larger than 128 px are low-passed first, as the other crops are about that small.
    """
    factor = max(1, views.shape[-1] // 128)
    if factor > 1:
        views = F.avg_pool2d(views, factor)
        points = (points + 0.5) / factor - 0.5
    return cut(views, align(points, size, template=template, margin=margin).matrix, size)


class PairSampler:
    """Draws the pairs of a step.

    Args:
        data: prepared photos; those held back are left out, unless that leaves none.
        size: side of the generator's view.
        augment: how views vary.
        same_person: share of pairs that are two photos of one person.
        device: where views are made.
        group: the processes that share each batch.
        region: whether pairs come with the region of the target's face.

    Raises:
        ConfigError: same-person pairs are wanted and nobody has two photos.
    """

    def __init__(
        self,
        data: Crops,
        size: int,
        augment: Augment,
        *,
        same_person: float,
        device: torch.device,
        group: Group = ALONE,
        region: bool = False,
    ) -> None:
        rows = torch.nonzero(~data.held_back)[:, 0]
        self.rows = rows if len(rows) else torch.arange(len(data))
        if not len(self.rows):
            raise ConfigError("the prepared data has no faces")
        self.data, self.size, self.augment = data, size, augment
        self.same_person, self.device, self.group = same_person, device, group
        self.region = region
        # Rows sorted by person; of each row, where its person begins there and how many there are.
        order = torch.argsort(data.identity[self.rows], stable=True)
        self.by_person = self.rows[order]
        _, self.count = torch.unique_consecutive(data.identity[self.by_person], return_counts=True)
        if same_person > 0 and int(self.count.max()) < 2:
            raise ConfigError(
                "the prepared data has one photo of each person, and same-person pairs need two; "
                "prepare more photos or --set same_person=0"
            )
        ends = self.count.cumsum(0)
        self.begin = torch.repeat_interleave(ends - self.count, self.count)
        self.of_person = torch.repeat_interleave(self.count, self.count)
        self.base = align(data.points, size, template=TEMPLATE).matrix
        self.photos = _on_device(data, device)

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """This process's part of n pairs; reads the photos where they are not on the device."""
        source, target, same = self.rows_of(n, generator)
        sides = [self._draw_view(rows, generator) for rows in (source, target)]
        return Draw(sides[0], sides[1], same[self.group.part(n)], int(same.sum()))

    def views(self, draw: Draw, generator: torch.Generator) -> Pairs:
        """The pairs of a draw, on the device."""
        source, source_points = self._view(draw.source)
        target, points = self._view(draw.target)
        if self.augment.degrade:
            # Its own random numbers are those of this process's rows.
            generator.manual_seed(generator.initial_seed() + 7 * self.group.rank)
            source = degrade(source, self.augment.degrade, generator)
        region = target.new_zeros(len(target), 0)
        if self.region:
            mesh = map_points(self.data.mesh[draw.target.rows], draw.target.matrix)
            mesh = mesh.to(self.device)
            region = adaptive_mask(mesh, mesh, self.size)
        same = draw.same.to(self.device)
        return Pairs(target, points, source, source_points, same, region)

    def rows_of(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of n sources and n targets, and which pairs are of one person; ``(n,)`` each.

        A person with one photo is paired with a stranger whatever was drawn.
        """
        places = torch.randint(len(self.by_person), (n,), generator=generator)
        others = torch.randint(len(self.by_person), (n,), generator=generator)
        wanted = torch.rand(n, generator=generator) < self.same_person
        step = torch.rand(n, generator=generator)
        begin, count = self.begin[places], self.of_person[places]
        same = wanted & (count > 1)
        # Another photo of the person: 1 to count - 1 places further, round and round.
        ahead = 1 + (step * (count - 1)).long().clamp_max(count - 2).clamp_min(0)
        mate = begin + (places - begin + ahead) % count
        target = torch.where(same, mate, others)
        people = self.data.identity
        source_rows, target_rows = self.by_person[places], self.by_person[target]
        return source_rows, target_rows, people[source_rows] == people[target_rows]

    def still(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Views without augmentation ``(n, 3, S, S)`` and their points ``(n, 5, 2)``."""
        grey = torch.full((len(rows), 6), 0.5)
        flip = torch.zeros(len(rows), dtype=torch.bool)
        return self._view(_Photos(rows, self.base[rows], grey, flip, self._stored(rows)))

    def _draw_view(self, rows: Tensor, generator: torch.Generator) -> _Photos:
        """Matrices, colours and mirroring of all views are drawn; this process's part is kept."""
        flip = torch.rand(len(rows), generator=generator) < self.augment.flip
        matrix = jitter_matrix(
            self.base[rows],
            self.size,
            rotation=self.augment.rotation,
            scale=self.augment.scale,
            shift=self.augment.shift,
            flip=flip,
            generator=generator,
        )
        color = torch.rand(len(rows), 6, generator=generator)
        mine = self.group.part(len(rows))
        stored = self._stored(rows[mine])
        return _Photos(rows[mine], matrix[mine], color[mine], flip[mine], stored)

    def _stored(self, rows: Tensor) -> Tensor | None:
        if self.photos is not None:
            return None
        stored = self.data.read(rows)
        return stored.pin_memory() if self.device.type == "cuda" else stored

    def _view(self, photos: _Photos) -> tuple[Tensor, Tensor]:
        points = transform(photos.matrix, self.data.points[photos.rows])
        points = torch.where(photos.flip[:, None, None], points[:, _MIRRORED], points)
        if photos.stored is not None:
            stored = photos.stored.to(self.device, non_blocking=True)
        else:
            assert self.photos is not None
            stored = self.photos[photos.rows]
        images = cut(stored, photos.matrix.to(self.device), self.size)
        return recolor(images, photos.color, self.augment.color), points.to(self.device)


def _on_device(data: Crops, device: torch.device) -> Tensor | None:
    """All photos on the GPU if they fit, ``(M, 3, S, S) uint8``; None: they stay where they are."""
    if device.type != "cuda":
        return None
    needed = sum(shard.numel() for shard in data.images)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > _ON_DEVICE * free:
        return None
    return torch.cat([shard.to(device) for shard in data.images])
