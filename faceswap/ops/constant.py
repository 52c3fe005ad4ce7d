"""Numbers every call needs, sent to a device once: each copy would make Python wait for a GPU."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def constant(
    values: tuple[Any, ...],  # int or float, or tuples of them
    device: torch.device,
) -> Tensor:
    """A tensor of numbers on a device, int64 or float32; not to be written into.

    For indices too: a list in brackets is sent again each time.
    """
    first: Any = values
    while isinstance(first, tuple) and first:
        first = first[0]
    # The type is part of the key: to Python (1, 0) and (1.0, 0.0) are the same.
    return _made(values, torch.float32 if isinstance(first, float) else torch.int64, device)


@lru_cache
def _made(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it may be first asked for there, and then in a training
        return torch.tensor(values, dtype=dtype, device=device)
