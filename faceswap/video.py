"""Swapping in clips: the right person, steady, in sync, at any length.

A reader thread decodes, this thread does all device work over a short stretch of the clip
(`window`), a writer thread encodes segments that are joined under the original's sound at the end.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from faceswap.casting import Casting
from faceswap.config import EncodeConfig, VideoConfig
from faceswap.errors import ConfigError, MediaError, NoFaceError
from faceswap.journal import Journal
from faceswap.media.output import check_output
from faceswap.media.plan import Clip, Plan, make_plan
from faceswap.media.planes import FrameBatch
from faceswap.media.prefetch import Prefetch, Sink
from faceswap.media.provenance import Provenance
from faceswap.media.reader import VideoReader
from faceswap.media.writer import (
    VIDEO_EXTENSIONS,
    Encoding,
    VideoWriter,
    find_ffmpeg,
    join_segments,
)
from faceswap.people import most_present
from faceswap.photo import Photo, embed_references, identify_sources, pair_up
from faceswap.swap import Swapper
from faceswap.types import Identities, VideoInfo, VideoReport
from faceswap.window import Window

SEGMENT_SECONDS = 5.0  # of the clip; what is lost when the work is killed
_DEPTH = 2  # batches the reader and the writer may be apart from the work

Progress = Callable[[int, int, int], None]  # frames done, frames in all (0: unknown), faces swapped


@dataclass(frozen=True, slots=True)
class Cast:
    """Who is put on whom."""

    identities: Identities
    roles: tuple[int, ...]  # row of `identities` for each reference; -1 = to be left alone
    references: Tensor | None  # (K, D) float32
    everyone: bool
    person: str = ""  # one line about whom the clip itself had to name


def swap_video(
    swapper: Swapper,
    source: Photo | Sequence[tuple[Photo, Photo]],
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
        MediaError: a file cannot be read or written. Finished segments are kept for `resume`. A
            clip whose end is missing is swapped as far as it goes, into ``OUTPUT.partial``.
        NoFaceError: no face in a source or reference, nobody to swap in the clip; no file.
        ConfigError: options that exclude each other.
    """
    began, before = time.perf_counter(), dict(swapper.seconds)
    config = config or config_of(swapper)
    clip = os.fspath(clip)
    photos = [p for pair in _pairs(source, reference, all_faces) for p in pair]
    inputs = [p for p in (clip, *photos, *extra) if isinstance(p, (str, os.PathLike))]
    target = check_output(output, inputs, overwrite, extensions=VIDEO_EXTENSIONS)
    with VideoReader(clip, config.start or None, config.end) as reader:
        info, beside = reader.info, reader.clip
    encoding = _encoding(config.encode)
    plan = make_plan(target, info, beside, encoding, find_ffmpeg())
    cast = cast_of(
        swapper,
        source,
        clip,
        config,
        reference=reference,
        extra=extra,
        source_face=source_face,
        all_faces=all_faces,
    )
    journal = Journal(target, _key(config, cast, clip), resume=resume)
    window = Window(
        swapper,
        cast.identities,
        roles=cast.roles,
        casting=casting_of(swapper, config, cast),
        config=config,
        rate=float(info.rate),
    )
    work = _Work(journal, window, info, plan, encoding, beside)
    start = work.restore(config.start)
    try:
        with VideoReader(clip, start, config.end, batch=config.batch_size) as reader:
            work.run(reader, swapper.seconds, progress)
        truncated, warnings = reader.truncated, [*plan.warnings, *reader.warnings]
    except BaseException as error:
        if not journal.segments:
            journal.remove()
        elif isinstance(error, MediaError):
            raise MediaError(f"{error}; what is finished is kept, --resume goes on") from error
        raise
    if not window.tally.faces_swapped:
        journal.remove()
        raise _nothing_swapped(clip, cast, window)
    final = target if not truncated else target.with_name(target.name + ".partial")
    os.replace(work.join(), final)
    journal.remove()
    seconds = {k: v - before.get(k, 0.0) for k, v in swapper.seconds.items()}
    seconds["total"] = time.perf_counter() - began
    warnings += window.warnings
    report = replace(
        _report(final, window, cast, swapper, seconds), warnings=tuple(dict.fromkeys(warnings))
    )
    if sidecar:
        _write_sidecar(final, clip, report)
    if truncated:
        raise MediaError(
            f"{clip!r} is cut short; the {report.frames} frames that can be read are swapped in "
            f"{str(final)!r}"
        )
    return report


class _Work:
    """From batches of the clip to segments on disk, and to one file in the end."""

    def __init__(
        self,
        journal: Journal,
        window: Window,
        info: VideoInfo,
        plan: Plan,
        encoding: Encoding,
        beside: Clip,
    ) -> None:
        self.journal, self.window, self.info = journal, window, info
        self.encoding, self.beside = encoding, beside
        # What is joined must hold exact times, so it is one file where the frame rate changes on
        # the way out, or where the format is no film.
        self.segmented = plan.movie and encoding.rate is None and plan.muxer != "avi"
        self._writer: VideoWriter | None = None
        self._first = 0  # pts of the first frame of the segment
        self._end = 0  # pts at which the newest frame ends
        self._lead = Fraction(0)  # seconds before the first frame of all
        self._suffix = journal.output.suffix.lower()
        begin, end = beside.start or 0, beside.end or Fraction(info.duration)
        span = max(Fraction(0), min(end, Fraction(info.duration)) - begin)
        partial = beside.start is not None or beside.end is not None
        self._total = round(span * info.rate) if partial else info.frames  # 0: nobody knows

    def restore(self, start: float) -> float | Fraction | None:
        """Take up the work that is there; where to read from, in seconds of the clip."""
        state = self.journal.state
        if state is None:
            return start or None
        self.window.restore(state["window"])
        self._lead = Fraction(state["lead"])
        zero = self.beside.origin - math.ceil(Fraction(start) / self.info.time_base)
        moment: Fraction = (state["next"] - zero) * self.info.time_base
        return moment

    def run(self, reader: VideoReader, clock: dict[str, float], progress: Progress | None) -> None:
        """Everything between the two ends; finished segments stand in the journal."""
        rate, tally = float(self.info.rate), self.window.tally
        length = max(1, round(SEGMENT_SECONDS * rate))
        due = tally.frames + length
        try:
            with (
                Prefetch(_timed(reader, clock), _DEPTH) as batches,
                Sink(self._consumer(clock), _DEPTH) as sink,
            ):
                for each in self._swapped(batches):
                    sink.send(each)
                    if progress is not None:
                        progress(tally.frames, self._total, tally.faces_swapped)
                    following = self.window.next_pts
                    if self.segmented and tally.frames >= due and following is not None:
                        due = tally.frames + length
                        sink.send(_Mark(following, self.window.state()))
            self._finish_writer()
        finally:
            if self._writer is not None:
                self._writer.abort()

    def join(self) -> Path:
        """The complete clip, still in the work folder."""
        path = self.journal.folder / f"whole{self._suffix}"
        if self.segmented:
            join_segments(
                path,
                self.journal.segments,
                self.info,
                source=self.beside,
                lead=self._lead,
                encoding=self.encoding,
            )
        return path

    def _swapped(self, batches: Iterable[FrameBatch]) -> Iterator[tuple[FrameBatch, Tensor]]:
        for batch in batches:
            yield from self.window.feed(batch)
        yield from self.window.finish()

    def _consumer(
        self, clock: dict[str, float]
    ) -> Callable[[tuple[FrameBatch, Tensor] | _Mark], None]:
        def consume(item: tuple[FrameBatch, Tensor] | _Mark) -> None:
            began = time.perf_counter()
            if isinstance(item, _Mark):
                self._close_segment(item)
            else:
                self._write(*item)
            clock["encode"] = clock.get("encode", 0.0) + time.perf_counter() - began

        return consume

    def _write(self, batch: FrameBatch, out: Tensor) -> None:
        pts = batch.pts
        if self._writer is None:
            self._first = pts[0]
            if not self.journal.segments:
                self._lead = (pts[0] - self.beside.origin) * self.info.time_base
            whole = self.journal.folder / f"whole{self._suffix}"
            self._writer = VideoWriter(
                self.journal.next_segment() if self.segmented else whole,
                self.info,
                source=None if self.segmented else self.beside,
                encoding=self.encoding,
                overwrite=True,
            )
        self._writer.write(out, pts, batch)
        usual = round(1 / (self.info.rate * self.info.time_base))
        self._end = pts[-1] + max(1, pts[-1] - pts[-2] if len(pts) > 1 else usual)

    def _close_segment(self, mark: _Mark) -> None:
        assert self._writer is not None
        writer, self._writer = self._writer, None
        writer.finish()
        state = {"window": mark.state, "lead": str(self._lead), "next": mark.following}
        self.journal.commit((mark.following - self._first) * self.info.time_base, state)

    def _finish_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
            if self.segmented:
                length = (self._end - self._first) * self.info.time_base
                self.journal.segments.append((writer.path, length))


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sent between batches: a segment ends here."""

    following: int  # pts of the next frame
    state: dict[str, Any]  # of the window


def _timed(batches: Iterable[FrameBatch], clock: dict[str, float]) -> Iterator[FrameBatch]:
    """The same, with the time it takes noted."""
    iterator = iter(batches)
    while True:
        began = time.perf_counter()
        batch = next(iterator, None)
        clock["decode"] = clock.get("decode", 0.0) + time.perf_counter() - began
        if batch is None:
            return
        yield batch


def config_of(swapper: Swapper) -> VideoConfig:
    """The swapper's settings, with the defaults of a clip where it has none."""
    if isinstance(swapper.config, VideoConfig):
        return swapper.config
    return VideoConfig(**swapper.config.model_dump())


def _pairs(
    source: Photo | Sequence[tuple[Photo, Photo]],
    reference: Photo | Sequence[Photo] | None,
    all_faces: bool,
) -> list[tuple[Photo, Photo | None]]:
    """Pairs (source, reference photo)."""
    references: list[Photo] = []
    if isinstance(reference, (str, os.PathLike, np.ndarray, Tensor)):
        references = [reference]
    elif reference is not None:
        references = list(reference)
    if all_faces and (references or not isinstance(source, (str, os.PathLike, np.ndarray, Tensor))):
        raise ConfigError("--all-faces and references (--target-ref, --map) exclude each other")
    if len(references) < 2:
        return pair_up(source, references[0] if references else None)
    return [pair for each in references for pair in pair_up(source, each)]


def cast_of(
    swapper: Swapper,
    source: Photo | Sequence[tuple[Photo, Photo]],
    clip: str,
    config: VideoConfig,
    *,
    reference: Photo | Sequence[Photo] | None = None,
    extra: Sequence[Photo] = (),
    source_face: int | None = None,
    all_faces: bool = False,
) -> Cast:
    """Who is put on whom, as `swap_video` understands these arguments."""
    pairs = _pairs(source, reference, all_faces)
    kept: list[tuple[Photo, Photo | None]] = []  # each source once
    roles = []
    for pair in pairs:
        known = [i for i, other in enumerate(kept) if other[0] is pair[0]]
        roles.append(known[0] if known else len(kept))
        if not known:
            kept.append(pair)
    identities = identify_sources(swapper, kept, extra, source_face)
    photos = [reference for _, reference in pairs if reference is not None]
    if photos:
        return Cast(identities, tuple(roles), embed_references(swapper, photos), False)
    if all_faces:
        return Cast(identities, (0,), None, True)
    references, person = most_present(swapper, clip, config)
    others = 0 if references is None else len(references) - 1
    return Cast(identities, (0,) + (-1,) * others, references, False, person)


def casting_of(swapper: Swapper, config: VideoConfig, cast: Cast) -> Casting:
    """The rule by which tracks get their sources."""
    threshold = config.match.threshold
    return Casting(
        cast.references,
        threshold=swapper.pack.similarity if threshold is None else threshold,
        margin=config.match.margin,
        everyone=cast.everyone,
    )


def _encoding(settings: EncodeConfig) -> Encoding:
    return Encoding(
        codec=settings.codec or "auto",
        encoder=settings.encoder,
        crf=settings.crf,
        preset=settings.preset,
        rate=None if settings.fps is None else Fraction(settings.fps),
        audio=settings.audio,
    )


def _key(config: VideoConfig, cast: Cast, clip: str) -> dict[str, Any]:
    """All that the result depends on, for the journal."""
    stat = os.stat(clip)
    tables = [cast.identities.embedding, cast.references]
    return {
        "config": config.model_dump(mode="json"),
        "clip": [os.path.abspath(clip), stat.st_size, stat.st_mtime_ns],
        "roles": cast.roles,
        "everyone": cast.everyone,
        "people": [None if t is None else t.cpu().numpy().round(3).tolist() for t in tables],
    }


def _nothing_swapped(clip: str, cast: Cast, window: Window) -> NoFaceError:
    """Why a clip stayed as it was, and what to do."""
    tally, casting = window.tally, window.casting
    if not tally.faces_seen:
        return NoFaceError(
            f"{clip}: no face found in {tally.frames} frames; nothing was swapped and nothing "
            "written"
        )
    if cast.references is not None and casting.best > -1:
        return NoFaceError(
            f"{clip}: nobody matches the reference (best similarity {casting.best:.2f}, needed "
            f"{casting.threshold:.2f}); use another reference photo, such as one that `faceswap "
            f"faces` writes, or --set match.threshold={max(casting.best - 0.01, 0):.2f}"
        )
    return NoFaceError(
        f"{clip}: {tally.faces_seen} faces were found, none for long enough to be a person; "
        "nothing was swapped and nothing written"
    )


def _report(
    output: Path, window: Window, cast: Cast, swapper: Swapper, seconds: dict[str, float]
) -> VideoReport:
    tally = window.tally
    names = cast.identities.names
    return VideoReport(
        output=str(output),
        frames=tally.frames,
        faces_seen=tally.faces_seen,
        faces_swapped=tally.faces_swapped,
        pack=swapper.pack.name,
        device=str(swapper.device),
        seconds=seconds,
        jitter=tally.jitter_sum / tally.jitter_frames if tally.jitter_frames else None,
        tracks=tally.tracks,
        bridged=tally.bridged,
        dropped=tally.dropped,
        person=cast.person,
        peak_mb=_peak_mb(),
        swaps=tuple(
            {"track": n, "source": names[s], "first": a, "last": b, "frames": count}
            for n, (s, a, b, count) in sorted(tally.swaps.items())
        ),
    )


def _peak_mb() -> float | None:
    """Most memory the process ever held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _write_sidecar(output: Path, clip: str, report: VideoReport) -> None:
    """``OUTPUT.json``: that this is synthetic, and what was swapped when."""
    mark = Provenance()
    content = {
        "synthetic_media": True,
        "digital_source_type": mark.source_type,
        "tool": mark.tool,
        "output": output.name,
        "made_from": os.path.basename(clip),
        "frames": report.frames,
        "faces_swapped": report.faces_swapped,
        "swaps": report.swaps,  # times in seconds of the clip it was made from
    }
    path = output.with_name(output.name + ".json")
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MediaError(f"Cannot write {str(path)!r}: {error.strerror}") from error
