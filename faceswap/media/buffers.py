"""Memory for frames that is used again instead of being given back.

A frame is megabytes that one thread allocates and another frees, ten times a frame and with all
sizes mixed. The C library's allocator never gets such holes filled: a clip of minutes then holds
half as much again as it needs. Blocks from here go back to a list of their size as soon as nobody
looks at them any more, so what a clip holds is what it needed at once at most.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Buffers:
    """Blocks of memory to borrow; threads may share one of these."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}  # bytes -> blocks nobody looks at

    def take(self, size: int) -> NDArray[np.uint8]:
        """``(size,) uint8`` of any content; lent for as long as it or a view of it is alive."""
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Views of an array refer to what it was made of, not to the array: here, to this object.
        lent = (ctypes.c_ubyte * size).from_buffer(block.data)
        weakref.finalize(lent, free.append, block).atexit = False
        return np.frombuffer(memoryview(lent), np.uint8)

    def tensor(self, *shape: int) -> Tensor:
        """An uninitialised uint8 tensor on the CPU."""
        return torch.from_numpy(self.take(math.prod(shape))).view(shape)

    def planes(self, shapes: Sequence[tuple[int, int]], sample_bytes: int) -> list[NDArray[Any]]:
        """Uninitialised arrays of a sample's size (1: uint8, 2: uint16), in one block."""
        sizes = [height * width * sample_bytes for height, width in shapes]
        block, ends = self.take(sum(sizes)), itertools.accumulate(sizes)
        return [
            block[end - size : end].view(f"<u{sample_bytes}").reshape(shape)
            for shape, size, end in zip(shapes, sizes, ends, strict=True)
        ]
