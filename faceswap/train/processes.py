"""Batches made by other processes, for what is many small steps of Python.

Threads are enough to read photos, but hundreds of small pieces a batch keep Python's lock; a GPU
would wait for them. Each process opens the data itself, memory-mapped, so the pages are shared.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from faceswap.train.transfer import mapped

Batch = TypeVar("Batch")
Make = Callable[[torch.Generator], Batch]

_make: list[Make[Any]] = []  # in such a process: what makes its batches


class Elsewhere(Generic[Batch]):
    """A function of a generator that other processes compute; any thread may call it.

    Args:
        begin: gives the function, called once in each process; has to be picklable.
        count: processes.
    """

    def __init__(self, begin: Callable[[], Make[Batch]], count: int) -> None:
        self.pool = ProcessPoolExecutor(
            count, get_context("spawn"), initializer=_begin, initargs=(begin,)
        )

    def __call__(self, generator: torch.Generator) -> Batch:
        """The batch; the generator is left as if it had been used here.

        Raises:
            What the function raises.
        """
        # As arrays: tensors would travel through shared memory, of which containers have little.
        state = generator.get_state().numpy()
        batch, state = self.pool.submit(_run, state).result()
        generator.set_state(torch.from_numpy(state))
        out: Batch = mapped(batch, torch.from_numpy, kind=np.ndarray)
        return out


def _begin(begin: Callable[[], Make[Any]]) -> None:
    """Set up a process: one thread, no signals of its own, gone when the training is."""
    for each in (signal.SIGTERM, signal.SIGINT):  # the training decides when to stop
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _make[:] = [begin()]


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(state: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    batch = _make[0](generator)
    return mapped(batch, torch.Tensor.numpy), generator.get_state().numpy()
