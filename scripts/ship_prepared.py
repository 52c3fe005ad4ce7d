"""Take a prepared folder to a machine that only takes small files, such as a lent GPU.

    python scripts/ship_prepared.py pack DATA OUT --part-mib 30
    python scripts/ship_prepared.py unpack OUT DATA

Packed, 19,947 faces of 224 px are 74 MiB instead of 3 GiB: pictures as WebP, dense points by the
first 200 of their principal components (0.02 px off at most in half of the faces), embeddings as
bytes. People held back from training stay behind, but for those of the sample sheet: their
pictures come out black. ``unpack`` makes a folder as `faceswap prepare` does, once all parts of
several transfers are there.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from faceswap.errors import FaceSwapError, MediaError
from faceswap.train.data import INDEX, Crops, load_crops
from faceswap.train.shards import SHARD

META = "meta.safetensors"
COMPONENTS = 200
STEPS = 25.0  # of a byte, in the deviation of an embedding's numbers
SHEET = 16  # people held back whose pictures go along


def encoded(crop: Tensor, quality: int) -> bytes:
    """One crop ``(3, S, S) uint8`` as WebP."""
    file = io.BytesIO()
    Image.fromarray(crop.permute(1, 2, 0).numpy()).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def decoded(data: bytes, size: int) -> np.ndarray:
    """What `encoded` wrote, ``(3, S, S) uint8``; black where it wrote nothing."""
    if not data:
        return np.zeros((3, size, size), np.uint8)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1).copy()


def compressed(data: Crops) -> dict[str, Tensor]:
    """All that is not pictures."""
    flat = data.mesh.flatten(1)
    mean = flat.mean(0)
    rank = min(COMPONENTS, *flat.shape)
    random = torch.Generator().manual_seed(0)
    some = torch.randperm(len(flat), generator=random)[:8000]
    torch.manual_seed(0)
    basis = torch.pca_lowrank((flat - mean)[some], q=rank, center=False, niter=3)[2].contiguous()
    out = {
        "points": data.points,
        "mean": mean,
        "basis": basis,
        "mesh": ((flat - mean) @ basis).half(),
    }
    if data.embedding is not None:
        unit = F.normalize(data.embedding) * data.embedding.shape[1] ** 0.5
        out["embedding"] = (unit * STEPS).round().clamp(-127, 127).to(torch.int8)
    return out


def pack(folder: Path, out: Path, *, part_mib: int, quality: int) -> None:
    """Write META, the index and parts of pictures."""
    data = load_crops(folder)
    _, held = data.split()
    random = torch.Generator().manual_seed(5)
    shown = held[torch.randperm(len(held), generator=random)[:SHEET]].tolist()
    left = set(held[data.held_back[held]].tolist()) - set(shown)
    out.mkdir(parents=True)
    save_file(compressed(data), out / META)
    (out / INDEX).write_text((folder / INDEX).read_text())

    def one(row: int) -> bytes:
        if row in left:
            return b""
        return encoded(data.read(torch.tensor([row]))[0], quality)

    part: list[bytes] = []
    begin, number = 0, 0
    with ThreadPoolExecutor() as pool:
        for row, picture in enumerate(tqdm(pool.map(one, range(len(data))), total=len(data))):
            if part and sum(map(len, part)) + len(picture) > part_mib * 2**20:
                _write_part(out / f"part-{number:02d}.bin", begin, part)
                part, begin, number = [], row, number + 1
            part.append(picture)
    _write_part(out / f"part-{number:02d}.bin", begin, part)


def _write_part(path: Path, begin: int, pictures: list[bytes]) -> None:
    head = struct.pack("<II", begin, len(pictures))
    sizes = struct.pack(f"<{len(pictures)}I", *map(len, pictures))
    path.write_bytes(head + sizes + b"".join(pictures))


def _read_parts(folder: Path, faces: int) -> Iterator[bytes]:
    row = 0
    for path in sorted(folder.glob("part-*.bin")):
        raw = path.read_bytes()
        begin, count = struct.unpack_from("<II", raw)
        if begin != row:
            raise MediaError(f"{path}: begins with face {begin} where {row} is next; a part misses")
        at = 8 + 4 * count
        for size in struct.unpack_from(f"<{count}I", raw, 8):
            yield raw[at : at + size]
            at += size
        row += count
    if row != faces:
        raise MediaError(f"{folder}: pictures of {row} faces and points of {faces}; a part misses")


def unpack(folder: Path, out: Path) -> None:
    """Make the prepared folder again.

    Raises:
        MediaError: a part is missing.
    """
    meta = load_file(folder / META)
    index = json.loads((folder / INDEX).read_text())
    faces, size = len(meta["mesh"]), index["size"]
    mesh = (meta["mesh"].float() @ meta["basis"].T + meta["mean"]).unflatten(1, (-1, 3))
    columns = {"points": meta["points"], "mesh": mesh}
    if "embedding" in meta:
        columns["embedding"] = meta["embedding"].float() / STEPS
    out.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        pictures = pool.map(lambda data: decoded(data, size), _read_parts(folder, faces))
        for number, name in enumerate(index["shards"]):
            rows = slice(number * SHARD, min(faces, (number + 1) * SHARD))
            images = np.stack([next(pictures) for _ in range(rows.stop - rows.start)])
            part = {key: value[rows].contiguous() for key, value in columns.items()}
            save_file({"image": torch.from_numpy(images), **part}, out / name)
    (out / INDEX).write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("do", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part-mib", type=int, default=30, help="most that a part may take")
    parser.add_argument("--quality", type=int, default=68, help="of WebP")
    given = parser.parse_args()
    if given.out.exists():
        raise MediaError(f"{given.out}: is there already; name another folder or remove it")
    if given.do == "pack":
        pack(given.source, given.out, part_mib=given.part_mib, quality=given.quality)
    else:
        unpack(given.source, given.out)


if __name__ == "__main__":
    try:
        main()
    except FaceSwapError as error:
        sys.exit(f"Error: {error}")
