"""Training of the restorer: sharp photos, and what is left of them after `worsen`.

Pixels and their differences keep it faithful, features of the face detector and a small
discriminator keep it from averaging, a recogniser keeps the person the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import save_model
from faceswap.models.centerface import CenterFace
from faceswap.models.restorer import Restorer
from faceswap.train.clean import sharpness
from faceswap.train.config import RestorerRunConfig
from faceswap.train.data import Crops, recolor
from faceswap.train.judges import IdentityJudge
from faceswap.train.losses import (
    feature_loss,
    gradient_loss,
    hinge_discriminator,
    hinge_generator,
    masked_l1,
)
from faceswap.train.patch import PatchDiscriminator
from faceswap.train.preview import save_sheet
from faceswap.train.task import Task, autocast, check_finite
from faceswap.train.transfer import feed_of, moved
from faceswap.train.views import Store
from faceswap.train.wear import Wear, draw_wear, worsen

_TAPS = (0, 3, 6)  # items of CenterFace's trunk that are compared: strides 2, 4, 8
_JUDGED = 4  # views of a batch that the recogniser looks at; all of them would take half the time
_SHEET = 8  # held-back faces in a preview
_MIRRORED = (1, 0, 2, 4, 3)  # the five points of a mirrored face
_COLOR = 0.1  # largest change of brightness, contrast, saturation


class Features:
    """What the face detector sees of a picture, coarser and coarser; frozen, differentiable."""

    def __init__(self, device: torch.device) -> None:
        trunk = CenterFace.from_package().trunk[: max(_TAPS) + 1]
        self.trunk = trunk.to(device).requires_grad_(False)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Maps of ``(N, 3, H, W)`` pictures in [0, 1]."""
        x, maps = images * 255, []
        for index, item in enumerate(self.trunk):
            x = item(x)
            if index in _TAPS:
                maps.append(x.clone())  # the next item may work in place
        return maps


@dataclass(frozen=True, slots=True)
class Windows:
    """n views before they are cut out of the stored crops.

    A window begins at whole pixels, so that the aim is as sharp as what is stored.
    """

    rows: Tensor  # (n,) int64
    stored: Tensor | None  # (n, 3, C, C) uint8; None: they are on the device
    squares: tuple[tuple[int, int, int], ...]  # n of left, top, side in px of the crop
    side: int  # S of the views, px; never larger than the windows
    points: Tensor  # (n, 5, 2) float32, view px
    flip: Tensor  # (n,) bool


@dataclass(frozen=True, slots=True)
class _Draw:
    """A batch before its views are made."""

    windows: Windows
    color: Tensor  # (n, 6) random numbers of `recolor`
    wear: Wear


class Views:
    """Draws sharp views of the faces that are sharp enough to be an aim.

    Raises:
        ConfigError: a side larger than the stored crops, or no photo that sharp.
    """

    def __init__(self, data: Crops, config: RestorerRunConfig, device: torch.device) -> None:
        self.data, self.config, self.device = data, config, device
        if max(config.sides) > data.size:
            raise ConfigError(
                f"sides: {max(config.sides)} px, but the crops of {config.data} are {data.size} "
                f"px; prepare them again with --size {max(config.sides)} or more"
            )
        every = torch.arange(len(data))
        detail = [sharpness(data.pixels(part), data.margin) for part in every.split(256)]
        sharp = torch.cat(detail) >= config.min_sharpness
        self.rows = every[sharp & ~data.held_back]
        self.held = every[sharp & data.held_back]
        if not len(self.rows):
            raise ConfigError(
                f"min_sharpness {config.min_sharpness}: none of the {len(data)} photos of "
                f"{config.data} is that sharp; use sharper ones"
            )
        if not len(self.held):
            self.held = self.rows
        self.store = Store(data, device)

    def draw(self, generator: torch.Generator) -> _Draw:
        """Views of a step, and what is wrong with them.

        Their side is one of the config's; they are as many as the batch size at the smallest, fewer
        by area above.
        """
        sides = self.config.sides
        side = sides[int(torch.randint(len(sides), (1,), generator=generator))]
        n = max(1, round(self.config.batch_size * (min(sides) / side) ** 2))
        rows = self.rows[torch.randint(len(self.rows), (n,), generator=generator)]
        windows = self.windows(rows, side, generator)
        color = torch.rand(n, 6, generator=generator)
        return _Draw(windows, color, draw_wear(n, side, self.config.damage, generator))

    def windows(self, rows: Tensor, side: int, generator: torch.Generator | None = None) -> Windows:
        """Windows of the stored crops; central and not mirrored without a generator."""
        size = self.data.size
        least = max(side, round(size / self.data.margin))
        squares, points = [], []
        for row in rows:
            window, left, top = least, (size - least) // 2, (size - least) // 2
            if generator is not None:
                window = least + int(torch.randint(size - least + 1, (1,), generator=generator))
                spare = size - window + 1
                left, top = torch.randint(spare, (2,), generator=generator).tolist()
            squares.append((left, top, window))
            at = self.data.points[row] - torch.tensor([left, top])
            points.append((at + 0.5) * side / window - 0.5)
        flip = torch.zeros(len(rows), dtype=torch.bool)
        if generator is not None:
            flip = torch.rand(len(rows), generator=generator) < 0.5
        five = torch.stack(points)
        mirrored = five[:, list(_MIRRORED)]
        mirrored = torch.stack([side - 1 - mirrored[..., 0], mirrored[..., 1]], -1)
        five = torch.where(flip.view(-1, 1, 1), mirrored, five)
        return Windows(rows, self.store.read(rows), tuple(squares), side, five, flip)

    def show(self, windows: Windows) -> Tensor:
        """Views ``(n, 3, S, S)`` float in [0, 1] of windows, both on the device."""
        side, views = windows.side, []
        crops = self.store.crops(windows.rows, windows.stored)
        for crop, (left, top, window) in zip(crops.split(1), windows.squares, strict=True):
            view = crop[..., top : top + window, left : left + window].float() / 255
            if window != side:
                view = F.interpolate(view, size=(side, side), mode="bicubic", antialias=True)
            views.append(view.clamp(0, 1))
        images = torch.cat(views)
        return torch.where(windows.flip.view(-1, 1, 1, 1), images.flip(3), images)

    def still(self, rows: Tensor, side: int) -> Tensor:
        """The middle of crops, ``(n, 3, side, side)`` float in [0, 1], on the device."""
        return self.show(moved(self.windows(rows, side), self.device))


class _Players:
    """The networks of a run: one that learns, one that criticises, those that judge."""

    def __init__(self, config: RestorerRunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        net = Restorer(**config.model.model_dump()).to(device)
        self.net = net.to(memory_format=torch.channels_last)
        self.critic = PatchDiscriminator().to(device)
        self.features = Features(device) if config.losses.features else None
        self.judge = IdentityJudge(config.encoders, device) if config.losses.identity else None

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.config.precision, self.device)

    def restore(self, damaged: Tensor) -> Tensor:
        with self.autocast():
            out: Tensor = self.net(damaged.contiguous(memory_format=torch.channels_last))
        return out.float()

    def losses(
        self, restored: Tensor, truth: Tensor, points: Tensor, adversarial: bool
    ) -> dict[str, Tensor]:
        """Loss terms by name, not yet weighted."""
        everywhere = torch.ones_like(truth[:, :1])
        terms = {
            "pixels": masked_l1(restored, truth, everywhere),
            "gradient": gradient_loss(restored, truth, everywhere),
        }
        if self.features is not None:
            with self.autocast():
                with torch.no_grad():
                    wanted = self.features(truth)
                seen = self.features(restored)
            terms["features"] = feature_loss(seen, wanted)
        if self.judge is not None:
            few = slice(_JUDGED)
            with torch.no_grad():
                person = self.judge.each(truth[few], points[few])
            seen_as = self.judge.each(restored[few], points[few])
            terms["identity"] = self.judge.distance(seen_as, person)
        if adversarial:
            self.critic.requires_grad_(False)
            with self.autocast():
                judged = self.critic(restored)
            terms["adversarial"] = hinge_generator([judged.float()])
            self.critic.requires_grad_(True)
        return terms

    def criticise(self, restored: Tensor, truth: Tensor) -> Tensor:
        """The discriminator's own loss."""
        with self.autocast():
            real, fake = self.critic(truth), self.critic(restored.detach())
        return hinge_discriminator([real.float()], [fake.float()])


def build(config: RestorerRunConfig, data: Crops, device: torch.device) -> Task:
    """The restorer task on a prepared folder."""
    if config.precision == "fp16":
        raise ConfigError("precision: fp16 would need loss scaling here; use bf16 or fp32")
    views, players = Views(data, config, device), _Players(config, device)
    feed = feed_of(views.draw, config, device, data.wait)
    on = config.losses
    optimizers = {
        "restorer": torch.optim.AdamW(
            players.net.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-3
        ),
        "critic": torch.optim.AdamW(
            players.critic.parameters(), lr=config.lr, betas=(0.5, 0.99), weight_decay=1e-3
        ),
    }

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = moved(feed.take(index, generator), device)
        truth = recolor(views.show(drawn.windows), drawn.color, _COLOR)
        damaged = worsen(truth, drawn.wear)
        players.net.train()
        restored = players.restore(damaged)
        late = bool(on.adversarial) and index >= on.adversarial_from
        terms = players.losses(restored, truth, drawn.windows.points, late)
        check_finite(terms)
        total = torch.stack([getattr(on, name) * term for name, term in terms.items()]).sum()
        optimizers["restorer"].zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(players.net.parameters(), 1.0)
        optimizers["restorer"].step()
        if late:
            terms["critic"] = players.criticise(restored, truth)
            check_finite({"critic": terms["critic"]})
            optimizers["critic"].zero_grad()
            terms["critic"].backward()
            optimizers["critic"].step()
        # Whether it is better than doing nothing, and by how much.
        terms["left_alone"] = (damaged - truth).abs().mean()
        return terms

    @torch.no_grad()
    def preview(average: nn.Module, path: Path) -> None:
        """Photo, what became of it, and the restored photo, of people held back."""
        truth = views.still(views.held[:_SHEET], max(config.sides))
        random = torch.Generator().manual_seed(1)
        wear = draw_wear(len(truth), max(config.sides), config.damage, random)
        damaged = worsen(truth, moved(wear, device))
        restored = average.eval()(damaged)
        save_sheet(path, [truth, damaged, restored], synthetic=True)

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "restorer.safetensors", average, "restorer", config.model.model_dump())

    networks: dict[str, nn.Module] = {"restorer": players.net, "critic": players.critic}
    return Task(networks, dict(optimizers), step, "restorer", export, preview)
