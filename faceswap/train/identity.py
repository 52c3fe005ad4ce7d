"""Training of IdentityNet: a recogniser distilled from a teacher's embeddings.

The teacher embedded each photo once. The student sees it moved, mirrored, recoloured, degraded,
and must give the same direction. Directions alone are learned: comparison is by cosine.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import save_model
from faceswap.models.identity import IdentityNet
from faceswap.ops.geometry import align
from faceswap.train.config import TrainConfig
from faceswap.train.data import Crops, cut, jitter_color, jitter_matrix
from faceswap.train.degrade import degrade
from faceswap.train.loop import Task, Term, autocast, check_finite

WEIGHTS = {"direction": 1.0, "relation": 10.0, "ranking": 0.3}


def distillation_loss(
    student: Tensor,  # (N, D) embeddings
    teacher: Tensor,  # (N, D) embeddings
) -> tuple[Tensor, Tensor]:
    """How far directions and their mutual angles are from the teacher's.

    Returns:
        ``1 - mean cos(s_i, t_i)``, and the mean squared difference of the two cosine matrices
        off their diagonals (relational knowledge distillation, Park et al., CVPR 2019).
    """
    s, t = F.normalize(student), F.normalize(teacher)
    direction = 1 - (s * t).sum(1).mean()
    off = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    relation = (s @ s.T - t @ t.T)[off].square().mean()
    return direction, relation


def ranking_loss(
    student: Tensor,  # (N, D) embeddings
    teacher: Tensor,  # (N, D) embeddings of the same photos
    gallery: Tensor,  # (M, D) unit embeddings of everybody, by the teacher
    *,
    temperature: float = 0.05,
) -> Tensor:
    """Whom a face resembles, and how much more than others, as the teacher sees it.

    KL(softmax(t G^T / T) || softmax(s G^T / T)), the mean over the batch: knowledge distillation
    (Hinton et al. 2015) where the classes are the photos of the training set. What counts in it is
    the order of the most similar people, which a mean cosine hardly sees.
    """
    s, t = (F.normalize(x) @ gallery.T / temperature for x in (student, teacher))
    return F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)


def build(config: TrainConfig, data: Crops, device: torch.device) -> Task:
    """The identity task on a prepared folder with embeddings."""
    if data.embedding is None:
        raise ConfigError(
            f"{config.data}: no identity embeddings; make it again with faceswap prepare"
        )
    net = IdentityNet(**config.model).to(device).to(memory_format=torch.channels_last)
    teacher = data.embedding
    weight = {**WEIGHTS, **config.losses}
    rows = torch.nonzero(~data.held_back)[:, 0]
    held = torch.nonzero(data.held_back)[:, 0][:256]
    base = align(data.points, net.size, template="arcface").matrix
    gallery = F.normalize(teacher[rows]).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=0.05, fused=True)

    def step(index: int, generator: torch.Generator) -> dict[str, Term]:
        n = config.batch_size
        pick = rows[torch.randint(len(rows), (n,), generator=generator)]
        flip = torch.rand(n, generator=generator) < 0.5
        matrix = jitter_matrix(
            base[pick],
            net.size,
            rotation=3,
            scale=0.03,
            shift=0.015,
            flip=flip,
            generator=generator,
        )
        views = cut(data.pixels(pick), matrix, net.size)
        views = degrade(jitter_color(views, 0.2, generator), 0.3, generator, smallest=0.35)
        net.train()
        views = views.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(config.precision, device):
            found = net(views)
        wanted = teacher[pick].to(device)
        direction, relation = distillation_loss(found.float(), wanted)
        terms = {
            "direction": direction,
            "relation": relation,
            "ranking": ranking_loss(found.float(), wanted, gallery),
        }
        check_finite(terms)
        optimizer.zero_grad()
        torch.stack([weight[name] * value for name, value in terms.items()]).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        seen: dict[str, Term] = {"cosine": 1 - direction}
        seen |= {name: terms[name] for name in ("relation", "ranking")}
        if index % 100 == 99:
            seen["held_back_x20"] = 20 * _agreement(net)
        return seen

    @torch.no_grad()
    def _agreement(model: nn.Module) -> float:
        """Mean cosine to the teacher on people held back."""
        model.eval()
        out = [
            model(cut(data.pixels(part), base[part], net.size).to(device))
            for part in held.split(32)
        ]
        return float(F.cosine_similarity(torch.cat(out).cpu(), teacher[held]).mean())

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "identity.safetensors", average, "identity", dict(config.model))

    return Task({"identity": net}, {"identity": optimizer}, step, "identity", export)
