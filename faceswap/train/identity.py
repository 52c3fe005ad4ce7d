"""Training of IdentityNet: a recogniser distilled from a teacher's embeddings.

The teacher embedded each photo once, or answers for each view, mixtures of two faces among them
(`faceswap.train.mixture`). The student sees it moved, mirrored, recoloured, degraded, and must give
the same direction. Directions alone are learned: comparison is by cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import save_model
from faceswap.models.identity import IdentityNet
from faceswap.ops.geometry import align
from faceswap.train.config import TrainConfig
from faceswap.train.data import Crops, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.label import Recogniser, load_recogniser
from faceswap.train.mixture import Mixing, draw_mixing, mixed
from faceswap.train.task import Task, Term, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View

JITTER = Jitter(rotation=3, scale=0.03, shift=0.015)
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
    apart = s @ s.T - t @ t.T
    # All but the diagonal, in order, without looking for it: that would wait for a GPU.
    n = len(s)
    off = apart.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()
    relation = off.square().mean()
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


def toward_people(
    embedding: Tensor,  # (M, D) of photos
    person: Tensor,  # (M,) int64, whose they are, 0 to K - 1
    share: float,
) -> Tensor:
    """Unit embeddings ``(M, D)``, drawn to the person's class centre by this share in [0, 1].

    What photos of one person have in common is who they are; the rest is pose, light and the
    teacher's own error, which a student need not learn.
    """
    unit = F.normalize(embedding)
    people = unit.new_zeros(int(person.max()) + 1, unit.shape[1]).index_add_(0, person, unit)
    return F.normalize(torch.lerp(unit, F.normalize(people)[person], share))


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch of n before its views are made."""

    view: View
    color: Tensor  # (n, 6) random numbers of `recolor`
    coarse: tuple[Coarse, ...]
    teacher: Tensor  # (n, D) embeddings of the photos, by the teacher
    other: View | None  # faces that the first ones are mixed with
    mixing: Mixing | None


def _teacher(config: TrainConfig, device: torch.device, size: int) -> Recogniser:
    assert config.teacher is not None
    found = load_recogniser(config.teacher, device)
    numbers = found(torch.zeros(1, 3, found.size, found.size, device=device)).shape[1]
    if numbers != size:
        raise ConfigError(
            f"teacher: {config.teacher} gives {numbers} numbers, the data have {size}; "
            "name the teacher that they were prepared with"
        )
    return found


def build(config: TrainConfig, data: Crops, device: torch.device) -> Task:
    """The identity task on a prepared folder with embeddings."""
    if data.embedding is None:
        raise ConfigError(
            f"{config.data}: no identity embeddings; make it again with faceswap prepare"
        )
    net = IdentityNet(**config.model).to(device).to(memory_format=torch.channels_last)
    teacher = data.embedding
    if config.person:
        teacher = toward_people(teacher, data.identity, config.person)
    store = Store(data, device)
    weight = {**WEIGHTS, **config.losses}
    rows, held = data.split()
    held = held[:256]
    base = align(data.points, net.size, template="arcface").matrix
    gallery = F.normalize(teacher[rows]).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=0.05, fused=True)
    asked = None if config.teacher is None else _teacher(config, device, teacher.shape[1])
    side = net.size if asked is None else asked.size
    seen_from = base if side == net.size else align(data.points, side, template="arcface").matrix

    def draw(generator: torch.Generator) -> _Draw:
        n = config.batch_size
        pick = rows[torch.randint(len(rows), (n,), generator=generator)]
        view = store.draw(pick, seen_from[pick], side, JITTER, generator)
        color = torch.rand(n, 6, generator=generator)
        shape = (n, 3, net.size, net.size)
        coarse = draw_coarse(shape, 0.3, generator, smallest=0.35)
        other, mixing, count = None, None, int(n * config.mixed)
        if count:
            pair = rows[torch.randint(len(rows), (count,), generator=generator)]
            other = store.draw(pair, seen_from[pair], side, JITTER, generator)
            mixing = draw_mixing(count, generator)
        return _Draw(view, color, coarse, teacher[pick], other, mixing)

    feed = feed_of(draw, config, device, data.wait)

    def step(index: int, generator: torch.Generator) -> dict[str, Term]:
        drawn = moved(feed.take(index, generator), device)
        views, known = store.show(drawn.view, side), drawn.teacher
        if drawn.other is not None:
            assert drawn.mixing is not None
            count = len(drawn.other.rows)
            pairs, _ = mixed(views[:count], store.show(drawn.other, side), drawn.mixing)
            views = torch.cat([pairs, views[count:]])
        if asked is not None:
            known = asked(views)
            if side != net.size:
                views = F.interpolate(views, (net.size,) * 2, mode="bilinear", antialias=True)
        views = recolor(views, drawn.color, 0.2)
        views = degrade(views, drawn.coarse).contiguous(memory_format=torch.channels_last)
        net.train()
        with autocast(config.precision, device):
            found = net(views)
        direction, relation = distillation_loss(found.float(), known)
        terms = {
            "direction": direction,
            "relation": relation,
            "ranking": ranking_loss(found.float(), known, gallery),
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
        views = [moved(store.still(part, base[part]), device) for part in held.split(32)]
        out = [model(store.show(each, net.size)) for each in views]
        return float(F.cosine_similarity(torch.cat(out).cpu(), teacher[held]).mean())

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "identity.safetensors", average, "identity", dict(config.model))

    return Task({"identity": net}, {"identity": optimizer}, step, "identity", export)
