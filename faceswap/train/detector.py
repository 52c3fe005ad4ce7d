"""Training of FaceDetector on composed scenes, where every face is known.

Labels are those of the prepared crops: the box around the teacher's mesh, and its five points.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError, MediaError
from faceswap.models import DTYPES, save_model
from faceswap.models.detector import FaceDetector, Grid
from faceswap.train.collage import Material
from faceswap.train.config import DetectorConfig
from faceswap.train.crowd import shows_others
from faceswap.train.data import Crops
from faceswap.train.feed import Feed
from faceswap.train.loop import Task, check_finite
from faceswap.train.preview import save_sheet
from faceswap.train.scenes import Scenes, draw_scenes, load_backgrounds

# px, root of the box's area: faces each grid answers for; they overlap
RANGES = {8: (0.0, 56.0), 16: (36.0, 150.0), 32: (100.0, float("inf"))}
_BETWEEN = 1.4  # a face that is outside a range by less than this factor is left open there
_SHEET = 8  # scenes of a preview
_SHEET_ROWS = 256  # faces they are made of


def from_edge(scenes: Scenes) -> Scenes:
    """Labels as the grids count: from the picture's edge, where a pixel's middle is at 1/2.

    Pictures have pixel middles at whole numbers (see `faceswap.faces.detect`, which goes back).
    """
    return replace(scenes, box=scenes.box + 0.5, points=scenes.points + 0.5)


def assign(
    grids: list[Grid],
    scenes: Scenes,  # labels `from_edge`
) -> tuple[Tensor, Tensor]:
    """Which cells have to see which face.

    A face belongs to the cells around its middle (three quarters of a cell, or 15 % of its size)
    of the grids whose range it is in. The other cells in its inner part, and cells of faces that
    do not count, are left open; every other cell is background. Of two faces the smaller wins.

    Returns:
        ``owner (B, cells) int64``, row of `scenes` or -1, and ``open (B, cells) bool``.
    """
    frames = scenes.images.shape[0]
    place, stride = [], []
    for grid in grids:
        height, width = grid.score.shape[1:]
        x = (torch.arange(width) + 0.5) * grid.stride
        y = (torch.arange(height) + 0.5) * grid.stride
        cells = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
        place.append(cells.flatten(0, 1))
        stride.append(torch.full((height * width,), float(grid.stride)))
    cell, step = torch.cat(place), torch.cat(stride)
    low = torch.tensor([RANGES[int(s)][0] for s in step.tolist()])
    high = torch.tensor([RANGES[int(s)][1] for s in step.tolist()])
    owner = torch.full((frames, len(cell)), -1, dtype=torch.int64)
    open_ = torch.zeros(frames, len(cell), dtype=torch.bool)
    extent = scenes.box[:, 2:] - scenes.box[:, :2]
    size = extent.prod(1).sqrt()
    for i in torch.argsort(size, descending=True).tolist():
        frame = int(scenes.frame[i])
        off = (cell - (scenes.box[i, :2] + scenes.box[i, 2:]) / 2).abs()
        near = (off <= torch.maximum(0.75 * step, 0.15 * size[i])[:, None]).all(1)
        inner = (off <= 0.4 * extent[i]).all(1) | near
        mine = (size[i] > low) & (size[i] <= high)
        almost = (size[i] > low / _BETWEEN) & (size[i] <= high * _BETWEEN)
        open_[frame] |= inner & almost
        if scenes.counts[i]:
            owner[frame] = torch.where(near & mine, i, owner[frame])
        else:
            open_[frame] |= inner
            owner[frame] = torch.where(inner & (owner[frame] >= 0), -1, owner[frame])
    return owner, open_ & (owner < 0)


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


def detector_losses(grids: list[Grid], scenes: Scenes) -> tuple[dict[str, Tensor], Tensor]:
    """The terms "score", "box" and "points", and the mean error of the points.

    Points are in units of the face's size (root of its box's area), by smooth L1 that turns into a
    straight line at 2 %.
    """
    scenes = from_edge(scenes)
    owner, open_ = assign(grids, scenes)
    device = scenes.images.device
    owner, open_ = owner.to(device), open_.to(device)
    logits = torch.cat([g.score.flatten(1) for g in grids], 1)
    box = torch.cat([g.box.flatten(1, 2) for g in grids], 1)
    points = torch.cat([g.points.flatten(1, 2) for g in grids], 1)
    mine = owner >= 0
    rows = owner[mine]
    wanted = scenes.box.to(device)[rows]
    iou, giou = generalised_iou(box[mine], wanted)
    quality = torch.zeros_like(logits)
    quality[mine] = iou.detach()
    number = max(1, len(rows))
    size = (wanted[:, 2:] - wanted[:, :2]).prod(1).sqrt()[:, None, None]
    off = (points[mine] - scenes.points.to(device)[rows]) / size
    terms = {
        "score": quality_focal_loss(logits[~open_], quality[~open_]) / number,
        "box": (1 - giou).sum() / number,
        "points": F.smooth_l1_loss(off, torch.zeros_like(off), beta=0.02, reduction="sum")
        / (10 * number),
    }
    return terms, off.detach().norm(dim=2).sum() / (5 * number)


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
    backgrounds = load_backgrounds(config.backgrounds)
    rows = torch.nonzero(~data.held_back)[:, 0]
    rows = rows if len(rows) else torch.arange(len(data))
    held = torch.nonzero(data.held_back)[:_SHEET_ROWS, 0]
    held = held if len(held) else rows[:_SHEET_ROWS]

    def material(of: Tensor) -> Material:
        alone = of[~shows_others(data, of)]
        if not len(alone):
            raise MediaError("every prepared crop shows a second face; scenes need some without")
        return Material(
            data,
            alone,
            backgrounds,
            size=config.size,
            smallest=config.smallest,
            largest=config.largest,
        )

    training, unseen = material(rows), material(held)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-3)
    dtype = DTYPES[config.precision]
    weights = config.losses.model_dump()

    feed = Feed(
        lambda generator: draw_scenes(training, config.batch_size, generator),
        seed=config.seed,
        workers=config.workers,
        ahead=config.ahead,
        wait=data.wait,
    )

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        scenes = feed.take(index, generator).to(device)
        net.train()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            grids = net(scenes.images)
        terms, error = detector_losses(grids, scenes)
        check_finite(terms)
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        return {**terms, "error": error}

    @torch.no_grad()
    def preview(average: nn.Module, path: Path) -> None:
        scenes = draw_scenes(unseen, _SHEET, torch.Generator().manual_seed(5)).to(device)
        average.eval()
        pictures = scenes.images.clone().cpu()
        for grid in average(scenes.images):
            found = torch.nonzero(grid.score > 0)
            for frame, y, x in found.tolist():
                at = frame, y, x
                draw_face(pictures[frame], grid.box[at] - 0.5, grid.points[at] - 0.5)
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
