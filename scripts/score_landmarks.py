"""Compare the pack's dense landmarks with the mesh teacher's on clips of one talking face.

    python scripts/score_landmarks.py --facemesh facemesh.ts --iris iris.ts talking-*.mp4

Both label every frame by itself, from the same points of the detector, with nothing smoothed.
Printed for each clip, in % of the distance of the outer eye corners: how far apart the two are, and
each one's jitter, three times, the mean over points and frames:

- "all", "irises": the second difference over time. Motion is in both alike: where a head is jerked
  about, hardly anything else is.
- "shape": the same after each frame's points were moved, turned and scaled onto the first frame's,
  which takes the head's motion out, and with it what the face as a whole is off by.
- "carried": how far each frame's points are from where the picture itself carried those of the
  frame before: a similarity through what a tracker of pixels (Lucas & Kanade 1981, in pyramids,
  Bouguet 2000; there and back) saw of the face. It knows of neither of the two.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from faceswap import Swapper
from faceswap.config import SwapConfig
from faceswap.media.reader import VideoReader
from faceswap.ops.geometry import fit_similarity, transform
from faceswap.ops.topology import SURFACE
from faceswap.train.label import MeshLabeler, PackLabeler, TeacherLabeler, load_script

CPU = torch.device("cpu")
LEAST = 60  # points that the tracker has to follow there and back
PARTS = {"all": slice(None), "irises": slice(468, 478)}


@dataclass(frozen=True, slots=True)
class Labels:
    """The largest face of T frames; frames without one are left."""

    meshes: dict[str, Tensor]  # labeller -> (T, 478, 3) px
    motion: Tensor  # (T - 1, 2, 3), from each frame to the next; not a number where not told


def label(swapper: Swapper, labelers: dict[str, MeshLabeler], clip: str, seconds: float) -> Labels:
    """A clip's face by each labeller, and how the picture moves there."""
    found: dict[str, list[Tensor]] = {name: [] for name in labelers}
    motion: list[Tensor] = []
    before: tuple[Tensor, Tensor] | None = None  # the frame before and the points there
    with VideoReader(clip, None, seconds) as reader:
        for batch in reader:
            faces = swapper.detect(batch.frames)
            for index, frame in enumerate(batch.frames):
                rows = torch.nonzero(faces.frame == index)[:, 0]
                if len(rows):
                    points = faces.points[rows[faces.size[rows].argmax()]][None]
                    for name, labeler in labelers.items():
                        found[name].append(labeler([frame], points)[0])
                    if before is not None:
                        motion.append(picture_motion(before[0], frame, before[1]))
                    latest = [meshes[-1][0, :SURFACE, :2] for meshes in found.values()]
                    before = frame, torch.stack(latest).mean(0)
    steps = torch.stack(motion) if motion else torch.zeros(0, 2, 3)
    return Labels({name: torch.cat(meshes) for name, meshes in found.items()}, steps)


def picture_motion(
    first: Tensor,  # (3, H, W) uint8
    second: Tensor,  # (3, H, W) uint8, the next frame
    points: Tensor,  # (P, 2) float32, px of the first
) -> Tensor:
    """Similarity ``(2, 3)`` by which the pixels around points move; NaN where they do not tell."""
    frames = [cv2.cvtColor(f.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for f in (first, second)]
    face = float((points.amax(0) - points.amin(0)).max())
    window = (max(9, round(0.1 * face)),) * 2
    start = points.numpy()[:, None]
    there, seen, _ = cv2.calcOpticalFlowPyrLK(*frames, start, None, winSize=window, maxLevel=4)
    back, again, _ = cv2.calcOpticalFlowPyrLK(
        *frames[::-1], there, None, winSize=window, maxLevel=4
    )
    sure = (seen[:, 0] == 1) & (again[:, 0] == 1)
    sure &= np.linalg.norm(back - start, axis=2)[:, 0] < 0.003 * face
    if sure.sum() < LEAST:
        return torch.full((2, 3), torch.nan)
    matrix, _ = cv2.estimateAffinePartial2D(
        start[sure], there[sure], ransacReprojThreshold=0.006 * face
    )
    return torch.full((2, 3), torch.nan) if matrix is None else torch.from_numpy(matrix).float()


def jitter(points: Tensor) -> Tensor:
    """Mean length of the second difference over time of ``(T, P, 2)`` points."""
    return points.diff(n=2, dim=0).norm(dim=-1).mean()


def shapes(mesh: Tensor) -> Tensor:
    """``(T, 478, 2)``: points of every frame, moved onto the first frame's as well as it goes."""
    points = mesh[..., :2]
    return transform(fit_similarity(points, points[:1])[0], points)


def off_motion(
    mesh: Tensor,  # (T, 478, 3) px
    motion: Tensor,  # (T - 1, 2, 3) of `picture_motion`
) -> Tensor:
    """Mean distance of points from where the picture carried those of the frame before, px."""
    points = mesh[..., :2]
    told = motion.isfinite().flatten(1).all(1)
    carried = transform(motion[told], points[:-1][told])
    return (points[1:][told] - carried).norm(dim=-1).mean()


def figures(labels: Labels) -> dict[str, float]:
    """Distance and jitters in % of the teacher's eye distance."""
    pack, teacher = labels.meshes["pack"], labels.meshes["teacher"]
    unit = (teacher[:, 33, :2] - teacher[:, 263, :2]).norm(dim=-1).median() / 100
    out = {"frames": float(len(pack))}
    for part, rows in PARTS.items():
        apart = (pack - teacher)[:, rows, :2].norm(dim=-1).mean()
        out[f"apart {part}"] = float(apart / unit)
        for name, mesh in (("pack", pack), ("teacher", teacher)):
            out[f"jitter {part} {name}"] = float(jitter(mesh[:, rows, :2]) / unit)
    for name, mesh in (("pack", pack), ("teacher", teacher)):
        out[f"jitter shape {name}"] = float(jitter(shapes(mesh)) / unit)
        out[f"jitter carried {name}"] = float(off_motion(mesh, labels.motion) / unit)
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
        labels = label(swapper, {"pack": pack, "teacher": teacher}, clip, options.seconds)
        result[Path(clip).name] = figures(labels)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
