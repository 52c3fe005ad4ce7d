"""More faces for the lite networks: mixtures of prepared crops, with the teachers' answers to them.

    python scripts/mix_faces.py DATA OUT --count 24576 --identity-teacher omz_reid.ts \\
        --mesh-teacher facemesh.ts --iris-teacher iris.ts

DATA is what `faceswap prepare` made; OUT becomes a prepared folder with the mixtures first and
DATA's own faces (links, not copies) after them. A student that sees 8,000 people agrees with its
teacher on them better than on strangers; a patient teacher has an answer for any picture ("function
matching", Beyer et al., CVPR 2022), so parts of two people make a third one to learn from. Nobody
held back is mixed in, and no mixture is held back. Without a mesh teacher, points and mesh of a
mixture are the mean of its two faces': good enough to cut by, not to learn points from. With one,
mixtures in which it sees no face are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from faceswap.errors import ConfigError, FaceSwapError, MediaError
from faceswap.ops.geometry import align
from faceswap.train.data import INDEX, Crops, cut, is_held_back, load_crops
from faceswap.train.label import (
    MeshLabeler,
    Recogniser,
    TeacherLabeler,
    load_recogniser,
    load_script,
)
from faceswap.train.mesh import mirror_order
from faceswap.train.mixture import draw_mixing, mixed
from faceswap.train.shards import SHARD, write_sheet

PART = 64


def mirrored(
    images: Tensor,  # (N, 3, S, S)
    points: Tensor,  # (N, P, 2 or 3) px
    order: Tensor,  # (P,) int64, whose place a point takes
    flip: Tensor,  # (N,) bool
) -> tuple[Tensor, Tensor]:
    """Some of the crops mirrored."""
    size = images.shape[-1]
    turned = points[:, order].clone()
    turned[..., 0] = size - 1 - turned[..., 0]
    return (
        torch.where(flip[:, None, None, None], images.flip(3), images),
        torch.where(flip[:, None, None], turned, points),
    )


def mix(data: Crops, rows: Tensor, order: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Mixtures of neighbouring rows: image, points and mesh of ``n / 2`` new faces.

    One face shows in some places and the other elsewhere (three in four), or one through the other;
    then all of it is bent a little, which changes a face's shape.
    """
    n = len(rows) // 2
    five = torch.tensor([1, 0, 2, 4, 3])
    flip = torch.rand(len(rows), generator=generator) < 0.5
    images = data.pixels(rows).float() / 255
    images, mesh = mirrored(images, data.mesh[rows], order, flip)
    _, points = mirrored(images, data.points[rows], five, flip)
    size = images.shape[-1]
    picture, moved = mixed(images[:n], images[n:], draw_mixing(n, generator))

    def bent(points: Tensor) -> Tensor:
        points = (points[:n] + points[n:]) / 2
        at = points[:, None, :, :2] * (2 / (size - 1)) - 1
        step = F.grid_sample(moved.permute(0, 3, 1, 2), at, mode="bilinear", align_corners=True)
        xy = points[..., :2] - step[:, :, 0].transpose(1, 2) * ((size - 1) / 2)
        return torch.cat([xy, points[..., 2:]], -1)

    image = (picture * 255).round().clamp(0, 255).to(torch.uint8)
    return {"image": image, "points": bent(points), "mesh": bent(mesh)}


def labelled(
    part: dict[str, Tensor], labeler: MeshLabeler, device: torch.device
) -> dict[str, Tensor]:
    """The mixtures in which a teacher sees a face, with the mesh that it sees."""
    mesh, presence = labeler(part["image"].to(device), part["points"].to(device))
    mesh, seen = mesh.cpu(), presence.cpu() > 0
    return {**{key: value[seen] for key, value in part.items()}, "mesh": mesh[seen]}


def embedded(
    recogniser: Recogniser, device: torch.device, images: Tensor, points: Tensor
) -> Tensor:
    """Embeddings ``(N, D)`` of crops, cut by their five points."""
    matrix = align(points, recogniser.size, template="arcface").matrix
    return recogniser(cut(images.to(device), matrix.to(device), recogniser.size)).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=12 * SHARD, help=f"a multiple of {SHARD}")
    parser.add_argument("--identity-teacher", required=True)
    parser.add_argument("--mesh-teacher", type=Path)
    parser.add_argument("--iris-teacher", type=Path)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.count < SHARD or options.count % SHARD:
        raise MediaError(f"--count {options.count}: must be a multiple of {SHARD}")
    if options.out.exists():
        raise MediaError(f"{options.out}: is there already; name another folder or remove it")
    if (options.mesh_teacher is None) != (options.iris_teacher is None):
        raise ConfigError("--mesh-teacher and --iris-teacher go together")
    data = load_crops(options.data)
    labeler = None
    if options.mesh_teacher is not None:
        scripts = (options.mesh_teacher, options.iris_teacher)
        labeler = TeacherLabeler(*(load_script(file, options.device) for file in scripts))
    recogniser = load_recogniser(options.identity_teacher, options.device, torch.float32)
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.nonzero(~data.held_back)[:, 0]
    order = mirror_order(data.mesh[rows[:4000]])
    options.out.mkdir(parents=True)
    shards = []
    bar = tqdm(total=options.count, unit="face", desc="mixed")
    for index in range(options.count // SHARD):
        parts: list[dict[str, Tensor]] = []
        made = 0
        while made < SHARD:
            both = rows[torch.randint(len(rows), (2 * PART,), generator=generator)]
            part = mix(data, both, order, generator)
            if labeler is not None:
                part = labelled(part, labeler, options.device)
            part = {key: value[: SHARD - made] for key, value in part.items()}
            part["embedding"] = embedded(recogniser, options.device, part["image"], part["points"])
            parts.append(part)
            made += len(part["image"])
            bar.update(len(part["image"]))
        shards.append(f"mixed-{index:05d}.safetensors")
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        save_file(whole, options.out / shards[-1])
    index = json.loads((options.data / INDEX).read_text())
    for name in index["shards"]:
        (options.out / name).symlink_to((options.data / name).resolve())
    mixtures = []
    for number in range(options.count):
        name = f"mixture-{options.seed}-{number}"  # folders of several seeds may be put together
        while is_held_back(name):
            name += "-"
        mixtures.append(name)
    index["shards"] = shards + index["shards"]
    index["scale"] = [1.0] * options.count + index["scale"]
    for key in ("names", "people"):
        index[key] = mixtures + index[key]
    (options.out / INDEX).write_text(json.dumps(index))
    write_sheet(options.out, shards[0])


if __name__ == "__main__":
    try:
        main()
    except FaceSwapError as error:
        sys.exit(f"Error: {error}")
