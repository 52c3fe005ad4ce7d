"""The training loop every network here shares: one page of functions.

A task (`faceswap.train.run.TASKS`) brings networks, optimisers and a step function; the loop brings
schedule, EMA, checkpoints, resume, time budget and the log. A batch is drawn from a generator
seeded by (seed, step), so a run that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import nn

from faceswap.errors import ConfigError, FaceSwapError, WeightError
from faceswap.models import DTYPES
from faceswap.train.feed import Share, Wait, step_seed
from faceswap.train.parallel import ALONE, Group
from faceswap.train.record import Record

CHECKPOINT = "last.pt"
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
    keep: int = 1  # full checkpoints
    max_minutes: float = math.inf
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * (self.final + (1 - self.final) * cosine)


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


def save_checkpoint(
    path: Path, task: Task, step: int, *, sums: Mapping[str, Term] | None = None, keep: int = 1
) -> None:
    """Full state, written beside the old file and then renamed over it.

    Args:
        path: the newest checkpoint.
        task: what is saved.
        step: the step to go on with.
        sums: loss terms since the last line of the log.
        keep: older ones stay as ``step-N.pt`` until there are that many.

    Raises:
        WeightError: it cannot be written; the old file is as it was.
    """
    state = {
        "step": step,
        "networks": {k: v.state_dict() for k, v in task.networks.items()},
        "averages": {k: v.state_dict() for k, v in task.averages.items()},
        "optimizers": {k: v.state_dict() for k, v in task.optimizers.items()},
        "scalers": {k: v.state_dict() for k, v in task.scalers.items()},
        "rng": torch.get_rng_state(),
        "sums": {name: float(value) for name, value in (sums or {}).items()},
        "config": task.config,
    }
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        os.replace(part, path)
        if keep > 1:
            shutil.copyfile(path, path.with_name(f"step-{step:07d}.pt"))
            for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
                old.unlink()
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        reason = str(error).splitlines()[0]
        if path.exists():
            after = "the one before it is kept, go on with --resume when there is room"
        else:
            after = "there is none before it, begin again where there is room"
        raise WeightError(
            f"{path}: the checkpoint of step {step} cannot be written ({reason}); {after}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: Path, task: Task) -> tuple[int, dict[str, float]]:
    """Restore everything `save_checkpoint` wrote.

    Returns:
        The step to go on with, and the loss terms summed since the last line of the log.

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
        for name, scaler in task.scalers.items():
            scaler.load_state_dict(state.get("scalers", {}).get(name, {}) or scaler.state_dict())
    except (KeyError, RuntimeError, ValueError) as error:
        reason = _otherwise(state.get("config", {}), task.config) or " ".join(str(error).split())
        raise ConfigError(
            f"{path}: made by another architecture or task ({reason[:160]}); resume with the "
            "settings it was begun with, or begin a new run with another --out"
        ) from error
    torch.set_rng_state(state["rng"])
    return int(state["step"]), state.get("sums", {})


def _otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings of the networks differ, in words; "" if none does."""
    keys = ("task", "encoders", "critic_width", "teacher")
    pairs = {key: (before.get(key), now.get(key)) for key in keys}
    old, new = before.get("model") or {}, now.get("model") or {}
    pairs |= {f"model.{key}": (old.get(key), new.get(key)) for key in {**old, **new}}
    return ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in pairs.items() if a != b)


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
        for old, new in pairs:
            if old.dtype.is_floating_point:
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def add_terms(sums: dict[str, Term], terms: Mapping[str, Term], share: float = 1.0) -> None:
    """Add a share of loss terms to their sums, which stay where the terms are."""
    for name, value in terms.items():
        # In fp64, as a number read from the device would be added.
        mine = value.detach().double() if isinstance(value, torch.Tensor) else value
        sums[name] = sums.get(name, 0.0) + mine * share


def set_rates(task: Task, rate: float) -> None:
    """Give every optimiser its learning rate; a group may have a ``lr_scale``."""
    for optimizer in task.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM only makes the given function say so."""
    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGTERM, previous)


def train(
    task: Task,
    schedule: Schedule,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
    group: Group = ALONE,
) -> int:
    """Run until the schedule, the time budget or SIGTERM ends it; always leaves a checkpoint.

    Args:
        task: networks and the step function.
        schedule: how long, how fast, how often.
        out: run folder: ``last.pt`` (full state), ``metrics.jsonl``, the exported weights.
        resume: go on from ``last.pt``; an existing run is never overwritten otherwise.
        report: receives one line every ``log_every`` steps.
        group: the processes of the run; only the first one writes.

    Returns:
        The step reached.

    Raises:
        ConfigError: the folder holds a run and `resume` is off, or the other way round.
        NonFiniteLossError: see `check_finite`.
        WeightError: see `save_checkpoint`.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{out} already holds a run; go on with --resume or name another --out")
    if resume and not checkpoint.exists():
        raise ConfigError(f"{out} holds no run to resume; leave --resume away to begin one")
    first = group.rank == 0
    out.mkdir(parents=True, exist_ok=True)
    task.averages[task.ema] = deepcopy(task.networks[task.ema]).requires_grad_(False)
    sums: dict[str, Term] = {}
    step = 0
    if resume:
        step, before = load_checkpoint(checkpoint, task)
        sums.update(before)
    if first and task.config:
        (out / "config.yaml").write_text(yaml.safe_dump(task.config, sort_keys=False))
    average = task.averages[task.ema]
    device = next(average.parameters()).device
    began, generator = time.monotonic(), torch.Generator()
    waited = Share(task.wait)

    def save() -> None:
        if first:
            save_checkpoint(checkpoint, task, step, sums=sums, keep=schedule.keep)
            task.export(average, out)

    with _stop_signal() as signalled, Record(out, step, active=first) as record:
        stopped = False
        while step < schedule.steps and not stopped:
            set_rates(task, schedule.rate(step))
            generator.manual_seed(step_seed(schedule.seed, step))
            add_terms(sums, task.step(step, generator))
            decay = min(schedule.ema, (1 + step) / (10 + step))
            _update_average(average, task.networks[task.ema], decay)
            step += 1
            minutes = (time.monotonic() - began) / 60
            if step % schedule.log_every == 0:
                values = group.mean([float(v) / schedule.log_every for v in sums.values()], device)
                terms = dict(zip(sums, values, strict=True))
                line = record.write(step, minutes, {**terms, "wait": waited.share()})
                sums.clear()
                if first:
                    report(line)
            if step % schedule.save_every == 0:
                save()
                if first and task.preview is not None:
                    task.preview(average, out / f"sample-{step:07d}.png")
            stopped = group.any(signalled() or minutes > schedule.max_minutes, device)
        save()
    return step
