"""The mesh teacher's answers to the mirrored crops of a prepared folder.

    python scripts/label_mirrored.py DATA --mesh-teacher facemesh.ts --iris-teacher iris.ts

Writes ``DATA/mirrored.safetensors``, which `faceswap train` takes for its mirrored views when it
trains landmarks. FaceMesh sees a mirrored face 3 % of the eye distance away from where it sees the
face: a student that is taught the mirror image of its points learns the mean of both answers, and
stays half of that away from either.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from faceswap.errors import FaceSwapError
from faceswap.train.data import MIRRORED, Crops, load_crops
from faceswap.train.label import MeshLabeler, TeacherLabeler, load_script

PART = 32
FIVE = [1, 0, 2, 4, 3]  # the five points of a mirrored face


def mirror_labels(data: Crops, labeler: MeshLabeler, device: torch.device) -> Tensor:
    """Points ``(M, 478, 3)`` of all crops mirrored, in px of the mirrored crops."""
    points = data.points[:, FIVE].clone()
    points[..., 0] = data.size - 1 - points[..., 0]
    points = points.to(device)
    parts = []
    for rows in tqdm(torch.arange(len(data)).split(PART), unit="batch", desc="mirrored"):
        photos = data.pixels(rows).to(device).flip(3)
        parts.append(labeler(photos, points[rows])[0].cpu())
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--mesh-teacher", type=Path, required=True)
    parser.add_argument("--iris-teacher", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    data = load_crops(options.data)
    scripts = (options.mesh_teacher, options.iris_teacher)
    labeler = TeacherLabeler(*(load_script(file, options.device) for file in scripts))
    mesh = mirror_labels(data, labeler, options.device)
    part = options.data / f"{MIRRORED}.part"
    save_file({"mesh": mesh}, part)
    part.replace(options.data / MIRRORED)


if __name__ == "__main__":
    try:
        main()
    except FaceSwapError as error:
        sys.exit(f"Error: {error}")
