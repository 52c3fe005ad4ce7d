"""Batches made ahead of the step that needs them.

Photos that do not fit on the GPU are read from memory-mapped shards by a few threads while the
device works; a bounded number of batches waits at any time. Threads are enough: reading a mapped
page and copying rows happens outside Python's lock. Batch k is always made of the random numbers
of step k, so a run with workers is the run without, and resumes to the same curve.

Random access to shards replaces the stream that webdataset reads: a pair needs two photos of one
person, wherever they lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Batch = TypeVar("Batch")


def step_seed(seed: int, step: int) -> int:
    """Where the random numbers of a step begin."""
    return seed * 1_000_003 + step


@dataclass(slots=True)
class Wait:
    """Time the training thread spent without data, since the run began."""

    seconds: float = 0.0


class Share:
    """What share of the time since the last question was spent without data."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.since = (time.monotonic(), wait.seconds)

    def share(self) -> float:
        """In [0, 1]."""
        began, before = self.since
        self.since = (time.monotonic(), self.wait.seconds)
        passed = max(self.since[0] - began, 1e-9)
        return min(1.0, (self.since[1] - before) / passed)


class Feed(Generic[Batch]):
    """Batches in the order of the steps.

    Args:
        make: the batch of a step, from the generator seeded for that step; any thread.
        seed: of the run.
        workers: threads; 0 makes each batch when it is asked for.
        ahead: batches that are ready or being made at most.
        wait: where the time without data is added up.
    """

    def __init__(
        self,
        make: Callable[[torch.Generator], Batch],
        *,
        seed: int,
        workers: int,
        ahead: int,
        wait: Wait,
    ) -> None:
        self.make, self.seed, self.ahead, self.wait = make, seed, max(ahead, workers), wait
        self.pool = ThreadPoolExecutor(workers, "feed") if workers else None
        self.begun: dict[int, Future[tuple[Batch, torch.Tensor]]] = {}

    def take(self, step: int, generator: torch.Generator) -> Batch:
        """The batch of a step; the generator is left as if the batch had been drawn from it.

        Raises:
            What `make` raises.
        """
        began = time.monotonic()
        if self.pool is None:
            batch, state = self._made(step)
        else:
            if step not in self.begun:  # the first step, or one that does not follow
                for future in self.begun.values():
                    future.cancel()
                self.begun.clear()
            for each in range(step, step + 1 + self.ahead):
                if each not in self.begun:
                    self.begun[each] = self.pool.submit(self._made, each)
            batch, state = self.begun.pop(step).result()
        generator.set_state(state)
        self.wait.seconds += time.monotonic() - began
        return batch

    def _made(self, step: int) -> tuple[Batch, torch.Tensor]:
        generator = torch.Generator()
        generator.manual_seed(step_seed(self.seed, step))
        batch = self.make(generator)
        return batch, generator.get_state()
