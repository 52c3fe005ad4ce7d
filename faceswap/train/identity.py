"""Training of IdentityNet: a recogniser distilled from a teacher's embeddings.

The teacher embedded each photo once, and the student, who sees it moved, mirrored, recoloured and
degraded, must give the same direction (directions alone: comparison is by cosine). Or the teacher
answers for each view, mixtures of two faces among them (`faceswap.train.mixture`), and where it is
built of blocks as the student is, shows what it saw after each (FitNets, Romero et al., ICLR 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import DTYPES, save_model
from faceswap.models.identity import IdentityNet
from faceswap.ops.geometry import align
from faceswap.train.config import TrainConfig
from faceswap.train.data import Crops, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.label import load_recogniser
from faceswap.train.mixture import Mixing, draw_mixing, mixed
from faceswap.train.script import OpenScript
from faceswap.train.source_embedding import class_centres
from faceswap.train.swapping import compiled
from faceswap.train.task import Task, Term, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View

JITTER = Jitter(rotation=3, scale=0.03, shift=0.015)
WEIGHTS = {"direction": 1.0, "relation": 10.0, "ranking": 0.3, "maps": 0.0}


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
    centres, place = class_centres(embedding, person)
    return F.normalize(torch.lerp(F.normalize(embedding), centres[place], share))


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch of n before its views are made."""

    view: View
    color: Tensor  # (n, 6) random numbers of `recolor`
    coarse: tuple[Coarse, ...]
    teacher: Tensor  # (n, D) embeddings of the photos, by the teacher
    other: View | None  # faces that the first ones are mixed with
    mixing: Mixing | None
    chance: Tensor  # (K, n, 1, 1, 1) in [0, 1), whose map each of K blocks gets


@dataclass(frozen=True, slots=True)
class _Batch:
    """n views, and what the teacher says of them."""

    views: Tensor  # (n, 3, S, S) float in [0, 1]
    teacher: Tensor  # (n, D)
    maps: tuple[Tensor, ...]  # K times (n, C, s, s), what it saw on the way
    chance: Tensor  # (K, n, 1, 1, 1)


class _Teacher:
    """Who is asked about each view.

    Raises:
        ConfigError: its embeddings are not those of the data, or its maps are wanted and are not
            the student's.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, net: IdentityNet, maps: bool
    ) -> None:
        assert config.teacher is not None
        found = load_recogniser(config.teacher, device, DTYPES[config.precision])
        self.model, self.size = found.model, found.size
        numbers = found(torch.zeros(1, 3, found.size, found.size, device=device)).shape[1]
        if numbers != net.embedding_size:
            raise ConfigError(
                f"teacher: {config.teacher} gives {numbers} numbers, the data have "
                f"{net.embedding_size}; name the teacher that they were prepared with"
            )
        self.kept: tuple[str, ...] = ()
        if maps:
            mine = net.bottlenecks
            theirs = found.model.bottlenecks if isinstance(found.model, OpenScript) else []
            if mine != theirs:
                raise ConfigError(
                    f"losses.maps: {config.teacher} has {len(theirs)} bottlenecks {theirs}, the "
                    f"student {len(mine)} {mine}; they have to be alike (model.widths, "
                    "model.depths, model.size), or leave the term out"
                )
            assert isinstance(found.model, OpenScript)
            self.kept = found.model.maps

    def __call__(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Embeddings ``(N, D)`` of views, and the maps."""
        if isinstance(self.model, OpenScript):
            return self.model.look(views, self.kept)
        found: Tensor = self.model(views)
        return found.float(), ()


def unexplained(
    map_: Tensor,  # (N, C, s, s) of the student
    wanted: Tensor,  # (N, C, s, s) of the teacher
) -> Tensor:
    """Share of the variance of the teacher's map, by channel, that the student's is off by."""
    wanted = wanted.float()
    variance = wanted.var((0, 2, 3), keepdim=True) + 1e-4
    return ((map_.float() - wanted).square() / variance).mean()


def taught(
    net: IdentityNet,
    views: Tensor,  # (N, 3, S, S) float in [0, 1]
    maps: Sequence[Tensor],  # K times (N, C, s, s), the teacher's bottlenecks
    own: Tensor,  # (K, N, 1, 1, 1) bool
) -> tuple[Tensor, Tensor]:
    """Embeddings ``(N, D)``, and how far each map is from the teacher's, ``(K,)``.

    Every block learns to make the teacher's next map of the teacher's last one, at once and without
    waiting for those before it (teacher forcing, Williams & Zipser 1989), and later of its own
    (scheduled sampling, Bengio et al., NeurIPS 2015), wherever ``own`` says so.
    """
    missed = []
    x = net.stem(views * 2 - 1)
    for index, wanted in enumerate(maps):
        missed.append(unexplained(x, wanted))
        x = torch.where(own[index], x, wanted.to(x.dtype))
        if index < len(net.blocks):
            x = net.blocks[index](x)
    found: Tensor = net.embed(net.pool(x))
    return found, torch.stack(missed)


def _own(config: TrainConfig, index: int) -> float:
    """Share of the student's blocks that get its own maps at a step."""
    begin, end = config.weaning
    return 1.0 if index >= end else max(0.0, (index - begin) / (end - begin))


def build(config: TrainConfig, data: Crops, device: torch.device) -> Task:
    """The identity task on a prepared folder with embeddings."""
    if data.embedding is None:
        raise ConfigError(
            f"{config.data}: no identity embeddings; make it again with faceswap prepare"
        )
    net = IdentityNet(**config.model).to(device).to(memory_format=torch.channels_last)
    teacher = data.embedding
    if teacher.shape[1] != net.embedding_size:
        raise ConfigError(
            f"model.embedding_size: the student gives {net.embedding_size} numbers, the data have "
            f"{teacher.shape[1]}; give it theirs"
        )
    if config.person:
        teacher = toward_people(teacher, data.identity, config.person)
    store = Store(data, device)
    weight = {**WEIGHTS, **config.losses}
    rows, held = data.split()
    held = held[:256]
    base = align(data.points, net.size, template="arcface").matrix
    gallery = F.normalize(teacher[rows]).to(device)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    asked = None
    if config.teacher is not None:
        asked = _Teacher(config, device, net, weight["maps"] > 0)
    side = net.size if asked is None else asked.size
    seen_from = base if side == net.size else align(data.points, side, template="arcface").matrix
    count = 0 if asked is None else len(asked.kept)
    follow = compiled(partial(taught, net) if count else net, config, device)

    def draw(generator: torch.Generator) -> _Draw:
        n = config.batch_size
        pick = rows[torch.randint(len(rows), (n,), generator=generator)]
        view = store.draw(pick, seen_from[pick], side, JITTER, generator)
        color = torch.rand(n, 6, generator=generator)
        coarse = draw_coarse((n, 3, side, side), 0.3, generator, smallest=0.35)
        other, mixing, pairs = None, None, int(n * config.mixed)
        if pairs:
            pair = rows[torch.randint(len(rows), (pairs,), generator=generator)]
            other = store.draw(pair, seen_from[pair], side, JITTER, generator)
            mixing = draw_mixing(pairs, generator)
        chance = torch.rand(count, n, 1, 1, 1, generator=generator)
        return _Draw(view, color, coarse, teacher[pick], other, mixing, chance)

    @torch.no_grad()
    def shown(drawn: _Draw) -> _Batch:
        """What the student sees; a teacher that is asked sees the very same."""
        views, known = store.show(drawn.view, side), drawn.teacher
        maps: tuple[Tensor, ...] = ()
        if drawn.other is not None:
            assert drawn.mixing is not None
            n = len(drawn.other.rows)
            pairs, _ = mixed(views[:n], store.show(drawn.other, side), drawn.mixing)
            views = torch.cat([pairs, views[n:]])
        views = degrade(recolor(views, drawn.color, 0.2), drawn.coarse)
        if asked is not None:
            known, maps = asked(views)
            if side != net.size:
                views = F.interpolate(views, (net.size,) * 2, mode="bilinear", antialias=True)
        return _Batch(views, known, maps, drawn.chance)

    def ahead(generator: torch.Generator) -> _Draw | _Batch:
        """On a CPU the workers ask the teacher, too; for a GPU they only draw."""
        return shown(draw(generator)) if device.type == "cpu" else draw(generator)

    feed = feed_of(ahead, config, device, data.wait)

    def step(index: int, generator: torch.Generator) -> dict[str, Term]:
        taken = moved(feed.take(index, generator), device)
        batch = taken if isinstance(taken, _Batch) else shown(taken)
        views = batch.views.contiguous(memory_format=torch.channels_last)
        net.train()
        with autocast(config.precision, device):
            if batch.maps:
                found, missed = follow(views, batch.maps, batch.chance < _own(config, index))
            else:
                found, missed = follow(views), None
        direction, relation = distillation_loss(found.float(), batch.teacher)
        terms = {
            "direction": direction,
            "relation": relation,
            "ranking": ranking_loss(found.float(), batch.teacher, gallery),
        }
        seen: dict[str, Term] = {"cosine": 1 - direction}
        if missed is not None:
            terms["maps"] = torch.log1p(3 * missed).sum()  # each block by its own measure
            seen["unexplained"] = missed.mean()
        check_finite(terms)
        optimizer.zero_grad()
        torch.stack([weight[name] * value for name, value in terms.items()]).sum().backward()
        optimizer.step()
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
