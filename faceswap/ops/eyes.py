"""The target's eyes between the swapped face's lids.

Where somebody looks is told by a few pixels: the iris's place, the white beside it, a glint. The
target's own have all of that, and they lie in its light. So what is between the lids is the
target's, moved to the swapped face's lids and irises, and only the irises take the source's colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.draw import outline_distance
from faceswap.ops.geometry import fit_affine
from faceswap.ops.lids import opening
from faceswap.ops.topology import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT

_RIM = 0.8  # px of 128 inside the lids, over which the eye appears; lashes are the source's
_CELLS = 64  # of the outlines, at most
_WINDOW = 5 / 16  # of the side, in which an eye lies; twice the width of most
_MOST = 0.2  # how far an iris's colour may be moved
_DARKER, _BRIGHTER = 0.25, 0.06  # its light: brighter than it was, an iris is no iris any more
_NARROW, _WIDE = 0.15, 0.2  # opening of the target's eye in its widths: nothing to see, enough
_FAR, _FARTHEST = 1.3, 1.6  # how much wider the swapped face's may be; lids would show within
_DULL, _CLEAR = 0.07, 0.12  # deviation of its light against the skin's; sunglasses are dull
_SURE = 0.2  # the same where no iris is seen: what is between the lids may be a reflection
# How much darker than the white an iris is, against the skin: if it is not, it is somewhere else.
_ALIKE, _TOLD = 0.02, 0.1
_THIN, _EVEN = 0.3, 0.6  # width of an eye in the other's from which on both are looked at
_SMALL = 1.0  # px of 128, radius of an iris from which on its colour can be told


def with_eyes(
    image: Tensor,  # (N, 3, S, S) the swapped face, in the target's light
    shape: Tensor,  # (N, 478, 2 or 3) float32, its mesh, px of S
    target: Tensor,  # (N, 3, S, S)
    target_mesh: Tensor,  # (N, 478, 2 or 3) float32, px of S
    light: Tensor,  # (N,) mean brightness of the target's skin
) -> tuple[Tensor, Tensor]:
    """The swapped face with the target's eyes, ``(N, 3, S, S)``, and where, ``(N, 1, S, S)``.

    Where these are shut, blurred or behind dark glasses, the source's eyes stay: both of them,
    if both are to be seen, since one of each would not match.
    """
    pair = ((EYE_LEFT, IRIS_LEFT), (EYE_RIGHT, IRIS_RIGHT))
    eyes = [_Eye.of(image, shape, target, target_mesh, light, *rows) for rows in pair]
    out = image.clone(memory_format=torch.contiguous_format)
    shown = torch.zeros_like(out[:, :1])
    for eye, other, (lids, _), (beside, _) in zip(eyes, eyes[::-1], pair, pair[::-1], strict=True):
        seen = _visible(shape, beside, lids)[:, None, None, None]
        inside = eye.inside * eye.worth.minimum(other.worth.maximum(1 - seen))
        told = eye.told.maximum(other.told.minimum(seen))
        here, there = eye.window.take(out), (eye.image + told * eye.colour).clamp(0, 1)
        eye.window.put(out, here + inside * (there - here))
        eye.window.put(shown, torch.maximum(eye.window.take(shown), inside))
    return out, shown


@dataclass(frozen=True, slots=True)
class _Eye:
    """One of the target's eyes, as it is to lie between the swapped face's lids."""

    window: Window
    image: Tensor  # (N, 3, w, w) in [0, 1]
    inside: Tensor  # (N, 1, w, w) in [0, 1], where
    colour: Tensor  # (N, 3, w, w), what makes its iris the source's
    worth: Tensor  # (N, 1, 1, 1) in [0, 1], whether it is clear enough to be shown
    told: Tensor  # (N, 1, 1, 1) in [0, 1], whether its iris is where it is thought to be

    @classmethod
    def of(
        cls,
        image: Tensor,
        shape: Tensor,
        target: Tensor,
        target_mesh: Tensor,
        light: Tensor,
        lids: tuple[int, ...],
        iris: tuple[int, ...],
    ) -> _Eye:
        """The eye of these points; the rest as `with_eyes` takes it."""
        size = image.shape[-1]
        outline = shape[:, constant(lids, shape.device), :2]
        side = round(size * _WINDOW)
        window = Window.about(outline.mean(1), side, size)
        inside = outline_distance(window.inner(outline), min(side, _CELLS), side)
        inside = (inside / (_RIM * size / 128)).clamp(0, 1)
        rows = constant(lids + iris, shape.device)
        eye = window.sample(target, fit_affine(shape[:, rows, :2], target_mesh[:, rows, :2]))
        contrast = _contrast(eye, inside, light)
        middle = shape[:, iris[0], :2]
        rim = shape[:, constant(iris[1:], shape.device), :2]
        radius = (rim - middle[:, None]).norm(dim=-1).mean(1)
        disc = _disc(window.inner(middle[:, None])[:, 0], radius, side, size / 128) * inside
        darker = (_mean(eye, inside - disc) - _mean(eye, disc)).mean(1, keepdim=True)
        darker = darker / light[:, None, None, None].clamp_min(0.02)
        sure = ((contrast - _CLEAR) / (_SURE - _CLEAR)).clamp(0, 1)
        worth = _trusted(shape, target_mesh, lids)[:, None, None, None]
        worth = worth * ((contrast - _DULL) / (_CLEAR - _DULL)).clamp(0, 1)
        worth = worth * (darker / _ALIKE).clamp(0, 1).maximum(sure)
        told = ((darker - _ALIKE) / (_TOLD - _ALIKE)).clamp(0, 1)
        gap = _mean(window.take(image) - eye, disc)
        grey = gap.mean(1, keepdim=True)
        hue = gap - grey
        hue = hue * (_MOST / hue.abs().amax(1, keepdim=True).clamp_min(_MOST))
        colour = disc * (hue + grey.clamp(-_DARKER, _BRIGHTER))
        return cls(window, eye, inside, colour, worth, told)


def _visible(shape: Tensor, lids: tuple[int, ...], beside: tuple[int, ...]) -> Tensor:
    """Whether an eye is open and hardly narrower than the one beside it, ``(N,)`` in [0, 1]."""
    own, other = (
        (shape[:, rows[8], :2] - shape[:, rows[0], :2]).norm(dim=1) for rows in (lids, beside)
    )
    turned: Tensor = ((own / other.clamp_min(1e-3) - _THIN) / (_EVEN - _THIN)).clamp(0, 1)
    opened = ((opening(shape, lids) - _NARROW) / (_WIDE - _NARROW)).clamp(0, 1)
    return turned.minimum(opened)


def _mean(image: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the pixels, ``(N, C, 1, 1)``; zero where nothing counts."""
    mass = weight.sum((2, 3), keepdim=True).clamp_min(1e-3)
    return (image * weight).sum((2, 3), keepdim=True) / mass


def _contrast(eye: Tensor, inside: Tensor, light: Tensor) -> Tensor:
    """Deviation of an eye's brightness, in units of the skin's light, ``(N, 1, 1, 1)``."""
    grey = eye.mean(1, keepdim=True)
    spread = _mean((grey - _mean(grey, inside)).square(), inside)
    return spread.sqrt() / light[:, None, None, None].clamp_min(0.02)


@dataclass(frozen=True, slots=True)
class Window:
    """Squares of w x w pixels of N pictures; the rest of them need not be touched."""

    rows: Tensor  # (N, w, 1) int64
    columns: Tensor  # (N, 1, w) int64

    @classmethod
    def about(
        cls,
        middle: Tensor,  # (N, 2) px
        side: int,
        size: int,  # of the pictures
    ) -> Window:
        """Windows about points, wholly within the pictures."""
        corner = (middle - (side - 1) / 2).round().clamp(0, size - side).long()
        axis = torch.arange(side, device=middle.device)
        return cls(
            (corner[:, 1:] + axis)[:, :, None],
            (corner[:, :1] + axis)[:, None],
        )

    def take(self, images: Tensor) -> Tensor:
        """``(N, C, w, w)`` out of ``(N, C, S, S)``."""
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[batch, self.rows, self.columns].permute(0, 3, 1, 2)

    def put(self, images: Tensor, part: Tensor) -> None:
        """Write ``(N, C, w, w)`` into ``(N, C, S, S)``."""
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images.permute(0, 2, 3, 1)[batch, self.rows, self.columns] = part.permute(0, 2, 3, 1)

    def inner(self, points: Tensor) -> Tensor:
        """Points ``(N, P, 2)`` of the pictures in px of the windows."""
        return points - torch.cat([self.columns[:, :, 0], self.rows[:, 0]], 1)[:, None]

    def sample(self, images: Tensor, affine: Tensor) -> Tensor:
        """``(N, 3, w, w)`` of pictures, fetched from where an affine map ``(N, 2, 3)`` leads."""
        n, side = self.rows.shape[:2]
        x = self.columns.expand(n, side, side).flatten(1)
        y = self.rows.expand(n, side, side).flatten(1)
        place = torch.stack([x, y, torch.ones_like(x)], 1).float()
        at = (affine @ place) * (2 / (images.shape[-1] - 1)) - 1
        grid = at.mT.unflatten(1, (side, side))
        return F.grid_sample(images, grid, align_corners=True, padding_mode="border")


def _disc(middle: Tensor, radius: Tensor, side: int, unit: float) -> Tensor:
    """Irises as soft discs ``(N, 1, side, side)``; nothing where they are too small to tell."""
    axis = torch.arange(side, dtype=torch.float32, device=middle.device)
    x, y = axis - middle[:, :1], axis - middle[:, 1:]
    away = (x.square()[:, None] + y.square()[..., None]).sqrt()
    radius = radius[:, None, None]
    disc = ((radius - away) / (0.5 * unit + 0.15 * radius) + 0.5).clamp(0, 1)
    return (disc * (radius / unit / _SMALL - 1).clamp(0, 1))[:, None]


def _trusted(shape: Tensor, target_mesh: Tensor, lids: tuple[int, ...]) -> Tensor:
    """Whether the target's eye is open, and need not be stretched much, ``(N,)`` in [0, 1]."""
    theirs = opening(target_mesh, lids)
    stretch = opening(shape, lids) / theirs.clamp_min(1e-3)
    wide = ((theirs - _NARROW) / (_WIDE - _NARROW)).clamp(0, 1)
    return wide * ((_FARTHEST - stretch) / (_FARTHEST - _FAR)).clamp(0, 1)
