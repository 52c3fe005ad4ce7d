"""Training of MeshNet: dense points distilled from labels of a teacher.

The teacher labelled each stored crop once, in its own best crop; the student sees that face moved,
turned, scaled, mirrored, recoloured and degraded, and must give the same points.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.models import mesh as layout
from faceswap.models import save_model
from faceswap.models.mesh import MeshNet
from faceswap.ops import topology
from faceswap.ops.geometry import align
from faceswap.train.config import TrainConfig
from faceswap.train.data import Crops, jitter_matrix, map_points, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View
from faceswap.train.wear import Motion, draw_motion, motion_blurred

JITTER = Jitter(rotation=7, scale=0.08, shift=0.035)
_MOVED, _MOTION = 0.4, 0.025  # share blurred by motion, and how far, of the side


def mirror_order(mesh: Tensor) -> Tensor:
    """Which point each point becomes when a face is mirrored.

    Found from the data: the mean face is symmetric, so its mirror image matched one-to-one to
    itself gives the order (Hungarian assignment).

    Args:
        mesh: ``(M, P, 3)`` float32 points of many faces in aligned crops.

    Returns:
        ``(P,) int64``; an involution.
    """
    from scipy.optimize import linear_sum_assignment

    mean = mesh[:, :, :].median(0).values
    mean = mean - mean.mean(0)
    mirrored = mean * torch.tensor([-1.0, 1.0, 1.0])
    cost = torch.cdist(mirrored[:468], mean[:468])
    order = torch.as_tensor(linear_sum_assignment(cost.numpy())[1])
    # The iris ring starts at the nose side in one eye and at the temple in the other.
    iris = torch.cdist(mirrored[468:], mean[468:])
    ring = torch.as_tensor(linear_sum_assignment(iris.numpy())[1]) + 468
    return torch.cat([order, ring])


def mesh_loss(
    predicted: Tensor,  # (N, 478, 3) crop px
    target: Tensor,  # (N, 478, 3) crop px
    weight: Tensor,  # (478,)
) -> tuple[Tensor, Tensor]:
    """Weighted L1 in units of the eye distance, and the plain mean error of x, y.

    L = mean_p w_p (|dx| + |dy| + 0.3 |dz|) / e, with e the distance of the outer eye corners,
    at least 15 % of the crop's points' spread so that profiles do not explode.
    """
    eye = (target[:, 33, :2] - target[:, 263, :2]).norm(dim=-1)
    spread = (target[:, 152, :2] - target[:, 10, :2]).norm(dim=-1)
    unit = torch.maximum(eye, 0.4 * spread)[:, None]
    delta = (predicted - target).abs()
    term = (delta[..., 0] + delta[..., 1] + 0.3 * delta[..., 2]) * weight / unit
    error = (predicted - target)[..., :2].norm(dim=-1).mean(1) / unit[:, 0]
    return term.mean(), error.detach().mean()


def _weights() -> Tensor:
    weight = torch.ones(layout.POINTS)
    fine = topology.EYE_LEFT + topology.EYE_RIGHT + topology.INNER_LIPS + topology.OUTER_LIPS
    weight[list(fine)] = 2.0
    weight[468:] = 3.0
    return weight / weight.mean()


def _start_from_face_space(net: MeshNet, data: Crops, base: Tensor, rows: Tensor) -> None:
    """Begin the last layer with the principal components of jittered faces, of unit variance."""
    generator = torch.Generator().manual_seed(0)
    pick = rows[torch.randint(len(rows), (3000,), generator=generator)]
    matrix = jitter_matrix(
        base[pick],
        net.size,
        rotation=JITTER.rotation,
        scale=JITTER.scale,
        shift=JITTER.shift,
        generator=generator,
    )
    mesh = map_points(data.mesh[pick], matrix).flatten(1) / net.size
    mean = mesh.mean(0)
    _, sigma, vt = torch.linalg.svd(mesh - mean, full_matrices=False)
    rank = net.points.in_features
    with torch.no_grad():
        net.points.weight.copy_((sigma[:rank, None] * vt[:rank] / len(pick) ** 0.5).T)
        net.points.bias.copy_(mean)


def unmirrored(mesh: Tensor, size: int) -> Tensor:
    """Points of mirrored crops of side ``size`` in pixels of the crops, each with its own name."""
    mesh = mesh.clone()
    mesh[..., 0] = size - 1 - mesh[..., 0]
    return mesh


def wanted_points(
    mesh: Tensor,  # (N, 478, 3) what the teacher sees in the crops, crop px
    turned: Tensor | None,  # (N, 478, 3) what it sees in the mirrored ones, crop px; not known
    view: View,
    order: Tensor,  # (478,) int64, of `mirror_order`
) -> Tensor:
    """Points of the views, ``(N, 478, 3)`` in their pixels.

    FaceMesh sees a mirrored face 3 % of the eye distance away from the mirror image of where it
    sees the face. Where it was asked (``scripts/label_mirrored.py``), a mirrored view has its
    answer to that view; else the points change places.
    """
    straight = map_points(mesh, view.matrix)
    mirrored = straight[:, order] if turned is None else map_points(turned, view.matrix)
    return torch.where(view.flip[:, None, None], mirrored, straight)


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch of n before its views are made."""

    view: View
    color: Tensor  # (n, 6) random numbers of `recolor`
    motion: Motion
    coarse: tuple[Coarse, ...]
    present: Tensor  # (n,) bool, a face and not tiles of one
    shown: Tensor  # (m,) int64, rows of these
    target: Tensor  # (m, 478, 3) float32, view px


def build(config: TrainConfig, data: Crops, device: torch.device) -> Task:
    """The MeshNet task on a prepared folder."""
    net = MeshNet(**config.model).to(device)
    net = net.to(memory_format=torch.channels_last)
    rows, _ = data.split()
    store = Store(data, device)
    order = mirror_order(data.mesh)
    mirrored = None if data.mirrored is None else unmirrored(data.mirrored, data.size)
    weight = _weights().to(device)
    far = config.augment
    jitter = Jitter(
        rotation=JITTER.rotation * far, scale=JITTER.scale * far, shift=JITTER.shift * far
    )
    base = align(data.points, net.size, template=layout.TEMPLATE, margin=layout.MARGIN).matrix
    _start_from_face_space(net, data, base, rows)
    head = list(net.points.parameters())
    body = [p for name, p in net.named_parameters() if not name.startswith("points.")]
    # The head's unit is the crop side: a full step there would throw points by tens of pixels.
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": head, "lr_scale": 0.03, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.02, fused=True)

    def draw(generator: torch.Generator) -> _Draw:
        n = config.batch_size
        pick = rows[torch.randint(len(rows), (n,), generator=generator)]
        view = store.draw(pick, base[pick], net.size, jitter, generator)
        turned = None if mirrored is None else mirrored[pick]
        target = wanted_points(data.mesh[pick], turned, view, order)
        target[..., 2] -= target[:, :468, 2].mean(1, keepdim=True)
        color = torch.rand(n, 6, generator=generator)
        coarse = draw_coarse((n, 3, net.size, net.size), 0.5 * min(1.0, far), generator)
        motion = draw_motion(n, _MOVED * min(1.0, far), _MOTION * net.size, generator)
        # One view in eight is shuffled to tiles: no face is there.
        present = torch.rand(n, generator=generator) > 0.125
        shown = torch.nonzero(present)[:, 0]
        return _Draw(view, color, motion, coarse, present, shown, target[shown])

    feed = feed_of(draw, config, device, data.wait)

    def views(drawn: _Draw) -> Tensor:
        images = recolor(store.show(drawn.view, net.size), drawn.color, 0.3 * far)
        images = degrade(motion_blurred(images, drawn.motion), drawn.coarse)
        half = net.size // 2
        broken = torch.roll(images, (half, half // 2), (2, 3)).flip(2)
        return torch.where(drawn.present[:, None, None, None], images, broken)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = moved(feed.take(index, generator), device)
        images = views(drawn)
        net.train()
        with autocast(config.precision, device):
            points, presence = net(images.contiguous(memory_format=torch.channels_last))
        points, presence = points.float(), presence.float()
        loss, error = mesh_loss(points[drawn.shown], drawn.target, weight)
        exists = F.binary_cross_entropy_with_logits(presence, drawn.present.float())
        total = loss + 0.02 * exists
        check_finite({"points": loss, "presence": exists})
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return {"points": loss, "presence": exists, "error_%": 100 * error}

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "mesh.safetensors", average, "mesh", dict(config.model))

    return Task({"mesh": net}, {"mesh": optimizer}, step, "mesh", export)
