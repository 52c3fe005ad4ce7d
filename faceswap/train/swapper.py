"""Training of the guided AEI-Net.

Half of a batch is two photos of one person: the target photo itself is the ground truth, since the
network never sees the target's face (SimSwap's reconstruction on same-person pairs, Chen et al.
2020, made exact). The other half swaps strangers and has no ground truth: identity comes from a
recogniser, light from the target's low frequencies, realism from a small discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import build as build_network
from faceswap.models import load_model, save_model
from faceswap.models import mesh as layout
from faceswap.models.guided import GuidedAEINet
from faceswap.models.occlusion import OcclusionNet
from faceswap.occlude import OcclusionMask, without_rims
from faceswap.ops.constant import constant
from faceswap.ops.geometry import align, compose
from faceswap.ops.guide import make_guide
from faceswap.ops.shape import ShapeModel, fit_shape_model
from faceswap.ops.sockets import keep_sockets
from faceswap.ops.topology import five_points
from faceswap.train.config import SwapperConfig
from faceswap.train.data import Crops, cut, map_points, recolor
from faceswap.train.degrade import Coarse, degrade, draw_coarse
from faceswap.train.label import Recogniser, load_recogniser
from faceswap.train.losses import (
    eye_loss,
    gradient_loss,
    gradient_penalty,
    heat_maps,
    hinge_discriminator,
    hinge_generator,
    identity_loss,
    leak_loss,
    masked_l1,
    outline_loss,
    points_loss,
    tone_loss,
)
from faceswap.train.mesh import mirror_order
from faceswap.train.patch import PatchDiscriminator
from faceswap.train.preview import save_sheet
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Jitter, Store, View
from faceswap.types import Guide

TEMPLATE = "ghost_frontal"
DEFAULT_JUDGE = "lite-identity"  # of identity: cheap, and the evaluation's encoders stay apart
DEFAULT_EYE = "lite-landmarks"  # what sees the swapped face's points, if `losses.points` is on
_IRISES = (468, 473)  # their centres among the points


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch of n pairs before its views are made."""

    source: View
    source_mesh: Tensor  # (n, 478, 3) float32, view px
    color: Tensor  # (n, 6) random numbers of `recolor`, of the sources
    coarse: tuple[Coarse, ...]  # of the sources
    target: View
    target_mesh: Tensor  # (n, 478, 3) float32, view px
    embedding: Tensor  # (n, D) of the sources
    other: tuple[View, Tensor] | None  # of the strangers' sources, other photos and their meshes


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch of n pairs, on the device."""

    target: Tensor  # (n, 3, S, S) float in [0, 1]
    mesh: Tensor  # (n, 478, 3) float32, of the target
    guide: Guide
    shape: Tensor  # (n, 478, 3) float32, of the swapped face
    embedding: Tensor  # (n, D) of the source
    source: Tensor  # (n, 3, S, S) float in [0, 1]
    source_mesh: Tensor  # (n, 478, 3) float32
    view: View  # of the targets
    covered: Tensor | None  # (n, 1, S, S) in [0, 1], what lies before the targets' faces
    other: tuple[Tensor, Tensor] | None  # other photos of the strangers' sources, their meshes


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


def _to_recogniser(images: Tensor, shape: Tensor, size: int) -> Tensor:
    """Crops as a recogniser expects them, cut out of swapped crops by their own mesh."""
    matrix = align(five_points(shape), size, template="arcface").matrix
    return cut(images, matrix, size)


def _look(
    judge: Recogniser, config: SwapperConfig, batch: _Batch, swapped: Tensor, at: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings ``(n - at, D)`` of swapped faces, their sources and targets, from row ``at``."""
    precision, device, share = config.precision, swapped.device, config.losses.other_photo
    known = torch.cat(
        [
            _to_recogniser(batch.source[at:], batch.source_mesh[at:], judge.size),
            _to_recogniser(batch.target[at:], batch.mesh[at:], judge.size),
        ]
    )
    if batch.other is not None:
        known = torch.cat([known, _to_recogniser(*batch.other, judge.size)])
    with torch.no_grad(), autocast(precision, device):
        source, target, *other = judge.model(known).float().split(len(swapped) - at)
    if other:
        source = torch.lerp(F.normalize(source), F.normalize(other[0]), share)
    seen = _to_recogniser(swapped[at:], batch.shape[at:], judge.size)
    with autocast(precision, device):
        return judge.model(seen).float(), source, target


def _names(config: SwapperConfig) -> list[str]:
    """Recognisers that say who somebody is: one, or several whose losses are averaged."""
    names = config.teachers.get("identity", DEFAULT_JUDGE)
    return [names] if isinstance(names, str) else names


def _to_landmarks(batch: _Batch, swapped: Tensor, size: int, store: Store) -> tuple[Tensor, Tensor]:
    """Crops as MeshNet expects them, and the points it should see there, ``(n, 478, 3)``.

    They reach farther than the swapped crops: around those is the stored photo.
    """
    at = align(five_points(batch.shape), size, template=layout.TEMPLATE, margin=layout.MARGIN)
    whole = compose(at.matrix, batch.view.matrix)
    around = cut(store.crops(batch.view.rows, batch.view.stored), whole, size)
    change = cut(swapped - batch.target, at.matrix, size)
    return around + change, map_points(batch.shape, at.matrix)


def _lit(guide: Guide) -> Tensor:
    """What a stranger's face should look like from afar: the lit guide, where it can be trusted."""
    return guide.base + guide.trust * (guide.image - guide.base)


def decide(net: nn.Module, *, steepness: float = 3.0, shift: float = 0.3) -> GuidedAEINet:
    """A copy whose gate decides: logits l become ``steepness * (l + shift)``.

    Pixel losses make a gate hedge between guide and low-pass, which looks like haze and costs
    identity (cosine to the source .458 -> .475, to the target .206 -> .185 on 40 held-back people
    by an encoder that took no part); what is right on average is shown fully instead.
    """
    copy = deepcopy(net)
    assert isinstance(copy, GuidedAEINet)
    last = copy.head[0]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():  # the first four channels become the gate's four pixels
        last.weight[:4] *= steepness
        last.bias[:4] = steepness * (last.bias[:4] + shift)
    return copy


@dataclass(frozen=True, slots=True)
class _Judges:
    """The frozen networks that losses look through."""

    config: SwapperConfig
    device: torch.device
    store: Store
    people: list[Recogniser]
    landmarks: nn.Module | None  # where `points` or `eyes` is on

    @classmethod
    def of(cls, config: SwapperConfig, device: torch.device, store: Store) -> _Judges:
        landmarks = None
        if config.losses.points or config.losses.eyes:
            name = str(config.teachers.get("landmarks", DEFAULT_EYE))
            landmarks = load_model(name, device=device).requires_grad_(False)
        people = [load_recogniser(name, device) for name in _names(config)]
        return cls(config, device, store, people, landmarks)

    def terms(self, batch: _Batch, face: Tensor, swapped: Tensor, same: int) -> dict[str, Tensor]:
        """Loss terms of a batch whose first ``same`` pairs are of one person.

        ``face`` is what the network made, ``swapped`` the same behind what lies before it.
        """
        on, region = self.config.losses, batch.guide.region
        terms: dict[str, Tensor] = {}
        if same:
            mine, truth = swapped[:same], batch.target[:same]
            terms["rec"] = masked_l1(mine, truth, region[:same])
            terms["gradient"] = gradient_loss(mine, truth, region[:same])
        if same < len(swapped):
            lit = _lit(batch.guide)[same:]
            terms["tone"] = tone_loss(swapped[same:], lit, region[same:], cells=16)
            if on.outline:
                known = batch.guide.image[same:], batch.guide.base[same:]
                terms["outline"] = outline_loss(
                    face[same:], known, region[same:], inside=on.outline_inside
                )
            if on.identity:
                # Of strangers only: same-person pairs have pixels to follow.
                terms |= self._identity(batch, swapped, same)
        if self.landmarks is not None:
            terms |= self._points(self.landmarks, batch, swapped)
        return terms

    def _identity(self, batch: _Batch, swapped: Tensor, at: int) -> dict[str, Tensor]:
        allowed = self.config.losses.leak_allowed
        seen = [_look(each, self.config, batch, swapped, at) for each in self.people]
        leaks = [leak_loss(found, unwanted, allowed=allowed) for found, _, unwanted in seen]
        return {
            "identity": torch.stack([identity_loss(a, b) for a, b, _ in seen]).mean(),
            "leak": torch.stack(leaks).mean(),
        }

    def _points(self, landmarks: nn.Module, batch: _Batch, swapped: Tensor) -> dict[str, Tensor]:
        size = int(landmarks.size)  # type: ignore[arg-type]
        view, wanted = _to_landmarks(batch, swapped, size, self.store)
        with autocast(self.config.precision, self.device):
            found, _ = landmarks(view)
        terms = {}
        if self.config.losses.points:
            terms["points"] = points_loss(found.float(), wanted)
        if self.config.losses.eyes:
            at = constant(_IRISES, wanted.device)
            mine, theirs = (
                heat_maps((mesh[:, at, :2] + 0.5) / size) for mesh in (found.float(), wanted)
            )
            terms["eyes"] = eye_loss(mine, theirs)
        return terms

    def weights(self, index: int) -> dict[str, float]:
        """Weight of each term at a step."""
        on = self.config.losses
        weights = on.model_dump()
        risen = min(1.0, (index + 1) / on.identity_rise) if on.identity_rise else 1.0
        return {**weights, "identity": on.identity * risen, "leak": on.leak * risen}


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


def _find_covered(
    config: SwapperConfig, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What finds things before faces ``(n, 3, S, S)`` by their meshes, if the teachers name it."""
    name = config.teachers.get("occlusion")
    if name is None:
        return None
    network = load_model(str(name), device=device)
    if not isinstance(network, OcclusionNet):
        raise ConfigError(
            f"teachers.occlusion: {name} is a {type(network).__name__}; name an occlusion network, "
            "such as lite-occlusion, or leave it out"
        )
    mask = OcclusionMask(network)

    def run(call: Callable[[], Tensor]) -> Tensor:
        with autocast(config.precision, device):
            return call()

    @torch.no_grad()
    def find(images: Tensor, mesh: Tensor) -> Tensor:
        return mask(images, mesh, run)

    return find


def build(config: SwapperConfig, data: Crops, device: torch.device) -> Task:
    """The swapper task on a prepared folder with embeddings."""
    if data.embedding is None:
        raise ConfigError(
            f"{config.data}: no identity embeddings; make it again with faceswap prepare"
        )
    embeddings = data.embedding
    net = GuidedAEINet(**config.model).to(device).to(memory_format=torch.channels_last)
    critic = _make_critic(config).to(device).to(memory_format=torch.channels_last)
    store = Store(data, device)
    judges, opponent = _Judges.of(config, device, store), _Critic(critic, config, device)
    occlusion = _find_covered(config, device)
    rows, held = data.split()
    pairs = Pairs(data, rows, config.same_person)
    model = _fit_shape(net, data, rows, config)
    order = mirror_order(data.mesh[rows[:4000]])
    base = align(five_points(data.mesh), net.size, template=TEMPLATE).matrix
    jitter = Jitter(rotation=6, scale=0.06, shift=0.02, flip=config.flip)
    betas = (0.5, 0.99)
    optimizers = {
        "swapper": torch.optim.AdamW(
            net.parameters(), lr=config.lr, betas=betas, weight_decay=0.01
        ),
        "critic": torch.optim.AdamW(critic.parameters(), lr=config.lr, betas=betas),
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
        return _Draw(*sides[0], color, coarse, *sides[1], embeddings[source], other)

    feed = feed_of(draw, config, device, data.wait)

    def batch_of(drawn: _Draw) -> _Batch:
        source = recolor(store.show(drawn.source, net.size), drawn.color, 0.15)
        if drawn.coarse:
            source = degrade(source, drawn.coarse)
        target = store.show(drawn.target, net.size)
        covered = None
        if occlusion is not None:
            hidden, covered = occlusion(
                torch.cat([source, target]), torch.cat([drawn.source_mesh, drawn.target_mesh])
            ).chunk(2)
            source = without_rims(source, hidden)
        guide, shape = make_guide(
            model, source, drawn.source_mesh, target, drawn.target_mesh, covered=covered
        )
        other = None
        if drawn.other is not None:
            other = store.show(drawn.other[0], net.size), drawn.other[1]
        return _Batch(
            target,
            drawn.target_mesh,
            guide,
            shape,
            drawn.embedding,
            source,
            drawn.source_mesh,
            drawn.target,
            covered,
            other,
        )

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = batch_of(moved(feed.take(index, generator), device))
        net.train()
        with autocast(config.precision, device):
            face = net(batch.target, batch.embedding, batch.guide).float()
        swapped = face = keep_sockets(face, batch.guide)
        if batch.covered is not None:
            swapped = torch.lerp(face, batch.target, batch.covered)
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
        guide, _ = make_guide(model, source, meshes[0], target, meshes[1])
        swapped = keep_sockets(average(target, embeddings[rows[0]].to(device), guide), guide)
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
