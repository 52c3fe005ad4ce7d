"""What the guided swapper's losses look through: who is it, where are its points, which light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import DTYPES, load_model
from faceswap.models import mesh as layout
from faceswap.ops.constant import constant
from faceswap.ops.geometry import align, compose
from faceswap.ops.topology import five_points
from faceswap.train.config import SwapperConfig
from faceswap.train.data import cut, map_points
from faceswap.train.label import Recogniser, load_recogniser
from faceswap.train.losses import (
    eye_loss,
    gradient_loss,
    heat_maps,
    identity_loss,
    leak_loss,
    masked_l1,
    outline_loss,
    points_loss,
    retrieval_loss,
    tone_loss,
)
from faceswap.train.task import autocast
from faceswap.train.views import Store, View
from faceswap.types import Guide

_IRISES = (468, 473)  # their centres among the points


@dataclass(frozen=True, slots=True)
class Batch:
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
    who: Tensor  # (n,) int64, places of the sources' people in the gallery


def _to_recogniser(images: Tensor, shape: Tensor, size: int) -> Tensor:
    """Crops as a recogniser expects them, cut out of swapped crops by their own mesh."""
    matrix = align(five_points(shape), size, template="arcface").matrix
    return cut(images, matrix, size)


def _look(
    judge: Recogniser, config: SwapperConfig, batch: Batch, swapped: Tensor, at: int
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


def _to_landmarks(batch: Batch, swapped: Tensor, size: int, store: Store) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True, slots=True)
class Judges:
    """The frozen networks that losses look through."""

    config: SwapperConfig
    device: torch.device
    store: Store
    people: list[Recogniser]
    landmarks: nn.Module | None  # where `points` or `eyes` is on
    gallery: Tensor | None  # (K, D) unit class centres, where `retrieval` is on

    @classmethod
    def of(
        cls, config: SwapperConfig, device: torch.device, store: Store, gallery: Tensor | None
    ) -> Judges:
        """Those that the losses ask for.

        Raises:
            ConfigError: a judge whose embeddings are not of the gallery's size.
            MissingWeightError, WeightError: see `load_model`.
        """
        landmarks = None
        if config.losses.points or config.losses.eyes:
            landmarks = load_model(config.teachers.landmarks, device=device).requires_grad_(False)
        names = config.teachers.identity
        names = [names] if isinstance(names, str) else names
        people = [load_recogniser(name, device, DTYPES[config.precision]) for name in names]
        if not config.losses.retrieval:
            return cls(config, device, store, people, landmarks, None)
        assert gallery is not None
        for name, each in zip(names, people, strict=True):
            found = each(torch.zeros(1, 3, each.size, each.size, device=device)).shape[1]
            if found != gallery.shape[1]:
                raise ConfigError(
                    f"losses.retrieval: {name} gives {found} numbers, the data have "
                    f"{gallery.shape[1]}; leave one of them out"
                )
        return cls(config, device, store, people, landmarks, gallery.to(device))

    def terms(self, batch: Batch, face: Tensor, swapped: Tensor, same: int) -> dict[str, Tensor]:
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

    def _identity(self, batch: Batch, swapped: Tensor, at: int) -> dict[str, Tensor]:
        allowed = self.config.losses.leak_allowed
        seen = [_look(each, self.config, batch, swapped, at) for each in self.people]
        leaks = [leak_loss(found, unwanted, allowed=allowed) for found, _, unwanted in seen]
        terms = {
            "identity": torch.stack([identity_loss(a, b) for a, b, _ in seen]).mean(),
            "leak": torch.stack(leaks).mean(),
        }
        if self.gallery is not None:
            found = [retrieval_loss(a, self.gallery, batch.who[at:]) for a, _, _ in seen]
            terms["retrieval"] = torch.stack(found).mean()
        return terms

    def _points(self, landmarks: nn.Module, batch: Batch, swapped: Tensor) -> dict[str, Tensor]:
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
