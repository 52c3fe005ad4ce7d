"""Things drawn before faces, with the truth about which pixels they cover.

Nobody has labelled the photos, so what may lie before a face is drawn: glasses and sunglasses,
which sit on the head in three dimensions and turn with it, and hands, microphones and other things
that come from anywhere. Everything random is drawn first, on the CPU, as plain numbers; the
pixels are made where the networks are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.topology import CHEEKS
from faceswap.train.config import Occluders

_CELLS = 12  # a side, of the grids that textures are drawn on
_PARTS = 5  # rounded boxes a thing is made of
_OUTER, _INNER = (33, 263), (133, 362)  # corners of the eyes
_FOREHEAD, _CHIN = 10, 152
_LINE = 0.6  # px, half the width of what is marked at least
_DEEP = 0.35  # alpha of a reflection from which it hides what is behind


@dataclass(frozen=True, slots=True)
class Drawn:
    """What lies before n faces, before there are pixels."""

    glasses: Tensor  # (n,) bool
    things: Tensor  # (n,) bool
    frame: Tensor  # (n, 25) in [0, 1), what the glasses are like
    hand: Tensor  # (n,) bool, of skin, if there are things
    parts: Tensor  # (n, _PARTS, 6): middle x, y, angle, half length, half width, corner; sides
    present: Tensor  # (n, _PARTS) bool
    look: Tensor  # (n, 12) in [0, 1), what the things look like
    rough: Tensor  # (n, 4, _CELLS, _CELLS) in [0, 1), textures
    fine: Tensor  # (n, 1, S / 2, S / 2) normal, grain


def draw_occluders(n: int, size: int, odds: Occluders, generator: torch.Generator) -> Drawn:
    """A random choice for n faces in crops of side ``size``."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    kinds = rand(2)
    hand, parts, present = _things(rand(4), rand(_PARTS, 6), odds)
    return Drawn(
        glasses=kinds[:, 0] < odds.glasses,
        things=kinds[:, 1] < odds.things,
        frame=rand(25),
        hand=hand,
        parts=parts,
        present=present,
        look=rand(12),
        rough=rand(4, _CELLS, _CELLS),
        fine=torch.randn(n, 1, size // 2, size // 2, generator=generator),
    )


def cover(
    images: Tensor,  # (N, 3, S, S) float in [0, 1], aligned faces
    mesh: Tensor,  # (N, 478, 3) float32, crop px
    drawn: Drawn,  # for N faces, on the same device
) -> tuple[Tensor, Tensor]:
    """The faces with what was drawn before them, and the share of each pixel that is covered.

    Returns:
        ``(N, 3, S, S)`` in [0, 1] and ``(N, 1, S, S)`` in [0, 1].
    """
    tint = _tint(images, drawn.look[:, 11])
    images, worn = _wear_glasses(images, mesh, drawn, tint)
    images, hidden = _hold_things(images, mesh, drawn, tint)
    return images.clamp(0, 1), torch.maximum(worn * (1 - hidden), hidden)


def _tint(images: Tensor, share: Tensor) -> Tensor:
    """Colour of the light that things are drawn in, ``(N, 3)`` about 1: partly the picture's own.

    What is black in a photo is brown by candlelight; drawn things would be told by their colour.
    """
    level = images.mean((2, 3)) + 0.02
    return (level / level.mean(1, keepdim=True)) ** share[:, None]


def _between(number: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * number


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _pixels(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    axis = torch.arange(size, dtype=torch.float32, device=like.device)
    return axis.view(1, 1, size), axis.view(1, size, 1)


def _texture(rough: Tensor, size: int) -> Tensor:
    """Grids brought up to pictures, ``(N, C, S, S)`` about 0."""
    return F.interpolate(rough, size=(size, size), mode="bicubic", align_corners=True) - 0.5


@dataclass(frozen=True, slots=True)
class Head:
    """Where a head is: an origin between the eyes, and its axes in px of the picture.

    Lengths along the axes are in distances of the outer eye corners.
    """

    origin: Tensor  # (N, 2)
    axes: Tensor  # (N, 3, 2): across, down, away from the camera

    @classmethod
    def of(cls, mesh: Tensor) -> Head:
        """The heads of faces with these points, ``(N, 478, 3)`` px."""
        left, right = mesh[:, _OUTER[0]], mesh[:, _OUTER[1]]
        unit = (right - left).norm(dim=1, keepdim=True)
        across = (right - left) / unit
        down = mesh[:, _CHIN] - mesh[:, _FOREHEAD]
        down = F.normalize(down - (down * across).sum(1, keepdim=True) * across, dim=1)
        away = torch.linalg.cross(across, down)
        origin = mesh[:, constant((*_OUTER, *_INNER), mesh.device)].mean(1)
        axes = torch.stack([across, down, away], 1)[..., :2] * unit[..., None]
        return cls(origin[:, :2], axes)

    @property
    def frontal(self) -> Tensor:
        """How wide the head is in the picture against how wide it is, ``(N,)`` in [0, 1]."""
        out: Tensor = self.axes[:, 0].norm(dim=1) / self.unit
        return out

    @property
    def unit(self) -> Tensor:
        """px a unit, ``(N,)``."""
        out: Tensor = self.axes.flatten(1).norm(dim=1) / math.sqrt(2)
        return out

    def place(self, across: Tensor, down: Tensor, away: Tensor) -> Tensor:
        """Points ``(N, 2)`` in px, of ``(N,)`` coordinates."""
        at = torch.stack([across, down, away], 1)
        return self.origin + (at[..., None] * self.axes).sum(1)

    def plane(self, size: int, away: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates across and down of all pixels in a plane parallel to the face."""
        x, y = _pixels(size, self.origin)
        begin = self.place(torch.zeros_like(away), torch.zeros_like(away), away)
        (ax, ay), (dx, dy) = self.axes[:, 0].unbind(1), self.axes[:, 1].unbind(1)
        area = ax * dy - ay * dx
        area = torch.where(area.abs() < 0.1 * self.unit.square(), 0.1 * self.unit.square(), area)
        x, y = x - _column(begin[:, 0]), y - _column(begin[:, 1])
        across = (x * _column(dy) - y * _column(dx)) / _column(area)
        return across, (y * _column(ax) - x * _column(ay)) / _column(area)


def _wear_glasses(
    images: Tensor, mesh: Tensor, drawn: Drawn, tint: Tensor
) -> tuple[Tensor, Tensor]:
    """Glasses on the faces that wear them, and what they cover.

    Lenses are superellipses, narrower below or tilted; a bridge joins them and temples lead to the
    ears. Clear lenses leave the eyes to be seen but for reflections.
    """
    size = images.shape[-1]
    head = Head.of(mesh)
    number = iter(drawn.frame.unbind(1))
    half_width = _between(next(number), 0.20, 0.33)
    half_height = half_width * _between(next(number), 0.5, 1.1)
    apart = torch.maximum(_between(next(number), 0.31, 0.37), half_width + 0.05)
    low = _between(next(number), -0.03, 0.10)
    power = _between(next(number).square(), 1.8, 6.0)
    taper, tilt = _between(next(number), -0.3, 0.3), _between(next(number), -0.2, 0.2)
    # From wire to thick acetate: most are thin.
    thick = 0.012 * torch.exp(_between(next(number), -0.3, 1.75))
    brow = 1 + _between(next(number), -0.6, 1.5).clamp_min(0)
    away = _between(next(number), -0.30, -0.15)
    rimless, dark = next(number), next(number) < 0.3
    across, down = head.plane(size, away)

    side = across.sign()
    x, y = across.abs() - _column(apart), down - _column(low)
    y = y + _column(tilt) * x
    x = x / (1 - _column(taper) * (y / _column(half_height)).clamp(-1.2, 1.2))
    reach = ((x / _column(half_width)).abs() ** _column(power)) + (
        (y / _column(half_height)).abs() ** _column(power)
    )
    reach = reach.clamp_min(1e-6) ** (1 / _column(power))
    distance = (x.square() + y.square()).sqrt() * (1 - 1 / reach)  # outside positive, units
    grain = _column(head.unit)
    rim_half = 0.5 * _column(thick) * torch.where(y < 0, _column(brow), torch.ones_like(y))
    lower = ((y / _column(half_height)) * 3 + 1).clamp(0, 1)
    kept = torch.where(_column(rimless) < 0.15, 1 - lower, torch.ones_like(lower))
    rim = line(rim_half, distance.abs(), grain) * kept[:, None]
    lens = (0.5 - distance * grain).clamp(0, 1)

    inner = (apart - half_width).clamp_min(0.02)
    bend, bridge_at = _between(next(number), 0.0, 0.1), _between(next(number), -0.5, 0.1)
    course = _column(low + bridge_at * half_height) + _column(bend) * (
        (across / _column(inner)).square() - 1
    )
    kept = (0.5 + (_column(inner) - across.abs()) * grain).clamp(0, 1)
    bridge = line(0.6 * _column(thick), (down - course).abs(), grain) * kept[:, None]

    ear_up, ear_wide = _between(next(number), -0.15, 0.05), _between(next(number), 0.68, 0.8)
    hinge = low - _between(next(number), 0.1, 0.7) * half_height
    temples = torch.zeros_like(bridge)
    for sign in (-1.0, 1.0):
        begin = head.place(sign * (apart + half_width), hinge, away)
        end = head.place(sign * ear_wide, ear_up, torch.full_like(ear_up, 0.85))
        # The temple on the far side of a turned head lies behind it.
        outwards = sign * ((end - begin) * F.normalize(head.axes[:, 0], dim=1)).sum(1) > 0
        arm = line(0.7 * _column(thick), _segment(begin, end, size) / grain, grain)
        temples = torch.maximum(temples, arm * outwards.float().view(-1, 1, 1, 1))
    solid, marked = torch.stack([rim, bridge, temples]).amax(0).split(1, 1)

    # Rims: dark, metal, or of any colour; uneven in tone, with a shine.
    tone, kind = next(number), next(number)
    hue = torch.stack([next(number), next(number), next(number)], 1)
    level = torch.where(
        kind < 0.6, 0.02 + 0.2 * tone, torch.where(kind < 0.85, 0.3 + 0.5 * tone, 0.9)
    )
    chroma = torch.where(kind < 0.85, 0.35, 1.0)[:, None]
    colour = level[:, None] * (1 + chroma * (hue * 2 - 1.2)) * tint
    texture = _texture(drawn.rough, size)
    shine = ((texture[:, :1] - 0.3) * 6).clamp(0, 1) * 0.6
    paint = colour[..., None, None] * (1 + 0.8 * texture[:, 1:2]) + shine

    worn = drawn.glasses.view(-1, 1, 1, 1).float()
    solid, lens = solid * worn, lens[:, None] * worn * (1 - solid)
    fall = max(1, round(0.02 * size))
    shadow = F.avg_pool2d(F.pad(solid, (fall, fall, 2 * fall, 0)), 2 * fall + 1, 1)
    images = images * (1 - _between(next(number), 0.0, 0.5).view(-1, 1, 1, 1) * shadow)
    strong = next(number)
    is_dark = dark.float().view(-1, 1, 1, 1)
    fade = (1 - (down / _column(half_height) * 0.5 + 0.5).clamp(0, 1)[:, None]) * 0.25
    strength = is_dark * (_between(strong, 0.5, 1.0).view(-1, 1, 1, 1) + fade).clamp(0, 1)
    strength = strength + (1 - is_dark) * 0.2 * strong.square().view(-1, 1, 1, 1)
    glass = (0.12 * colour.flip(1) + 0.02)[..., None, None] * (1 + texture[:, 2:3])
    images = torch.lerp(images, glass.expand_as(images), (strength * lens).expand_as(images))
    gleam = ((texture[:, 3:] * side[:, None] - 0.25) * 5).clamp(0, 1) * lens
    gleam = gleam * (_between(strong, -0.6, 0.9)).clamp(0, 1).view(-1, 1, 1, 1)
    images = torch.lerp(images, torch.full_like(images, 0.95), gleam.expand_as(images))
    shown = solid * _between(next(number), 0.6, 1.0).view(-1, 1, 1, 1)  # some are clear plastic
    images = torch.lerp(images, paint.expand_as(images), shown.expand_as(images))
    covered = torch.maximum(is_dark * lens, ((gleam - _DEEP) * 4).clamp(0, 1))
    return images, torch.maximum(marked * worn, solid + covered).clamp(max=1)


def line(
    half: Tensor,  # (N, 1, 1) or (N, S, S), half its width, in `Head`'s units
    distance: Tensor,  # (N, S, S) of all pixels from its middle, the same
    grain: Tensor,  # (N, 1, 1) px a unit
) -> Tensor:
    """A line as it is drawn, and as it is marked, ``(N, 2, S, S)`` in [0, 1].

    What is thinner than a pixel is marked a pixel broad: by its share of the pixels it would be
    taken for unsure, and lost.
    """
    gap = distance * grain
    drawn = (half * grain).expand_as(gap)
    return (0.5 + torch.stack([drawn, drawn.clamp_min(_LINE)], 1) - gap[:, None]).clamp(0, 1)


def _segment(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """Distance of all pixels to line segments ``(N, 2)`` -> ``(N, 2)``, ``(N, S, S)``."""
    x, y = _pixels(size, begin)
    step = end - begin
    x, y = x - _column(begin[:, 0]), y - _column(begin[:, 1])
    dx, dy = _column(step[:, 0]), _column(step[:, 1])
    along = ((x * dx + y * dy) / (dx.square() + dy.square()).clamp_min(1e-3)).clamp(0, 1)
    return ((x - along * dx).square() + (y - along * dy).square()).sqrt()


def _things(kind: Tensor, spread: Tensor, odds: Occluders) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded boxes of hands, microphones and whatever else, in sides of the crop.

    Returns:
        ``(n,) bool`` which are hands, ``(n, _PARTS, 6)`` and ``(n, _PARTS) bool``.
    """
    n = len(kind)
    hand = kind[:, 0] < odds.hands
    microphone = ~hand & (kind[:, 0] < odds.hands + odds.microphones)
    # Coming in from a direction, mostly from below and the sides, and reaching a place of the face.
    angle = math.pi / 2 + (kind[:, 1] - 0.5) * 1.5 * math.pi
    reach = torch.stack([0.3 + 0.4 * kind[:, 2], 0.3 + 0.5 * kind[:, 3]], 1)  # of the tip
    way = torch.stack([angle.cos(), angle.sin()], 1)
    normal = torch.stack([-way[:, 1], way[:, 0]], 1)

    def box(tip: Tensor, turn: Tensor, length: Tensor, width: Tensor, corner: Tensor) -> Tensor:
        """A box that begins at its tip and leads away from the face."""
        middle = tip + torch.stack([turn.cos(), turn.sin()], 1) * length[:, None]
        return torch.stack([middle[:, 0], middle[:, 1], turn, length, width, corner], 1)

    one = torch.ones(n)
    width = _between(spread[:, 0, 0], 0.03, 0.06)  # of a finger
    boxes = []
    for index in range(_PARTS):
        draw = spread[:, index]
        offset = (index - 2) * 2.05 * width + (draw[:, 1] - 0.5) * 0.02
        back = (draw[:, 2] * 0.12 + 0.05 * abs(index - 2)) * 1.0
        tip = reach + normal * offset[:, None] + way * back[:, None]
        finger = box(tip, angle + (draw[:, 3] - 0.5) * 0.25, one * 0.22, width, width)
        boxes.append(finger)
    fingers = torch.stack(boxes, 1)
    palm_tip = reach + way * (0.3 + 0.1 * spread[:, 4, 4])[:, None]
    fingers[:, 4] = box(palm_tip, angle, one * 0.6, 5 * width, 2.5 * width)

    head = _between(spread[:, 0, 1], 0.06, 0.13)
    stick = box(reach, angle, one * 0.8, head * _between(spread[:, 0, 2], 0.2, 0.7), head * 0.2)
    ball = box(
        reach - way * head[:, None], angle, head * _between(spread[:, 0, 3], 1.0, 1.6), head, head
    )
    cube = box(reach + way * (head * 2)[:, None], angle, head * 0.8, head * 1.2, head * 0.1)
    mike = torch.stack([stick, cube, ball, ball, ball], 1)

    size = _between(spread[..., 1].square(), 0.05, 0.28)
    any_thing = torch.stack(
        [
            0.15 + 0.7 * spread[..., 2],
            0.2 + 0.75 * spread[..., 3],
            spread[..., 4] * math.pi,
            size,
            size * (0.15 + 0.85 * spread[..., 5]),
            size * 0.15 * spread[..., 0],
        ],
        -1,
    )
    parts = torch.where(hand[:, None, None], fingers, any_thing)
    parts = torch.where(microphone[:, None, None], mike, parts)
    count = torch.where(hand, 5, torch.where(microphone, 3, 1 + (2 * spread[:, 4, 0]).long()))
    present = torch.arange(_PARTS) < count[:, None]
    # A hand shows two to four fingers and its palm; a microphone has its cube now and then.
    shown = spread[..., 0] < 0.75
    shown[:, 4] = True
    present = present & (~hand[:, None] | shown)
    present[:, 1] &= ~microphone | (spread[:, 1, 0] < 0.3)
    return hand, parts, present


def _hold_things(images: Tensor, mesh: Tensor, drawn: Drawn, tint: Tensor) -> tuple[Tensor, Tensor]:
    """Things before the faces that have some, and what they cover."""
    size = images.shape[-1]
    x, y = _pixels(size, images)
    look = drawn.look
    texture = _texture(drawn.rough, size)
    at = mesh[:, constant(CHEEKS, mesh.device), :2] * (2 / (size - 1)) - 1
    seen = F.grid_sample(images, at[:, None], align_corners=True, padding_mode="border")[:, :, 0]
    skin = seen.median(2).values * _between(look[:, :1], 0.75, 1.2)
    plain = look[:, 1:2].square() * (0.4 + 1.2 * look[:, 2:5]).clamp(0, 1.4) * tint
    is_skin = (drawn.hand & (look[:, 5] < 0.85))[:, None]  # the others are gloved
    colour = torch.where(is_skin, skin, plain)[..., None, None]
    colour = colour * (1 + texture[:, :1] * _between(look[:, 6], 0.1, 0.6).view(-1, 1, 1, 1))
    other = images.roll(1, 0).flip(2)  # a piece of another photo, upside down
    patch = (~is_skin[:, 0] & (look[:, 7] < 0.4)).view(-1, 1, 1, 1)
    colour = torch.where(patch, other, colour)
    grain = F.interpolate(drawn.fine, size=(size, size), mode="bilinear", align_corners=False)
    colour = colour * (1 + grain * (0.12 * look[:, 8].square()).view(-1, 1, 1, 1))
    toward = look[:, 9] * 2 * math.pi
    lit_x, lit_y = _column(toward.cos()), _column(toward.sin())
    depth = _column(_between(look[:, 10], 0.1, 0.5))

    hidden = torch.zeros_like(images[:, :1])
    held = drawn.things[:, None] & drawn.present
    for part, here in zip(drawn.parts.unbind(1), held.unbind(1), strict=True):
        across, down, angle, length, width, corner = (_column(v) for v in part.unbind(1))
        dx, dy = x - across * size, y - down * size
        along, beside = (
            dx * angle.cos() + dy * angle.sin(),
            dy * angle.cos() - dx * angle.sin(),
        )
        corner = corner * size
        a = (along.abs() - length * size + corner).clamp_min(0)
        b = (beside.abs() - width * size + corner).clamp_min(0)
        edge = (a.square() + b.square()).sqrt() - corner
        alpha = ((0.5 - edge).clamp(0, 1) * _column(here.float()))[:, None]
        # Round: it turns away from the light towards its edges.
        round_off = (1 + edge / (width * size)).clamp(0, 1).square()
        slope = (dx * lit_x + dy * lit_y) / (dx.square() + dy.square() + 1).sqrt()
        light = (1 - depth * round_off * (0.5 - slope))[:, None]
        blur = max(1, size // 40)
        shadow = F.avg_pool2d(F.pad(alpha, (blur,) * 4), 2 * blur + 1, 1)
        images = images * (1 - 0.3 * (shadow * (1 - alpha)))
        images = torch.lerp(images, (colour * light).clamp(0, 1), alpha.expand_as(images))
        hidden = torch.maximum(hidden, alpha)
    return images, hidden
