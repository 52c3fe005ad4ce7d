"""What trainings of an AEI-Net share: the network, its pairs, precision, gradients, previews."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faceswap.errors import ConfigError
from faceswap.models import build, save_model
from faceswap.models.aei import AEINet
from faceswap.ops.geometry import align
from faceswap.ops.mask import adaptive_mask
from faceswap.train.config import SwapRunConfig, TrainConfig
from faceswap.train.data import Crops, map_points
from faceswap.train.feed import Feed
from faceswap.train.judges import IdentityJudge, mean_embedding
from faceswap.train.pairs import TEMPLATE, Draw, PairSampler
from faceswap.train.parallel import Group, share_norms
from faceswap.train.preview import save_sheet
from faceswap.train.task import autocast
from faceswap.train.transfer import feed_of

SHEET = 8  # pairs of a preview


@dataclass(frozen=True, slots=True)
class Gradients:
    """Backward passes and optimiser steps, in any precision and any number of processes."""

    config: SwapRunConfig
    device: torch.device
    group: Group
    scaler: torch.amp.GradScaler

    @staticmethod
    def of(config: SwapRunConfig, device: torch.device, group: Group) -> Gradients:
        """Raises ConfigError where a batch cannot be shared by processes and parts."""
        parts = group.world * config.accumulate
        if config.batch_size % parts:
            raise ConfigError(
                f"batch_size {config.batch_size} does not divide by accumulate * processes, "
                f"{config.accumulate} * {group.world}"
            )
        if config.precision == "fp16" and device.type != "cuda":
            raise ConfigError("precision fp16 needs a GPU; on a CPU use fp32 or bf16")
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        return Gradients(config, device, group, scaler)

    def autocast(self) -> AbstractContextManager[Any]:
        """Networks run in the configured precision inside."""
        return autocast(self.config.precision, self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one part of a batch, added up to those of the whole."""
        self.scaler.scale(loss / self.config.accumulate).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip: float = 0
    ) -> None:
        """One optimiser step with the mean gradients of all processes."""
        mine = list(parameters)
        self.group.average_gradients(mine)
        self.scaler.unscale_(optimizer)
        if clip:
            nn.utils.clip_grad_norm_(mine, clip)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)


def make_network(
    config: SwapRunConfig, embedding_size: int, device: torch.device, group: Group
) -> tuple[AEINet, dict[str, Any]]:
    """The AEI-Net of a configuration, and the arguments that made it."""
    args = {**config.model.model_dump(), "embedding_size": embedding_size}
    net = build("aei", **args)
    assert isinstance(net, AEINet)
    net.to(device)
    if config.channels_last:
        net.to(memory_format=torch.channels_last)
    if group.world > 1:
        share_norms(net)
    return net, args


def compiled(
    function: Callable[..., Any], config: SwapRunConfig | TrainConfig, device: torch.device
) -> Callable[..., Any]:
    """The function, by torch.compile where the configuration says so.

    Raises:
        ConfigError: what torch.compile makes for a CPU needs a C++ compiler, and none is here.
    """
    if not config.compile:
        return function
    compiler = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"compile: on a CPU this needs the C++ compiler {compiler}; install it, or leave "
            "compile=false"
        )
    return torch.compile(function)


def make_sampler(
    config: SwapRunConfig, data: Crops, device: torch.device, group: Group
) -> PairSampler:
    """The pairs of a configuration."""
    return PairSampler(
        data,
        config.model.size,
        config.augment,
        same_person=config.same_person,
        device=device,
        group=group,
        region=config.model.mask_head,
    )


def make_feed(config: SwapRunConfig, sampler: PairSampler) -> Feed[Draw]:
    """Draws of the sampler, made ahead by the configured workers."""
    return feed_of(
        lambda generator: sampler.draw(config.batch_size, generator),
        config,
        sampler.device,
        sampler.data.wait,
    )


def make_preview(
    data: Crops, sampler: PairSampler, judge: IdentityJudge
) -> Callable[[nn.Module, Path], None]:
    """Fixed pairs of people held back: source, target, swapped, mask.

    The mask is the network's own where it predicts one, else that of the target's outline.
    """
    held = torch.nonzero(data.held_back)[:, 0]
    rows = held if len(held) > 1 else torch.arange(len(data))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))
    half = min(SHEET, max(1, len(rows) // 2))
    sources, targets = rows[order[:half]], rows[order[-half:]]
    matrix = align(data.points[targets], sampler.size, template=TEMPLATE).matrix
    mesh = map_points(data.mesh[targets], matrix)
    outlines = adaptive_mask(mesh, mesh, sampler.size)

    @torch.no_grad()
    def preview(network: nn.Module, path: Path) -> None:
        network.eval()
        source, points = sampler.still(sources)
        target, _ = sampler.still(targets)
        identity = mean_embedding(judge.each(source, points))
        assert isinstance(network, AEINet)
        swapped = network(target, identity)
        _, logits = network.render(network.attributes(target), identity)
        mask = outlines if logits is None else logits.sigmoid()
        save_sheet(path, [source, target, swapped, mask.expand(-1, 3, -1, -1)], synthetic=True)

    return preview


def exporter(args: dict[str, Any], card: dict[str, Any]) -> Callable[[nn.Module, Path], None]:
    """Writes the average as ``swapper.safetensors``."""

    def export(average: nn.Module, out: Path) -> None:
        save_model(out / "swapper.safetensors", average, "aei", args, card)

    return export
