"""From swapped batches to segments on disk, and to one clip in the end.

A segment that is closed survives the process. Segments of a film are encoded as they will be
played, and joined without being encoded again. An animation is one stream of pictures that build
on each other, so its segments are lossless (FFV1 in NUT, which keeps any pixel format and any time
base), and it is encoded when all of them are there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faceswap.errors import MediaError
from faceswap.journal import Journal
from faceswap.media.encoders import Encoding
from faceswap.media.plan import LOSSLESS, Clip, Plan
from faceswap.media.planes import FrameBatch
from faceswap.media.reader import VideoReader
from faceswap.media.writer import VideoWriter, join_segments
from faceswap.types import VideoInfo

_SAME_SAMPLES = {"gbrp": "bgr0", "gbrap": "bgra"}  # formats of FFV1 that hold these
_BATCH = 8  # frames of an animation that are read back together


class Segments:
    """Where the frames of a clip go.

    Args:
        journal: of the output, begun; ``lead`` and ``next`` of its state are this class's.
        info: of the clip.
        beside: what else the clip holds, and where in it the frames are from.
        plan: how the output is written.
        encoding: what the user asked for.
    """

    def __init__(
        self, journal: Journal, info: VideoInfo, beside: Clip, *, plan: Plan, encoding: Encoding
    ) -> None:
        self.journal, self.info, self.beside = journal, info, beside
        self.encoding = encoding
        self._movie = plan.movie
        self._suffix = journal.output.suffix.lower()
        rate = encoding.rate or (info.rate if plan.muxer == "avi" else None)
        self._rate = rate if plan.movie else None  # None: frames keep their times
        self._base = 1 / self._rate if self._rate else info.time_base  # seconds a tick of ours
        self._writer: VideoWriter | None = None
        self._first = 0  # tick of the first frame of the segment
        self._end = 0  # tick at which the newest frame ends
        state = journal.state
        self._lead = None if state is None else Fraction(state["lead"])  # seconds before the first

    def rehearse(self) -> None:
        """Encode two frames of nothing as the output will be, and throw them away.

        What an encoder does not take (a preset, a quality, a size, a container, a GPU that is not
        there) it says when it is opened, which would be at the very end for an animation.

        Raises:
            MediaError: it cannot be written.
        """
        path = self.journal.folder / f"trial{self._suffix}"
        info = self._played()
        encoding = self.encoding if not self._movie else replace(self.encoding, rate=None)
        step = max(1, round(1 / (info.rate * info.time_base)))
        frames = torch.zeros(2, 3, info.height, info.width, dtype=torch.uint8)
        frames[1] = 128
        try:
            with VideoWriter(path, info, encoding=encoding, overwrite=True) as out:
                out.write(frames, [0, step])
        except MediaError as error:
            said = str(error).partition(": ")[2]
            if "no space" in said:
                raise
            raise MediaError(
                f"{self.journal.output.name!r} cannot be encoded: {said}; choose another --codec, "
                "--encoder, --crf, --preset or extension"
            ) from error
        path.unlink()

    def write(self, batch: FrameBatch, out: Tensor, following: int | None) -> None:
        """Take some frames.

        Args:
            batch: as they were read.
            out: ``(B, 3, H, W) uint8``, as they are to be.
            following: pts of the frame behind them; None: there is none.
        """
        for index, tick in self._ticks(batch, following):
            if self._writer is None:
                self._first = tick
                if self._lead is None:
                    self._lead = tick * self._base
                self._writer = self._open()
            one = slice(index, index + 1)
            original = replace(
                batch, frames=batch.frames[one], pts=batch.pts[one], planes=batch.planes[one]
            )
            self._writer.write(out[one], [tick], original)

    def close(self, following: int, state: dict[str, Any]) -> None:
        """End a segment, so that work can go on behind it.

        Args:
            following: pts of the frame behind it.
            state: plain values and tensors to go on with.
        """
        if self._writer is None:  # at a low frame rate it may not have a frame yet
            return
        path, length = self._finish()
        self.journal.commit(path, length, {**state, "lead": str(self._lead), "next": following})

    def complete(self) -> Path:
        """The whole clip, when all frames are written; still in the work folder."""
        if self._writer is not None:
            self.journal.segments.append(self._finish())
        whole = self.journal.folder / f"whole{self._suffix}"
        if self._movie:
            join_segments(
                whole,
                self.journal.segments,
                self.info,
                source=self.beside,
                lead=self._lead or Fraction(0),
                encoding=self.encoding,
            )
        else:
            self._animate(whole)
        return whole

    def abort(self) -> None:
        """Drop the segment that is being written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _ticks(self, batch: FrameBatch, following: int | None) -> Iterator[tuple[int, int]]:
        """(frame of the batch, its tick), counted from the start of the output."""
        last, pts = following is None, batch.pts
        if following is None:
            usual = round(1 / (self.info.rate * self.info.time_base))
            following = pts[-1] + max(1, pts[-1] - pts[-2] if len(pts) > 1 else usual)
        times = [pts - self.beside.origin for pts in (*batch.pts, following)]
        if self._rate is None:
            yield from enumerate(times[:-1])
            self._end = times[-1]
        else:
            seconds = [time * self.info.time_base for time in times]
            numbered = list(at_rate(seconds, self._rate))
            if last and not numbered and self._lead is None:  # a clip shorter than one frame
                numbered = [(len(batch) - 1, nearest(seconds[-2], self._rate))]
            yield from numbered
            ends = [number + 1 for _, number in numbered[-1:]]
            self._end = max([nearest(seconds[-1], self._rate), *ends])

    def _open(self) -> VideoWriter:
        info, encoding, suffix = self._played(), replace(self.encoding, rate=None), self._suffix
        if not self._movie:
            name = _SAME_SAMPLES.get(info.pixel_format, info.pixel_format)
            encoding, suffix = Encoding(codec="ffv1", pixel_format=name), LOSSLESS
        path = self.journal.next_segment(suffix)
        return VideoWriter(path, info, encoding=encoding, overwrite=True)

    def _played(self) -> VideoInfo:
        """What a film's encoder is told of its frames."""
        if self._rate is None:
            return self.info
        return replace(self.info, rate=self._rate, time_base=self._base, variable_rate=False)

    def _finish(self) -> tuple[Path, Fraction]:
        """The segment that was being written, and its length in seconds."""
        assert self._writer is not None
        writer, self._writer = self._writer, None
        writer.finish()
        return writer.path, (self._end - self._first) * self._base

    def _animate(self, whole: Path) -> None:
        """Encode the lossless segments as one animation."""
        base, begin = self.info.time_base, self._lead or Fraction(0)
        with VideoWriter(
            whole, self.info, source=self.beside, encoding=self.encoding, overwrite=True
        ) as out:
            for path, length in self.journal.segments:
                with VideoReader(path, batch=_BATCH) as reader:
                    start = reader.origin * reader.info.time_base
                    for batch in reader:
                        at = [round((begin + t - start) / base) for t in batch.seconds]
                        at = [self.beside.origin + tick for tick in at]
                        out.write(batch.frames, at, replace(batch, pts=tuple(at), time_base=base))
                begin += length


def nearest(seconds: Fraction, rate: Fraction) -> int:
    """The frame of a constant rate that a moment falls to, as ffmpeg's filter "fps" has it."""
    return math.floor(seconds * rate + Fraction(1, 2))


def at_rate(
    seconds: Sequence[Fraction],  # n + 1: n frames in order, and when the last of them ends
    rate: Fraction,
) -> Iterator[tuple[int, int]]:
    """(frame, number at the constant rate): frames are repeated and left out to reach it.

    Each stands from the number nearest to its time to that of the next frame, so it does not
    matter how a clip is cut into pieces.
    """
    numbers = [nearest(moment, rate) for moment in seconds]
    for index, (begin, end) in enumerate(itertools.pairwise(numbers)):
        for number in range(begin, end):
            yield index, number
