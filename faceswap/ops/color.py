"""Colour: sRGB and CIE Lab, and giving a crop the colours of another inside a mask.

Lab here is CIE 1976 under D65: L in [0, 100], a and b about [-128, 127].
"""

from __future__ import annotations

import kornia.color
import torch
from torch import Tensor

_LEAST_MASS = 1.0  # pixels of mask below which there is nothing to measure
_GAIN = (0.5, 2.0)  # how far a channel's contrast may change: flat channels would explode


def to_lab(
    rgb: Tensor,  # (N, 3, H, W) uint8, or float in [0, 1], sRGB
) -> Tensor:
    """The picture in Lab, ``(N, 3, H, W) float32``."""
    scaled = rgb.float() / 255.0 if rgb.dtype == torch.uint8 else rgb.float()
    lab: Tensor = kornia.color.rgb_to_lab(scaled)
    return lab


def from_lab(
    lab: Tensor,  # (N, 3, H, W) float32
) -> Tensor:
    """The picture in sRGB, ``(N, 3, H, W) float32`` in [0, 1]; colours outside sRGB are clipped."""
    rgb: Tensor = kornia.color.lab_to_rgb(lab, clip=True)
    return rgb


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
