"""Several processes, one GPU each, as one: what ``torchrun`` starts.

Every process draws the whole batch's random numbers and takes its own part of the rows, and means
are taken over all processes, so the result is that of one process with the whole batch.
Gradients are averaged in one flat tensor a network after the backward pass; a GAN's alternating
steps and a generator that runs twice in a step need no care that way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from faceswap.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    world: int = 1
    local: int = 0  # rank on this machine, which is the GPU's index

    def part(self, n: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ConfigError: the batch cannot be shared equally.
        """
        if n % self.world:
            raise ConfigError(f"batch_size {n} does not divide by {self.world} processes")
        share = n // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients become their means over all processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        begin = 0
        for gradient in gradients:
            end = begin + gradient.numel()
            gradient.copy_(flat[begin:end].view_as(gradient))
            begin = end

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether the flag is set in at least one process; all have to ask."""
        return bool(self.mean([float(flag)], device)[0] > 0)

    def mean(self, values: list[float], device: torch.device | str = "cpu") -> list[float]:
        """Means over all processes; all have to ask."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        out: list[float] = (tensor / self.world).tolist()
        return out


ALONE = Group()


def join_group(device: str) -> Group:
    """The group that torchrun's environment describes; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return ALONE
    group = Group(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return group


class _SharedSum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all processes (torch's own one knows no CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)``, same shape out; statistics in fp32."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        wide = x.float()
        number = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), number])
        sums = _SharedSum.apply(sums)
        total = sums[-1]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        out: Tensor = (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        return out


def share_norms(network: nn.Module) -> None:
    """Every batch norm of the network counts the whole batch from now on; same state dict."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
