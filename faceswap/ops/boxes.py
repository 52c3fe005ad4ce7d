"""Boxes: areas, overlaps, and non-maximum suppression.

The same functions as in `torchvision.ops`, which the tests hold these to. Importing torchvision
loads torch's compiler, 4 s of a command that swaps a photo in half a second.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(
    box: Tensor,  # (N, 4) float32, x0 y0 x1 y1
) -> Tensor:
    """Areas, ``(N,)``."""
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])


def box_iou(
    a: Tensor,  # (N, 4) float32, x0 y0 x1 y1
    b: Tensor,  # (M, 4) float32
) -> Tensor:
    """Intersection over union of every pair, ``(N, M)`` in [0, 1]; NaN for two empty boxes."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = (high - low).clamp_min(0).prod(2)
    return inside / (box_area(a)[:, None] + box_area(b)[None] - inside)


def batched_nms(
    box: Tensor,  # (N, 4) float32, x0 y0 x1 y1
    score: Tensor,  # (N,) float32
    group: Tensor,  # (N,) int64; boxes of different groups do not compete
    overlap: float,  # largest IoU two kept boxes may have
) -> Tensor:
    """Greedy non-maximum suppression: rows kept, by falling score, ``(K,) int64``.

    The decisions are sequential and few, so they are taken on the host whatever the device.
    """
    place, device = box.detach().cpu(), box.device
    order = score.detach().cpu().argsort(descending=True, stable=True)
    groups = group.cpu()[order]
    kept = []
    for each in torch.unique(groups).tolist():
        ranks = torch.nonzero(groups == each)[:, 0]
        rows = place[order[ranks]]
        rivals = box_iou(rows, rows) > overlap
        alive = torch.ones(len(ranks), dtype=torch.bool)
        for i in range(len(ranks)):
            if alive[i]:
                alive &= ~rivals[i]
                alive[i] = True
        kept.append(ranks[alive])
    if not kept:
        return torch.zeros(0, dtype=torch.int64, device=device)
    return order[torch.cat(kept).sort().values].to(device)
