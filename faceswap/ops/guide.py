"""Warp guidance: the source's face, warped to where the target's face is.

Identity reaches the lite swapper as texture, not only through an embedding. Four steps, all
batched and without learning except for one small linear shape model:

1. `fit_pose` takes scale, rotation and place out of a dense mesh (Procrustes, Kabsch 1976).
2. `ShapeModel.compose` gives the source's face shape in the target's expression: the difference of
   the two normalised meshes is split into expression and identity by their covariances within
   and between people (the posterior mean of a two-component Gaussian model, as in
   probabilistic LDA, Prince & Elder, ICCV 2007), and only the first part is moved to the source.
3. `thin_plate_warp` moves the source's pixels (Bookstein 1989, regularised; hidden points count
   less).
4. `match_lowpass` gives the result the target's light: low frequencies are the target's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.topology import CONTROL, FACE, INNER_LIPS, OUTER_LIPS, SURFACE, covering
from faceswap.types import Guide


def fit_pose(
    mesh: Tensor,  # (N, P, 3) float32, pixels
    mean: Tensor,  # (P, 3) float32, the shape model's mean
) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares similarity from the mean shape to each mesh: ``mesh ~ s R mean + t``.

    Returns:
        ``(N,)`` scale, ``(N, 3, 3)`` rotation, ``(N, 1, 3)`` translation.
    """
    a, b = mean[None, :SURFACE], mesh[:, :SURFACE]
    ca, cb = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    covariance = (b - cb).transpose(1, 2) @ (a - ca)
    u, sigma, vt = torch.linalg.svd(covariance)
    sign = torch.linalg.det(u @ vt).sign()
    flip = torch.ones_like(sigma)
    flip[:, 2] = sign
    rotation = (u * flip[:, None]) @ vt
    scale = (sigma * flip).sum(1) / (a - ca).square().sum((1, 2))
    return scale, rotation, cb - scale[:, None, None] * (ca @ rotation.transpose(1, 2))


@dataclass(frozen=True, slots=True)
class ShapeModel:
    """The linear model that separates a face's own shape from its expression."""

    mean: Tensor  # (P, 3) float32, unit: the mean distance of points from their centre is 1
    basis: Tensor  # (k, 3P) float32, orthonormal rows
    expression: Tensor  # (k, k) float32, S_w (S_w + S_b)^-1 in the basis

    def to(self, device: torch.device | str) -> ShapeModel:
        """The same model on another device."""
        return ShapeModel(self.mean.to(device), self.basis.to(device), self.expression.to(device))

    def compose(self, source: Tensor, target: Tensor, *, identity: float = 1.0) -> Tensor:
        """The source's shape with the target's expression, pose and place.

        Args:
            source: ``(N, P, 3)`` float32 mesh of the source, any frame.
            target: ``(N, P, 3)`` float32 mesh of the target, pixels.
            identity: 1 = the source's face shape, 0 = the target's.

        Returns:
            ``(N, P, 3)`` float32 in the target's pixels.
        """
        n = target.shape[0]
        scale_s, turn_s, at_s = fit_pose(source, self.mean)
        scale_t, turn_t, at_t = fit_pose(target, self.mean)
        plain_s = (source - at_s) @ turn_s / scale_s[:, None, None]
        plain_t = (target - at_t) @ turn_t / scale_t[:, None, None]
        code = (plain_t - plain_s).reshape(n, -1) @ self.basis.T
        # The part of the difference that is identity; taken twice, so that what mostly is
        # expression (a smile, W = 0.8) follows the target nearly fully (0.96).
        own = code - code @ self.expression.T
        own = own - own @ self.expression.T
        shape = plain_t - identity * (own @ self.basis).view(n, -1, 3)
        return scale_t[:, None, None] * (shape @ turn_t.transpose(1, 2)) + at_t

    def facing(self, mesh: Tensor) -> Tensor:
        """How much each point faces the camera: cosine in [-1, 1], ``(N, P)``.

        The head is taken as convex about a point behind the nose, which gives each point its
        normal without a triangulation.
        """
        centre = self.mean.mean(0)
        centre = torch.stack([centre[0], centre[1], self.mean[:, 2].max()])
        normal = F.normalize(self.mean - centre, dim=1)
        _, turn, _ = fit_pose(mesh, self.mean)
        return -(normal @ turn.transpose(1, 2))[..., 2]


def fit_shape_model(mesh: Tensor, person: Tensor, rank: int = 64) -> ShapeModel:
    """Estimate the shape model from the meshes of many people, several photos each.

    Args:
        mesh: ``(M, P, 3)`` float32.
        person: ``(M,) int64``; people with one photo count for the mean and basis only.
        rank: size of the basis.
    """
    mean = mesh[0] - mesh[0].mean(0)
    for _ in range(3):  # generalised Procrustes analysis (Gower 1975)
        mean = mean / mean[:SURFACE].norm(dim=1).mean()
        scale, turn, at = fit_pose(mesh, mean)
        plain = (mesh - at) @ turn / scale[:, None, None]
        mean = plain.mean(0)
        mean = mean - mean[:SURFACE].mean(0)
    offsets = (plain - mean).reshape(len(mesh), -1)
    _, _, vt = torch.linalg.svd(offsets[torch.randperm(len(offsets))[:4000]], full_matrices=False)
    basis = vt[:rank]
    code = offsets @ basis.T
    people, inverse, counts = torch.unique(person, return_inverse=True, return_counts=True)
    centre = torch.zeros(len(people), rank).index_add_(0, inverse, code) / counts[:, None]
    several = counts[inverse] > 1
    inner = (code - centre[inverse])[several]
    freedom = several.sum() - (counts > 1).sum()
    within = inner.T @ inner / freedom
    total = torch.cov(code.T)
    expression = within @ torch.linalg.inv(total + 1e-8 * torch.eye(rank))
    return ShapeModel(mean, basis.contiguous(), expression)


def thin_plate_grid(
    target: Tensor,  # (N, C, 2) float32 control points in the warped picture, pixels
    source: Tensor,  # (N, C, 2) float32 where they are in the source crop, pixels
    weight: Tensor,  # (N, C) float32 in (0, 1], trust in each control point
    *,
    size: int,  # side of both pictures, pixels
    cells: int = 48,  # the field is solved on this grid and interpolated
    stiffness: float = 5e-4,
) -> Tensor:
    """Backward map of a regularised thin-plate spline, ``(N, size, size, 2)`` in [-1, 1].

    f(x) = A x + sum_c w_c U(|x - x_c|), U(r) = r^2 log r^2, minimising
    sum_c weight_c |f(x_c) - y_c|^2 + stiffness * bending (Bookstein 1989; Wahba 1990).
    """
    n, count, _ = target.shape
    a = target * (2 / (size - 1)) - 1
    b = source * (2 / (size - 1)) - 1
    ones = torch.ones(n, count, 1, device=a.device)
    affine = torch.cat([ones, a], -1)
    system = torch.zeros(n, count + 3, count + 3, device=a.device)
    system[:, :count, :count] = _radial(a, a) + torch.diag_embed(stiffness / weight)
    system[:, :count, count:] = affine
    system[:, count:, :count] = affine.transpose(1, 2)
    right = torch.cat([b, torch.zeros(n, 3, 2, device=a.device)], 1)
    solved = torch.linalg.solve(system, right)
    axis = torch.linspace(-1, 1, cells, device=a.device)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.stack([xs, ys], -1).view(1, -1, 2).expand(n, -1, -1)
    field = _radial(at, a) @ solved[:, :count]
    field = field + torch.cat([torch.ones_like(at[..., :1]), at], -1) @ solved[:, count:]
    field = field.transpose(1, 2).view(n, 2, cells, cells)
    if cells != size:
        field = F.interpolate(field, size=(size, size), mode="bilinear", align_corners=True)
    out: Tensor = field.permute(0, 2, 3, 1)
    return out


def _radial(p: Tensor, q: Tensor) -> Tensor:
    squared = (p[:, :, None] - q[:, None]).square().sum(-1)
    out: Tensor = squared * torch.log(squared + 1e-9)
    return out


def signed_distance(
    polygon: Tensor,  # (N, V, 2) float32, pixels, closed
    size: int,
) -> Tensor:
    """Distance to a polygon's outline, positive inside, ``(N, 1, size, size)`` in pixels."""
    axis = torch.arange(size, dtype=torch.float32, device=polygon.device)
    x, y = axis.view(1, 1, 1, size), axis.view(1, 1, size, 1)
    nearest = torch.full((len(polygon), size, size), torch.inf, device=polygon.device)
    inside = torch.zeros(len(polygon), size, size, dtype=torch.bool, device=polygon.device)
    # A CPU takes the edges one by one: all of them at once would not stay in the cache.
    edges = 1 if polygon.device.type == "cpu" else polygon.shape[1]
    ends = polygon.roll(-1, 1).split(edges, 1)
    for begin, end in zip(polygon.split(edges, 1), ends, strict=True):
        ay, by = begin[..., 1, None, None], end[..., 1, None, None]
        ex, ey = (end - begin)[..., None, None].unbind(2)
        px, py = x - begin[..., 0, None, None], y - ay
        length = ex * ex + ey * ey + 1e-9
        along = (px * (ex / length) + py * (ey / length)).clamp_(0, 1)
        gap = torch.addcmul(px, along, ex, value=-1).square_()
        across = torch.addcmul(py, along, ey, value=-1)
        gap = gap.addcmul_(across, across)
        crosses = (px < ex * py / (ey + 1e-9 * (ey == 0))).logical_and_((ay > y) != (by > y))
        nearest = torch.minimum(nearest, gap[:, 0] if edges == 1 else gap.amin(1))
        inside ^= crosses[:, 0] if edges == 1 else crosses.sum(1) % 2 == 1
    distance = nearest.sqrt()
    return torch.where(inside, distance, -distance)[:, None]


def lowpass(
    images: Tensor,  # (N, C, S, S) float
    weight: Tensor,  # (N, 1, S, S) float >= 0, pixels that count
    *,
    sigma: float,  # fraction of S
) -> Tensor:
    """Normalised Gaussian low-pass of the weighted pixels, computed at 1/4 of the size."""
    side = images.shape[-1]
    small = F.interpolate(torch.cat([images * weight, weight], 1), size=32, mode="area")
    width = sigma * 32
    reach = max(1, int(2.5 * width + 0.5))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel / kernel.sum()
    channels = small.shape[1]
    small = F.conv2d(
        F.pad(small, (reach, reach, 0, 0), mode="replicate"),
        kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1),
        groups=channels,
    )
    small = F.conv2d(
        F.pad(small, (0, 0, reach, reach), mode="replicate"),
        kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1),
        groups=channels,
    )
    smooth = small[:, :-1] / (small[:, -1:] + 1e-3)
    return F.interpolate(smooth, size=side, mode="bilinear", align_corners=False)


def dots(
    points: Tensor,  # (N, P, 2) float32, pixels
    size: int,
    *,
    sigma: float = 1.0,  # pixels
) -> Tensor:
    """Points drawn as soft dots, ``(N, 1, size, size)`` in [0, 1]."""
    n = points.shape[0]
    floor = points.floor()
    part = points - floor
    canvas = torch.zeros(n, size * size, device=points.device)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = floor[..., 0] + dx, floor[..., 1] + dy
            share = (1 - (dx - part[..., 0]).abs()) * (1 - (dy - part[..., 1]).abs())
            inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
            index = (y * size + x).clamp(0, size * size - 1).long()
            canvas.scatter_add_(1, index, share * inside)
    reach = max(1, int(2.5 * sigma + 0.5))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=points.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    image = canvas.view(n, 1, size, size)
    image = F.conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(image, kernel.view(1, 1, -1, 1), padding=(reach, 0)).clamp(0, 1)


def make_guide(
    model: ShapeModel,
    source: Tensor,  # (N, 3, R, R) float in [0, 1], aligned crops of the sources
    source_mesh: Tensor,  # (N, 478, 3) float32, in source crop pixels
    target: Tensor,  # (N, 3, R, R) float in [0, 1], aligned crops of the targets
    target_mesh: Tensor,  # (N, 478, 3) float32, in target crop pixels
    *,
    identity: float = 1.0,  # 1 = the source's face shape, 0 = the target's
) -> tuple[Guide, Tensor]:
    """Everything the guided generator needs to know of a swap.

    Returns:
        The guide, at side R, and the swapped face's mesh ``(N, 478, 3)`` in target crop pixels.
    """
    size = target.shape[-1]
    shape = model.compose(source_mesh, target_mesh, identity=identity)
    control = list(CONTROL)
    trust = model.facing(source_mesh)[:, control]
    weight = trust.clamp(0.1, 1) * model.facing(target_mesh)[:, control].clamp(0.02, 1)
    grid = thin_plate_grid(shape[:, control, :2], source_mesh[:, control, :2], weight, size=size)
    warped = F.grid_sample(source, grid, align_corners=True, padding_mode="border")
    shown = ((grid.abs().amax(-1, keepdim=True) < 1).permute(0, 3, 1, 2)).float()
    # Distances are smooth: half the side is enough, and four times cheaper.
    half = size // 2
    face = _outline(covering(shape, target_mesh)[:, list(FACE), :2], half, size)
    lips = _outline(shape[:, list(INNER_LIPS), :2], half, size)
    unit = size / 128
    region = (face / (8 * unit) + 0.5).clamp(0, 1)
    mouth = (lips / unit - 0.3).clamp(0, 1)  # nothing where the lips are closed
    inside = (face / (2 * unit) + 0.5).clamp(0, 1)
    light = lowpass(target, inside, sigma=0.07)
    image = _lit(warped, lowpass(warped, inside * shown + 1e-3, sigma=0.07), light)
    coarse = lowpass(target, torch.ones_like(inside), sigma=0.045)
    base = target + region * (coarse - target)
    base = base + mouth * (_mouth_of(target, target_mesh, shape) - base)
    seen = _spread(shape[:, control, :2], trust.clamp(0, 1), size)
    drawing = torch.cat(
        [
            dots(shape[:, control, :2] / unit, 128),
            dots(shape[:, SURFACE:, :2] / unit, 128),
        ],
        1,
    )
    if size != 128:
        drawing = F.interpolate(drawing, size=(size, size), mode="bilinear")
    return Guide(image.clamp(0, 1), base, region, mouth, seen * shown, drawing), shape


def _mouth_of(target: Tensor, mesh: Tensor, shape: Tensor) -> Tensor:
    """The target moved so that its lips lie on the swapped face's, ``(N, 3, S, S)``.

    An affine fit over the lips' contours: teeth and tongue are the target's, as its words are.
    """
    lips = list(INNER_LIPS + OUTER_LIPS)
    size = target.shape[-1]
    ones = torch.ones(len(mesh), len(lips), 1, device=mesh.device)
    to = torch.cat([shape[:, lips, :2] * (2 / (size - 1)) - 1, ones], -1)
    back = mesh[:, lips, :2] * (2 / (size - 1)) - 1
    eye = 1e-5 * torch.eye(3, device=mesh.device)
    affine = torch.linalg.solve(to.mT @ to + eye, to.mT @ back).mT
    grid = F.affine_grid(affine, list(target.shape), align_corners=True)
    return F.grid_sample(target, grid, align_corners=True, padding_mode="border")


def _lit(image: Tensor, own: Tensor, light: Tensor) -> Tensor:
    """An image given another low-pass, half of it by a factor and half by a sum, ``(N, 3, S, S)``.

    A factor alone (light on a surface) blows up the contrast of dark skin in bright light; a sum
    alone gives dark hair the colour of the shift.
    """
    factor = ((light + 0.05) / (own + 0.05)).clamp(0.25, 4).sqrt()
    return image * factor + light - own * factor


def _outline(polygon: Tensor, half: int, size: int) -> Tensor:
    """`signed_distance` at half the side, brought up; ``(N, 1, size, size)`` in full pixels."""
    distance = signed_distance((polygon + 0.5) / 2 - 0.5, half) * 2
    return F.interpolate(distance, size=(size, size), mode="bilinear", align_corners=False)


def _spread(points: Tensor, values: Tensor, size: int) -> Tensor:
    """Scattered values as a smooth map (Shepard interpolation), ``(N, 1, size, size)``."""
    cells = 16
    axis = (torch.arange(cells, device=points.device) + 0.5) * size / cells - 0.5
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.stack([xs, ys], -1).view(1, -1, 2)
    gap = torch.cdist(at.expand(len(points), -1, -1), points) * (128 / size)
    share = 1 / (gap.square() + 16)
    map_ = (share @ values[..., None]) / share.sum(-1, keepdim=True)
    map_ = map_.view(-1, 1, cells, cells)
    return F.interpolate(map_, size=(size, size), mode="bilinear", align_corners=False)
