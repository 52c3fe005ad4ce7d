"""Getting what a worker drew to the device without making anybody wait.

A GPU copies by itself from memory that is pinned, while Python goes on; a copy from any other
memory stops Python until all work queued before it is done. Workers pin, the training thread sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from faceswap.train.config import RunConfig
from faceswap.train.feed import Feed, Wait

Record = TypeVar("Record")  # a tensor, or a tuple or dataclass with tensors in it


def pinned(record: Record, device: torch.device) -> Record:
    """The same in memory that a GPU can copy from by itself; for a CPU as it is."""
    if device.type != "cuda":
        return record
    out: Record = mapped(record, Tensor.pin_memory)
    return out


def moved(record: Record, device: torch.device) -> Record:
    """The same on a device; fields that hold no tensors stay as they are."""
    out: Record = mapped(record, lambda tensor: tensor.to(device, non_blocking=True))
    return out


def sent(record: Record, device: torch.device) -> Record:
    """`pinned` and `moved`, where no worker did the former."""
    return moved(pinned(record, device), device)


def mapped(record: Any, function: Callable[[Any], Any], *, kind: type = Tensor) -> Any:
    """The same with a function of each tensor (or other ``kind``) in its place."""
    if isinstance(record, kind):
        return function(record)
    if isinstance(record, tuple):
        return tuple(mapped(each, function, kind=kind) for each in record)
    if is_dataclass(record) and not isinstance(record, type):
        values = {f.name: getattr(record, f.name) for f in fields(record)}
        return replace(
            record, **{name: mapped(value, function, kind=kind) for name, value in values.items()}
        )
    return record


def feed_of(
    draw: Callable[[torch.Generator], Record],
    config: RunConfig,
    device: torch.device,
    wait: Wait,
) -> Feed[Record]:
    """What `draw` draws for each step, made ready by the configured workers, to be `moved`."""
    return Feed(
        lambda generator: pinned(draw(generator), device),
        seed=config.seed,
        workers=config.workers,
        ahead=config.ahead,
        wait=wait,
    )
