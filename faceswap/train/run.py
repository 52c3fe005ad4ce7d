"""From a configuration file to a finished run."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
import yaml

from faceswap.models.checkpoint import fill, read_checkpoint
from faceswap.train.config import TrainConfig
from faceswap.train.data import load_crops
from faceswap.train.loop import Schedule, Task, train

# task -> module with `build(config, data, device) -> Task`
TASKS = {
    "mesh": "faceswap.train.mesh",
    "identity": "faceswap.train.identity",
    "swapper": "faceswap.train.swapper",
}


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    max_minutes: float = math.inf,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Train what `config` says into the folder `out`; the step reached.

    Raises:
        ConfigError, MediaError: see `train` and `load_crops`.
    """
    torch.manual_seed(config.seed)
    data = load_crops(Path(config.data))
    task: Task = import_module(TASKS[config.task]).build(config, data, torch.device(device))
    if config.init:
        fill(task.networks[task.ema], read_checkpoint(Path(config.init)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
    schedule = Schedule(
        steps=config.steps,
        lr=config.lr,
        warmup=config.warmup,
        ema=config.ema,
        log_every=config.log_every,
        save_every=config.save_every,
        max_minutes=max_minutes,
        seed=config.seed,
    )
    return train(task, schedule, out, resume=resume, report=report)
