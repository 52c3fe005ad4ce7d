"""Prepared face crops, and cutting training views from them.

A prepared folder (`faceswap prepare`) holds safetensors shards and an ``index.json``. Every row is
one face, cut with a margin so that a training view may be moved, turned and scaled without
running out of picture. Shards are memory-mapped: several runs on one machine share the pages.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.train.feed import Wait

INDEX = "index.json"
MIRRORED = "mirrored.safetensors"  # of `scripts/label_mirrored.py`


@dataclass(frozen=True, slots=True)
class Crops:
    """The M faces of a prepared folder."""

    images: tuple[Tensor, ...]  # shards of (m, 3, S, S) uint8 RGB
    points: Tensor  # (M, 5, 2) float32, the detector's points in crop pixels
    mesh: Tensor  # (M, 478, 3) float32, dense points in crop pixels
    embedding: Tensor | None  # (M, D) float32 identity embedding by the teacher, if prepared
    identity: Tensor  # (M,) int64, one number a person
    held_back: Tensor  # (M,) bool, people kept for evaluation
    names: tuple[str, ...]  # M, where the photo came from
    size: int  # S
    template: str
    margin: float
    mirrored: Tensor | None = None  # (M, 478, 3) float32, the teacher's points of mirrored crops
    wait: Wait = field(default_factory=Wait)  # what reading cost the training thread

    def __len__(self) -> int:
        return self.points.shape[0]

    def split(self) -> tuple[Tensor, Tensor]:
        """Rows to train on, and rows of people held back; all rows where there are none of either.

        Raises:
            ConfigError: no faces at all.
        """
        every = torch.arange(len(self))
        if not len(every):
            raise ConfigError("the prepared data has no faces")
        held, rows = every[self.held_back], every[~self.held_back]
        return (rows if len(rows) else every), (held if len(held) else every)

    def pixels(self, rows: Tensor) -> Tensor:
        """Crops by row.

        Args:
            rows: ``(n,) int64``.

        Returns:
            ``(n, 3, S, S) uint8``.
        """
        began = time.monotonic()
        out = self.read(rows)
        self.wait.seconds += time.monotonic() - began
        return out

    def read(self, rows: Tensor) -> Tensor:
        """`pixels` for another thread than that of the training: nothing waits for it."""
        shard_size = self.images[0].shape[0]
        return torch.stack([self.images[r // shard_size][r % shard_size] for r in rows.tolist()])


def is_held_back(person: str, share: float = 0.1) -> bool:
    """Whether a person belongs to the evaluation split: a hash of the name, always the same."""
    digest = hashlib.sha256(person.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share


def load_crops(folder: Path) -> Crops:
    """Open a prepared folder.

    Raises:
        MissingMediaError: no such folder or no index in it.
        MediaError: the index and the shards do not fit together.
    """
    index_path = folder / INDEX
    if not index_path.is_file():
        raise MissingMediaError(
            f"{folder}: no {INDEX}; make it with: faceswap prepare PHOTOS {folder}"
        )
    index = json.loads(index_path.read_text())
    columns: dict[str, list[Tensor]] = {}
    for name in index["shards"]:
        with safe_open(str(folder / name), framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118  (safe_open is no dict)
                columns.setdefault(key, []).append(shard.get_tensor(key))
    names = tuple(index["names"])
    if sum(t.shape[0] for t in columns["image"]) != len(names):
        raise MediaError(f"{folder}: shards and {INDEX} disagree; prepare the folder again")
    people = index["people"]
    number = {person: i for i, person in enumerate(dict.fromkeys(people))}
    return Crops(
        images=tuple(columns["image"]),
        points=torch.cat(columns["points"]),
        mesh=torch.cat(columns["mesh"]),
        embedding=torch.cat(columns["embedding"]) if "embedding" in columns else None,
        identity=torch.tensor([number[p] for p in people]),
        held_back=torch.tensor([is_held_back(p) for p in people]),
        names=names,
        size=index["size"],
        template=index["template"],
        margin=index["margin"],
        mirrored=_mirrored(folder / MIRRORED, len(names)),
    )


def _mirrored(path: Path, faces: int) -> Tensor | None:
    if not path.is_file():
        return None
    mesh = load_file(path)["mesh"]
    if len(mesh) != faces:
        raise MediaError(
            f"{path}: labels of {len(mesh)} faces, and the folder has {faces}; make it again with "
            "scripts/label_mirrored.py or remove it"
        )
    return mesh


def cut(
    images: Tensor,  # (N, 3, S, S) uint8 or float in [0, 1]
    matrix: Tensor,  # (N, 2, 3) float32, stored crop px -> view px
    size: int,
) -> Tensor:
    """Training views of stored crops, bilinear, black outside.

    Returns:
        ``(N, 3, size, size)`` float in [0, 1].
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    side = images.shape[-1]
    linear = torch.linalg.inv_ex(matrix[:, :, :2]).inverse  # `inv` makes Python wait for a GPU
    shift = -(linear @ matrix[:, :, 2:])
    axis = torch.arange(size, dtype=torch.float32, device=images.device)
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    view = torch.stack([xs, ys], -1).view(1, -1, 2)
    source = view @ linear.transpose(1, 2) + shift.transpose(1, 2)
    grid = (source * (2 / (side - 1)) - 1).view(-1, size, size, 2)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=True)


def jitter_matrix(
    matrix: Tensor,  # (N, 2, 3) float32, to view px
    size: int,
    *,
    rotation: float,  # degrees, standard deviation
    scale: float,  # standard deviation of the log
    shift: float,  # standard deviation, fraction of the side
    flip: Tensor | None = None,  # (N,) bool, mirror these
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random similarity about the view's centre, applied after ``matrix``; ``(N, 2, 3)``."""
    n = matrix.shape[0]
    noise = torch.randn(n, 4, generator=generator)
    angle = noise[:, 0] * rotation * torch.pi / 180
    factor = torch.exp(noise[:, 1] * scale)
    cos, sin = torch.cos(angle) * factor, torch.sin(angle) * factor
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    if flip is not None:
        turn[:, 0] = torch.where(flip[:, None], -turn[:, 0], turn[:, 0])
    centre = torch.full((n, 2, 1), (size - 1) / 2)
    moved = turn @ (matrix[:, :, 2:] - centre) + centre + noise[:, 2:, None] * shift * size
    return torch.cat([turn @ matrix[:, :, :2], moved], dim=2)


def map_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Points through affine matrices; a third coordinate is scaled by the matrix's scale.

    Args:
        points: ``(N, P, 2 or 3)`` float32.
        matrix: ``(N, 2, 3)`` float32.
    """
    xy = points[..., :2] @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
    if points.shape[-1] == 2:
        return xy
    scale = torch.linalg.det(matrix[:, :, :2]).abs().sqrt()
    return torch.cat([xy, points[..., 2:] * scale[:, None, None]], -1)


def jitter_color(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    strength: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random brightness, contrast, saturation and tint, each within ``strength``; same shape."""
    return recolor(images, torch.rand(images.shape[0], 6, generator=generator), strength)


def recolor(
    images: Tensor,  # (N, 3, H, W) float in [0, 1]
    noise: Tensor,  # (N, 6) float in [0, 1): saturation, contrast, brightness, three of tint
    strength: float,
) -> Tensor:
    """`jitter_color` by given random numbers."""
    noise = ((noise * 2 - 1) * strength).to(images.device)[..., None, None, None]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + noise[:, 0])
    level = images.mean((1, 2, 3), keepdim=True)
    images = level + (images - level) * (1 + noise[:, 1])
    tint = (1 + noise[:, 2]) * (1 + 0.3 * noise[:, 3:6, 0, 0, 0][:, :, None, None])
    return (images * tint).clamp(0, 1)
