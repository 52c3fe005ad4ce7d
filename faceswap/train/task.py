"""What a training brings to the loop, and what its step functions have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faceswap.errors import FaceSwapError
from faceswap.models import DTYPES
from faceswap.train.feed import Wait

Term = float | torch.Tensor  # a loss term: a number, or a tensor of one


class NonFiniteLossError(FaceSwapError, ArithmeticError):
    """A loss term became NaN or infinite; the step was not taken."""


@dataclass(slots=True)
class Task:
    """What is trained: everything with state, and one function that takes a step."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    # (step, generator seeded for that step) -> loss terms by name; does backward and steps itself.
    # Terms may stay on the device: reading each would make the CPU wait for it.
    step: Callable[[int, torch.Generator], Mapping[str, Term]]
    ema: str  # the network an exponential moving average is kept of
    export: Callable[[nn.Module, Path], None]  # writes that average for use
    preview: Callable[[nn.Module, Path], None] | None = None
    averages: dict[str, nn.Module] = field(default_factory=dict)
    scalers: dict[str, torch.amp.GradScaler] = field(default_factory=dict)  # of fp16
    archs: dict[str, str] = field(default_factory=dict)  # architecture -> the network it is here
    config: dict[str, Any] = field(default_factory=dict)  # what made it, kept in checkpoints
    wait: Wait = field(default_factory=Wait)  # time the steps spent without data


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Networks run in a precision ("fp32", "bf16", "fp16") inside."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def check_finite(terms: dict[str, torch.Tensor]) -> None:
    """Raise before a step is taken with a loss that is not a number.

    Raises:
        NonFiniteLossError: names the terms.
    """
    values = torch.stack([value.detach().float() for value in terms.values()])
    if not bool(torch.isfinite(values).all()):  # one wait for the device, whatever their number
        bad = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
        raise NonFiniteLossError(
            f"loss is not finite: {', '.join(bad)}; lower the learning rate or that term's weight"
        )


def add_terms(sums: dict[str, Term], terms: Mapping[str, Term], share: float = 1.0) -> None:
    """Add a share of loss terms to their sums, which stay where the terms are."""
    for name, value in terms.items():
        # In fp64, as a number read from the device would be added.
        mine = value.detach().double() if isinstance(value, torch.Tensor) else value
        sums[name] = sums.get(name, 0.0) + mine * share
