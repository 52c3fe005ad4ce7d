"""Training of FaceDetector on composed scenes, where every face is known.

Labels are those of the prepared crops: the box around the teacher's mesh, and its five points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError, MediaError
from faceswap.models import save_model
from faceswap.models.detector import FaceDetector, Grid
from faceswap.train.cells import Answers, answer
from faceswap.train.collage import Material
from faceswap.train.config import DetectorConfig
from faceswap.train.crowd import shows_others
from faceswap.train.data import Crops, load_crops
from faceswap.train.preview import save_sheet
from faceswap.train.processes import Elsewhere
from faceswap.train.scenes import draw_scenes, load_backgrounds
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved

_SHEET = 8  # scenes of a preview
_SHEET_ROWS = 256  # faces they are made of


@dataclass(frozen=True, slots=True)
class _Batch:
    """Scenes and what the grids should say of them."""

    images: Tensor  # (B, 3, S, S) float in [0, 1]
    answers: Answers


def quality_focal_loss(
    logits: Tensor,  # (M,)
    quality: Tensor,  # (M,) in [0, 1], 0 for background
) -> Tensor:
    """sum |q - p|^2 BCE(p, q), p = sigmoid(logits).

    Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. 2 with beta = 2: the score learns how
    well the box fits.
    """
    weight = (quality - logits.sigmoid()).square()
    return (weight * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()


def generalised_iou(
    a: Tensor,  # (N, 4) x0 y0 x1 y1
    b: Tensor,  # (N, 4)
) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of box i with box i, ``(N,)`` each.

    Rezatofighi et al., CVPR 2019: GIoU = IoU - (|C| - |A or B|) / |C|, C the box around both.
    """
    inside = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0)
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    both = inside.prod(1)
    either = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    iou = both / either.clamp_min(1e-6)
    return iou, iou - 1 + either / around.prod(1).clamp_min(1e-6)


def detector_losses(
    grids: list[Grid],
    answers: Answers,  # on their device
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms "score", "box" and "points", and the mean error of the points.

    Points are in units of the face's size (root of its box's area), by smooth L1 that turns into a
    straight line at 2 %.
    """
    logits = torch.cat([g.score.flatten(1) for g in grids], 1).flatten()
    box = torch.cat([g.box.flatten(1, 2) for g in grids], 1).flatten(0, 1)
    points = torch.cat([g.points.flatten(1, 2) for g in grids], 1).flatten(0, 1)
    mine, wanted = answers.seeing, answers.box
    iou, giou = generalised_iou(box[mine], wanted)
    quality = torch.zeros_like(logits)
    quality[mine] = iou.detach()
    number = max(1, len(mine))
    size = (wanted[:, 2:] - wanted[:, :2]).prod(1).sqrt()[:, None, None]
    off = (points[mine] - answers.points) / size
    terms = {
        "score": quality_focal_loss(logits[answers.asked], quality[answers.asked]) / number,
        "box": (1 - giou).sum() / number,
        "points": F.smooth_l1_loss(off, torch.zeros_like(off), beta=0.02, reduction="sum")
        / (10 * number),
    }
    return terms, off.detach().norm(dim=2).sum() / (5 * number)


def _material(config: DetectorConfig, data: Crops, rows: Tensor) -> Material:
    return Material(
        data,
        rows,
        load_backgrounds(config.backgrounds),
        size=config.size,
        smallest=config.smallest,
        largest=config.largest,
    )


def _alone(data: Crops, rows: Tensor) -> Tensor:
    """Rows of crops that show one face.

    Raises:
        MediaError: none does.
    """
    alone = rows[~shows_others(data, rows)]
    if not len(alone):
        raise MediaError("every prepared crop shows a second face; scenes need some without")
    return alone


def batches(
    config: DetectorConfig, rows: Tensor, data: Crops | None = None
) -> Callable[[torch.Generator], _Batch]:
    """What composes a batch, of the faces in some rows; opens the data if it is not given."""
    material = _material(config, data or load_crops(Path(config.data)), rows)

    def make(generator: torch.Generator) -> _Batch:
        scenes = draw_scenes(material, config.batch_size, generator)
        return _Batch(scenes.images, answer(scenes))

    return make


def build(config: DetectorConfig, data: Crops, device: torch.device) -> Task:
    """The "detector" task on a prepared folder.

    Raises:
        ConfigError: a scene that does not fit the grids.
        MediaError: see `load_backgrounds`; or no crop shows one face only.
    """
    if config.size % 32:
        raise ConfigError(f"size {config.size}: a scene's side is a multiple of 32")
    args = config.model.model_dump()
    net = FaceDetector(**args).to(device).to(memory_format=torch.channels_last)
    rows, held = data.split()
    training = _alone(data, rows)
    unseen = _material(config, data, _alone(data, held[:_SHEET_ROWS]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-3)
    weights = config.losses.model_dump()
    make = batches(config, training, data)
    if device.type != "cpu" and config.workers:  # in threads they would keep a GPU waiting
        make = Elsewhere(partial(batches, config, training), config.workers)
    feed = feed_of(make, config, device, data.wait)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = moved(feed.take(index, generator), device)
        net.train()
        with autocast(config.precision, device):
            grids = net(batch.images)
        terms, error = detector_losses(grids, batch.answers)
        check_finite(terms)
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        return {**terms, "error": error}

    @torch.no_grad()
    def preview(average: nn.Module, path: Path) -> None:
        pictures = draw_scenes(unseen, _SHEET, torch.Generator().manual_seed(5)).images
        average.eval()
        for grid in average(pictures.to(device)):
            score, box, points = grid.score.cpu(), grid.box.cpu(), grid.points.cpu()
            for frame, y, x in torch.nonzero(score > 0).tolist():
                at = frame, y, x
                draw_face(pictures[frame], box[at] - 0.5, points[at] - 0.5)
        save_sheet(path, list(pictures.split(_SHEET // 2)))

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "detector.safetensors", average, "detector", args, {"recipe": "detector"})

    return Task({"detector": net}, {"detector": optimizer}, step, "detector", export, preview)


def draw_face(
    picture: Tensor,  # (3, H, W) float in [0, 1], changed in place
    box: Tensor,  # (4,) px
    points: Tensor,  # (5, 2) px
) -> None:
    """A green box and red points."""
    height, width = picture.shape[1:]
    x0, y0, x1, y1 = box.round().long().tolist()
    green, red = picture.new_tensor([0, 1, 0]), picture.new_tensor([1, 0, 0])
    left, right = max(0, x0), min(width - 1, x1)
    top, bottom = max(0, y0), min(height - 1, y1)
    for y in {top, bottom}:
        picture[:, y, left : right + 1] = green[:, None]
    for x in {left, right}:
        picture[:, top : bottom + 1, x] = green[:, None]
    for x, y in points.round().long().tolist():
        if 0 <= x < width and 0 <= y < height:
            picture[:, y : y + 2, x : x + 2] = red[:, None, None]
