"""The training loop every network here shares: one page of functions.

A task (`faceswap.train.task`) brings networks, optimisers and a step function; the loop brings
schedule, EMA, checkpoints, resume, time budget and the log. A batch is drawn from a generator
seeded by (seed, step), so a run that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from types import FrameType

import torch
import yaml
from torch import nn

from faceswap.errors import ConfigError
from faceswap.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from faceswap.train.disk import write_whole, writing
from faceswap.train.feed import Share, step_seed
from faceswap.train.parallel import ALONE, Group
from faceswap.train.record import Record
from faceswap.train.task import Task, Term, add_terms

_STOPS = (signal.SIGTERM, signal.SIGINT)


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


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        mean, now = ([*each.state_dict().values()] for each in (average, network))
        real = [old.is_floating_point() for old in mean]
        torch._foreach_lerp_([*compress(mean, real)], [*compress(now, real)], 1 - decay)
        for old, new, is_real in zip(mean, now, real, strict=True):
            if not is_real:
                old.copy_(new)


def set_rates(task: Task, rate: float) -> None:
    """Give every optimiser its learning rate; a group may have a ``lr_scale``."""
    for optimizer in task.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)


@contextmanager
def _stop_signal(report: Callable[[str], None], *, alone: bool) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and Ctrl-C only make the given function say so.

    A second Ctrl-C interrupts at once, but not among several processes: torchrun sends each of
    them one of its own after that of the terminal.
    """
    stopped = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        if number == signal.SIGINT and stopped and alone:
            raise KeyboardInterrupt
        stopped = True
        with suppress(RuntimeError):  # the signal came while another line was being written
            report("stopping after this step, with a checkpoint")

    # Who starts a run in the background may have its Ctrl-C ignored; that stays so.
    listened = [each for each in _STOPS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in listened}
    try:
        yield lambda: stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def train(
    task: Task,
    schedule: Schedule,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
    group: Group = ALONE,
) -> int:
    """Run until the schedule, the time budget, SIGTERM or Ctrl-C ends it, with a checkpoint.

    Args:
        task: networks and the step function.
        schedule: how long, how fast, how often.
        out: run folder: ``last.pt`` (full state), ``metrics.jsonl``, the exported weights.
        resume: go on from ``last.pt``; an existing run is never overwritten otherwise.
        report: receives one line every ``log_every`` steps, and one where a signal stops it.
        group: the processes of the run; only the first one writes.

    Returns:
        The step reached.

    Raises:
        ConfigError: the folder holds a run and `resume` is off, or the other way round.
        NonFiniteLossError: see `check_finite`.
        WeightError: see `save_checkpoint`.
        MediaError: anything else that cannot be written.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{out} already holds a run; go on with --resume or name another --out")
    if resume and not checkpoint.exists():
        raise ConfigError(f"{out} holds no run to resume; leave --resume away to begin one")
    first = group.rank == 0
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    task.averages[task.ema] = deepcopy(task.networks[task.ema]).requires_grad_(False)
    sums: dict[str, Term] = {}
    step = 0
    if resume:
        step, before = load_checkpoint(checkpoint, task)
        sums.update(before)
    if first and task.config:
        write_whole(out / "config.yaml", yaml.safe_dump(task.config, sort_keys=False))
    average = task.averages[task.ema]
    device = next(average.parameters()).device
    began, generator = time.monotonic(), torch.Generator()
    waited = Share(task.wait)

    def save() -> None:
        if first:
            save_checkpoint(checkpoint, task, step, sums=sums, keep=schedule.keep)
            task.export(average, out)

    say = report if first else lambda line: None
    with (
        _stop_signal(say, alone=group.world == 1) as signalled,
        Record(out, step, active=first) as record,
    ):
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
                say(line)
            if step % schedule.save_every == 0:
                save()
                if first and task.preview is not None:
                    with writing(out):
                        task.preview(average, out / f"sample-{step:07d}.png")
            stopped = group.any(signalled() or minutes > schedule.max_minutes, device)
        save()
    return step
