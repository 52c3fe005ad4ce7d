"""Frames on their way to a device and back, beside the device's own work.

CUDA copies to and from ordinary memory make the program wait, and the device's work with it. Here
frames pass through page-locked memory, on a stream each way: who reads begins the way up, who
computes has its work wait for it on the device (an event), and the way down is waited for only by
who looks at the pixels. A CPU has the frames already; its results are copied into blocks that are
used again (`Buffers`).

Memory that another stream still reads may not be given out anew: on the device ``record_stream``
sees to that, and for page-locked memory torch's allocator does, which notes every copy that does
not block (PyTorch, "CUDA semantics", sections on streams and on pinned buffers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faceswap.media.buffers import Buffers


@dataclass(frozen=True, slots=True)
class Sent:
    """Frames that are or will be on the device."""

    frames: Tensor  # (B, 3, H, W) uint8, on the device
    done: Any | None  # event; None: they are there
    carrier: Carrier

    def take(self) -> Tensor:
        """The frames, for the device's work of this thread: what follows comes after them."""
        if self.done is not None:
            work = self.carrier.work()
            work.wait_event(self.done)
            _keep(self.frames, work)
        return self.frames


@dataclass(frozen=True, slots=True)
class Fetched:
    """Frames that are or will be in the computer's memory."""

    frames: Tensor  # (B, 3, H, W) uint8, on the CPU
    done: Any | None = None  # event; None: they are there

    def wait(self) -> Tensor:
        """The frames, once they are all there; any thread may ask."""
        if self.done is not None:
            self.done.synchronize()
        return self.frames


class Carrier:
    """Takes frames to one device and back; threads may share it.

    Args:
        device: where to.
        cuda: what `torch.cuda` offers of streams and events; None: the device has none.
    """

    def __init__(self, device: torch.device, cuda: Any | None = None) -> None:
        self.device = device
        self._cuda: Any = torch.cuda if device.type == "cuda" else cuda
        self._pinned = device.type == "cuda"
        self._buffers = Buffers()
        if self._cuda is not None:
            # One each way: what waits for the networks on its way down must hold up nothing else.
            self._up, self._down = self._cuda.Stream(device), self._cuda.Stream(device)

    def work(self) -> Any:
        """The stream that the networks called by this thread run on."""
        return self._cuda.current_stream(self.device)

    def send(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8, on the CPU
    ) -> Sent:
        """Begin to take frames to the device."""
        if self._cuda is None:
            return Sent(frames, None, self)
        with self._cuda.stream(self._up):
            locked = self._locked(frames).copy_(frames)
            there = locked.to(self.device, non_blocking=True)
        return Sent(there, self._mark(self._up), self)

    def fetch(
        self,
        frames: Tensor,  # (B, 3, H, W) uint8, on the device; may still be in the making
    ) -> Fetched:
        """Begin to take back what this thread has the device make."""
        if self._cuda is None:
            return Fetched(self._buffers.tensor(*frames.shape).copy_(frames))
        self._down.wait_stream(self.work())
        with self._cuda.stream(self._down):
            here = self._locked(frames).copy_(frames, non_blocking=True)
        _keep(frames, self._down)
        return Fetched(here, self._mark(self._down))

    def _locked(self, like: Tensor) -> Tensor:
        """Memory of the computer that the device can reach by itself."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pinned)

    def _mark(self, stream: Any) -> Any:
        """An event behind all that the stream was given so far; waiting for it is idle."""
        event = self._cuda.Event(blocking=True)
        event.record(stream)
        return event


def _keep(frames: Tensor, stream: Any) -> None:
    """Have a tensor's memory not given out anew before a stream is done with it."""
    if frames.is_cuda:
        frames.record_stream(stream)
