"""Videos in, as batches of frames with exact times.

PyAV decodes; animated WebP, which its ffmpeg may not know, comes through Pillow. Frames are turned
upright. Memory does not depend on the length of the clip.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import av
import av.error
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from torch import Tensor

from faceswap.errors import ConfigError, MediaError, MissingMediaError
from faceswap.media import tags
from faceswap.media.animation import WebpAnimation, is_webp
from faceswap.media.buffers import Buffers
from faceswap.media.plan import Clip
from faceswap.media.planes import FrameBatch, Plane, PlaneFormat, carrier, matrix_of, to_rgb
from faceswap.types import VideoInfo

# Containers that hold their own media; playlists, which name other files, are not among them.
_CONTAINERS = (
    "mov,matroska,avi,gif,apng,mpegts,mpeg,flv,asf,ogg,nut,mxf,yuv4mpegpipe,h264,hevc,mpegvideo,"
    "m4v,rm,dv,ivf,obu"
)
# Tags that are no UTF-8 must not stop a clip: PyAV 19 hands them on, before it had to be told.
_TOLERANT: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
)
_PHOTOS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")
_HEAD_BYTES = 1 << 20  # where the mark of an animated PNG (acTL) is looked for
# Of swscale's ways to RGB these are quick and good: 8 bits to packed (1080p: 1 ms, 0.8 to 1.2
# levels off on average; accurate rounding with chroma between samples: 25 ms and 0.4), more to
# planar (0.3 to 0.5 off). No frame gets worse by it, because only differences of what is read here
# are ever written (see `planes`). Not 8 bits to planar: its fast path leaves the last columns
# unwritten where the width is not a multiple of 16 (FFmpeg 8.1).
_GBRP = PlaneFormat("gbrp", "gbr", 8)
_CUT_SECONDS = 0.25  # a clip that ends this much before its announced end was cut


class _Frame(NamedTuple):
    pts: int
    rgb: Tensor  # (3, H, W) uint8, of any strides
    planes: tuple[Plane, ...]


class VideoReader:
    """Iterate once over a video as `FrameBatch`es; use it in a ``with`` block.

    ``info`` describes the upright frames as they are given out: ``info.pixel_format`` is the
    planar format of ``FrameBatch.planes`` (the stream's own, or one that holds the same samples).
    ``warnings`` grows while reading; ``damaged`` says whether frames were lost on the way,
    ``truncated`` whether the end is missing.
    ``origin`` is the tick that is time zero for the output: where the container (not the video
    stream: sound may come first) starts, or ``start``. ``clip`` is what the writer needs to know
    of the file in order to copy its sound and the rest.

    Args:
        path: the file.
        start: seconds from the start of the container; frames before are not given out.
        end: seconds; frames at or after are not given out.
        batch: frames a batch; the last one may be shorter.

    Raises:
        MissingMediaError: there is no such file.
        MediaError: not a video, nothing in it can be decoded, or nothing lies in the interval.
        ConfigError: an interval that is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start: float | Fraction | None = None,
        end: float | Fraction | None = None,
        batch: int = 8,
    ) -> None:
        start, end = _exact(start), _exact(end)
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it has to be at least 1")
        if (start or 0) < 0 or (end is not None and end <= (start or 0)):
            raise ConfigError(
                f"From {float(start or 0):g} s to {float(end or 0):g} s is no part of a video"
            )
        self.path = os.fspath(path)
        self.warnings: list[str] = []
        self.damaged = False
        self.truncated = False
        self._batch = batch
        self._buffers = Buffers()
        _check_file(self.path)
        if is_webp(self.path):
            self._source: WebpAnimation | _AvSource = WebpAnimation(self.path)
        else:
            self._source = _AvSource(self.path, self._buffers)
        try:
            self.info = self._source.info
            base = self.info.time_base
            self.origin = self._source.origin
            stop = None if end is None else self.origin + math.ceil(end / base)
            self._stop = stop
            if start:
                self.origin += math.ceil(start / base)
                self._source.seek(self.origin)
            self._frames = self._between(self.origin if start else None, stop)
            self._first = next(self._frames, None)
            if self._first is None:
                where = f" from {float(start):g} s on" if start else ""
                raise MediaError(f"No frame of {self.path!r} can be decoded{where}")
        except BaseException:
            self._source.close()
            raise
        self.clip = replace(
            self._source.clip(),
            origin=self.origin,
            start=start or None,
            end=end,
        )
        if self.info.interlaced:
            self.warnings.append(f"{self.path!r} is interlaced; it is treated as progressive")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; leaving the ``with`` block does it."""
        self._source.close()

    def __iter__(self) -> Iterator[FrameBatch]:
        head, self._first = self._first, None
        frames = itertools.chain([] if head is None else [head], self._frames)
        while (batch := self._pack(itertools.islice(frames, self._batch))) is not None:
            yield batch

    def frame_at(self, seconds: float | Fraction) -> FrameBatch | None:
        """The first frame at or after a moment, counted as ``start`` is; None if there is none.

        Reading goes on behind it. For a look here and there; files without an index take long.
        """
        base = self.info.time_base
        tick = self._source.origin + math.ceil((_exact(seconds) or 0) / base)
        try:
            self._source.seek(tick)
        except av.error.FFmpegError:
            return None
        self._first, self._frames = None, self._between(tick, self._stop)
        return self._pack(itertools.islice(self._frames, 1))

    def _pack(self, frames: Iterator[_Frame]) -> FrameBatch | None:
        """At most a batch; None: there was nothing left."""
        rgb, taken = self._buffers.tensor(self._batch, 3, self.info.height, self.info.width), 0
        pts, planes = [], []
        for frame in frames:
            rgb[taken].copy_(frame.rgb)
            pts.append(frame.pts)
            planes.append(frame.planes)
            taken += 1
        if not taken:
            return None
        return FrameBatch(rgb[:taken], tuple(pts), self.info.time_base, tuple(planes))

    def _between(self, begin: int | None, stop: int | None) -> Iterator[_Frame]:
        """Frames at ticks begin <= pts < stop, with strictly increasing times."""
        last: int | None = None
        repaired = 0
        for pts, rgb, planes in self._source:
            if begin is not None and pts < begin:
                continue
            if stop is not None and pts >= stop:
                break
            if last is not None and pts <= last:
                pts = last + 1
                repaired += 1
            last = pts
            yield _Frame(pts, rgb, planes)
        if repaired:
            self.warnings.append(f"{repaired} frames of {self.path!r} had times that run backwards")
        self.damaged = bool(self._source.problems)
        self.truncated = self._source.truncated
        self.warnings.extend(self._source.problems)


class _AvSource:
    """Decoded frames of the first video stream, in the order they are shown."""

    def __init__(self, path: str, buffers: Buffers) -> None:
        self.path = path
        self.problems: list[str] = []
        self.truncated = False
        self._buffers = buffers
        self._container = _open(path)
        try:
            videos = [
                stream
                for stream in self._container.streams.video
                if not stream.disposition & Disposition.attached_pic  # cover art
            ]
            if not videos:
                raise MediaError(f"{path!r} has no video in it")
            self._stream = videos[0]
            self._stream.thread_type = "AUTO"
            self._base = _fraction(self._stream.time_base or Fraction(1, av.time_base))
            begin = Fraction(self._container.start_time or 0, av.time_base)
            self.origin = round(begin / self._base)
            self._reformatter = VideoReformatter()
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise MediaError(f"No frame of {path!r} can be decoded")
            self._head: av.VideoFrame | None = first
            self._turns = round(first.rotation / 90) % 4  # quarter turns, counter-clockwise
            self._form = _planar_form(first, self._turns)
            self.info = self._describe(first)
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def clip(self) -> Clip:
        """What lies beside the frames."""
        streams = self._container.streams
        tags_here = {
            key.lower(): value.encode("utf-8", "ignore").decode()  # PyAV 19 keeps odd bytes
            for key, value in self._container.metadata.items()
        }
        return Clip(
            self.path,
            video=self._stream.index,
            audio=tuple(_codec(stream) for stream in streams.audio),
            subtitles=tuple(_codec(stream) for stream in streams.subtitles),
            comment=tags_here.get("comment", ""),
        )

    def seek(self, tick: int) -> None:
        """Go on at the last key frame before ``tick``."""
        self._container.seek(tick, stream=self._stream, backward=True)
        self._head = None
        self._decoded = self._decode()

    def __iter__(self) -> Iterator[tuple[int, Tensor, tuple[Plane, ...]]]:
        step = max(1, round(1 / (self.info.rate * self._base)))
        reached = self.origin
        head, self._head = self._head, None
        for frame in itertools.chain([head] if head else [], self._decoded):
            pts = reached if frame.pts is None else int(frame.pts)
            reached = pts + max(step, frame.duration or 0)
            yield pts, *self._convert(frame)
        missing = self._announced_end() - float(reached * self._base)
        if missing > max(_CUT_SECONDS, float(2 * step * self._base)):
            self.truncated = True
            self.problems.append(
                f"{self.path!r} ends {missing:.1f} s before its announced end; it was cut short"
            )

    def _announced_end(self) -> float:
        """Seconds, as the container says; 0 if it says nothing of this stream."""
        stream = self._stream
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * self._base)
        written = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
        if written:  # Matroska
            return int(written[1]) * 3600 + int(written[2]) * 60 + float(written[3])
        if len(self._container.streams) == 1:
            return (self._container.duration or 0) / av.time_base
        return 0.0

    def _decode(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        bad = 0
        corrupt = 0
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.truncated = True
                self.problems.append(f"{self.path!r} cannot be read to its end: {error.strerror}")
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                bad += 1
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                corrupt += frame.is_corrupt
                yield frame
        if bad or corrupt:
            self.problems.append(
                f"{self.path!r} is damaged: {bad} packets were skipped, {corrupt} frames are faulty"
            )

    def _convert(self, frame: av.VideoFrame) -> tuple[Tensor, tuple[Plane, ...]]:
        width, height = self.info.width, self.info.height
        if self._turns % 2:
            width, height = height, width
        same = frame.format.name.replace("yuvj", "yuv") == self._form.name
        own = frame
        if not same or (frame.width, frame.height) != (width, height):
            own = self._reformatter.reformat(frame, width, height, self._form.name)
        planes = _read_planes(own, self._form, self._buffers)
        rgb: Plane
        if self._form.kind == "yuv":
            matrix = tags.SWSCALE.get(matrix_of(self.info), tags.SWSCALE_BT601)
            shown = self._reformatter.reformat(
                frame,
                width,
                height,
                "rgb24" if self._form.bits == 8 else "gbrp",
                src_colorspace=matrix,
                src_color_range=2 if self.info.color_range == "pc" else 1,
                dst_color_range=2,
            )
            if self._form.bits == 8:
                rgb = shown.to_ndarray().transpose(2, 0, 1)
            else:
                rgb = to_rgb(_read_planes(shown, _GBRP, self._buffers), _GBRP)
        else:
            rgb = to_rgb(planes, self._form)
        if self._turns:
            rgb = np.ascontiguousarray(np.rot90(rgb, self._turns, axes=(1, 2)))  # no < 0 strides
            planes = tuple(np.ascontiguousarray(np.rot90(p, self._turns)) for p in planes)
        return torch.from_numpy(rgb), planes

    def _describe(self, frame: av.VideoFrame) -> VideoInfo:
        stream, context = self._stream, self._stream.codec_context
        width, height = frame.width, frame.height
        aspect = _fraction(stream.sample_aspect_ratio or 1)
        if self._turns % 2:
            width, height, aspect = height, width, 1 / aspect
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        base_rate = stream.base_rate or rate
        if stream.duration:
            duration = float(stream.duration * self._base)
        else:
            duration = (self._container.duration or 0) / av.time_base
        full = frame.color_range == 2 or frame.format.name.startswith("yuvj")
        return VideoInfo(
            width=width,
            height=height,
            rate=_fraction(rate),
            time_base=self._base,
            frames=stream.frames,
            duration=duration,
            rotation=-90 * self._turns % 360,
            pixel_format=self._form.name,
            bits=self._form.bits,
            codec=_codec(stream),
            container=self._container.format.name,
            color_space=tags.MATRICES.get(int(frame.colorspace), ""),
            color_primaries=tags.PRIMARIES.get(int(context.color_primaries), ""),
            color_transfer=tags.TRANSFERS.get(int(context.color_trc), ""),
            color_range="pc" if full else tags.RANGES.get(int(frame.color_range), ""),
            sample_aspect=aspect,
            interlaced=frame.interlaced_frame,
            variable_rate=abs(float(base_rate / rate) - 1) > 1e-3,
            alpha=self._form.alpha and self._see_through(frame),
            audio=len(self._container.streams.audio),
            subtitles=len(self._container.streams.subtitles),
        )

    def _see_through(self, frame: av.VideoFrame) -> bool:
        if frame.format.name != self._form.name:
            frame = self._reformatter.reformat(frame, format=self._form.name)
        return int(_read_planes(frame, self._form, self._buffers)[-1].min()) < self._form.top


def _codec(stream: av.stream.Stream) -> str:
    """The codec's own name: "mp3" and not "mp3float", which is one of its decoders."""
    context = stream.codec_context
    return "unknown" if context is None else str(context.codec.canonical_name)


class _Ratio(Protocol):
    """What newer PyAV has for rationals, which is no `numbers.Rational`; a Fraction before."""

    @property
    def numerator(self) -> int: ...
    @property
    def denominator(self) -> int: ...


def _fraction(ratio: _Ratio) -> Fraction:
    return Fraction(ratio.numerator, ratio.denominator)


def _exact(seconds: float | Fraction | None) -> Fraction | None:
    """0.8 as 4/5: as a float it is a little more, and the frame at 0.8 s would be left out."""
    return None if seconds is None else Fraction(seconds).limit_denominator(1_000_000)


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise MissingMediaError(f"There is no file {path!r}")
    if os.path.isdir(path):
        raise MediaError(f"{path!r} is a folder; give a video")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(f"{path!r} cannot be read: {error.strerror}") from error
    if not head:
        raise MediaError(f"{path!r} is empty")
    if head.startswith(_PHOTOS) and b"acTL" not in head:
        raise MediaError(f"{path!r} is a photo, not a video; use `faceswap image`")


def _open(path: str) -> av.container.InputContainer:
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        container: av.container.InputContainer = av.open(
            "file:" + os.path.abspath(path), options=options, **_TOLERANT
        )
        return container
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path!r} is not a video that can be read, or it is cut off before its index "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error


def _planar_form(frame: av.VideoFrame, turns: int) -> PlaneFormat:
    components = frame.format.components
    alpha = frame.format.name == "pal8" or any(part.is_alpha for part in components)
    bits = max((part.bits for part in components), default=8)
    return carrier(frame.format.name, alpha, bits > 8, turned=bool(turns % 2))


def _read_planes(frame: av.VideoFrame, form: PlaneFormat, buffers: Buffers) -> tuple[Plane, ...]:
    shapes = form.shapes(frame.height, frame.width)
    planes = buffers.planes(shapes, form.sample_bytes)
    for plane, own, (height, width) in zip(planes, frame.planes, shapes, strict=True):
        samples = np.frombuffer(memoryview(own), f"<u{form.sample_bytes}")
        rows = samples.reshape(-1, own.line_size // form.sample_bytes)
        np.copyto(plane, rows[:height, :width])
    return tuple(planes)
