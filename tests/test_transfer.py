"""Frames to a device and back: what is queued in which order, on a stand-in for `torch.cuda`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from faceswap.media.transfer import Carrier, Sent

FRAMES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)


class FakeCuda:
    """Streams that do nothing but note what they were told."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.made: list[FakeStream] = []
        self.default = FakeStream(self, "work")
        self.current = self.default

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        self.made.append(FakeStream(self, f"copy {len(self.made)}"))
        return self.made[-1]

    def Event(self, *, blocking: bool) -> FakeEvent:  # noqa: N802
        assert blocking, "would keep a core busy"
        return FakeEvent(self)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.log.append(("on", stream.name))
        yield
        self.log.append(("off", stream.name))
        self.current = before


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append((self.name, "waits for all of", other.name))

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append((self.name, "waits for mark in", event.of))


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.of = cuda, ""

    def record(self, stream: FakeStream) -> None:
        self.of = stream.name
        self.cuda.log.append(("mark", stream.name))

    def synchronize(self) -> None:
        self.cuda.log.append(("program waits for mark in", self.of))


def test_convention_the_work_waits_for_the_way_up() -> None:
    cuda = FakeCuda()
    sent = Carrier(torch.device("cpu"), cuda).send(FRAMES)
    assert cuda.log == [("on", "copy 0"), ("off", "copy 0"), ("mark", "copy 0")]
    assert sent.frames.data_ptr() != FRAMES.data_ptr()  # through a buffer: these may change
    assert torch.equal(sent.take(), FRAMES)
    assert cuda.log[3:] == [("work", "waits for mark in", "copy 0")]


def test_convention_the_way_down_waits_for_the_work_and_holds_up_nothing_else() -> None:
    cuda = FakeCuda()
    fetched = Carrier(torch.device("cpu"), cuda).fetch(FRAMES)
    assert cuda.log == [
        ("copy 1", "waits for all of", "work"),
        ("on", "copy 1"),
        ("off", "copy 1"),
        ("mark", "copy 1"),
    ]
    assert torch.equal(fetched.wait(), FRAMES)
    assert cuda.log[4:] == [("program waits for mark in", "copy 1")]


def test_a_cpu_copies_its_results_only() -> None:
    carrier = Carrier(torch.device("cpu"))
    assert carrier.send(FRAMES).take() is FRAMES
    back = carrier.fetch(FRAMES).wait()
    assert torch.equal(back, FRAMES)
    assert back.data_ptr() != FRAMES.data_ptr()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_the_frames_are_those_of_plain_copies() -> None:
    """Many batches at once, their way up begun in another thread, memory scarce and used again."""
    device, random = torch.device("cuda"), torch.Generator().manual_seed(0)
    carrier = Carrier(device)
    batches = [
        torch.randint(0, 256, (4, 3, 720, 1280), generator=random, dtype=torch.uint8)
        for _ in range(24)
    ]
    expected = [(255 - batch.to(device)).cpu() for batch in batches]
    sent: list[Sent] = []
    reader = threading.Thread(target=lambda: sent.extend(carrier.send(b.clone()) for b in batches))
    reader.start()
    reader.join()
    fetched = []
    weight = torch.rand(4096, 4096, device=device)
    while sent:
        for _ in range(20):  # keeps the device busy: a copy that did not wait would come too soon
            weight = (weight @ weight).clamp(0, 1)
        fetched.append(carrier.fetch(255 - sent.pop(0).take()))
    for back, wanted in zip(fetched, expected, strict=True):
        assert torch.equal(back.wait(), wanted)
