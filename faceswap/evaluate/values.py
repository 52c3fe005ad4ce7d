"""Every measure of faces and of a track, by name, from what was seen of target and swap."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.evaluate import measures, pixels, temporal
from faceswap.evaluate.seen import Seen
from faceswap.evaluate.table import FAILURE
from faceswap.ops.geometry import Alignment, align
from faceswap.ops.shape import ShapeModel
from faceswap.ops.topology import five_points

NO_TARGET = "no face in the target"
NO_SWAPPED = "no face in the swapped picture where the target has one"


def face_values(
    shape: ShapeModel,
    pictures: tuple[Tensor, Tensor],  # target, swapped (B, 3, H, W) uint8
    target: Seen,  # B frames
    swapped: Seen,  # B frames, looked at with `like`
    source: Seen,  # frames that show the person put in; may be none
) -> tuple[list[dict[str, float]], list[str]]:
    """Measures of B faces, and why some could not be taken.

    ID retrieval needs all sources and comes later (`faceswap.evaluate.collect`); here stands only
    the failure of faces that are gone. All others are NaN, or left out, where nothing was seen.
    """
    both = target.valid & swapped.valid
    rows = torch.nonzero(both)[:, 0]
    columns: dict[str, Tensor] = {}
    if len(rows):
        t, s = target[rows], swapped[rows]
        columns |= _mesh_values(shape, t, s)
        columns |= _identity_values(t, s, source)
        columns |= _extra_values(t, s, source)
        columns |= _pixel_values(pictures[0][rows], pictures[1][rows], t.mesh)
    out = []
    for b, row in enumerate(_places(both)):
        values = {name: float(column[row]) for name, column in columns.items()} if row >= 0 else {}
        if bool(target.valid[b]) and row < 0 and len(source):
            values |= {name: FAILURE[name] for name in FAILURE if _known(name, target)}
        out.append(values)
        if bool(target.valid[b]):
            frames = pictures[0][b], pictures[1][b]
            changed = pixels.outside_change(*frames, target.boxes[b], target.eyes[b])
            values["outside_pixels"], values["outside_change"] = changed
    reasons = [
        "" if a and b else NO_SWAPPED if a else NO_TARGET
        for a, b in zip(target.valid.tolist(), swapped.valid.tolist(), strict=True)
    ]
    return out, reasons


def curve_values(
    target: Tensor,  # (T, 478, 3) float, NaN where no face
    swapped: Tensor,  # (T, 478, 3)
    embedding: Tensor,  # (T, D) of the swapped faces
    crops: Tensor,  # (T, 2, 3, S, S) uint8, target and swapped, both cut by the target's mesh
) -> dict[str, Tensor]:
    """Jitter, drift and flicker frame by frame, ``(T,)`` each, NaN where there is none."""
    seen = target[:, 0, 0].isfinite()
    both = seen & swapped[:, 0, 0].isfinite()
    centre = target[..., :2].mean(1)
    step = torch.linalg.vector_norm(centre[1:] - centre[:-1], dim=1)
    same = F.pad(step <= measures.eye_distance(target[1:]), (1, 0), value=True)
    # A cut, or another person: what needs the frame before stops there.
    jitter = temporal.jitter(target, swapped, both)
    jitter[1:-1] = jitter[1:-1].masked_fill(~(same[1:-1] & same[2:]), math.nan)
    inside = _view_at(target.nan_to_num(0.0)).points(target[..., :2].nan_to_num(0.0))
    band = pixels.border_band(pixels.outline(inside))
    flicker = temporal.flicker(crops[:, 0] / 255, crops[:, 1] / 255, band, both)
    return {
        "jitter": jitter,
        "id_drift": temporal.identity_drift(embedding, both),
        "flicker": flicker.masked_fill(~same, math.nan),
    }


def view(
    frames: Tensor,  # (N, 3, H, W) uint8, frame i shows face i
    mesh: Tensor,  # (N, 478, 3) float, frame pixels
) -> tuple[Tensor, Tensor]:
    """Crops that pixels are measured in ``(N, 3, S, S)`` in [0, 1], and the mesh in them."""
    at = _view_at(mesh)
    rows = torch.arange(len(mesh), device=frames.device)
    return at.crop(frames, rows, padding="reflection"), at.points(mesh[..., :2])


def _view_at(mesh: Tensor) -> Alignment:
    points = five_points(mesh).contiguous()
    return align(points, pixels.VIEW, template="ghost_frontal", margin=pixels.MARGIN)


def _mesh_values(shape: ShapeModel, target: Seen, swapped: Seen) -> dict[str, Tensor]:
    t, s = target.mesh, swapped.mesh
    pose = measures.pose_error(t, s, shape.mean)
    gaze = measures.gaze_error(t, s, shape.mean)
    lids = (measures.eye_opening(t) - measures.eye_opening(s)).abs().mean(1)
    return {
        "pose": pose.angle,
        "pose_shift": pose.shift,
        "pose_scale": pose.scale,
        "expression": measures.expression_error(t, s, shape.mean),
        "expression_separated": measures.separated_expression_error(t, s, shape),
        "mouth_opening": (measures.mouth_opening(t) - measures.mouth_opening(s)).abs(),
        "eye_opening": lids,
        "gaze": gaze.angle,
        "gaze_shift": gaze.shift,
        "shape_target": measures.shape_error(s, t),
    }


def _identity_values(target: Seen, swapped: Seen, source: Seen) -> dict[str, Tensor]:
    s = swapped.embedding
    out = {"id_target": measures.cosine(s, target.embedding)}
    if len(source):
        mean = F.normalize(source.embedding).mean(0, keepdim=True)
        out["id_cosine"] = measures.cosine(s, mean)
        errors = [
            measures.shape_error(swapped.mesh, mesh[None].expand_as(swapped.mesh))
            for mesh in source.mesh
        ]
        out["shape"] = torch.stack(errors).mean(0)
    return out


def _extra_values(target: Seen, swapped: Seen, source: Seen) -> dict[str, Tensor]:
    """Measures under the article's names, each by its own extractor (Groshev et al. 2022, IV)."""
    out = {}
    if "hopenet" in target.extra:
        out["poseHN"] = _gap(target.extra["hopenet"], swapped.extra["hopenet"])
    if "ringnet" in target.extra:
        t, s = target.extra["ringnet"], swapped.extra["ringnet"]
        out["pose_ringnet"] = _gap(t[:, 3:9], s[:, 3:9])
        out["exp_ringnet"] = _gap(t[:, 109:], s[:, 109:])
        if len(source):
            own = source.extra["ringnet"][:, 9:109].mean(0, keepdim=True)
            out["shape_ringnet"] = _gap(own, s[:, 9:109])
    if "eyes" in target.extra:
        out["eye_ldmk"] = _gap(target.extra["eyes"], swapped.extra["eyes"]).mean(1)
    return out


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance along the last axis."""
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def _pixel_values(target: Tensor, swapped: Tensor, mesh: Tensor) -> dict[str, Tensor]:
    before, points = view(target, mesh)
    after, _ = view(swapped, mesh)
    distance = pixels.outline(points)
    return {
        "border_tone": pixels.border_tone(before, after, distance),
        "blur_ratio": pixels.blur_ratio(before, after, distance),
    }


def _places(both: Tensor) -> list[int]:
    """Place of each frame among the true ones, -1 for the others."""
    return torch.where(both, both.cumsum(0) - 1, -1).tolist()


def _known(name: str, seen: Seen) -> bool:
    """Whether a failure under this name can be told: the article's needs its extractor."""
    return name != "ID retrieval" or "cosface" in seen.extra
