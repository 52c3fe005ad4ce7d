"""Measures of a swapped face against its target and its source, from embeddings and dense meshes.

Pure functions, row i of every argument being swap i. What cannot be measured is NaN, never left
out. Meshes have the 478 points of `faceswap.ops.topology`, x y z in pixels of one scale; a mesh of
one picture is never compared with another's pixels, only after pose and scale are taken out.

Of the GHOST article (Groshev et al., IEEE Access 2022, section IV) these are the counterparts of:
ID retrieval -> `retrieval_rank`; pose -> `pose_error`; exp -> `expression_error`; eye ldmk ->
`gaze_error`; shape -> `shape_error`. The article's own names belong to its own extractors
(`faceswap.evaluate.extract`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.shape import ShapeModel, fit_pose
from faceswap.ops.topology import (
    FEATURES,
)

# Points that skin and bone hold in place while the face moves: forehead, temples, cheekbones,
# nose, corners of the eyes. The jaw, lips, brows and lids are not among them.
RIGID = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 234, 127, 162, 21, 54, 103, 67, 109, 151, 9, 8,
    168, 6, 197, 195, 5, 4, 1, 19, 33, 133, 362, 263, 116, 345, 117, 346, 123, 352,
)  # fmt: skip
# Pairs of points whose distances tell faces apart and change little with expression.
SHAPE_PAIRS = (
    (234, 454),  # width of the face
    (10, 152),  # height of the face
    (172, 397),  # width of the jaw
    (136, 365),  # width of the lower jaw
    (54, 284),  # width of the forehead
    (133, 362),  # between the inner corners of the eyes
    (33, 133),  # width of the left eye
    (362, 263),  # width of the right eye
    (168, 4),  # length of the nose
    (48, 278),  # width of the nose
    (61, 291),  # width of the mouth
    (2, 0),  # nose to upper lip
    (17, 152),  # lower lip to chin
    (234, 152),  # left ear to chin
    (454, 152),  # right ear to chin
)
EYES = ((33, 133, 159, 145, 468), (362, 263, 386, 374, 473))  # corners, lids, centre of the iris
# An adult eyeball is 24 mm across and the lids' opening about 30 mm wide (Duke-Elder).
EYEBALL_RADIUS = 12 / 30  # in widths of the eye
CLOSED = 0.1  # lids nearer than this share of the eye's width hide where it looks


class PoseError(NamedTuple):
    """How far the pose of N swapped faces is from their targets'; together 6 degrees of freedom."""

    angle: Tensor  # (N,) degrees, the one turn that leads from one head pose to the other
    shift: Tensor  # (N,) % of the target's eye distance, in the picture's plane
    scale: Tensor  # (N,) %, of size; stands for the distance to the camera


class GazeError(NamedTuple):
    """How far the eyes of N swapped faces look away from where their targets look."""

    angle: Tensor  # (N,) degrees between the directions, relative to the head, mean of both eyes
    shift: Tensor  # (N,) % of the eye's width, of the iris relative to the eye's corners


def cosine(
    a: Tensor,  # (N, D) float
    b: Tensor,  # (N, D) float
) -> Tensor:
    """Cosine similarity row by row, ``(N,)`` in [-1, 1]."""
    similarity: Tensor = (F.normalize(a) * F.normalize(b)).sum(1).clamp(-1, 1)
    return similarity


def retrieval_rank(
    swapped: Tensor,  # (N, D) float, embeddings of the swapped faces
    wanted: Tensor,  # (N,) int64, number of the source each should be
    gallery: Tensor,  # (M, D) float, embeddings of all sources; one may have several rows
    owner: Tensor,  # (M,) int64, number of the source each row shows
) -> Tensor:
    """Place of the right source when all are sorted by similarity, ``(N,) int64``, 1 = the nearest.

    ID retrieval of FaceShifter (Li et al., 2019, section 4.1): the share of swapped faces whose
    nearest source, by cosine, is the one that was put in. A source that several rows show counts
    by its nearest row. Ties count against: an encoder that sees no difference scores nothing.

    Raises:
        ValueError: a wanted source is not in the gallery.
    """
    near = F.normalize(swapped) @ F.normalize(gallery).T  # (N, M)
    names, column = torch.unique(owner, return_inverse=True)
    if not torch.isin(wanted, names).all():
        raise ValueError("retrieval_rank: a wanted source has no row in the gallery")
    best = near.new_full((len(near), len(names)), -2.0)
    best = best.scatter_reduce(1, column.expand(len(near), -1), near, "amax")
    mine = best.gather(1, torch.searchsorted(names, wanted.contiguous())[:, None])
    rank: Tensor = (best >= mine).sum(1)
    return rank


def eye_distance(
    mesh: Tensor,  # (N, 478, 2 or 3) float
) -> Tensor:
    """Distance between the middles of the eyes' corners, ``(N,)`` in the mesh's unit."""
    left, right = mesh[:, [33, 133]].mean(1), mesh[:, [362, 263]].mean(1)
    distance: Tensor = torch.linalg.vector_norm(left - right, dim=1)
    return distance


def rigid_pose(
    mesh: Tensor,  # (N, 478, 3) float, pixels
    reference: Tensor,  # (478, 3) float, a mean face (`ShapeModel.mean`)
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale ``(N,)``, rotation ``(N, 3, 3)``, shift ``(N, 1, 3)`` of a rigid face (`fit_pose`).

    Fitted to the points that expression does not move.
    """
    rigid = list(RIGID)
    return fit_pose(mesh[:, rigid], reference[rigid])


def euler(
    rotation: Tensor,  # (N, 3, 3) float
) -> Tensor:
    """Yaw, pitch, roll in degrees, ``(N, 3)``; roll turns about z last: R = Rz Ry Rx.

    Axes as in pictures: x right, y down, z away from the camera.
    """
    pitch = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    yaw = torch.asin((-rotation[:, 2, 0]).clamp(-1, 1))
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.rad2deg(torch.stack((yaw, pitch, roll), 1))


def plain(
    mesh: Tensor,  # (N, 478, 3) float, pixels
    reference: Tensor,  # (478, 3) float
) -> Tensor:
    """The mesh seen from the front, without pose, place and size, ``(N, 478, 3)``."""
    scale, rotation, shift = rigid_pose(mesh, reference)
    frontal: Tensor = (mesh - shift) @ rotation / scale[:, None, None]
    return frontal


def pose_error(
    target: Tensor,  # (N, 478, 3) float, pixels of the target picture
    swapped: Tensor,  # (N, 478, 3) float, pixels of the swapped picture, which are the same
    reference: Tensor,  # (478, 3) float, a mean face
) -> PoseError:
    """Difference of the two poses of a rigid face that was fitted to both meshes.

    The angle t of a rotation between two poses follows from ``|R1 - R2| = 2 sqrt(2) sin(t / 2)``
    (Frobenius), which unlike the arccosine of the trace is exact near zero.
    """
    scale_t, turn_t, shift_t = rigid_pose(target, reference)
    scale_s, turn_s, shift_s = rigid_pose(swapped, reference)
    half = torch.linalg.matrix_norm(turn_t - turn_s) / (2 * math.sqrt(2))
    angle = torch.rad2deg(2 * torch.asin(half.clamp(0, 1)))
    eye = scale_t * eye_distance(reference[None])
    shift = torch.linalg.vector_norm((shift_t - shift_s)[:, 0, :2], dim=1) / eye
    return PoseError(angle, 100 * shift, 100 * (scale_s / scale_t - 1).abs())


def expression_error(
    target: Tensor,  # (N, 478, 3) float, pixels
    swapped: Tensor,  # (N, 478, 3) float, pixels
    reference: Tensor,  # (478, 3) float, a mean face
) -> Tensor:
    """Mean displacement of lips, lids and brows, both faces seen from the front, ``(N,)``.

    In % of the target's eye distance, in the frontal plane. A swap that takes over the source's
    face shape moves these points too, so that the least value of a good swap is not zero; see
    `separated_expression_error`.
    """
    a, b = plain(target, reference), plain(swapped, reference)
    points = list(FEATURES)
    moved = torch.linalg.vector_norm((a - b)[:, points, :2], dim=2).mean(1)
    error: Tensor = 100 * moved / eye_distance(a)
    return error


def separated_expression_error(
    target: Tensor,  # (N, 478, 3) float, pixels
    swapped: Tensor,  # (N, 478, 3) float, pixels
    model: ShapeModel,
) -> Tensor:
    """`expression_error` of the part of the displacement that is expression, not face shape.

    The shape model splits the difference of two faces by their covariances within and between
    people (`faceswap.ops.guide`); ``(N,)`` in % of the target's eye distance.
    """
    a, b = plain(target, model.mean), plain(swapped, model.mean)
    code = (b - a).flatten(1) @ model.basis.T @ model.expression.T
    part = (code @ model.basis).view_as(a)[:, list(FEATURES), :2]
    error: Tensor = 100 * torch.linalg.vector_norm(part, dim=2).mean(1) / eye_distance(a)
    return error


def mouth_opening(
    mesh: Tensor,  # (N, 478, 3) float
) -> Tensor:
    """Gap of the inner lips in % of the eye distance, ``(N,)``; in space, so free of pose."""
    gap = torch.linalg.vector_norm(mesh[:, 13] - mesh[:, 14], dim=1)
    opening: Tensor = 100 * gap / eye_distance(mesh)
    return opening


def eye_opening(
    mesh: Tensor,  # (N, 478, 3) float
) -> Tensor:
    """Gap of the lids in % of each eye's width, left and right, ``(N, 2)``; free of pose."""
    corner_a, corner_b, above, below, _ = torch.tensor(EYES, device=mesh.device).T
    gap = torch.linalg.vector_norm(mesh[:, above] - mesh[:, below], dim=2)
    width = torch.linalg.vector_norm(mesh[:, corner_a] - mesh[:, corner_b], dim=2)
    opening: Tensor = 100 * gap / width
    return opening


def iris_position(
    mesh: Tensor,  # (N, 478, 3) float
    reference: Tensor,  # (478, 3) float, a mean face
) -> Tensor:
    """Centre of each iris from the middle of the eye's corners, head seen from the front.

    Returns:
        ``(N, 2, 2)``: left and right eye; along the line of the corners (positive: to the right)
        and across it (positive: down), in widths of the eye.
    """
    xy = plain(mesh, reference)[..., :2]
    corner_a, corner_b, _, _, iris = torch.tensor(EYES, device=mesh.device).T
    axis = xy[:, corner_b] - xy[:, corner_a]  # (N, 2, 2), to the right for both eyes
    width = torch.linalg.vector_norm(axis, dim=2, keepdim=True)
    axis = axis / width
    off = (xy[:, iris] - (xy[:, corner_a] + xy[:, corner_b]) / 2) / width
    across = torch.stack((-axis[..., 1], axis[..., 0]), -1)
    return torch.stack(((off * axis).sum(2), (off * across).sum(2)), -1)


def gaze_direction(
    position: Tensor,  # (..., 2) float, of the iris, in widths of the eye
) -> Tensor:
    """Unit vectors ``(..., 3)`` of a ball of `EYEBALL_RADIUS` whose pole is at that place."""
    side = position / EYEBALL_RADIUS
    side = side / torch.linalg.vector_norm(side, dim=-1, keepdim=True).clamp_min(1.0)
    depth = (1 - side.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    return torch.cat((side, -depth), -1)


def gaze_error(
    target: Tensor,  # (N, 478, 3) float, pixels
    swapped: Tensor,  # (N, 478, 3) float, pixels
    reference: Tensor,  # (478, 3) float, a mean face
) -> GazeError:
    """Difference of the gaze relative to the head; NaN where the target's eyes are closed.

    An eye that is closed in the target is left out; with both closed the swap is not measured.
    """
    a, b = iris_position(target, reference), iris_position(swapped, reference)
    chord = torch.linalg.vector_norm(gaze_direction(a) - gaze_direction(b), dim=2)
    angle = torch.rad2deg(2 * torch.asin((chord / 2).clamp(0, 1)))
    shift = 100 * torch.linalg.vector_norm(a - b, dim=2)
    closed = eye_opening(target) < 100 * CLOSED
    angle, shift = (x.masked_fill(closed, math.nan).nanmean(1) for x in (angle, shift))
    return GazeError(angle, shift)


def shape_ratios(
    mesh: Tensor,  # (N, 478, 3) float
) -> Tensor:
    """Logarithms of the distances `SHAPE_PAIRS` against their geometric mean, ``(N, 15)``.

    Distances in space, so that pose, place and size drop out.
    """
    a, b = torch.tensor(SHAPE_PAIRS, device=mesh.device).T
    log = torch.linalg.vector_norm(mesh[:, a] - mesh[:, b], dim=2).clamp_min(1e-6).log()
    ratios: Tensor = log - log.mean(1, keepdim=True)
    return ratios


def shape_error(
    swapped: Tensor,  # (N, 478, 3) float
    other: Tensor,  # (N, 478, 3) float, the source (or the target, for comparison)
) -> Tensor:
    """Mean difference of the faces' proportions in %, ``(N,)``; smaller = nearer to that face."""
    error: Tensor = 100 * (shape_ratios(swapped) - shape_ratios(other)).abs().mean(1)
    return error
