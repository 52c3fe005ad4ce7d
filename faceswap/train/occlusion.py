"""Training of OcclusionNet: faces with something drawn before them, and where it is.

Some photos show real glasses that nobody has marked. They would teach that only drawn ones count,
so the photos that look most like it are left out (`faceswap.train.wearers`). Once there is a
network, it tells who wears some and marks them for the next, which sees them recoloured and
degraded (a noisy student; Xie et al., CVPR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import load_model, save_model
from faceswap.models.occlusion import OcclusionNet
from faceswap.occlude import near_face
from faceswap.ops.color import luma
from faceswap.ops.geometry import align
from faceswap.ops.topology import five_points
from faceswap.train.config import OcclusionRunConfig
from faceswap.train.data import Crops, cut, map_points, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.mesh import mirror_order
from faceswap.train.occluders import Drawn, cover, draw_occluders
from faceswap.train.preview import save_sheet
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View
from faceswap.train.wear import Motion, draw_motion, motion_blurred
from faceswap.train.wearers import clearest, glasses_score, real_glasses

JITTER = Jitter(rotation=4, scale=0.07, shift=0.03)
_COLOR = 0.25  # largest change of brightness, contrast, saturation
_GREY = 0.8  # share of crops without colour: what is not of the colour of skin is too easy a sign
_MOVED, _MOTION = 0.3, 0.02  # share blurred by motion, and how far, of the side
# Most crops lose what is finer than their photos are: else what is sharp would be taken for drawn,
# and a rim in a photo, which is as soft as the face, for none.
_SOFT, _COARSE = 0.9, (56, 120)  # share, and sides in px that they are brought down to
_NONE, _SOME = 0.2, 0.4  # how clearly a network sees glasses where there are none, and some
_PART = 64  # crops that are looked at together
_SHEET = 12  # held-back faces in a preview


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch before its views are made."""

    view: View
    size: int
    mesh: Tensor  # (n, 478, 3) float32, view px
    occluders: Drawn
    color: Tensor  # (n, 6) random numbers of `recolor`
    grey: Tensor  # (n, 1, 1, 1) bool, without colour
    motion: Motion
    coarse: tuple[Coarse, ...]
    wearers: int  # of the faces, the last ones


def occlusion_loss(
    logits: Tensor,  # (N, 1, S, S) float32
    truth: Tensor,  # (N, 1, S, S) in [0, 1], share of the pixel that is covered
    weight: Tensor,  # (N, 1, S, S) in [0, 1], pixels that count
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the pixels, and 1 - soft Dice (Milletari et al., 3DV 2016).

    L_pixels = sum w BCE(p, t) / sum w
    L_overlap = 1 - (2 sum w p t + 1) / (sum w p + sum w t + 1), sums over the whole batch: one
    picture alone may have nothing before it, where Dice says next to nothing.
    """
    probability = weight * logits.sigmoid()
    each = F.binary_cross_entropy_with_logits(logits, truth, weight=weight, reduction="sum")
    both, either = (probability * truth).sum(), probability.sum() + (weight * truth).sum()
    return each / weight.sum().clamp_min(1), 1 - (2 * both + 1) / (either + 1)


def bare(data: Crops, rows: Tensor, leave_out: float) -> Tensor:
    """Rows without the share that looks most as if it showed real glasses; one stays at least."""
    score = glasses_score(data)[rows] if leave_out else torch.zeros(len(rows))
    keep = max(1, len(rows) - round(leave_out * len(rows)))
    return rows[score.argsort(stable=True)[:keep]].sort().values


def told_apart(
    data: Crops, rows: Tensor, teacher: OcclusionNet, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows that show real glasses, and those that do not, as a network sees them; one at least."""
    base = align(five_points(data.mesh[rows]), teacher.size, template=data.template).matrix
    mesh = map_points(data.mesh[rows], base)
    levels = []
    for part in torch.arange(len(rows)).split(_PART):
        images = cut(data.read(rows[part]).to(device), base[part].to(device), teacher.size)
        seen = teacher(images.contiguous(memory_format=torch.channels_last)).sigmoid()
        levels.append(clearest(seen, mesh[part].to(device)).cpu())
    level = torch.cat(levels)
    order = level.argsort(stable=True)
    plain = max(1, int((level < _NONE).sum()))
    worn = max(1, int((level > _SOME).sum()))
    return rows[order[-worn:]].sort().values, rows[order[:plain]].sort().values


def load_teacher(config: OcclusionRunConfig, device: torch.device) -> OcclusionNet | None:
    """The network that tells who wears real glasses, and marks them; None where none is named.

    Raises:
        ConfigError: there are to be wearers and no network is named, or it is another kind.
        MissingWeightError, WeightError: see `load_model`.
    """
    if not config.teacher:
        if config.wearers:
            raise ConfigError(
                "wearers: set teacher=FILE, an occlusion network that marks their glasses"
            )
        return None
    net = load_model(config.teacher, device=device)
    if not isinstance(net, OcclusionNet):
        raise ConfigError(f"teacher {config.teacher}: a {type(net).__name__}, not an OcclusionNet")
    return net.requires_grad_(False)


def _seen(teacher: OcclusionNet, images: Tensor) -> Tensor:
    """Probabilities ``(N, 1, S, S)``, with those of the mirror images."""
    both = teacher(torch.cat([images, images.flip(3)])).sigmoid()
    one, other = both.chunk(2)
    out: Tensor = (one + other.flip(3)) / 2
    return out


def build(config: OcclusionRunConfig, data: Crops, device: torch.device) -> Task:
    """The occlusion task on a prepared folder."""
    net = OcclusionNet(**config.model.model_dump()).to(device)
    for side in config.sides:
        if side % net.stride or side < net.stride:
            raise ConfigError(f"sides: {side} is no multiple of {net.stride}")
    net = net.to(memory_format=torch.channels_last)
    rows, held = data.split()
    teacher = load_teacher(config, device)
    if teacher is None:
        worn, rows = rows, bare(data, rows, config.leave_out)
    else:
        with torch.no_grad():
            worn, rows = told_apart(data, rows, teacher, device)
    store = Store(data, device)
    order = mirror_order(data.mesh)
    base = {
        side: align(five_points(data.mesh), side, template=data.template).matrix
        for side in config.sides
    }
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=0.02, fused=True)

    def draw(generator: torch.Generator) -> _Draw:
        size = config.sides[int(torch.randint(len(config.sides), (1,), generator=generator))]
        n = max(2, round(config.batch_size * (min(config.sides) / size) ** 2))
        wearers = round(config.wearers * n)
        pick = rows[torch.randint(len(rows), (n - wearers,), generator=generator)]
        pick = torch.cat([pick, worn[torch.randint(len(worn), (wearers,), generator=generator)]])
        view = store.draw(pick, base[size][pick], size, JITTER, generator)
        mesh = map_points(data.mesh[pick], view.matrix)
        mesh = torch.where(view.flip[:, None, None], mesh[:, order], mesh)
        occluders = draw_occluders(n, size, config.occluders, generator)
        for each in (occluders.glasses, occluders.things):
            each[n - wearers :] = False
        color = torch.rand(n, 6, generator=generator)
        low, high = (min(1.0, side / size) for side in _COARSE)
        shape = (n, 3, size, size)
        coarse = draw_coarse(shape, _SOFT, generator, smallest=low, largest=high)
        grey = torch.rand(n, 1, 1, 1, generator=generator) < _GREY
        motion = draw_motion(n, _MOVED, _MOTION * size, generator)
        return _Draw(view, size, mesh, occluders, color, grey, motion, coarse, wearers)

    feed = feed_of(draw, config, device, data.wait)

    def views(drawn: _Draw) -> tuple[Tensor, Tensor, Tensor]:
        images = store.show(drawn.view, drawn.size)
        images, truth = cover(images, drawn.mesh, drawn.occluders)
        weight = near_face(drawn.mesh, drawn.size)
        if teacher is not None and drawn.wearers:
            part = slice(len(images) - drawn.wearers, None)
            truth[part], known = real_glasses(_seen(teacher, images[part]), drawn.mesh[part])
            weight[part] *= known
        images = motion_blurred(recolor(images, drawn.color, _COLOR), drawn.motion)
        images = degrade(images, drawn.coarse)
        images = torch.where(drawn.grey, luma(images), images)
        return images, truth, weight

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = moved(feed.take(index, generator), device)
        with torch.no_grad():
            images, truth, near = views(drawn)
        net.train()
        with autocast(config.precision, device):
            logits = net(images.contiguous(memory_format=torch.channels_last))
        pixels, overlap = occlusion_loss(logits.float(), truth, near)
        terms = {"pixels": pixels, "overlap": overlap}
        check_finite(terms)
        optimizer.zero_grad()
        torch.stack(
            [getattr(config.losses, n) * term for n, term in terms.items()]
        ).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        found, wanted = ((x > 0.5) & (near > 0.5) for x in (logits.detach().sigmoid(), truth))
        either = (found | wanted).sum().clamp_min(1)
        return {**terms, "iou_%": 100 * (found & wanted).sum() / either}

    @torch.no_grad()
    def preview(average: nn.Module, path: Path) -> None:
        """Held-back faces, bare and with something drawn, each above what is found there."""
        random, size = torch.Generator().manual_seed(2), max(config.sides)
        pick = held[:_SHEET]
        still = moved(store.still(pick, base[size][pick]), device)
        plain = store.show(still, size)
        mesh = map_points(data.mesh[pick], base[size][pick]).to(device)
        occluders = draw_occluders(len(pick), size, config.occluders, random)
        covered, truth = cover(plain, mesh, moved(occluders, device))
        rows = []
        for images in (plain, covered):
            rows += [images, average.eval()(images).sigmoid().expand_as(images)]
        save_sheet(path, [*rows, truth.expand_as(plain)])

    def export(average: nn.Module, out: Path) -> None:
        args = config.model.model_dump(mode="json")
        save_model(out / "occlusion.safetensors", average, "occlusion", args)

    return Task({"occlusion": net}, {"occlusion": optimizer}, step, "occlusion", export, preview)
