"""Crops that show somebody else too.

Composed scenes call everything a background that was not put there as a face. One crop in eight of
LFW and CelebA has a second face in its surroundings, whole enough to be found; a detector trained
on them would learn to pass such faces over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faceswap.faces.detect import CenterFaceDetector
from faceswap.ops.boxes import box_area
from faceswap.ops.topology import SURFACE
from faceswap.train.data import Crops

_SIDE = 160  # working px; 7 ms a crop on one core
_SURE = 0.35
_OWN = 0.3  # a finding that lies in the own face by less than this share is somebody else


def shows_others(data: Crops, rows: Tensor, *, batch: int = 32) -> Tensor:
    """Whether each crop shows another face beside its own.

    Args:
        data: prepared faces.
        rows: ``(n,) int64``, the crops to look at.
        batch: crops at a time.

    Returns:
        ``(n,) bool``.
    """
    detector = CenterFaceDetector(sides=(_SIDE,), threshold=_SURE)
    out = torch.zeros(len(rows), dtype=torch.bool)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        found = detector(data.pixels(part))
        mesh = data.mesh[part][:, :SURFACE, :2]
        own = torch.cat([mesh.amin(1), mesh.amax(1)], 1)[found.frame]
        low = torch.maximum(found.box[:, :2], own[:, :2])
        high = torch.minimum(found.box[:, 2:], own[:, 2:])
        share = (high - low).clamp_min(0).prod(1) / box_area(found.box).clamp_min(1)
        out[start + found.frame[share < _OWN]] = True
    return out
