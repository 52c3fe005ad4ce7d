"""Training of the guided AEI-Net.

Half of a batch is two photos of one person: the target photo itself is the ground truth, since the
network never sees the target's face (SimSwap's reconstruction on same-person pairs, Chen et al.
2020, made exact). The other half swaps strangers and has no ground truth: identity comes from a
recogniser, light from the target's low frequencies, realism from a small discriminator.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import build as build_network
from faceswap.models import save_model
from faceswap.models.guided import GuidedAEINet
from faceswap.ops.geometry import align
from faceswap.ops.guide import make_guide
from faceswap.ops.shape import ShapeModel, fit_shape_model
from faceswap.ops.sockets import keep_sockets
from faceswap.ops.topology import five_points
from faceswap.train.before import Before, behind
from faceswap.train.config import SwapperConfig
from faceswap.train.data import Crops, map_points, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.guided_judges import Batch, Judges
from faceswap.train.losses import (
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
)
from faceswap.train.mesh import mirror_order
from faceswap.train.patch import PatchDiscriminator
from faceswap.train.preview import save_sheet
from faceswap.train.source_embedding import EmbeddingDraw, SourceEmbedder, class_centres
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View

TEMPLATE = "ghost_frontal"


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch of n pairs before its views are made."""

    source: View
    source_mesh: Tensor  # (n, 478, 3) float32, view px
    color: Tensor  # (n, 6) random numbers of `recolor`, of the sources
    coarse: tuple[Coarse, ...]  # of the sources
    target: View
    target_mesh: Tensor  # (n, 478, 3) float32, view px
    embedding: EmbeddingDraw  # of the sources
    other: tuple[View, Tensor] | None  # of the strangers' sources, other photos and their meshes
    who: Tensor  # (n,) int64, places of the sources' people in the gallery


class Pairs:
    """Draws (source, target) rows: first those of one person, then strangers."""

    def __init__(self, data: Crops, rows: Tensor, same_person: float) -> None:
        self.rows, self.same_person = rows, same_person
        by_person: dict[int, list[int]] = {}
        for row in rows.tolist():
            by_person.setdefault(int(data.identity[row]), []).append(row)
        self.several = [v for v in by_person.values() if len(v) > 1]
        self.photos = {row: photos for photos in self.several for row in photos}
        if not self.several and same_person:
            raise ConfigError(
                "the prepared data has one photo of each person; reconstruction on same-person "
                "pairs needs at least two; prepare more photos or --set same_person=0"
            )
        # A person counts by the square root of their photos, so that nobody fills the batches.
        self.share = torch.tensor([len(v) ** 0.5 for v in self.several])

    def same(self, n: int) -> int:
        """How many of n pairs are of one person."""
        return int(n * self.same_person)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of n sources and n targets, ``(n,) int64`` each."""
        half = self.same(n)
        if not half:
            pairs = torch.randint(len(self.rows), (n, 2), generator=generator)
            return self.rows[pairs[:, 0]], self.rows[pairs[:, 1]]
        people = torch.multinomial(self.share, half, replacement=True, generator=generator)
        same = []
        for person in people.tolist():
            photos = self.several[person]
            pick = torch.randperm(len(photos), generator=generator)[:2]
            same.append([photos[int(pick[0])], photos[int(pick[1])]])
        pairs = torch.tensor(same)
        others = self.rows[torch.randint(len(self.rows), (n - half, 2), generator=generator)]
        both = torch.cat([pairs, others])
        return both[:, 0], both[:, 1]

    def others(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Other photos of the same people, ``(n,) int64``; the same one where it is the only."""
        chance = torch.rand(len(rows), generator=generator).tolist()
        found = []
        for row, at in zip(rows.tolist(), chance, strict=True):
            others = [each for each in self.photos.get(row, ()) if each != row] or [row]
            found.append(others[int(at * len(others))])
        return torch.tensor(found, dtype=torch.int64)


def decide(
    net: nn.Module, *, steepness: float = 3.0, shift: float = 0.3, stronger: float = 1.15
) -> GuidedAEINet:
    """A copy whose gate decides, and whose residual means what it says.

    Pixel losses make a gate hedge between guide and low-pass, which looks like haze and costs
    identity (cosine to the source .458 -> .475, to the target .206 -> .185 on 40 held-back people
    by an encoder that took no part); what is right on average is shown fully instead: logits l
    become ``steepness * (l + shift)``. They hold the residual back, too; ``stronger`` makes up for
    it (100 held-back people: .633 -> .635, .153 -> .147).
    """
    copy = deepcopy(net)
    assert isinstance(copy, GuidedAEINet)
    last = copy.head[0]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():  # the first four channels become the gate's four pixels
        last.weight[:4] *= steepness
        last.bias[:4] = steepness * (last.bias[:4] + shift)
        last.weight[4:] *= stronger
        last.bias[4:] *= stronger
    return copy


def _make_critic(config: SwapperConfig) -> nn.Module:
    if config.critic == "patch":
        return PatchDiscriminator()
    return build_network("discriminator", width=config.critic_width)


@dataclass(frozen=True, slots=True)
class _Critic:
    """Is this a photo? Trained beside the network."""

    net: nn.Module
    config: SwapperConfig
    device: torch.device

    def judge(self, images: Tensor) -> list[Tensor]:
        """Logits of each scale, float32."""
        with autocast(self.config.precision, self.device):
            judged = self.net(images)
        return [each.float() for each in ([judged] if isinstance(judged, Tensor) else judged)]

    def attack(self, swapped: Tensor) -> Tensor:
        """What the network pays for being seen through."""
        self.net.requires_grad_(False)
        return hinge_generator(self.judge(swapped))

    def step(
        self, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, index: int
    ) -> dict[str, Tensor]:
        """Learn from one batch; the terms."""
        self.net.requires_grad_(True)
        both = [each.chunk(2) for each in self.judge(torch.cat([real, fake.detach()]))]
        terms = {"critic": hinge_discriminator([r for r, _ in both], [f for _, f in both])}
        total, every = terms["critic"], self.config.r1_every
        if self.config.losses.r1 and index % every == 0:
            photos = real.detach().requires_grad_()
            terms["r1"] = gradient_penalty(self.judge(photos), photos)
            total = total + self.config.losses.r1 * every * terms["r1"]
        check_finite(terms)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return terms


def build(config: SwapperConfig, data: Crops, device: torch.device) -> Task:
    """The swapper task on a prepared folder with embeddings."""
    net = GuidedAEINet(**config.model).to(device).to(memory_format=torch.channels_last)
    critic = _make_critic(config).to(device).to(memory_format=torch.channels_last)
    store = Store(data, device)
    opponent = _Critic(critic, config, device)
    before = Before.of(config, device)
    embedder = SourceEmbedder.of(config, data, store, device)
    rows, held = data.split()
    gallery, place = class_centres(embedder.known[rows], data.identity[rows])
    judges = Judges.of(config, device, store, gallery)
    whose = torch.zeros(len(data.identity), dtype=torch.int64)
    whose[rows] = place
    pairs = Pairs(data, rows, config.same_person)
    model = _fit_shape(net, data, rows, config)
    order = mirror_order(data.mesh[rows[:4000]])
    base = align(five_points(data.mesh), net.size, template=TEMPLATE).matrix
    jitter = Jitter(rotation=6, scale=0.06, shift=0.02, flip=config.flip)
    betas = (0.5, 0.99)
    optimizers = {
        "swapper": torch.optim.AdamW(
            net.parameters(), lr=config.lr, betas=betas, weight_decay=0.01, fused=True
        ),
        "critic": torch.optim.AdamW(critic.parameters(), lr=config.lr, betas=betas, fused=True),
    }

    def side(rows: Tensor, generator: torch.Generator) -> tuple[View, Tensor]:
        view = store.draw(rows, base[rows], net.size, jitter, generator)
        mesh = map_points(data.mesh[rows], view.matrix)
        return view, torch.where(view.flip[:, None, None], mesh[:, order], mesh)

    def draw(generator: torch.Generator) -> _Draw:
        source, target = pairs.draw(config.batch_size, generator)
        sides = side(source, generator), side(target, generator)
        color = torch.rand(config.batch_size, 6, generator=generator)
        coarse: tuple[Coarse, ...] = ()
        if config.degrade:
            shape = (config.batch_size, 3, net.size, net.size)
            coarse = draw_coarse(shape, config.degrade, generator)
        other = None
        strangers = source[pairs.same(config.batch_size) :]
        if config.losses.other_photo and len(strangers):
            found = pairs.others(strangers, generator)
            other = (
                store.still(found, base[found]),
                map_points(data.mesh[found], base[found]),
            )
        embedding = embedder.draw(source, generator)
        return _Draw(*sides[0], color, coarse, *sides[1], embedding, other, whose[source])

    @torch.no_grad()
    def batch_of(drawn: _Draw) -> Batch:
        source = recolor(store.show(drawn.source, net.size), drawn.color, 0.15)
        if drawn.coarse:
            source = degrade(source, drawn.coarse)
        target = store.show(drawn.target, net.size)
        source, covered = before.clear(source, drawn.source_mesh, target, drawn.target_mesh)
        guide, shape = make_guide(
            model, source, drawn.source_mesh, target, drawn.target_mesh, covered=covered
        )
        other = None
        if drawn.other is not None:
            other = store.show(drawn.other[0], net.size), drawn.other[1]
        return Batch(
            target,
            drawn.target_mesh,
            guide,
            shape,
            embedder(drawn.embedding),
            source,
            drawn.source_mesh,
            drawn.target,
            covered,
            other,
            drawn.who,
        )

    def made(generator: torch.Generator) -> _Draw | Batch:
        # A GPU's workers leave pixels to it; a CPU's make guides beside the step.
        drawn = draw(generator)
        return batch_of(drawn) if device.type == "cpu" else drawn

    feed = feed_of(made, config, device, data.wait)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        taken = feed.take(index, generator)
        batch = taken if isinstance(taken, Batch) else batch_of(moved(taken, device))
        net.train()
        with autocast(config.precision, device):
            face = net(batch.target, batch.embedding, batch.guide).float()
        face = keep_sockets(face, batch.guide)
        swapped = behind(face, batch.target, batch.covered)
        terms = judges.terms(batch, face, swapped, pairs.same(config.batch_size))
        opposed = config.losses.adversarial and index >= config.losses.adversarial_from
        if opposed:
            terms["adversarial"] = opponent.attack(swapped)
        check_finite(terms)
        weights = judges.weights(index)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        optimizers["swapper"].zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizers["swapper"].step()
        if opposed:
            terms |= opponent.step(optimizers["critic"], batch.target, swapped, index)
        return terms

    sheet_generator = torch.Generator().manual_seed(5)
    sheet = held[torch.randperm(len(held), generator=sheet_generator)[:16]]
    half = len(sheet) // 2

    @torch.no_grad()
    def preview(average: nn.Module, path: Path) -> None:
        average.eval()
        rows = sheet[:half], sheet[half : 2 * half]
        meshes = [map_points(data.mesh[each], base[each]).to(device) for each in rows]
        views = [moved(store.still(each, base[each]), device) for each in rows]
        source, target = (store.show(view, net.size) for view in views)
        source, covered = before.clear(source, meshes[0], target, meshes[1])
        guide, _ = make_guide(model, source, meshes[0], target, meshes[1], covered=covered)
        swapped = keep_sockets(average(target, embedder.of_rows(rows[0], device), guide), guide)
        swapped = behind(swapped, target, covered)
        warp = guide.region * guide.image + (1 - guide.region) * target
        save_sheet(path, [source, target, warp, swapped], synthetic=True)

    def export(average: nn.Module, out: Path) -> None:
        decided = decide(average)
        save_model(out / "swapper.safetensors", decided, "aei_guided", dict(config.model))

    networks: dict[str, nn.Module] = {"swapper": net, "critic": critic}
    return Task(networks, dict(optimizers), step, "swapper", export, preview)


def _fit_shape(net: GuidedAEINet, data: Crops, rows: Tensor, config: SwapperConfig) -> ShapeModel:
    """The shape model of the faces to train on, as the network's own buffers."""
    rank = net.shape_basis.shape[0]
    if len(rows) < rank:
        raise ConfigError(
            f"{config.data}: {len(rows)} faces to train on, and the shape model takes {rank} or "
            "more; prepare more photos or --set model.shape_rank=8"
        )
    model = fit_shape_model(data.mesh[rows], data.identity[rows], rank)
    net.shape_mean.copy_(model.mean)
    net.shape_basis.copy_(model.basis)
    net.shape_expression.copy_(model.expression)
    return ShapeModel(net.shape_mean, net.shape_basis, net.shape_expression)
