"""Score an occlusion network on people held back from training, with things drawn before them.

    python scripts/score_occlusion.py DATA [--weights FILE] [--sheet OUT.png]

DATA is what `faceswap prepare` made. Nobody has marked what really lies before those faces, so the
truth is drawn (`faceswap.train.occluders`); "bare" is the share of the face that is taken for
covered where nothing was drawn, real glasses, hats and hands among it. Look at the sheet for those:
the faces with most of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from faceswap.errors import ConfigError, FaceSwapError
from faceswap.models import load_model
from faceswap.models.occlusion import OcclusionNet
from faceswap.occlude import OcclusionMask
from faceswap.ops.draw import signed_distance
from faceswap.ops.geometry import align
from faceswap.ops.smooth import resized
from faceswap.ops.topology import FACE, five_points
from faceswap.train.config import Occluders
from faceswap.train.data import Crops, cut, load_crops, map_points
from faceswap.train.occluders import cover, draw_occluders
from faceswap.train.preview import save_sheet

PART = 16
SHOWN = 48
COARSE = 96  # px, side that crops are brought down to: drawn things are as soft as the photos then
KINDS = {
    "bare": Occluders(glasses=0, things=0),
    "glasses": Occluders(glasses=1, things=0),
    "hands": Occluders(glasses=0, things=1, hands=1, microphones=0),
    "microphones": Occluders(glasses=0, things=1, hands=0, microphones=1),
    "other things": Occluders(glasses=0, things=1, hands=0, microphones=0),
}


def views(data: Crops, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Crops as the swapper's, ``(n, 3, S, S)`` in [0, 1], and their mesh in crop px."""
    matrix = align(five_points(data.mesh[rows]), size, template=data.template).matrix
    return cut(data.pixels(rows), matrix, size), map_points(data.mesh[rows], matrix)


@torch.no_grad()
def score(data: Crops, mask: OcclusionMask, rows: Tensor, size: int, odds: Occluders) -> str:
    """One row of the table: IoU, recall, precision in %, all pixels of all faces together."""
    random = torch.Generator().manual_seed(size)
    both = either = wanted = found = face = 0.0
    for part in rows.split(PART):
        images, mesh = views(data, part, size)
        images, truth = cover(images, mesh, draw_occluders(len(part), size, odds, random))
        images = resized(resized(images, COARSE), size)
        inside = signed_distance(mesh[:, list(FACE), :2], size) > 0
        is_so = (truth > 0.5) & inside
        said = (mask(images, mesh, lambda run: run()) > 0.5) & inside
        both += float((is_so & said).sum())
        either += float((is_so | said).sum())
        wanted += float(is_so.sum())
        found += float(said.sum())
        face += float(inside.sum())
    if not wanted:
        return f"| - | - | - | {100 * found / face:.2f} |"
    return f"| {100 * both / either:.1f} | {100 * both / wanted:.1f} | {100 * both / found:.1f} | |"


@torch.no_grad()
def worst(data: Crops, mask: OcclusionMask, rows: Tensor, size: int) -> list[Tensor]:
    """The faces with most pixels taken for covered, above themselves with those in red."""
    parts = []
    for part in rows.split(PART):
        images, mesh = views(data, part, size)
        parts.append(torch.cat([images, mask(images, mesh, lambda run: run())], 1))
    every = torch.cat(parts)
    every = every[every[:, 3].mean((1, 2)).argsort(descending=True)[:SHOWN]]
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    lines = []
    for line in every.split(12):
        images, covered = line[:, :3], line[:, 3:]
        lines += [images, images + 0.7 * covered * (red - images)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="lite-occlusion")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    data = load_crops(options.data)
    net = load_model(options.weights)
    if not isinstance(net, OcclusionNet):
        raise ConfigError(f"{options.weights}: holds a {type(net).__name__}")
    mask = OcclusionMask(net)
    _, held = data.split()
    random = torch.Generator().manual_seed(0)
    rows = held[torch.randperm(len(held), generator=random)[: options.count]]
    print("| before the face | side | IoU, % | recall, % | precision, % | of the bare face, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in (128, 256):
        for kind, odds in KINDS.items():
            print(f"| {kind} | {size} {score(data, mask, rows, size, odds)}", flush=True)
    if options.sheet is not None:
        save_sheet(options.sheet, worst(data, mask, rows, 192))


if __name__ == "__main__":
    try:
        main()
    except FaceSwapError as error:
        sys.exit(f"Error: {error}")
