"""Training views of the prepared photos: drawn on the CPU, made where the networks are.

What is random about a view is a few numbers, drawn from the step's generator on the CPU whatever
the device is, so that a run on a GPU and one on a CPU see the same views. The photos lie on the GPU
as bytes if they fit (20,000 of 256 px are 4 GB); otherwise they are read with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faceswap.train.data import Crops, cut, jitter_matrix

_ON_DEVICE = 0.4  # share of a GPU's free memory that the photos may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """How far a view may be from the stored crop's own."""

    rotation: float  # degrees, standard deviation
    scale: float  # standard deviation of the log
    shift: float  # standard deviation, fraction of the side
    flip: float = 0.5  # share of mirrored views


@dataclass(frozen=True, slots=True)
class View:
    """n views before their pixels are made."""

    rows: Tensor  # (n,) int64
    matrix: Tensor  # (n, 2, 3) float32, stored crop px -> view px
    flip: Tensor  # (n,) bool, mirrored by the matrix
    stored: Tensor | None  # (n, 3, C, C) uint8; None: they are on the device


class Store:
    """The photos of a training, and views of them on its device."""

    def __init__(self, data: Crops, device: torch.device) -> None:
        self.data, self.device = data, device
        self.held = _on_device(data, device)

    def draw(
        self,
        rows: Tensor,  # (n,) int64
        base: Tensor,  # (n, 2, 3) float32, stored crop px -> px of the view without jitter
        size: int,  # side of the view
        jitter: Jitter,
        generator: torch.Generator,
        *,
        part: slice = slice(None),  # of the rows; numbers are drawn for all of them
    ) -> View:
        """Views of rows; any thread may draw, each with its own generator."""
        flip = torch.rand(len(rows), generator=generator) < jitter.flip
        matrix = jitter_matrix(
            base,
            size,
            rotation=jitter.rotation,
            scale=jitter.scale,
            shift=jitter.shift,
            flip=flip,
            generator=generator,
        )
        return View(rows[part], matrix[part], flip[part], self.read(rows[part]))

    def still(
        self,
        rows: Tensor,  # (n,) int64
        base: Tensor,  # (n, 2, 3) float32, stored crop px -> view px
    ) -> View:
        """Views without jitter."""
        return View(rows, base, torch.zeros(len(rows), dtype=torch.bool), self.read(rows))

    def read(self, rows: Tensor) -> Tensor | None:
        """Crops ``(n, 3, C, C) uint8`` by row where they are not on the device."""
        return None if self.held is not None else self.data.read(rows)

    def crops(
        self,
        rows: Tensor,  # (n,) int64, on the device
        stored: Tensor | None,  # what `read` gave for them, on the device
    ) -> Tensor:
        """Crops ``(n, 3, C, C) uint8`` on the device."""
        if stored is not None:
            return stored
        assert self.held is not None
        return self.held[rows]

    def show(
        self,
        view: View,  # on the device
        size: int,  # side S
    ) -> Tensor:
        """Pixels ``(n, 3, S, S)`` float in [0, 1] of views, on the device."""
        return cut(self.crops(view.rows, view.stored), view.matrix, size)


def _on_device(data: Crops, device: torch.device) -> Tensor | None:
    """All photos on the GPU if they fit, ``(M, 3, S, S) uint8``; None: they stay where they are."""
    if sum(shard.numel() for shard in data.images) > _ON_DEVICE * free_memory(device):
        return None
    return torch.cat([shard.to(device) for shard in data.images])


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 for a CPU, whose memory the photos already share."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
