"""From a configuration file to a finished run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from faceswap.errors import ConfigError
from faceswap.models.checkpoint import fill, read_checkpoint
from faceswap.train.config import RunConfig
from faceswap.train.data import load_crops
from faceswap.train.loop import Schedule, train
from faceswap.train.parallel import Group, join_group
from faceswap.train.task import Task

# task -> module with `build(config, data, device, group) -> Task`; the lite tasks take no group
TASKS = {
    "mesh": "faceswap.train.mesh",
    "identity": "faceswap.train.identity",
    "swapper": "faceswap.train.swapper",
    "aei": "faceswap.train.aei",
    "distill": "faceswap.train.distill",
    "detector": "faceswap.train.detector",
    "restorer": "faceswap.train.restorer",
    "occlusion": "faceswap.train.occlusion",
}
SHARED = ("aei", "distill")  # tasks that several processes can work on


def begin_with(task: Task, files: tuple[str, ...]) -> None:
    """Fill the networks of a task from weight files, each the one it is of.

    Parts that a network has grown since (its ``NEW_PARTS``) and a file lacks stay as they begin.

    Raises:
        WeightError: a file that is not here, damaged, or of none of these networks.
    """
    for file in files:
        checkpoint = read_checkpoint(Path(file))
        network = task.networks[task.archs.get(checkpoint.arch, task.ema)]
        new = {
            name: value
            for name, value in network.state_dict().items()
            if name.split(".")[0] in getattr(network, "NEW_PARTS", ())
        }
        fill(network, replace(checkpoint, state={**new, **checkpoint.state}))


def build_task(config: RunConfig, device: torch.device, group: Group) -> Task:
    """Networks and step function of a configuration, weights set from `config.seed` and `init`."""
    torch.manual_seed(config.seed)
    data = load_crops(Path(config.data))
    shared = {"group": group} if config.task in SHARED else {}
    task: Task = import_module(TASKS[config.task]).build(config, data, device, **shared)
    begin_with(task, config.init)
    task.config = config.model_dump(mode="json")
    task.wait = data.wait
    return task


def run_training(
    config: RunConfig,
    out: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    max_minutes: float = math.inf,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Train what `config` says into the folder `out`; the step reached.

    Under ``torchrun`` every process calls it, and works on its part of each batch.

    Raises:
        ConfigError, MediaError, WeightError: see `train`, `load_crops` and `begin_with`.
    """
    group = join_group(device)
    if group.world > 1 and config.task not in SHARED:
        raise ConfigError(f"task {config.task} runs in one process; start it without torchrun")
    where = torch.device(f"cuda:{group.local}" if group.world > 1 and "cuda" in device else device)
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)
    task = build_task(config, where, group)
    schedule = Schedule(
        steps=config.steps,
        lr=config.lr,
        warmup=config.warmup,
        final=config.final_lr,
        ema=config.ema,
        log_every=config.log_every,
        save_every=config.save_every,
        keep=config.keep,
        max_minutes=max_minutes,
        seed=config.seed,
    )
    return train(task, schedule, out, resume=resume, report=report, group=group)
