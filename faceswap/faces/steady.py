"""Steadying points over time without lag: local straight lines over a window on both sides.

The estimate for a frame is the value there of a line fitted to its neighbours, before and after,
by weighted least squares (local linear regression, Cleveland 1979). A face that moves evenly is
followed exactly, at the ends of a track too, and noise averages out. Where the points do *not*
move along a line for that long (a blink, a nod that turns round), a window a third as wide takes
over, point by point: that is the adaptation of the One-Euro filter (Casiez et al. 2012), with a
look ahead in place of its lag.

What is then still off for the face as a whole (an affine map through all its points, whose noise
is a small part of a single point's) is put back as far as it is larger than noise: a head that is
jerked about, or a camera that is, changes its course from one frame to the next, and any window
would let the swapped face slide over the head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPREAD = 0.13  # seconds, deviation of the window's weights at strength 1
_NOISE = 0.02  # of the face's eye distance: deviations under this are taken for noise
_NOISE_WHOLE = 0.005  # the same for the face as a whole ...
_NOISE_PIXELS = 0.1  # ... and its least, px
_REACH = 2.5  # deviations that the window extends to either side
_NARROW = 1 / 3
_LEAST_POINTS = 30  # of a face, for its movement as a whole to be better known than a point's


def radius(strength: float, rate: float) -> int:
    """Frames that the window extends to either side; ``rate`` in frames per second."""
    return math.ceil(_REACH * SPREAD * strength * rate) if strength else 0


def steady(
    values: Tensor,  # (T, P, C) float32, px: points of one track in frames of the window
    times: Tensor,  # (T,) float32, seconds from the frame that is asked for, which is among them
    eye_distance: float,  # px
    strength: float,  # 0 = leave it, 1 = most
) -> Tensor:
    """Points of the frame at time 0, steadied, ``(P, C) float32``."""
    here = int(times.abs().argmin())
    if strength <= 0 or len(times) < 3:
        return values[here]
    spread = SPREAD * strength
    wide = _line(values, times, spread)
    narrow = _line(values, times, spread * _NARROW)
    off = ((wide - narrow)[:, :2] / max(eye_distance, 1.0)).square().sum(1, keepdim=True)  # (P, 1)
    off = 0.5 * (off + off.mean())
    smooth = torch.lerp(wide, narrow, off / (off + _NOISE**2))
    return smooth + _as_a_whole(values[here] - smooth, smooth, eye_distance)


def _as_a_whole(
    off: Tensor,  # (P, C) float32, px
    points: Tensor,  # (P, C) float32, px
    eye_distance: float,  # px
) -> Tensor:
    """The affine part of deviations, as far as it is more than noise (Wiener's gain), ``(P, C)``.

    Wiener 1949: of a value of power s in noise of power n, s / (s + n) is believed.
    """
    if len(points) < _LEAST_POINTS:
        return torch.zeros_like(off)
    place = points[:, :2] - points[:, :2].mean(0)
    terms = torch.cat([place / max(eye_distance, 1.0), torch.ones_like(place[:, :1])], 1)  # (P, 3)
    whole: Tensor = terms @ torch.linalg.lstsq(terms, off).solution
    power = whole[:, :2].square().sum(1).mean()
    noise = max(_NOISE_WHOLE * eye_distance, _NOISE_PIXELS)
    return whole.mul(power / (power + noise**2))


def _line(values: Tensor, times: Tensor, spread: float) -> Tensor:
    """Value at time 0 of the weighted least-squares line through each coordinate, ``(P, C)``."""
    weight = torch.exp(-0.5 * (times / spread).square())
    weight = weight / weight.sum()
    mean = (weight * times).sum()
    variance = (weight * (times - mean).square()).sum()
    # With next to no spread in time there is no slope to be had: the mean, which is the value.
    slope = (times - mean) * (-mean / variance) if variance > 1e-9 else torch.zeros_like(times)
    return torch.einsum("t,tpc->pc", weight * (1 + slope), values)
