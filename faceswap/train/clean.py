"""What a training set is better off without: blur, copies, and photos of somebody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from faceswap.ops.color import luma

HASH_SIDE = 16  # a hash has HASH_SIDE ** 2 bits
HASH_BITS = 7  # bits in which two copies of one photo may differ; below the number of bands
_BANDS = 8
_DETAIL_SIDE = 70  # px, side at which sharpness is measured


def sharpness(
    crops: Tensor,  # (N, 3, S, S) uint8, the face in the middle
    margin: float,  # of the crops
) -> Tensor:
    """How much fine detail the face has, ``(N,)`` >= 0.

    Deviation of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000) over the deviation of the brightness, so that contrast does not count,
    at 70 px a face: a face that is larger in the photo is not required to be sharper.
    """
    side = crops.shape[-1]
    edge = round(side * (1 - 1 / margin) / 2)
    grey = luma(crops)[..., edge : side - edge, edge : side - edge]
    grey = F.interpolate(grey, size=(_DETAIL_SIDE, _DETAIL_SIDE), mode="area")
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=grey.device)
    detail = F.conv2d(grey, kernel.view(1, 1, 3, 3))
    return detail.flatten(1).std(1) / (grey.flatten(1).std(1) + 1e-3)


def perceptual_hash(
    crops: Tensor,  # (N, 3, S, S) uint8
) -> Tensor:
    """Difference hash: is each cell of a coarse grid brighter than its left neighbour?

    Survives rescaling, recompression and brightness; ``(N, 256) bool``.
    """
    cells = F.interpolate(luma(crops), size=(HASH_SIDE, HASH_SIDE + 1), mode="area")[:, 0]
    return (cells[..., 1:] > cells[..., :-1]).flatten(1)


def copies(hashes: Tensor, *, bits: int = HASH_BITS) -> Tensor:
    """Rows that repeat an earlier row, ``(M,) bool``.

    Two rows are copies if at most ``bits`` bits differ. A hash is cut into 8 bands; if at most 7
    bits differ, at least one band is equal (pigeonhole), so only rows that share a band are
    compared and the work grows with the number of rows, not with its square.

    Args:
        hashes: ``(M, 256) bool``.
        bits: fewer than the number of bands.
    """
    assert bits < _BANDS
    dropped = torch.zeros(len(hashes), dtype=torch.bool)
    pairs: set[tuple[int, int]] = set()
    for band in hashes.view(len(hashes), _BANDS, -1).unbind(1):
        weight = 2 ** torch.arange(band.shape[1])
        places: defaultdict[int, list[int]] = defaultdict(list)
        for row, key in enumerate((band * weight).sum(1).tolist()):
            places[key].append(row)
        for rows in places.values():
            pairs.update(combinations(rows, 2))
    if not pairs:
        return dropped
    for first, second in sorted(pairs):
        if not dropped[first] and int((hashes[first] ^ hashes[second]).sum()) <= bits:
            dropped[second] = True
    return dropped


def strangers(embedding: Tensor, people: Sequence[str], *, least: float) -> Tensor:
    """Photos that do not show the person their folder says, ``(M,) bool``.

    A photo's cosine to the mean direction of the person's other photos is below ``least``. The
    worst goes first and the mean is taken anew, so that one stranger does not condemn the rest.
    Of two photos that disagree nobody can tell which is right: both go.

    Args:
        embedding: ``(M, D)`` float32.
        people: whose each row is said to be.
        least: cosine; -1 keeps all.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, person in enumerate(people):
        rows[person].append(row)
    unit = F.normalize(embedding, dim=1)
    dropped = torch.zeros(len(people), dtype=torch.bool)
    for mine in rows.values():
        left = mine
        while len(left) > 1:
            own = unit[left]
            cosine = F.cosine_similarity(own, own.sum(0) - own)
            worst = int(cosine.argmin())
            if float(cosine[worst]) >= least:
                break
            gone = left if len(left) == 2 else [left[worst]]
            dropped[gone] = True
            left = [row for row in left if row not in gone]
    return dropped
