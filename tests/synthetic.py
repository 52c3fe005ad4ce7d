"""Faces that need no photo: drawn ovals with eyes and a mouth, as a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from faceswap.models import save_model
from faceswap.models.identity import IdentityNet
from faceswap.ops.geometry import TEMPLATES
from faceswap.ops.topology import FACE_OVAL
from faceswap.train import loop
from faceswap.train.task import Task

SIZE, MARGIN = 64, 1.6


def points() -> torch.Tensor:
    """The frontal template in a crop of that size and margin, ``(5, 2)``."""
    return (TEMPLATES["ghost_frontal"][0] - 55.5) * SIZE / 112 / MARGIN + (SIZE - 1) / 2


def face(person: int, photo: int) -> torch.Tensor:
    """A drawing ``(3, S, S) uint8``: the person sets skin and eyes, the photo light and ground."""
    mine = torch.Generator().manual_seed(person)
    skin, eyes, lips = torch.rand(3, 3, generator=mine)
    own = torch.Generator().manual_seed(1000 * person + photo)
    ground, light = torch.rand(3, generator=own), 0.6 + 0.4 * torch.rand(1, generator=own)
    axis = torch.arange(SIZE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = ground.view(3, 1, 1).expand(3, SIZE, SIZE).clone()
    centre = points().mean(0)

    def disc(cx, cy, rx, ry, colour):
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        picture[:, inside] = (colour * light).view(3, 1)

    disc(centre[0], centre[1], 14, 18, 0.3 + 0.7 * skin)
    for cx, cy in points()[:2].tolist():
        disc(cx, cy, 3, 2, eyes)
    disc(centre[0], points()[3, 1], 5, 2, lips)
    return picture.clamp(0, 1).mul(255).byte()


def mesh() -> torch.Tensor:
    """A flat mesh whose outline is an oval and whose five points are right, ``(478, 3)``."""
    five = points()
    out = five[2].expand(478, 2).clone()
    angle = torch.linspace(0, 2 * torch.pi, len(FACE_OVAL) + 1)[:-1]
    oval = torch.stack([14 * angle.sin(), -18 * angle.cos()], 1) + five.mean(0)
    out[list(FACE_OVAL)] = oval
    for corners, iris, at in (((33, 133), 468, five[0]), ((362, 263), 473, five[1])):
        out[corners[0]] = at - torch.tensor([3.0, 0])
        out[corners[1]] = at + torch.tensor([3.0, 0])
        out[iris : iris + 5] = at
    out[[159, 145]], out[[386, 374]] = five[0], five[1]
    out[61], out[291] = five[3], five[4]
    return torch.cat([out, torch.zeros(478, 1)], 1)


def prepared(folder: Path, *, people: int = 4, photos: int = 2) -> Path:
    """A prepared folder of ``people * photos`` faces."""
    folder.mkdir(parents=True)
    names = [(p, i) for p in range(people) for i in range(photos)]
    shard = {
        "image": torch.stack([face(p, i) for p, i in names]),
        "points": points().expand(len(names), 5, 2).contiguous(),
        "mesh": mesh().expand(len(names), 478, 3).contiguous(),
    }
    save_file(shard, folder / "shard-00000.safetensors")
    index = {
        "size": SIZE,
        "template": "ghost_frontal",
        "margin": MARGIN,
        "shards": ["shard-00000.safetensors"],
        "names": [f"{p}/{i}" for p, i in names],
        "people": [f"person-{p}" for p, _ in names],
        "scale": [1.0] * len(names),
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def home(folder: Path) -> Path:
    """A folder to train in: prepared data and an encoder."""
    prepared(folder / "data")
    encoder(folder / "encoder.safetensors")
    return folder


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, train: Callable[[], object]) -> None:
    """Run a training that dies where it would write the checkpoint of a step."""
    real = loop.save_checkpoint

    def killed(path: Path, task: Task, at: int, **given: Any) -> None:
        if at == step:
            raise KeyboardInterrupt
        real(path, task, at, **given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train()


def encoder(path: Path) -> Path:
    """A small untrained identity encoder: random projections tell the drawings apart."""
    torch.manual_seed(0)
    args = {"widths": [8, 8, 16], "depths": [1, 1, 1], "embedding_size": 16}
    return save_model(path, IdentityNet(**args), "identity", args)
