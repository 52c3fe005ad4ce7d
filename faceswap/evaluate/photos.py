"""Measure swaps of photos, several at a time, so that networks see batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.evaluate.extract import Instruments
from faceswap.evaluate.protocol import Triple, is_clip
from faceswap.evaluate.seen import Seen, look
from faceswap.evaluate.visit import Source, Visit, add, check_sizes, look_at_clip, source_of
from faceswap.media.image import read_image

TOGETHER = 16  # photos of one kind that are looked at together ...
PIXELS = 1 << 24  # ... unless they have more pixels than this in all; bounds memory


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A swap that is read, and not yet measured."""

    number: int
    target: Path
    pixels: Tensor  # (3, H, W) uint8, of the swapped photo
    source: Source


class Photos:
    """Takes swaps one by one, and measures those that it holds together.

    What it knows of the target that came last stays, so that swaps of one target which follow
    each other have it read and looked at once.
    """

    def __init__(self, tools: Instruments) -> None:
        self.tools = tools
        self._waiting: list[_Waiting] = []
        self._targets: dict[Path, Tensor] = {}  # (3, H, W) uint8
        self._seen: dict[Path, Seen] = {}  # one row each

    @property
    def full(self) -> bool:
        """Whether it is time to `measure`."""
        pixels = sum(each.pixels[0].numel() for each in self._waiting)
        return len(self._waiting) >= TOGETHER or pixels >= PIXELS

    def put(self, number: int, triple: Triple, source: Source) -> None:
        """Read a swap.

        Raises:
            MediaError: target or swapped cannot be read, or they differ in size.
        """
        target = self._targets.get(triple.target)
        if target is None:
            target = read_image(triple.target).pixels
        swapped = read_image(triple.swapped).pixels
        check_sizes((triple.target, triple.swapped), (target[None], swapped[None]))
        self._targets[triple.target] = target
        self._waiting.append(_Waiting(number, triple.target, swapped, source))

    def measure(self) -> dict[int, Visit]:
        """What is held, measured, by the swaps' numbers; then nothing is."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return {}
        device = self.tools.device
        new = [path for path in self._targets if path not in self._seen]
        if new:
            found = look(self.tools, [self._targets[path] for path in new])
            self._seen |= {path: found[_one(row)] for row, path in enumerate(new)}
        targets = Seen.cat([self._seen[each.target] for each in waiting])
        swapped = look(self.tools, [each.pixels for each in waiting], targets)
        out = {}
        for row, each in enumerate(waiting):
            pair = self._targets[each.target][None].to(device), each.pixels[None].to(device)
            out[each.number] = visit = Visit(images=1)
            add(visit, self.tools, pair, targets[_one(row)], swapped[_one(row)], each.source)
        last = waiting[-1].target
        self._targets, self._seen = {last: self._targets[last]}, {last: self._seen[last]}
        return out


def look_at_sources(tools: Instruments, paths: Sequence[Path], frames: int) -> dict[Path, Source]:
    """The faces of photos, and of so many frames of clips."""
    out: dict[Path, Source] = {}
    held: dict[Path, Tensor] = {}

    def flush() -> None:
        if held:
            seen = look(tools, list(held.values()))
            for row, (path, picture) in enumerate(held.items()):
                out[path] = source_of(tools, [(picture[None], seen[_one(row)])])
            held.clear()

    for path in paths:
        if is_clip(path):
            out[path] = look_at_clip(tools, path, frames)
            continue
        try:
            held[path] = read_image(path).pixels
        except MediaError as error:
            out[path] = Source.none(str(error))
        if len(held) >= TOGETHER or sum(each[0].numel() for each in held.values()) >= PIXELS:
            flush()
    flush()
    return out


def _one(row: int) -> Tensor:
    return torch.tensor([row])
