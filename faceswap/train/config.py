"""Settings of a training run, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from faceswap.config import Settings, load_config
from faceswap.errors import ConfigError


class TrainConfig(Settings):
    """One YAML file of `configs/`; unknown keys are refused."""

    task: Literal["mesh", "identity", "swapper"]
    """Which step function trains."""
    data: str = "data/prepared"
    """A folder made by `faceswap prepare`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network's constructor."""
    losses: dict[str, float] = Field(default_factory=dict)
    """Weight of each loss term the task knows; 0 turns it off."""
    teachers: dict[str, str] = Field(default_factory=dict)
    """TorchScript networks for losses, by role."""
    batch_size: int = Field(32, ge=1)
    """Samples a step."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps of the whole run (the cosine ends there)."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the exported average."""
    warmup: int = Field(100, ge=0)
    """Steps of linear rise."""
    save_every: int = Field(200, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of weights and batches."""
    init: str = ""
    """Weights to begin with: a .safetensors of the same network, or empty."""


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a training configuration.

    Args:
        path: YAML file.
        overrides: ``key=value`` or ``losses.key=value``, as `load_config` takes them.

    Raises:
        ConfigError: the file is missing, not YAML, or has a wrong or unknown field (named).
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration; the shipped ones are in configs/")
    return load_config(path, overrides, schema=TrainConfig)
