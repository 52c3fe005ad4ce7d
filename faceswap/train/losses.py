"""Losses: pure functions from batches to scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.color import luma
from faceswap.ops.constant import constant
from faceswap.ops.smooth import box
from faceswap.ops.topology import FEATURES, SURFACE


def masked_l1(
    swapped: Tensor,  # (N, C, H, W)
    target: Tensor,  # (N, C, H, W)
    region: Tensor,  # (N, 1, H, W) in [0, 1]
) -> Tensor:
    """Mean absolute difference where the region is: sum(r |y - x|) / (C sum(r))."""
    area = region.sum() * swapped.shape[1] + 1e-6
    return (region * (swapped - target).abs()).sum() / area


def gradient_loss(
    swapped: Tensor,  # (N, C, H, W)
    target: Tensor,  # (N, C, H, W)
    region: Tensor,  # (N, 1, H, W) in [0, 1]
) -> Tensor:
    """`masked_l1` of horizontal and vertical differences: edges, not brightness.

    Mathieu et al., "Deep multi-scale video prediction beyond mean square error", ICLR 2016, eq. 6
    with alpha = 1.
    """
    across = masked_l1(_dx(swapped), _dx(target), region[..., :, 1:])
    down = masked_l1(_dy(swapped), _dy(target), region[..., 1:, :])
    return across + down


def _dx(x: Tensor) -> Tensor:
    return x[..., :, 1:] - x[..., :, :-1]


def _dy(x: Tensor) -> Tensor:
    return x[..., 1:, :] - x[..., :-1, :]


def outline_loss(
    swapped: Tensor,  # (N, 3, S, S) in [0, 1]
    known: Sequence[Tensor],  # each (N, 3, S, S) in [0, 1], pictures whose edges it may have
    region: Tensor,  # (N, 1, S, S) in [0, 1]
    *,
    reach: float = 0.14,  # fraction of the side, how far inside the region's edge it looks
    inside: float = 0.0,  # least weight farther inside, such as beside the nose
) -> Tensor:
    """Edges near the region's edge that no known picture has, such as a contour down a cheek.

    With g the lengths of the gradients of brightness, averaged over 3 pixels, G the largest of the
    known pictures' within a pixel, and w where the region is whole, as far as it is missing within
    ``reach``, at least ``inside``: sum(w relu(g - G)) / sum(w).
    """
    whole = (region * 5 - 4).clamp(min=0)
    missing = 1 - box(region, round(reach * region.shape[-1]))
    near = whole * (2 * missing).clamp(inside, 1)
    allowed = torch.stack([_steepness(each) for each in known]).amax(0)
    excess = F.relu(_steepness(swapped) - F.max_pool2d(allowed, 3, 1, 1))
    return (near * excess).sum() / (near.sum() + 1e-6)


def _steepness(images: Tensor) -> Tensor:
    """Length of the gradient of brightness, over 3 pixels, ``(N, 1, S, S)`` a pixel."""
    grey = F.pad(luma(images), (2, 2, 2, 2), mode="replicate")
    grey = F.avg_pool2d(grey, 3, 1)
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return 0.5 * (across.square() + down.square() + 1e-8).sqrt()


def identity_loss(
    swapped: Tensor,  # (N, D) embedding of the swapped face
    source: Tensor,  # (N, D) embedding of the source
) -> Tensor:
    """1 - cos(z(Y), z(X_s)), the mean over the batch (FaceShifter, eq. 8)."""
    return (1 - F.cosine_similarity(swapped, source)).mean()


def leak_loss(
    swapped: Tensor,  # (N, D) embedding of the swapped face
    target: Tensor,  # (N, D) embedding of the target
    *,
    allowed: float = 0.1,  # cosine that costs nothing; strangers are alike by chance
) -> Tensor:
    """mean relu(cos(z(Y), z(X_t)) - allowed): what is left of the target's identity."""
    return F.relu(F.cosine_similarity(swapped, target) - allowed).mean()


def retrieval_loss(
    swapped: Tensor,  # (N, D) embedding of the swapped face
    gallery: Tensor,  # (K, D) unit class centres of everybody
    who: Tensor,  # (N,) int64, whose face it should be, 0 to K - 1
    *,
    temperature: float = 0.05,
) -> Tensor:
    """Cross-entropy of finding the source among everybody by cosine, the mean over the batch.

    A mean cosine counts every swap alike; this one counts those that somebody else is nearly as
    like (a softmax over classes that do not move, as in proxy-based metric learning,
    Movshovitz-Attias et al., ICCV 2017).
    """
    return F.cross_entropy(F.normalize(swapped) @ gallery.T / temperature, who)


def tone_loss(
    swapped: Tensor,  # (N, 3, H, W) in [0, 1]
    target: Tensor,  # (N, 3, H, W) in [0, 1], may be low-passed
    region: Tensor,  # (N, 1, H, W) in [0, 1]
    *,
    cells: int = 8,
) -> Tensor:
    """L1 between local mean colours on a grid of ``cells`` a side, weighted by the region."""

    def mean(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x * region, cells)

    return (mean(swapped) - mean(target)).abs().sum() / (
        F.adaptive_avg_pool2d(region, cells).sum() * swapped.shape[1] + 1e-6
    )


def points_loss(
    found: Tensor,  # (N, P, 2 or 3) points seen in the swapped face, px
    wanted: Tensor,  # (N, P, 2 or 3) where they should be, px
) -> Tensor:
    """Mean distance of points in x and y, |p - q| / e, with e that of the outer eye corners.

    What keeps pose, expression and gaze, as the eye loss of GHOST does for the eyes. Features
    (lids, lips, brows) count twice, irises four times.
    """
    eye = (wanted[:, 33, :2] - wanted[:, 263, :2]).norm(dim=-1)
    tall = (wanted[:, 152, :2] - wanted[:, 10, :2]).norm(dim=-1)  # of a profile, the eyes are near
    unit = torch.maximum(eye, 0.4 * tall)[:, None]
    weight = torch.ones(wanted.shape[1], device=wanted.device)
    weight[constant(FEATURES, wanted.device)] = 2.0
    weight[SURFACE:] = 4.0
    gap = (found[..., :2] - wanted[..., :2]).square().sum(-1).add(1e-6).sqrt() / unit
    return (gap * weight).mean() / weight.mean()


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """-mean D(Y), summed over the discriminator's scales (Lim & Ye 2017, "Geometric GAN")."""
    return torch.stack([-scale.mean() for scale in fake]).sum()


def hinge_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Half of mean relu(1 - D(X)) + mean relu(1 + D(Y)), summed over scales (Lim & Ye 2017)."""
    terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return 0.5 * torch.stack(terms).sum()


def feature_loss(
    restored: Sequence[Tensor],  # L maps (N, C_k, H_k, W_k) of a frozen network
    truth: Sequence[Tensor],  # L maps of the picture it should be
) -> Tensor:
    """Squared difference of feature directions, summed over channels, the mean over places.

    L = sum_k mean_{n,h,w} |y_k / |y_k| - x_k / |x_k||^2: Zhang et al., "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric" (LPIPS), CVPR 2018, eq. 1, with every
    channel's weight 1.
    """
    total = restored[0].new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(restored, truth, strict=True):
        a, b = (F.normalize(x.float(), dim=1, eps=1e-3) for x in (ours, theirs))
        total = total + (a - b).square().sum(1).mean()
    return total


# ---------------------------------------------------------------- GHOST's recipe


def hinge_attack(fake: Sequence[Tensor]) -> Tensor:
    """mean relu(1 - D(Y)), summed over the discriminator's scales.

    The generator's side as GHOST trains it: unlike `hinge_generator`, a patch that already passes
    by the margin pulls no more.
    """
    return torch.stack([F.relu(1 - scale).mean() for scale in fake]).sum()


def attribute_loss(
    swapped: Sequence[Tensor],  # L maps (N, C_k, H_k, W_k) of the swapped face
    target: Sequence[Tensor],  # L maps of the target
    *,
    form: Literal["normalised", "original"] = "normalised",
) -> Tensor:
    """Half the sum over levels of the mean squared difference of attribute maps.

    FaceShifter (Li et al. 2019), eq. 7: L = 1/2 sum_k |z_k(Y) - z_k(X_t)|^2, with a mean in place
    of the norm (GHOST). In that "original" form the encoder can lower the loss by shrinking its
    maps; "normalised" divides each sample's map by the mean square of the target's and lets no
    gradient into the target's side.
    """
    total = swapped[0].new_zeros(())
    for mine, theirs in zip(swapped, target, strict=True):
        if form == "original":
            total = total + F.mse_loss(mine.float(), theirs.float())
        else:
            fixed = theirs.detach().float()
            power = fixed.square().flatten(1).mean(1) + 1e-6
            total = total + ((mine.float() - fixed).square().flatten(1).mean(1) / power).mean()
    return 0.5 * total


def reconstruction_loss(
    swapped: Tensor,  # (N, 3, H, W)
    target: Tensor,  # (N, 3, H, W)
    same: Tensor,  # (N,) bool, source and target are one person
    *,
    count: float | None = None,
) -> Tensor:
    """Half the mean squared difference on same-person pairs (FaceShifter, eq. 9).

    L = sum_{i in same} 1/2 mean |Y_i - X_t,i|^2 / count.

    Args:
        count: pairs to divide by, the number of ``same`` by default. Given where a batch is cut
            into parts, whose losses then add up to that of the whole.
    """
    each = 0.5 * (swapped - target).square().flatten(1).mean(1)
    number = float(same.sum()) if count is None else count
    return (each * same).sum() / max(number, 1e-6)


def heat_maps(
    points: Tensor,  # (N, P, 2) in units of the map's side, [0, 1]
    *,
    side: int = 64,
    sigma: float = 1.5,  # cells
) -> Tensor:
    """Points as Gaussian hills of height 1, ``(N, P, side, side)``; differentiable.

    exp(-|cell - p|^2 / 2 sigma^2), as landmark networks are trained on (Wang et al., "Adaptive
    Wing Loss", ICCV 2019).
    """
    axis = torch.arange(side, dtype=points.dtype, device=points.device)
    at = points * side - 0.5
    x = torch.exp(-(axis - at[..., :1]).square() / (2 * sigma**2))
    y = torch.exp(-(axis - at[..., 1:]).square() / (2 * sigma**2))
    return y[..., :, None] * x[..., None, :]


def eye_loss(
    swapped: Tensor,  # (N, 2, h, w) heat maps of the two pupils
    target: Tensor,  # (N, 2, h, w)
) -> Tensor:
    """Mean squared difference of the pupils' heat maps, summed over the two eyes.

    GHOST (Groshev et al. 2022), section III-C: eyes of the swapped face look where the target's do.
    """
    return (swapped - target.detach()).square().mean((0, 2, 3)).sum()


def gaze_loss(
    swapped: Tensor,  # (N, 478, 3) mesh of the swapped face
    target: Tensor,  # (N, 478, 3) mesh of the target
) -> Tensor:
    """Squared difference of where the irises are between the corners of their eyes.

    With corners a, b and iris centre c, u = ((c - a) . (b - a), (c - a) x (b - a)) / |b - a|^2;
    L = mean |u(Y) - u(X_t)|^2, the sum of both eyes. Does not see where the face is, how large
    or how turned.
    """
    total = swapped.new_zeros(())
    for corners, iris in (((33, 133), 468), ((362, 263), 473)):
        ours, theirs = (_in_eye(mesh, corners, iris) for mesh in (swapped, target.detach()))
        total = total + (ours - theirs).square().sum(1).mean()
    return total


def _in_eye(mesh: Tensor, corners: tuple[int, int], iris: int) -> Tensor:
    begin = mesh[:, corners[0], :2]
    across, at = mesh[:, corners[1], :2] - begin, mesh[:, iris, :2] - begin
    along = (at * across).sum(1)
    beside = at[:, 1] * across[:, 0] - at[:, 0] * across[:, 1]
    return torch.stack([along, beside], 1) / across.square().sum(1, keepdim=True).clamp_min(1e-6)


def mask_loss(
    logits: Tensor,  # (N, 1, S, S) of the predicted mask
    region: Tensor,  # (N, 1, S, S) in [0, 1], the target's face by its landmarks
) -> Tensor:
    """Binary cross-entropy of the generator's mask and the face's region, the mean over pixels.

    L = -mean(r log m + (1 - r) log(1 - m)), m the sigmoid of the logits (hyperswap's mask head;
    its own loss was not published).
    """
    return F.binary_cross_entropy_with_logits(logits, region)


def cycle_loss(
    back: Tensor,  # (N, 3, H, W), the swapped face with the target's own identity put back
    target: Tensor,  # (N, 3, H, W)
) -> Tensor:
    """mean |G(Y, z(X_t)) - X_t| (Zhu et al., "CycleGAN", ICCV 2017, eq. 2)."""
    return (back - target).abs().mean()


def ssim_loss(
    swapped: Tensor,  # (N, C, H, W) in [0, 1]
    target: Tensor,  # (N, C, H, W) in [0, 1]
    same: Tensor,  # (N,) bool
    *,
    count: float | None = None,
) -> Tensor:
    """1 - SSIM on same-person pairs, ``count`` as in `reconstruction_loss`.

    Wang et al., "Image quality assessment", IEEE TIP 2004, eq. 13: Gaussian window of 11 pixels,
    sigma 1.5, K1 = 0.01, K2 = 0.03, inside the picture only.
    """
    offset = torch.arange(11, dtype=swapped.dtype, device=swapped.device) - 5
    window = torch.exp(-offset.square() / (2 * 1.5**2))
    window = window / window.sum()
    channels = swapped.shape[1]

    def mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(x, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    a, b = mean(swapped), mean(target)
    spread = mean(swapped.square()) - a.square() + mean(target.square()) - b.square()
    joint = mean(swapped * target) - a * b
    score = (2 * a * b + 1e-4) * (2 * joint + 9e-4)
    score = score / ((a.square() + b.square() + 1e-4) * (spread + 9e-4))
    each = 1 - score.flatten(1).mean(1)
    number = float(same.sum()) if count is None else count
    return (each * same).sum() / max(number, 1e-6)


def gradient_penalty(
    judged: Sequence[Tensor],  # outputs of the discriminator on `real`
    real: Tensor,  # (N, 3, H, W), requires grad
) -> Tensor:
    """R1: half the mean squared gradient of D at real pictures (Mescheder et al., ICML 2018).

    L = 1/2 E |grad_x sum D(x)|^2; patches of a scale are averaged, scales summed.
    """
    score = torch.stack([scale.flatten(1).mean(1).sum() for scale in judged]).sum()
    (gradient,) = torch.autograd.grad(score, real, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def pair_loss(
    logits: Tensor,  # (N,), positive = the same person
    same: Tensor,  # (N,) bool
) -> Tensor:
    """Binary cross-entropy of "the same person": mean log(1 + exp(-t x)), t = +1 or -1."""
    return F.softplus(torch.where(same, -logits, logits)).mean()
