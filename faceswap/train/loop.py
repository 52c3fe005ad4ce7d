"""The training loop every network here shares: one page of functions.

A task (`faceswap/train/tasks.py`) brings networks, optimisers and a step function; the loop brings
schedule, EMA, checkpoints, resume, time budget and the log. A batch is drawn from a generator
seeded by (seed, step), so a run that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from faceswap.errors import ConfigError, FaceSwapError

CHECKPOINT = "last.pt"


class NonFiniteLossError(FaceSwapError, ArithmeticError):
    """A loss term became NaN or infinite; the step was not taken."""


@dataclass(slots=True)
class Task:
    """What is trained: everything with state, and one function that takes a step."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    # (step, generator seeded for that step) -> loss terms by name; does backward and steps itself
    step: Callable[[int, torch.Generator], dict[str, float]]
    ema: str  # the network an exponential moving average is kept of
    export: Callable[[nn.Module, Path], None]  # writes that average for use
    preview: Callable[[nn.Module, Path], None] | None = None
    averages: dict[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, how fast, how often."""

    steps: int
    lr: float
    warmup: int = 100  # steps of linear rise
    final: float = 0.02  # share of `lr` the cosine ends at
    ema: float = 0.999
    log_every: int = 20
    save_every: int = 200
    max_minutes: float = math.inf
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * (self.final + (1 - self.final) * cosine)


def check_finite(terms: dict[str, torch.Tensor]) -> None:
    """Raise before a step is taken with a loss that is not a number.

    Raises:
        NonFiniteLossError: names the terms.
    """
    bad = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
    if bad:
        raise NonFiniteLossError(
            f"loss is not finite: {', '.join(bad)}; lower the learning rate or that term's weight"
        )


def save_checkpoint(path: Path, task: Task, step: int) -> None:
    """Full state, written beside the old file and then renamed over it."""
    state = {
        "step": step,
        "networks": {k: v.state_dict() for k, v in task.networks.items()},
        "averages": {k: v.state_dict() for k, v in task.averages.items()},
        "optimizers": {k: v.state_dict() for k, v in task.optimizers.items()},
        "rng": torch.get_rng_state(),
    }
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: Path, task: Task) -> int:
    """Restore everything `save_checkpoint` wrote; the step to go on with.

    Raises:
        ConfigError: the checkpoint is of another architecture.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, network in task.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, average in task.averages.items():
            average.load_state_dict(state["averages"][name])
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: made by another architecture or task ({reason})") from error
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
        for old, new in pairs:
            if old.dtype.is_floating_point:
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def train(
    task: Task,
    schedule: Schedule,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Run until the schedule, the time budget or SIGTERM ends it; always leaves a checkpoint.

    Args:
        out: run folder: ``last.pt`` (full state), ``metrics.jsonl``, the exported weights.
        resume: go on from ``last.pt``; an existing run is never overwritten otherwise.
        report: receives one line every ``log_every`` steps.

    Returns:
        The step reached.

    Raises:
        ConfigError: the folder holds a run and `resume` is off, or the other way round.
        NonFiniteLossError: see `check_finite`.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{out} already holds a run; go on with --resume or name another --out")
    task.averages[task.ema] = deepcopy(task.networks[task.ema]).requires_grad_(False)
    step = load_checkpoint(checkpoint, task) if checkpoint.exists() else 0
    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    previous = signal.signal(signal.SIGTERM, stop)
    began, generator = time.monotonic(), torch.Generator()
    sums: dict[str, float] = {}
    try:
        with (out / "metrics.jsonl").open("a") as log:
            while step < schedule.steps and not stopped:
                for optimizer in task.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = schedule.rate(step) * group.get("lr_scale", 1.0)
                generator.manual_seed(schedule.seed * 1_000_003 + step)
                for name, value in task.step(step, generator).items():
                    sums[name] = sums.get(name, 0.0) + value
                decay = min(schedule.ema, (1 + step) / (10 + step))
                _update_average(task.averages[task.ema], task.networks[task.ema], decay)
                step += 1
                minutes = (time.monotonic() - began) / 60
                if step % schedule.log_every == 0:
                    means = {k: round(v / schedule.log_every, 5) for k, v in sums.items()}
                    sums.clear()
                    line = json.dumps({"step": step, "minutes": round(minutes, 2), **means})
                    log.write(line + "\n")
                    log.flush()
                    report(line)
                if step % schedule.save_every == 0:
                    save_checkpoint(checkpoint, task, step)
                    task.export(task.averages[task.ema], out)
                    if task.preview is not None:
                        task.preview(task.averages[task.ema], out / f"sample-{step:07d}.png")
                stopped = stopped or minutes > schedule.max_minutes
    finally:
        signal.signal(signal.SIGTERM, previous)
    save_checkpoint(checkpoint, task, step)
    task.export(task.averages[task.ema], out)
    return step
