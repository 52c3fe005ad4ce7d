"""Warp guidance: the source's face, warped to where the target's face is.

Identity reaches the lite swapper as texture, not only through an embedding. All of it is batched
and without learning except for one small linear shape model:

1. `ShapeModel.compose` gives the source's face shape in the target's expression and pose.
2. `thin_plate_grid` moves the source's pixels there (Bookstein 1989; hidden points count less), and
   its irises to where the target looks (`faceswap.ops.gaze`), as long as the target's eyes are too
   unclear to be shown themselves (`faceswap.ops.eyes`). What a turned head hides is the
   mirror image of the half that it shows (`TwoHalves`).
   Hair that hangs into the source's face is replaced by skin first; where the target's hair hangs
   into its face, the target stays (`faceswap.ops.skin`).
3. It is taken out of its own light and put into the target's (`faceswap.ops.light`), as far as
   bare skin tells either; features and hair do not count as light. Shadow in the sockets of the
   eyes, which is on both sides, goes by the target's (`faceswap.ops.sockets`).
4. `_seam` makes it meet the target along the outline: the difference there, smooth inwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.draw import dots, outline_distance
from faceswap.ops.eyes import with_eyes
from faceswap.ops.gaze import look_along
from faceswap.ops.geometry import fit_affine
from faceswap.ops.lids import close_lids
from faceswap.ops.light import BROAD, evened, relit, shade, tone
from faceswap.ops.shape import ShapeModel
from faceswap.ops.skin import GRID, Skin, find_skin
from faceswap.ops.smooth import average, mean, resized
from faceswap.ops.sockets import lift_sockets, sockets_of
from faceswap.ops.spline import spread, thin_plate_grid
from faceswap.ops.topology import (
    CONTROL,
    EYE_LEFT,
    EYE_RIGHT,
    FACE,
    INNER_LIPS,
    MESH_POINTS,
    OUTER_LIPS,
    SURFACE,
    covering,
)
from faceswap.types import Guide

_NEAR = 0.06  # fraction of the side, of the skin that hair is replaced by, and of the seam
_BROW_ROOM = 7.0  # px of 128, see `find_skin`
# Cosines of points to the camera: how much more the other half shows, what is hidden, and the
# farther eye of a head that is turned away.
_BETTER, _HIDDEN, _TURNED = 0.12, 0.4, 0.66
_LIPS, _FINEST = 128, 128  # cells of the lips' outline, and of what evens skin, at most
_LOCAL = 0.03  # fraction of the side, of what a face shows of its light in one place
_DEEPEST = 0.6  # share of its light that shade may take from a face; what is darker is beard
_CANVAS = 0.045  # of the target that shows where the source has nothing to show


def make_guide(
    model: ShapeModel,
    source: Tensor,  # (N, 3, R, R) float in [0, 1], aligned crops of the sources
    source_mesh: Tensor,  # (N, 478, 3) float32, in source crop pixels
    target: Tensor,  # (N, 3, R, R) float in [0, 1], aligned crops of the targets
    target_mesh: Tensor,  # (N, 478, 3) float32, in target crop pixels
    *,
    identity: float = 1.0,  # 1 = the source's face shape, 0 = the target's
    source_skin: Skin | None = None,  # ``find_skin`` of the sources, if it is known already
    covered: Tensor | None = None,  # (N, 1, R, R) in [0, 1], what lies before the targets' faces
) -> tuple[Guide, Tensor]:
    """Everything the guided generator needs to know of a swap.

    Returns:
        The guide, at side R, and the swapped face's mesh ``(N, 478, 3)`` in target crop pixels.
    """
    size = target.shape[-1]
    unit = size / 128
    shape = close_lids(model.compose(source_mesh, target_mesh, identity=identity), target_mesh)
    control = constant(CONTROL, target.device)
    trust, shown_there = (model.facing(mesh)[:, control] for mesh in (source_mesh, target_mesh))
    halves = TwoHalves.of(model, shape, source_mesh, trust, shown_there, size)
    trust = halves.trust
    shown = halves.shown
    rim, opening = (constant(rows, shape.device) for rows in (FACE, INNER_LIPS))
    face = outline_distance(covering(shape, target_mesh)[:, rim, :2], GRID, size)
    lips = outline_distance(shape[:, opening, :2], min(size // 2, _LIPS), size)
    mouth = (lips / unit - 0.3).clamp(0, 1)  # nothing where the lips are closed

    # Hair of the source that is taken for brow would come along; a brow of the target that is taken
    # for hair would stay: each is given the room that errs on the good side.
    own = find_skin(source, source_mesh) if source_skin is None else source_skin
    theirs = find_skin(target, target_mesh, brow_room=_BROW_ROOM, covered=covered)
    # Beyond the source's oval there is hair, neck or background: no skin to show either.
    there = halves(torch.cat([own.bare, own.clear, 1 - own.core * (1 - own.hair)], 1))
    hair, skin = there[:, 2:], resized(there[:, :2], GRID) * resized(shown, GRID)
    bare, clear = skin.split(1, 1)
    small = resized(target, GRID)
    canvas = _canvas(small, theirs.bare)
    warped = _without_hair(halves(source), hair, bare)
    points = (torch.cat([shape, target_mesh])[:, control, :2] + 0.5) * (GRID / size) - 0.5
    light, wanted = _lights(
        torch.cat([resized(warped, GRID), small]),
        torch.cat([bare, theirs.bare]),
        torch.cat([clear, theirs.clear]),
        points,
        model.mirror(control),
        torch.cat([trust.minimum(shown_there), shown_there]),
    )
    image = relit(warped, light, wanted)
    image = image + resized(_excess(image, wanted, shape), size)
    sockets = sockets_of(shape, small, target_mesh, wanted, size)
    image = lift_sockets(image, sockets)
    distance = resized(face, GRID) / unit
    image = image + resized(_seam(small, resized(image, GRID), distance, theirs.bare, bare), size)

    image, eyes = with_eyes(image, shape, target, target_mesh, canvas.mean((1, 2, 3)))

    region = (face / (8 * unit) + 0.5).clamp(0, 1) * (1 - resized(theirs.hair, size))
    base = target + region * (resized(canvas, size) - target)
    base = base + mouth * (_mouth_of(target, target_mesh, shape) - base)
    seen = spread(shape[:, control, :2], trust.clamp(0, 1), size)
    drawing = torch.cat(
        [dots(shape[:, control, :2] / unit, 128), dots(shape[:, SURFACE:, :2] / unit, 128)], 1
    )
    drawing = resized(drawing, size)
    guide = Guide(image.clamp(0, 1), base, region, mouth, seen * shown, drawing, eyes, sockets)
    return guide, shape


def _lights(
    faces: Tensor,  # (2N, 3, GRID, GRID), the sources warped, then the targets
    bare: Tensor,  # (2N, 1, GRID, GRID), their bare skin
    clear: Tensor,  # (2N, 1, GRID, GRID), the same with what is dark
    points: Tensor,  # (2N, C, 2) float32, GRID px
    twin: Tensor,  # (C,) int64
    facing: Tensor,  # (2N, C) float32
) -> tuple[Tensor, Tensor]:
    """The light on the sources and that on the targets, ``(N, 3, GRID, GRID)`` each."""
    n = len(faces) // 2
    dark = shade(faces, clear, points, twin, facing)
    bright = tone(faces - dark, bare)
    # No deeper than the target is dark there: where its other half shines, this one has no shade.
    local = average(faces[n:], bare[n:], sigma=_LOCAL, prior=bright[n:], trust=0.05)
    dark = torch.cat([dark[:n], dark[n:].maximum((local - bright[n:]).clamp(max=0))])
    own, light = (bright + dark.maximum(-_DEEPEST * bright)).chunk(2)
    return own, light


def _excess(image: Tensor, light: Tensor, shape: Tensor) -> Tensor:
    """What `evened` changes, at no more than `_FINEST` a side: blotches are broader than that."""
    side = min(image.shape[-1], _FINEST)
    small, unit = resized(image, side), side / 128
    points = (shape[..., :2] + 0.5) * (side / image.shape[-1]) - 0.5
    outlines = (EYE_LEFT, EYE_RIGHT, OUTER_LIPS)
    inside = [outline_distance(points[:, constant(o, points.device)], GRID, side) for o in outlines]
    skin = 0.5 - torch.stack(inside).amax(0) / (2 * unit)
    return evened(small, light, skin.clamp(0, 1)) - small


@dataclass(frozen=True, slots=True)
class TwoHalves:
    """A way from the sources' crops to the swapped faces.

    A point that the source hides is fetched from where its mirror image is seen: a cheek and an eye
    behind the nose are the other cheek and the other eye.
    """

    grid: Tensor  # (N, S, S, 2) in [-1, 1], backward map
    mirrored: Tensor | None  # (N, S, S, 2), the same to the other half; None: not needed
    share: Tensor  # (N, 1, S, S) in [0, 1], of the other half
    trust: Tensor  # (N, C) in [-1, 1], how well each control point is seen

    @classmethod
    def of(
        cls,
        model: ShapeModel,
        shape: Tensor,  # (N, 478, 3) float32, mesh of the swapped faces, target crop px
        source_mesh: Tensor,  # (N, 478, 3) float32, source crop px
        trust: Tensor,  # (N, C) float32, how much the source's control points face the camera
        shown_there: Tensor,  # (N, C) float32, the same of the target's
        size: int,
    ) -> TwoHalves:
        """The way for these faces."""
        control = constant(CONTROL, shape.device)
        twin = model.mirror(torch.arange(MESH_POINTS, device=shape.device))
        places = shape[:, control, :2]

        def way(mesh: Tensor, trust: Tensor) -> Tensor:
            weight = trust.clamp(0.1, 1) * shown_there.clamp(0.02, 1)
            weight[:, -2:] = 1e-3  # the irises would stretch; `look_along` moves them as a whole
            grid = thin_plate_grid(places, mesh[:, control, :2], weight, size=size)
            return look_along(grid, shape, mesh)

        other = trust[:, model.mirror(control)]
        # A cheek's edge is hidden before the eye beside it is; with the eye goes the whole half.
        behind = ((_HIDDEN - trust) / 0.15).clamp(0, 1)
        turned = ((_TURNED - trust[:, -2:]) / 0.05).clamp(0, 1).amax(1, keepdim=True)
        lack = behind.maximum(turned) * ((other - trust) / _BETTER).clamp(0, 1)
        grid = way(source_mesh, trust)
        if grid.device.type == "cpu" and not bool(lack.any()):  # most photos; a GPU need not know
            return cls(grid, None, lack.new_zeros(()), trust)
        share = ((spread(places, lack, size) - 0.3) / 0.3).clamp(0, 1)
        trust = torch.lerp(trust, other, lack)
        return cls(grid, way(source_mesh[:, twin], other), share, trust)

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures of the sources, ``(N, C, S', S')``, as the swapped faces show them."""
        here = _warp(images, self.grid)
        if self.mirrored is None:
            return here
        return torch.lerp(here, _warp(images, self.mirrored), self.share)

    @property
    def shown(self) -> Tensor:
        """``(N, 1, S, S)`` in [0, 1], where the sources' crops reach."""
        parts = [self.grid] if self.mirrored is None else [self.grid, self.mirrored]
        inside = [(g.abs().amax(-1, keepdim=True) < 1).permute(0, 3, 1, 2).float() for g in parts]
        return inside[0] if len(inside) == 1 else torch.lerp(inside[0], inside[1], self.share)


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, align_corners=True, padding_mode="border")


def _canvas(small: Tensor, bare: Tensor) -> Tensor:
    """The target's skin without its features, ``(N, 3, GRID, GRID)``."""
    prior = average(small, torch.ones_like(bare), sigma=_CANVAS, trust=1e-4)
    wide = average(small, bare, sigma=BROAD, prior=prior, trust=0.02)
    return average(small, bare, sigma=_CANVAS, prior=wide, trust=0.05)


def _without_hair(warped: Tensor, hair: Tensor, bare: Tensor) -> Tensor:
    """The source's face with its own skin where hair hung into it, ``(N, 3, S, S)``."""
    small = resized(warped, GRID)
    sure = bare * (1 - resized(hair, GRID))  # a rim of hair in shadow passes for bare skin
    wide = average(small, sure, sigma=BROAD, prior=mean(small, sure), trust=0.02)
    skin = average(small, sure, sigma=_NEAR, prior=wide, trust=0.05)
    return warped + hair * (resized(skin, warped.shape[-1]) - warped)


def _seam(
    target: Tensor,  # (N, 3, GRID, GRID)
    image: Tensor,  # (N, 3, GRID, GRID), already in the target's light
    distance: Tensor,  # (N, 1, GRID, GRID) to the outline, px of 128, positive inside
    theirs: Tensor,  # (N, 1, GRID, GRID) the target's bare skin
    own: Tensor,  # (N, 1, GRID, GRID) the image's bare skin
) -> Tensor:
    """What to add so that the image meets the target along the outline, and nothing further in."""
    ring = (1 - distance.abs() / 7).clamp(0, 1) * theirs * own
    return average((target - image).clamp(-0.25, 0.25), ring, sigma=_NEAR, trust=0.03)


def _mouth_of(target: Tensor, mesh: Tensor, shape: Tensor) -> Tensor:
    """The target moved so that its lips lie on the swapped face's, ``(N, 3, S, S)``.

    An affine fit over the lips' contours: teeth and tongue are the target's, as its words are.
    """
    lips = constant(INNER_LIPS + OUTER_LIPS, mesh.device)
    size = target.shape[-1]
    affine = fit_affine(shape[:, lips, :2], mesh[:, lips, :2])
    linear = affine[:, :, :2]
    # The same from [-1, 1] to [-1, 1].
    shift = linear.sum(2, keepdim=True) + affine[:, :, 2:] * (2 / (size - 1)) - 1
    grid = F.affine_grid(torch.cat([linear, shift], 2), list(target.shape), align_corners=True)
    return F.grid_sample(target, grid, align_corners=True, padding_mode="border")
