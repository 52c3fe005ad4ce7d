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
from faceswap.train.data import Crops, cut, map_points, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.parallel import ALONE, Group
from faceswap.train.transfer import moved
from faceswap.train.views import Jitter, Store, View

TEMPLATE = "ghost"  # the five poses; the crop of the ghost packs
_MIRRORED = [1, 0, 2, 4, 3]  # which of the five points each becomes


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
class _Side:
    """One side of the pairs before it becomes views: this process's n rows."""

    view: View
    points: Tensor  # (n, 5, 2) float32, view px
    color: Tensor  # (n, 6) random numbers of `recolor`


@dataclass(frozen=True, slots=True)
class Draw:
    """A batch before it becomes views: what a worker can make ready."""

    source: _Side
    target: _Side
    coarse: tuple[Coarse, ...]  # of the sources
    mesh: Tensor | None  # (n, 478, 3) float32, of the targets, view px; where regions are wanted
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
        self.rows, _ = data.split()
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
        self.store = Store(data, device)
        self.jitter = Jitter(
            rotation=augment.rotation, scale=augment.scale, shift=augment.shift, flip=augment.flip
        )

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """This process's part of n pairs; reads the photos where they are not on the device."""
        source_rows, target_rows, same = self.rows_of(n, generator)
        source, target = (self._draw_side(rows, generator) for rows in (source_rows, target_rows))
        coarse: tuple[Coarse, ...] = ()
        if self.augment.degrade:
            # Its own random numbers are those of this process's rows.
            generator.manual_seed(generator.initial_seed() + 7 * self.group.rank)
            shape = (len(source.points), 3, self.size, self.size)
            coarse = draw_coarse(shape, self.augment.degrade, generator)
        mesh = None
        if self.region:
            mesh = map_points(self.data.mesh[target.view.rows], target.view.matrix)
        return Draw(source, target, coarse, mesh, same[self.group.part(n)], int(same.sum()))

    def views(self, draw: Draw) -> Pairs:
        """The pairs of a draw, on the device."""
        draw = moved(draw, self.device)
        source, target = self._view(draw.source), self._view(draw.target)
        source = degrade(source, draw.coarse)
        region = target.new_zeros(len(target), 0)
        if draw.mesh is not None:
            region = adaptive_mask(draw.mesh, draw.mesh, self.size)
        return Pairs(target, draw.target.points, source, draw.source.points, draw.same, region)

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
        view = self.store.still(rows, self.base[rows])
        side = moved(_Side(view, self._points(view), torch.full((len(rows), 6), 0.5)), self.device)
        return self._view(side), side.points

    def _draw_side(self, rows: Tensor, generator: torch.Generator) -> _Side:
        """Matrices, colours and mirroring of all views are drawn; this process's part is kept."""
        mine = self.group.part(len(rows))
        view = self.store.draw(rows, self.base[rows], self.size, self.jitter, generator, part=mine)
        color = torch.rand(len(rows), 6, generator=generator)
        return _Side(view, self._points(view), color[mine])

    def _points(self, view: View) -> Tensor:
        points = transform(view.matrix, self.data.points[view.rows])
        return torch.where(view.flip[:, None, None], points[:, _MIRRORED], points)

    def _view(self, side: _Side) -> Tensor:
        return recolor(self.store.show(side.view, self.size), side.color, self.augment.color)
