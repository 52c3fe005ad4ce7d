"""The linear shape model: a face's own shape and its expression, told apart.

`fit_pose` takes scale, rotation and place out of a dense mesh (Procrustes, Kabsch 1976); the
difference of two normalised meshes is then split into expression and identity by their covariances
within and between people (the posterior mean of a two-component Gaussian model, as in probabilistic
LDA, Prince & Elder, ICCV 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.constant import constant
from faceswap.ops.topology import SURFACE


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

    def mirror(self, rows: Tensor) -> Tensor:
        """Where in `rows` the mirror image of each of its points is, ``(len(rows),) int64``."""
        mean = self.mean[rows] - self.mean[:SURFACE].mean(0)
        return torch.cdist(mean * constant((-1.0, 1.0, 1.0), mean.device), mean).argmin(1)

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
