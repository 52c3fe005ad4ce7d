"""Swapping in clips: the right person, steady, in sync, at any length.

A reader thread decodes, this thread does all device work over a short stretch of the clip
(`window`), a writer thread encodes segments that are joined under the original's sound at the end.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from faceswap.account import nothing_swapped, report_of, write_sidecar
from faceswap.cast import Sources, Wish, cast_of
from faceswap.config import EncodeConfig, VideoConfig
from faceswap.errors import MediaError
from faceswap.journal import Journal
from faceswap.media.output import check_output
from faceswap.media.plan import Clip, make_plan
from faceswap.media.planes import FrameBatch
from faceswap.media.prefetch import Prefetch, Sink
from faceswap.media.reader import VideoReader
from faceswap.media.transfer import Fetched
from faceswap.media.writer import VIDEO_EXTENSIONS, Encoding, find_ffmpeg
from faceswap.photo import Photo
from faceswap.segments import Segments
from faceswap.swap import Swapper
from faceswap.types import VideoInfo, VideoReport
from faceswap.window import Loaded, Window

SEGMENT_SECONDS = 5.0  # of the clip; what is lost when the work is killed
_DEPTH = 2  # batches that the reader may be ahead of the work, and the writer behind it ...
_QUEUE_BYTES = 48 << 20  # ... but only one if two are larger than this

T = TypeVar("T")
Progress = Callable[[int, int, int], None]  # frames done, frames in all (0: unknown), faces swapped


def swap_video(
    swapper: Swapper,
    source: Sources,
    clip: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: VideoConfig | None = None,
    reference: Photo | Sequence[Photo] | None = None,
    extra: Sequence[Photo] = (),
    source_face: int | None = None,
    all_faces: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    sidecar: bool = False,
    progress: Progress | None = None,
) -> VideoReport:
    """Swap faces in a clip; sound, subtitles, chapters and everything unswapped stay.

    Args:
        swapper: models, made with ``Swapper.from_config(config, video=True)``.
        source: a photo of the person to put in; or pairs (source, reference photo of the person in
            the clip whom it replaces).
        clip: the video, GIF, animated WebP or APNG.
        output: file to write; container by its extension.
        config: all settings; by default those of the swapper.
        reference: photo or photos of the people to be replaced (with a single source). Without
            any, the person seen in most of the clip is.
        extra: more photos of the source person, averaged.
        source_face: which face of the source photo, from the left, 0 = leftmost.
        all_faces: replace everybody.
        overwrite: whether ``output`` may exist. It is never one of the inputs.
        resume: go on with the work that an interrupted run left beside the output.
        sidecar: also write ``OUTPUT.json``, which says what was swapped when.
        progress: called now and then with frames done, frames in all (0: unknown), faces swapped.

    Returns:
        What was done.

    Raises:
        MediaError: a file cannot be read or written, or another run is making ``output``. Finished
            segments are kept for `resume`. A clip whose end is missing is swapped as far as it
            goes, into ``OUTPUT.partial``.
        NoFaceError: no face in a source or reference, nobody to swap in the clip; no file.
        ConfigError: options that exclude each other.
    """
    began, before = time.perf_counter(), _seconds(swapper)
    config = config or config_of(swapper)
    wish = Wish(source, reference, extra, source_face, all_faces)
    inputs = [p for p in (clip, *wish.photos) if isinstance(p, (str, os.PathLike))]
    target = check_output(output, inputs, overwrite, extensions=VIDEO_EXTENSIONS)
    with VideoReader(clip, config.start or None, config.end) as reader:
        info, beside = reader.info, reader.clip
    encoding = _encoding(config.encode)
    plan = make_plan(target, info, beside, encoding, find_ffmpeg())
    with Journal(target) as journal:
        Segments(journal, info, beside, plan=plan, encoding=encoding).rehearse()
        cast = cast_of(swapper, wish, beside.path, config)
        journal.begin(_key(config, wish, beside.path), resume=resume)
        segments = Segments(journal, info, beside, plan=plan, encoding=encoding)
        window = Window(
            swapper,
            cast.identities,
            roles=cast.roles,
            casting=cast.rule(swapper, config),
            config=config,
            rate=float(info.rate),
        )
        work = _Work(window, segments, swapper.seconds, progress)
        start = work.restore(config.start)
        with window, VideoReader(clip, start, config.end, batch=config.batch_size) as reader:
            work.run(reader)
        if not window.tally.faces_swapped:
            journal.drop()
            raise nothing_swapped(beside.path, cast, window)
        final = target.with_name(target.name + ".partial") if reader.truncated else target
        os.replace(work.complete(), final)
    seconds = {k: v - before.get(k, 0.0) for k, v in _seconds(swapper).items()}
    seconds["total"] = time.perf_counter() - began
    warnings = dict.fromkeys([*plan.warnings, *reader.warnings, *window.warnings])
    report = replace(report_of(final, window, cast, seconds), warnings=tuple(warnings))
    if sidecar:
        write_sidecar(final, beside.path, report)
    if reader.truncated:
        raise MediaError(
            f"{beside.path!r} is cut short; the {report.frames} frames that can be read are "
            f"swapped in {str(final)!r}"
        )
    return report


@dataclass(frozen=True, slots=True)
class _Out:
    """Some frames on their way to the writer."""

    batch: FrameBatch
    frames: Fetched  # as they are to be
    following: int | None  # pts of the frame behind them
    state: dict[str, Any] | None  # of the window, if a segment ends here


class _Work:
    """One clip on its way through the three threads."""

    def __init__(
        self,
        window: Window,
        segments: Segments,
        clock: dict[str, float],
        progress: Progress | None,
    ) -> None:
        self.window, self.segments = window, segments
        self.clock, self.progress = clock, progress

    def restore(self, start: float) -> float | Fraction | None:
        """Take up the work that is there; where to read from, in seconds of the clip."""
        state = self.segments.journal.state
        if state is None:
            return start or None
        self.window.restore(state["window"])
        base = self.segments.info.time_base
        zero = self.segments.beside.origin - math.ceil(Fraction(start) / base)
        moment: Fraction = (state["next"] - zero) * base
        return moment

    def run(self, reader: VideoReader) -> None:
        """Everything between the two ends; finished segments stand in the journal."""
        window, tally = self.window, self.window.tally
        total = _frames_of(self.segments.info, self.segments.beside)
        length = max(1, round(SEGMENT_SECONDS * float(self.segments.info.rate)))
        due = window.pause_at = tally.frames + length
        pixels = self.segments.info.width * self.segments.info.height
        twice = 2 * window.config.batch_size * (3 + 3) * pixels  # as read and as swapped
        depth = _DEPTH if twice <= _QUEUE_BYTES else 1
        try:
            with (
                Prefetch(map(window.load, self._timed(reader, "decode")), depth) as batches,
                Sink(self._write, depth) as sink,
            ):
                for batch, frames in self._swapped(self._timed(batches, "wait_decode")):
                    following, state = window.next_pts, None
                    if tally.frames >= due and following is not None:
                        state = window.state()
                        due = window.pause_at = tally.frames + length
                    began = time.perf_counter()
                    sink.send(_Out(batch, frames, following, state))
                    self._tick("wait_encode", began)
                    if self.progress is not None:
                        self.progress(tally.frames, total, tally.faces_swapped)
        except BaseException:
            self.segments.abort()
            raise

    def complete(self) -> Path:
        """The whole clip."""
        began = time.perf_counter()
        path = self.segments.complete()
        self._tick("encode", began)
        return path

    def _swapped(self, batches: Iterable[Loaded]) -> Iterator[tuple[FrameBatch, Fetched]]:
        for batch in batches:
            yield from self.window.feed(batch)
        yield from self.window.finish()

    def _write(self, out: _Out) -> None:
        began = time.perf_counter()
        self.segments.write(out.batch, out.frames.wait(), out.following)
        if out.state is not None and out.following is not None:
            self.segments.close(out.following, {"window": out.state})
        self._tick("encode", began)

    def _timed(self, batches: Iterable[T], stage: str) -> Iterator[T]:
        """The same, with the time it takes noted."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            self._tick(stage, began)
            if batch is None:
                return
            yield batch

    def _tick(self, stage: str, began: float) -> None:
        self.clock[stage] = self.clock.get(stage, 0.0) + time.perf_counter() - began


def config_of(swapper: Swapper) -> VideoConfig:
    """The swapper's settings, with the defaults of a clip where it has none."""
    if isinstance(swapper.config, VideoConfig):
        return swapper.config
    return VideoConfig(**swapper.config.model_dump())


def _seconds(swapper: Swapper) -> dict[str, float]:
    """Seconds of each stage so far, of all devices together."""
    total: Counter[str] = Counter()
    for each in (swapper, *swapper.twins):
        total.update(each.seconds)
    return dict(total)


def _frames_of(info: VideoInfo, beside: Clip) -> int:
    """Frames that will be read; 0: nobody knows."""
    if beside.start is None and beside.end is None:
        return info.frames
    length = Fraction(info.duration)
    end = length if beside.end is None else min(beside.end, length)
    return round(max(Fraction(0), end - (beside.start or 0)) * info.rate)


def _encoding(settings: EncodeConfig) -> Encoding:
    return Encoding(
        codec=settings.codec or "auto",
        encoder=settings.encoder,
        crf=settings.crf,
        preset=settings.preset,
        rate=None if settings.fps is None else Fraction(settings.fps),
        audio=settings.audio,
    )


def _key(config: VideoConfig, wish: Wish, clip: str) -> dict[str, Any]:
    """All that the result depends on, for the journal."""
    files = [clip] if config.swapper is None else [clip, config.swapper]
    stats = [os.stat(file) for file in files]
    return {
        "config": config.model_dump(mode="json"),
        "files": [
            [os.path.abspath(file), stat.st_size, stat.st_mtime_ns]
            for file, stat in zip(files, stats, strict=True)
        ],
        "wish": wish.digest,
    }
