"""The devices that share out a clip: each with its own models and a thread to work there.

Batches of frames go to the devices in turn. What needs the whole picture (who is who, whom to swap,
how points are steadied) stays in the caller's thread and in the clip's order, so any number of
devices makes the frames that one makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from faceswap.errors import DeviceError
from faceswap.media.transfer import Carrier
from faceswap.swap import Swapper
from faceswap.types import Faces

R = TypeVar("R")


class Lane:
    """One device.

    Args:
        swapper: models on it.
        thread: name of a thread of its own, where what is submitted runs; empty: it runs at once.
    """

    def __init__(self, swapper: Swapper, thread: str = "") -> None:
        self.swapper = swapper
        self.carrier = Carrier(swapper.device)
        self.warnings: list[str] = []
        self._pool: ThreadPoolExecutor | None = None
        if thread:  # torch's number of threads is each thread's own, and rounding depends on it
            share = (torch.get_num_threads(),)
            self._pool = ThreadPoolExecutor(1, thread, torch.set_num_threads, share)

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Have a call made after those submitted before; what it raises, ``result()`` raises."""
        if self._pool is not None:
            return self._pool.submit(call)
        done: Future[R] = Future()
        done.set_result(call())
        return done

    def with_room(self, call: Callable[[int], R]) -> R:
        """Make a call; with half the batch as long as the GPU's memory does not suffice.

        Args:
            call: is told how many frames or faces may go through a network together.

        Raises:
            DeviceError: not even one.
        """
        while True:
            size = self.swapper.config.batch_size
            try:
                return call(size)
            except torch.cuda.OutOfMemoryError as error:
                if size == 1:
                    raise DeviceError(
                        "the GPU's memory does not suffice for a single frame; close other "
                        "programs or use --device cpu"
                    ) from error
            torch.cuda.empty_cache()
            self.swapper.config = self.swapper.config.model_copy(update={"batch_size": size // 2})
            self.warnings.append(f"GPU memory is short: batches of {size // 2} from here on")

    def per_face(
        self,
        network: Callable[[Tensor, Faces], Tensor],  # one of the swapper's
        frames: Tensor,  # (B, 3, H, W) uint8, on its device
        faces: Faces,
    ) -> Tensor:
        """What a network says of faces, few at a time, ``(N, ...) float32`` on the CPU."""
        faces = faces.to(frames.device)

        def call(size: int) -> Tensor:
            rows = torch.arange(len(faces), device=faces.frame.device).split(size)
            return torch.cat([network(frames, faces[part]).float().cpu() for part in rows])

        return self.with_room(call)

    def close(self) -> None:
        """Wait for the call in progress; those behind it are not made any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Lanes:
    """All devices of a swapper, to be taken in turn; use it in a ``with`` block.

    Args:
        swapper: models on the first device; those on the others are its ``twins``.
    """

    def __init__(self, swapper: Swapper) -> None:
        swappers = (swapper, *swapper.twins)
        several = len(swappers) > 1
        names = [f"lane-{number}" if several else "" for number in range(len(swappers))]
        self._all = [Lane(*pair) for pair in zip(swappers, names, strict=True)]
        self._turn = 0
        self.ahead = len(swappers) if several else 0  # calls that may wait to be made or fetched

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._all)

    def next(self) -> Lane:
        """The device whose turn it is."""
        self._turn += 1
        return self._all[(self._turn - 1) % len(self._all)]

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lane in self._all:
            lane.close()
