"""Files of a training set in the making: parts, then shards, and a sheet to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from faceswap.train.disk import writing
from faceswap.train.preview import save_sheet

SHARD = 2048  # faces a shard; `Crops.pixels` wants them equal but for the last
SHEET = "sheet.png"


@dataclass(slots=True)
class Part:
    """Faces of one part, and the photos without one."""

    rows: list[dict[str, Tensor]]
    names: list[str]
    people: list[str]
    scale: list[float]  # crop px per photo px
    dropped: dict[str, str]  # name -> reason


def write_part(path: Path, part: Part) -> None:
    """One part: tensors of the faces, and as metadata their names and what was dropped."""
    about = {"names": part.names, "people": part.people, "scale": part.scale}
    metadata = {key: json.dumps(value) for key, value in {**about, "dropped": part.dropped}.items()}
    tensors = {}
    if part.rows:
        tensors = {key: torch.stack([row[key] for row in part.rows]) for key in part.rows[0]}
    _save(tensors, path, metadata)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write under another name and rename, so that a file is there whole or not at all.

    Raises:
        MediaError: it cannot be written.
    """
    unfinished = path.with_suffix(".unfinished")
    try:
        with writing(path):
            unfinished.touch()
            rights = unfinished.stat().st_mode
            save_file(tensors, unfinished, metadata=metadata)
            unfinished.chmod(rights)  # safetensors leaves files that nobody else may read
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_shards(parts: list[Path], keep: Tensor, out: Path) -> list[str]:
    """Rows that are kept, in order, `SHARD` a file; names of the files."""
    shards: list[str] = []
    pending: dict[str, list[Tensor]] = {}
    begin = 0

    def flush(rows: int) -> None:
        whole = {key: torch.cat(tensors) for key, tensors in pending.items()}
        shards.append(f"shard-{len(shards):05d}.safetensors")
        _save({key: t[:rows].contiguous() for key, t in whole.items()}, out / shards[-1])
        pending.update({key: [t[rows:]] for key, t in whole.items()})

    for path in parts:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        if not tensors:
            continue
        end = begin + len(tensors.pop("hash"))
        for key, tensor in tensors.items():
            pending.setdefault(key, []).append(tensor[keep[begin:end]])
        begin = end
        while sum(len(t) for t in pending["image"]) >= SHARD:
            flush(SHARD)
    if sum(len(t) for t in pending["image"]):
        flush(SHARD)
    return shards


def write_sheet(out: Path, shard: str, *, side: int = 8) -> None:
    """A contact sheet of faces from all over the first shard, their labels drawn in."""
    with safe_open(str(out / shard), framework="pt") as file:
        images, mesh = file.get_tensor("image"), file.get_tensor("mesh")
        points = file.get_tensor("points")
    rows = torch.linspace(0, len(images) - 1, min(len(images), side * side)).long()
    rows = rows[: max(1, len(rows) // side) * side] if len(rows) >= side else rows
    pictures = images[rows].float() / 255
    for picture, dense, five in zip(pictures, mesh[rows], points[rows], strict=True):
        _draw(picture, dense[:, :2], (0.0, 1.0, 0.0), reach=0)
        _draw(picture, five, (1.0, 0.0, 0.0), reach=1)
    save_sheet(out / SHEET, list(pictures.split(side)))


def _draw(
    picture: Tensor,  # (3, S, S) float in [0, 1], changed in place
    points: Tensor,  # (P, 2) px
    colour: tuple[float, float, float],
    *,
    reach: int,  # px
) -> None:
    size = picture.shape[-1]
    for x, y in points.round().long().tolist():
        if reach <= x < size - reach and reach <= y < size - reach:
            dot = picture[:, y - reach : y + reach + 1, x - reach : x + reach + 1]
            dot.copy_(picture.new_tensor(colour).view(3, 1, 1).expand_as(dot))
