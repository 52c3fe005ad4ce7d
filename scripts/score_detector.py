"""Compare a trained detector with CenterFace: recall, points, time.

python scripts/score_detector.py DETECTOR.safetensors --scenes data/prepared
    --clip ../shared/samples/crowd.mp4 --clip ../shared/samples/talking-1.mp4
    --yunet ../shared/teachers/yunet.onnx --mesh ../shared/teachers/facemesh.ts

Clips have no labels, so two detectors that took no part agree on them: CenterFace at twice the
working resolution and YuNet at full size. A face both see counts; what only one of them sees counts
neither for nor against anybody; what neither sees is a false alarm. The points of a face are those
of the mesh teacher, an arbiter between the two detectors' own ideas of a point. Composed scenes
show people held back, and know their faces.

Each detector is run at a low threshold; recall is given where it makes the same number of false
alarms a frame. Time is CPU time of one thread over the same frames, the two in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
from torch import Tensor

from faceswap.faces.detect import VIDEO_SIDES, CenterFaceDetector, Detector, GridDetector
from faceswap.media.reader import VideoReader
from faceswap.models import load_model
from faceswap.ops.boxes import box_iou
from faceswap.ops.geometry import align
from faceswap.ops.topology import five_points
from faceswap.train.collage import Material
from faceswap.train.crowd import shows_others
from faceswap.train.data import load_crops
from faceswap.train.label import _around, cut_each, load_script, to_photo
from faceswap.train.scenes import draw_scenes, load_backgrounds
from faceswap.types import Faces

LOW = 0.05  # threshold of the curves
SAME = 0.4  # IoU
ALARMS = (0.01, 0.03, 0.1, 0.3)  # false alarms a frame at which recall is compared


@dataclass
class Labels:
    """Of one frame."""

    frame: Tensor  # (3, H, W) uint8
    box: Tensor  # (N, 4) faces to find
    points: Tensor  # (N, 5, 2)
    open: Tensor  # (M, 4) boxes that count neither way


@dataclass
class Score:
    """What a detector made of a set of frames."""

    frames: int = 0
    faces: int = 0
    hits: list[float] = field(default_factory=list)  # score of the finding of each face found
    alarms: list[float] = field(default_factory=list)  # scores of false alarms
    errors: list[float] = field(default_factory=list)  # of points, share of the eye distance
    seconds: float = 0.0


def judge(detector: Detector, labels: Sequence[Labels], score: Score) -> None:
    """Add some frames to a score."""
    for each in labels:
        began = time.process_time()
        found = detector(each.frame[None])
        score.seconds += time.process_time() - began
        score.frames += 1
        score.faces += len(each.box)
        order = torch.argsort(found.score, descending=True)
        taken = torch.zeros(len(each.box), dtype=torch.bool)
        for i in order.tolist():
            overlap = box_iou(found.box[i : i + 1], each.box)[0]
            overlap[taken] = 0
            if len(overlap) and float(overlap.max()) > SAME:
                row = int(overlap.argmax())
                taken[row] = True
                score.hits.append(float(found.score[i]))
                off = (found.points[i] - each.points[row]).norm(dim=1).mean()
                eyes = (each.points[row, 0] - each.points[row, 1]).norm()
                size = (each.box[row, 2:] - each.box[row, :2]).prod().sqrt()
                score.errors.append(float(off / torch.maximum(eyes, 0.25 * size)))
            elif not len(each.open) or float(box_iou(found.box[i : i + 1], each.open).max()) < 0.2:
                score.alarms.append(float(found.score[i]))


def summary(score: Score) -> dict[str, float]:
    """Recall at equal false alarms, points, milliseconds."""
    out: dict[str, float] = {"frames": score.frames, "faces": score.faces}
    alarms = sorted(score.alarms, reverse=True)
    for rate in ALARMS:
        allowed = int(rate * score.frames)
        threshold = alarms[allowed] if allowed < len(alarms) else LOW
        out[f"recall@{rate}"] = round(sum(h > threshold for h in score.hits) / score.faces, 4)
    errors = torch.tensor(score.errors)
    out["point_error_%"] = round(100 * float(errors.mean()), 2)
    out["point_error_median_%"] = round(100 * float(errors.median()), 2)
    out["cpu_ms"] = round(1000 * score.seconds / score.frames, 2)
    return out


class Arbiter:
    """Labels of clips."""

    def __init__(self, yunet: Path, mesh: Path) -> None:
        self.fine = CenterFaceDetector(sides=(1280, 640, 320), threshold=0.3)
        self.yunet = cv2.FaceDetectorYN.create(str(yunet), "", (320, 320), 0.5, 0.3)
        self.mesh = load_script(mesh, torch.device("cpu"))

    def __call__(self, frame: Tensor) -> Labels:
        """What both see, and what one of them sees."""
        height, width = frame.shape[1:]
        mine = self.fine(frame[None])
        self.yunet.setInputSize((width, height))
        _, rows = self.yunet.detect(frame.flip(0).permute(1, 2, 0).contiguous().numpy())
        theirs = torch.zeros(0, 4) if rows is None else torch.from_numpy(rows[:, :4]).float()
        theirs = torch.cat([theirs[:, :2], theirs[:, :2] + theirs[:, 2:]], 1)
        agree = torch.zeros(len(mine), dtype=torch.bool)
        known = torch.zeros(len(theirs), dtype=torch.bool)
        if len(mine) and len(theirs):
            overlap = box_iou(mine.box, theirs) > SAME
            sure = overlap & (mine.score >= 0.5)[:, None]
            agree, known = sure.any(1), sure.any(0)
        size = (mine.box[:, 2:] - mine.box[:, :2]).prod(1).sqrt()
        agree &= size >= 16
        left_open = torch.cat([mine.box[~agree], theirs[~known]])
        points = self._points(frame, mine[agree])
        return Labels(frame, mine.box[agree], points, left_open)

    @torch.no_grad()
    def _points(self, frame: Tensor, faces: Faces) -> Tensor:
        """The mesh teacher's five points, its crop cut by its own first look."""
        if not len(faces):
            return faces.points
        photos = [frame] * len(faces)
        view = align(faces.points, 192, template="ghost_frontal", margin=1.45)
        for _ in range(2):
            mesh = to_photo(self.mesh(cut_each(photos, view))[0], view)
            view = _around(mesh)
        return five_points(mesh)


def frames_of(path: Path, every: int) -> Iterator[Tensor]:
    """Every n-th frame of a clip."""
    with VideoReader(path) as reader:
        frames = (frame for batch in reader for frame in batch.frames)
        yield from itertools.islice(frames, 0, None, every)


def scenes_of(folder: Path, backgrounds: str, count: int) -> Iterator[Labels]:
    """Composed scenes of 640 px with people held back."""
    data = load_crops(folder)
    held = torch.nonzero(data.held_back)[:, 0]
    held = held[~shows_others(data, held)]
    material = Material(
        data, held, load_backgrounds(backgrounds), size=640, smallest=16.0, largest=320.0
    )
    generator = torch.Generator().manual_seed(11)
    for _ in range(count):
        scenes = draw_scenes(material, 1, generator)
        frame = scenes.images[0].mul(255).round().byte()
        keep = scenes.counts
        yield Labels(frame, scenes.box[keep], scenes.points[keep], scenes.box[~keep])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("--scenes", type=Path, help="prepared folder")
    parser.add_argument("--backgrounds", default="", help="for the scenes")
    parser.add_argument("--count", type=int, default=150, help="scenes")
    parser.add_argument("--clip", type=Path, action="append", default=[])
    parser.add_argument("--every", type=int, default=5, help="frames of a clip")
    parser.add_argument("--yunet", type=Path)
    parser.add_argument("--mesh", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    ours = load_model(chosen.detector).folded()
    detectors = {
        "centerface": CenterFaceDetector(sides=VIDEO_SIDES, threshold=LOW),
        "ours": GridDetector(ours, sides=VIDEO_SIDES, threshold=LOW),
    }
    sets: dict[str, Iterator[Labels]] = {}
    if chosen.scenes:
        sets["scenes"] = scenes_of(chosen.scenes, chosen.backgrounds, chosen.count)
    if chosen.clip:
        arbiter = Arbiter(chosen.yunet, chosen.mesh)
        for clip in chosen.clip:
            sets[clip.stem] = (arbiter(frame) for frame in frames_of(clip, chosen.every))
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, labels in sets.items():
        scores = {kind: Score() for kind in detectors}
        for each in labels:
            for kind, detector in detectors.items():
                judge(detector, [each], scores[kind])
        table[name] = {kind: summary(score) for kind, score in scores.items()}
        print(json.dumps({name: table[name]}, indent=1))


if __name__ == "__main__":
    main()
