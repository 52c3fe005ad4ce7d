"""Numbers every call needs, sent to a device once: each copy would make Python wait for a GPU."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache
def constant(
    values: tuple[Any, ...],  # int or float, or tuples of them
    device: torch.device,
) -> Tensor:
    """A tensor of numbers on a device, int64 or float32; not to be written into.

    For indices too: a list in brackets is sent again each time.
    """
    with torch.inference_mode(False):  # it may be first asked for there, and then in a training
        return torch.tensor(values, device=device)
