"""Batches made ahead: the same batches, never too many, and the time without data is measured."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from faceswap.train.feed import Feed, Share, Wait, step_seed


def numbers(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def feed(make, *, workers: int, ahead: int = 2) -> Feed[float]:
    return Feed(make, seed=3, workers=workers, ahead=ahead, wait=Wait())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(workers):
    """Batch, and what the step draws after it, are those of one generator seeded for the step."""
    source = feed(numbers, workers=workers)
    for step in (0, 1, 2, 7, 8, 1):  # a resumed run begins anywhere
        expected = torch.Generator().manual_seed(step_seed(3, step))
        mine = torch.Generator()
        batch = source.take(step, mine)
        assert batch == numbers(expected)
        assert numbers(mine) == numbers(expected)
        assert mine.initial_seed() == step_seed(3, step)


def test_prefetch_is_bounded():
    made: list[int] = []
    lock = threading.Lock()

    def make(generator: torch.Generator) -> float:
        with lock:
            made.append(generator.initial_seed() - step_seed(3, 0))
        return 0.0

    source = feed(make, workers=2, ahead=3)
    source.take(0, torch.Generator())
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(made) == [0, 1, 2, 3]
    source.take(1, torch.Generator())
    assert len(source.begun) == 3


def test_errors_of_a_worker_reach_the_step():
    def make(generator: torch.Generator) -> float:
        raise ValueError("a shard that is gone")

    with pytest.raises(ValueError, match="a shard that is gone"):
        feed(make, workers=1).take(0, torch.Generator())


def test_time_without_data_is_measured():
    def slow(generator: torch.Generator) -> float:
        time.sleep(0.1)
        return 0.0

    source = feed(slow, workers=1, ahead=1)
    share = Share(source.wait)
    source.take(0, torch.Generator())
    assert share.share() > 0.8
    time.sleep(0.5)  # a step that computes while the next batch is made
    before = source.wait.seconds
    source.take(1, torch.Generator())
    assert source.wait.seconds - before < 0.09
    assert share.share() < 0.2
