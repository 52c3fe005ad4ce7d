"""Compare the pack's dense landmarks with the mesh teacher's on clips of one talking face.

    python scripts/score_landmarks.py --facemesh facemesh.ts --iris iris.ts talking-*.mp4

Both label every frame by itself, from the same points of the detector, with nothing smoothed.
Printed for each clip, in % of the distance of the outer eye corners: how far apart the two are, and
each one's jitter: the second difference over time, the mean over points and frames. Motion is in
both jitters alike, so their ratio says less than it should, never more: where a head is jerked
about, hardly anything else is. "Shape" is the jitter that is left when each frame's points are
first moved, turned and scaled onto the first frame's, which takes the head's motion out, and with
it what the face as a whole is off by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from faceswap import Swapper
from faceswap.config import SwapConfig
from faceswap.media.reader import VideoReader
from faceswap.ops.geometry import fit_similarity, transform
from faceswap.train.label import MeshLabeler, PackLabeler, TeacherLabeler, load_script

CPU = torch.device("cpu")
PARTS = {"all": slice(None), "irises": slice(468, 478)}


def label(
    swapper: Swapper, labelers: dict[str, MeshLabeler], clip: str, seconds: float
) -> dict[str, Tensor]:
    """``(T, 478, 3)`` points of the largest face by each labeller; frames without one are left."""
    found: dict[str, list[Tensor]] = {name: [] for name in labelers}
    with VideoReader(clip, None, seconds) as reader:
        for batch in reader:
            faces = swapper.detect(batch.frames)
            for index, frame in enumerate(batch.frames):
                rows = torch.nonzero(faces.frame == index)[:, 0]
                if len(rows):
                    points = faces.points[rows[faces.size[rows].argmax()]][None]
                    for name, labeler in labelers.items():
                        found[name].append(labeler([frame], points)[0])
    return {name: torch.cat(meshes) for name, meshes in found.items()}


def jitter(points: Tensor) -> Tensor:
    """Mean length of the second difference over time of ``(T, P, 2)`` points."""
    return points.diff(n=2, dim=0).norm(dim=-1).mean()


def shapes(mesh: Tensor) -> Tensor:
    """``(T, 478, 2)``: points of every frame, moved onto the first frame's as well as it goes."""
    points = mesh[..., :2]
    return transform(fit_similarity(points, points[:1])[0], points)


def figures(pack: Tensor, teacher: Tensor) -> dict[str, float]:
    """Distance and jitters in % of the teacher's eye distance."""
    unit = (teacher[:, 33, :2] - teacher[:, 263, :2]).norm(dim=-1).median() / 100
    out = {"frames": float(len(pack))}
    for part, rows in PARTS.items():
        apart = (pack - teacher)[:, rows, :2].norm(dim=-1).mean()
        out[f"apart {part}"] = float(apart / unit)
        for name, mesh in (("pack", pack), ("teacher", teacher)):
            out[f"jitter {part} {name}"] = float(jitter(mesh[:, rows, :2]) / unit)
    for name, mesh in (("pack", pack), ("teacher", teacher)):
        out[f"jitter shape {name}"] = float(jitter(shapes(mesh)) / unit)
    return {name: round(value, 3) for name, value in out.items()}


@torch.no_grad()
def main() -> None:
    """Label, compare, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", help="clips of one face")
    parser.add_argument("--facemesh", type=Path, required=True, help="TorchScript")
    parser.add_argument("--iris", type=Path, required=True, help="TorchScript")
    parser.add_argument("--landmarks", help="weights instead of the pack's")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pack = PackLabeler(CPU, options.landmarks)
    teacher = TeacherLabeler(load_script(options.facemesh, CPU), load_script(options.iris, CPU))
    swapper = Swapper.from_config(SwapConfig(device="cpu"))
    result = {}
    for clip in options.clips:
        meshes = label(swapper, {"pack": pack, "teacher": teacher}, clip, options.seconds)
        result[Path(clip).name] = figures(meshes["pack"], meshes["teacher"])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
