"""The full state of a run, in one file that is there whole or not at all."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from faceswap.errors import ConfigError, WeightError
from faceswap.train.task import Task, Term

CHECKPOINT = "last.pt"
# Settings that a run may go on with other values of, and stay on its curve.
_FREE = ("init", "save_every", "keep", "log_every", "workers", "ahead")
_SAID = 4  # settings that a message names
_log = logging.getLogger("faceswap")


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
        with part.open("wb") as file:  # given a name, torch would not say that the disk is full
            torch.save(state, file)
        os.replace(part, path)
        if keep > 1:
            shutil.copyfile(path, part)
            os.replace(part, path.with_name(f"step-{step:07d}.pt"))
            for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
                old.unlink()
    except (OSError, RuntimeError) as error:  # the latter is what torch makes of the former
        cause = error if isinstance(error, OSError) else error.__context__ or error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
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
        WeightError: it is damaged.
    """
    state = _read(path)
    changed = _changed(state.get("config", {}), task.config)
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
        reason = _words(changed) or " ".join(str(error).split())
        raise ConfigError(
            f"{path}: made by another architecture or task ({reason[:300]}); resume with the "
            "settings it was begun with, or begin a new run with another --out"
        ) from error
    if changed:
        _log.warning(
            "%s: begun with other settings, and goes on with the new ones: %s",
            path.parent,
            _words(changed),
        )
    torch.set_rng_state(state["rng"])
    return int(state["step"]), state.get("sums", {})


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        older = [each.name for each in sorted(path.parent.glob("step-*.pt"))]
        after = f"copy {older[-1]} over it" if older else "begin a new run with another --out"
        raise WeightError(f"{path}: damaged, cannot be resumed; {after}") from error
    return state


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that matter to the curve and differ: old and new value; the network's first."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = [name for name in {**old, **new} if name.split(".")[0] not in _FREE]
    names.sort(key=lambda name: not name.startswith("model."))
    changed = {k: (old.get(k), new.get(k)) for k in names if old.get(k) != new.get(k)}
    return {"task": changed["task"]} if "task" in changed else changed


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"size": 256}}`` as ``("model.size", 256)``."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    said = [f"{name} was {old}, is {new}" for name, (old, new) in changed.items()]
    more = [f"{len(said) - _SAID} more"] if len(said) > _SAID else []
    return ", ".join(said[:_SAID] + more)
