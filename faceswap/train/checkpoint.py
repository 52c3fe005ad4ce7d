"""The full state of a run, in one file that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from faceswap.errors import ConfigError, WeightError
from faceswap.train.task import Task, Term

CHECKPOINT = "last.pt"


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
