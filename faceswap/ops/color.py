"""Colour: sRGB and CIE Lab, and giving a crop the colours of another inside a mask.

Lab here is CIE 1976 under D65: L in [0, 100], a and b about [-128, 127]. The formulas are those of
IEC 61966-2-1 and CIE 15, written out: importing kornia for them cost a second of every cold start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from faceswap.ops.constant import constant

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_XYZ = (  # linear sRGB -> XYZ, each row divided by its white
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # cube roots -> L + 16, a, b
_CUBE = 6 / 29  # cube root below which CIE 15 has a straight line

_LEAST_MASS = 1.0  # pixels of mask below which there is nothing to measure
_GAIN = (0.5, 2.0)  # how far a channel's contrast may change: flat channels would explode


def luma(
    images: Tensor,  # (N, 3, H, W) uint8, or float; any range, offsets and differences too
) -> Tensor:
    """Brightness ``(N, 1, H, W)`` (ITU-R BT.601); of uint8 pictures float in [0, 1]."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return (images * constant(_LUMA, images.device).to(images.dtype).view(1, 3, 1, 1)).sum(
        1, keepdim=True
    )


def to_lab(
    rgb: Tensor,  # (N, 3, H, W) uint8, or float in [0, 1], sRGB
) -> Tensor:
    """The picture in Lab, ``(N, 3, H, W) float32``."""
    scaled = rgb.float() / 255.0 if rgb.dtype == torch.uint8 else rgb.float()
    linear = torch.where(scaled > 0.04045, ((scaled + 0.055) / 1.055).pow(2.4), scaled / 12.92)
    xyz = _mix(_XYZ, linear)
    line = xyz / (3 * _CUBE**2) + 4 / 29
    root = torch.where(xyz > _CUBE**3, xyz.clamp_min(_CUBE**3).pow(1 / 3), line)
    lab = _mix(_LAB, root)
    lab[:, 0] -= 16.0
    return lab


def from_lab(
    lab: Tensor,  # (N, 3, H, W) float32
) -> Tensor:
    """The picture in sRGB, ``(N, 3, H, W) float32`` in [0, 1]; colours outside sRGB are clipped."""
    y = (lab[:, 0] + 16.0) / 116.0
    root = torch.stack((lab[:, 1] / 500.0 + y, y, y - lab[:, 2] / 200.0), 1)
    xyz = torch.where(root > _CUBE, root.pow(3), (root - 4 / 29) * (3 * _CUBE**2))
    back = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).tolist()
    linear = _mix(back, xyz).clamp_(0.0, 1.0)
    curved = 1.055 * linear.clamp_min(0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear)


def color_statistics(
    crops: Tensor,  # (N, 3, S, S) uint8, or float in [0, 1], sRGB
    mask: Tensor,  # (N, 1, S, S) float in [0, 1], how much each pixel counts
) -> Tensor:
    """Mean and standard deviation in Lab under the mask, ``(N, 2, 3) float32``.

    A video smooths them along a track before `transfer_color`. Not a number where the mask is
    empty; `transfer_color` leaves such faces alone.
    """
    return _statistics(to_lab(crops), mask)


def transfer_color(
    crops: Tensor,  # (N, 3, S, S) uint8, or float in [0, 1], sRGB
    own: Tensor,  # (N, 2, 3) float32, statistics of the crops
    wanted: Tensor,  # (N, 2, 3) float32, statistics they shall have
    *,
    strength: float = 1.0,  # 0 leaves the crops alone, 1 goes all the way
) -> Tensor:
    """Crops with each Lab channel moved and stretched, ``(N, 3, S, S) float32`` in [0, 1].

    Reinhard et al. 2001, "Color Transfer between Images", eq. 10-11, in Lab, for the whole crop.
    Contrast changes by a factor within [0.5, 2].

    Raises:
        ValueError: strength outside [0, 1].
    """
    return _transfer(to_lab(crops), own, wanted, strength)


def match_color(
    crops: Tensor,  # (N, 3, S, S) uint8, or float in [0, 1], sRGB: what changes
    reference: Tensor,  # (N, 3, S, S) uint8, or float in [0, 1], sRGB: what it shall look like
    mask: Tensor,  # (N, 1, S, S) float in [0, 1], where both are measured
    *,
    strength: float = 1.0,  # 0 leaves the crops alone, 1 goes all the way
) -> Tensor:
    """Crops with the reference's mean and contrast, ``(N, 3, S, S) float32`` in [0, 1].

    Raises:
        ValueError: strength outside [0, 1].
    """
    lab = to_lab(crops)
    return _transfer(lab, _statistics(lab, mask), color_statistics(reference, mask), strength)


def _mix(
    matrix: Sequence[Sequence[float]],  # 3 x 3
    picture: Tensor,  # (N, 3, H, W) float32
) -> Tensor:
    """Each pixel's three values times the matrix, ``(N, 3, H, W)``."""
    weights = torch.tensor(matrix, dtype=picture.dtype, device=picture.device)
    return (weights @ picture.flatten(2)).view_as(picture)


def _statistics(
    lab: Tensor,  # (N, 3, S, S) float32
    mask: Tensor,  # (N, 1, S, S) float
) -> Tensor:
    weight = mask.float()
    mass = weight.sum((2, 3))
    mass = torch.where(mass < _LEAST_MASS, torch.nan, mass)  # (N, 1)
    mean = (lab * weight).sum((2, 3)) / mass
    deviation = (lab - mean[..., None, None]).square()
    return torch.stack((mean, ((deviation * weight).sum((2, 3)) / mass).sqrt()), 1)


def _transfer(
    lab: Tensor,  # (N, 3, S, S) float32
    own: Tensor,  # (N, 2, 3) float32
    wanted: Tensor,  # (N, 2, 3) float32
    strength: float,
) -> Tensor:
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"color transfer: strength must be in [0, 1], got {strength}")
    known = (own.isfinite() & wanted.isfinite()).flatten(1).all(1)[:, None]  # (N, 1)
    gain = (wanted[:, 1] / own[:, 1].clamp_min(1e-3)).clamp(*_GAIN)
    gain = torch.where(known, 1.0 + strength * (gain - 1.0), 1.0)
    shift = torch.where(known, strength * (wanted[:, 0] - own[:, 0]), 0.0)
    mean = torch.where(known, own[:, 0], 0.0)[..., None, None]
    return from_lab((lab - mean) * gain[..., None, None] + mean + shift[..., None, None])
